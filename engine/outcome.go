package engine

import (
	"context"
	"errors"
	"fmt"
)

// Outcome is what has become of a write.
type Outcome uint8

// The outcomes of a write whose position is known.
const (
	// Pending: in the log, or not here yet, and not confirmed.
	Pending Outcome = iota
	// Committed: visible for good, and on this node's disk.
	Committed
	// Lost: the history went on without it.
	Lost
)

// String gives the outcome's name in lower case.
func (o Outcome) String() string {
	switch o {
	case Pending:
		return "pending"
	case Committed:
		return "committed"
	default:
		return "lost"
	}
}

// Outcome says what has become of the write that was reported at p, on any node of the database.
// ErrTrimmed: the log no longer reaches back to p, so p was committed or its history is unknown here.
// ErrInvalidOption: p is zero, the position of a write that had not got as far as the log.
func (db *DB) Outcome(p Position) (Outcome, error) {
	if p == (Position{}) {
		return Pending, fmt.Errorf("%w: the outcome of no position", ErrInvalidOption)
	}
	switch err := db.checkLineage(p); {
	case errors.Is(err, ErrLost):
		return Lost, nil
	case err != nil:
		return Pending, err
	}
	if db.marks.committedLSN() >= p.LSN {
		return Committed, nil
	}
	return Pending, nil
}

// WaitApplied returns once this node's readers see everything up to p: with the position of a write
// it gives read-your-writes on any node, with that of a read monotonic reads. ErrLost, and no wait,
// for a position that a fork has left behind; ErrLogOnly on a node that has no readers. The zero Position, that of a read of an
// empty database, is not waited for.
func (db *DB) WaitApplied(ctx context.Context, p Position) error {
	if db.opts.LogOnly {
		return fmt.Errorf("wait for readers: %w", ErrLogOnly)
	}
	if p == (Position{}) {
		return nil
	}
	return db.waitMarks(ctx, func() (bool, error) {
		if err := db.checkLineage(p); err != nil && !errors.Is(err, ErrTrimmed) {
			return false, err
		}
		return db.marks.visibleLSN() >= p.LSN, nil
	})
}

// waitMarks asks ready after each change of the marks, and returns once it says yes or fails.
func (db *DB) waitMarks(ctx context.Context, ready func() (bool, error)) error {
	for {
		changed := db.marks.change()
		if ok, err := ready(); ok || err != nil {
			return err
		}
		if db.closed.Load() {
			return ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// CountReached counts the connected followers, voters or not, that have confirmed everything up to p
// in the sense of l's kind: Received(n), Replicated(n) or Applied(n), whatever n. At any other level it counts none.
func (db *DB) CountReached(p Position, l Level) int {
	if !l.synchronous() {
		return 0
	}
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, f := range m.followers {
		if f.connected && f.reached(l.kind()) >= p.LSN {
			n++
		}
	}
	return n
}
