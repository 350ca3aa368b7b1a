package wal

import (
	"fmt"
	"sync/atomic"
	"time"
)

// stallGuard watches one write or sync at a time. One that takes longer than Options.StallTimeout poisons the log while it is still under
// way: a disk that does not answer is one that has failed, whatever it answers in the end.
type stallGuard struct {
	timer *time.Timer // nil: nothing is watched
	limit time.Duration
	began atomic.Int64 // in nanoseconds of monotonic time since start; 0: nothing is under way
	start time.Time
}

// guard has g watch over l.
func (g *stallGuard) guard(l *Log) {
	if g.limit = l.opts.StallTimeout; g.limit < 0 {
		return
	}
	g.start = time.Now()
	g.timer = time.AfterFunc(g.limit, func() {
		_ = l.poisonWith(fmt.Errorf("%w: no answer to a write or sync for %v", ErrStalled, g.limit))
	})
	g.timer.Stop()
}

func (g *stallGuard) begin() {
	if g.timer != nil {
		g.began.Store(int64(time.Since(g.start)) + 1)
		g.timer.Reset(g.limit)
	}
}

func (g *stallGuard) end() {
	if g.timer != nil {
		g.timer.Stop()
		g.began.Store(0)
	}
}

// lasts is how long what is under way has taken.
func (g *stallGuard) lasts() time.Duration {
	if began := g.began.Load(); began != 0 {
		return time.Since(g.start) - time.Duration(began)
	}
	return 0
}

// Stalled returns for how long the disk has not answered the write or sync that is under way; zero: none is.
func (l *Log) Stalled() time.Duration { return max(l.writeGuard.lasts(), l.syncGuard.lasts()) }
