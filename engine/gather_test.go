package engine

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestGatherEnds: writers that do not come again are not waited for without end: not after a sync that took long, and not where time stands still.
func TestGatherEnds(t *testing.T) {
	synctest.Test(t, func(*testing.T) {
		for _, took := range []time.Duration{0, time.Millisecond, time.Hour} {
			p := &pipeline{last: 3, queue: make([]*commit, 2)}
			p.pause.took = took
			p.gather()
		}
	})
}
