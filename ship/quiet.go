package ship

import (
	"sync"
	"time"
)

const (
	// quietLines is how many lines are logged in each quietTime about what strangers, or a peer that does not answer, can cause.
	quietLines = 10
	quietTime  = 10 * time.Second
)

// quiet bounds how many lines are logged. Its methods may be called at the same time.
type quiet struct {
	mu    sync.Mutex // guards all below
	began time.Time
	lines int
	left  int
}

// next reports whether a line is to be logged, and how many before it were left out.
func (q *quiet) next(now time.Time) (left int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.began) >= quietTime {
		q.began, q.lines = now, 0
	}
	if q.lines == quietLines {
		q.left++
		return 0, false
	}
	q.lines++
	left, q.left = q.left, 0
	return left, true
}

// sayAgain is after how long an error that has not changed is logged again.
const sayAgain = time.Minute

// complaint remembers the error that was logged last.
type complaint struct {
	text string
	at   time.Time
}

// news reports whether an error is another than the last one, or that one is old.
func (c *complaint) news(err error, now time.Time) bool {
	if err.Error() == c.text && now.Sub(c.at) < sayAgain {
		return false
	}
	c.text, c.at = err.Error(), now
	return true
}
