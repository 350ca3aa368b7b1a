package engine

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock is log time: unix milliseconds that never fall and that move on by the monotonic clock
// between what the log and the leader's heartbeats say. Expiry is judged by it, so a node whose
// wall clock is behind its predecessor's revives nothing.
type clock struct {
	now   func() time.Time
	since func(t time.Time) time.Duration // now less t

	mu    sync.Mutex // serialises changes of state
	state atomic.Pointer[instant]
}

// instant is log time at a moment.
type instant struct {
	base int64     // unix milliseconds
	at   time.Time // carries the monotonic reading
}

// newClock returns a clock that goes on by now; nil is the system's.
func newClock(now func() time.Time) *clock {
	c := &clock{now: now, since: time.Since}
	if now == nil {
		c.now = time.Now // time.Since reads the monotonic clock alone, in half the time
	} else {
		c.since = func(t time.Time) time.Duration { return now().Sub(t) }
	}
	c.state.Store(&instant{at: c.now()})
	return c
}

// observe moves the clock forward to log time ms, if it is behind.
func (c *clock) observe(ms int64) {
	if ms <= c.read() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ms > c.read() {
		c.state.Store(&instant{ms, c.now()})
	}
}

// read returns log time in unix milliseconds.
func (c *clock) read() int64 {
	s := c.state.Load()
	return s.base + max(0, c.since(s.at).Milliseconds())
}

// time is read as a time.Time, the form in which the log asks for it.
func (c *clock) time() time.Time { return time.UnixMilli(c.read()) }
