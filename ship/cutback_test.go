package ship_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"shiplog/ship"
	"shiplog/wal"
)

// alone is a node whose commits no follower had to confirm.
type alone struct{ *node }

func (alone) CommittedAlone(wal.LSN) bool { return true }

func (a alone) CutLog(to wal.LSN) error {
	a.mu.Lock()
	a.committed = min(a.committed, to)
	a.mu.Unlock()
	return a.log.Truncate(to)
}

// An upstream whose log is cut back below what it has sent, and in whose new history an epoch begins just where the follower's log
// ends, does not send that epoch's record: it would pass for what follows there, behind bytes that it does not continue. The
// follower comes back, learns of the fork, and cuts.
func TestUpstreamCutBackWhileItShips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 41)
		l := smallLog(t, rng)
		l.refuseAll = true
		c := startLeader(t, l, nil)
		defer c.stop()
		n := newFollowerNode(t)
		f, err := ship.NewFollower(alone{n}, &ship.FollowerOptions{
			Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		fork := l.log.Head()
		next := l.log.Epoch().NextTerm()
		if _, err := l.log.StartEpoch(next, wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		size := 800 + int(l.log.Head()-fork)
		end := l.write(t, 800, rng)
		l.commit()
		until(t, "shipped", func() bool { return n.log.Head() == end && n.Committed() == end })

		l.mu.Lock()
		l.committed = fork
		l.mu.Unlock()
		if err := l.log.Truncate(fork); err != nil {
			t.Fatal(err)
		}
		if got := l.write(t, size, rng); got != end {
			t.Fatalf("the other history has a frame that ends at %s, wanted is %s", got, end)
		}
		if _, err := l.log.StartEpoch(next.NextTerm(), wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		l.write(t, 500, rng)
		l.commit()
		until(t, "followed", func() bool {
			return n.log.Head() == l.log.Head() || len(done) > 0
		})
		samePrefix(t, l.log, n.log)
		if st := f.Status(); st.Cuts != 1 {
			t.Errorf("%d cuts, want 1; last error %v", st.Cuts, st.LastError)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run returned %v", err)
		}
	})
}
