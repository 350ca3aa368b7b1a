package engine

import (
	"sync"
	"time"
)

// clock is log time: unix milliseconds that never fall and that move on by the monotonic clock
// between what the log and the leader's heartbeats say. Expiry is judged by it, so a node whose
// wall clock is behind its predecessor's revives nothing.
type clock struct {
	now func() time.Time

	mu   sync.Mutex // guards the two below
	base int64      // log time at the instant `at`
	at   time.Time  // carries the monotonic reading
}

func newClock(now func() time.Time) *clock {
	return &clock{now: now, at: now()}
}

// observe moves the clock forward to log time ms, if it is behind.
func (c *clock) observe(ms int64) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if ms > c.base+now.Sub(c.at).Milliseconds() {
		c.base, c.at = ms, now
	}
}

// read returns log time in unix milliseconds.
func (c *clock) read() int64 {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base + max(0, now.Sub(c.at).Milliseconds())
}

// time is read as a time.Time, the form in which the log asks for it.
func (c *clock) time() time.Time { return time.UnixMilli(c.read()) }
