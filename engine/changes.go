package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"shiplog/wal"
)

// Change is one committed operation, as Changes gives it out. Its slices are the receiver's to keep.
type Change struct {
	// Position is where to resume once this change has been dealt with. Within a batch, and among
	// commits that share a frame, it stays at the beginning, so that a resumed feed repeats
	// operations rather than miss one.
	Position Position
	Op       Op // OpPut, OpPutTTL, OpDelete, OpDeleteRange
	Key      []byte
	Value    []byte    // of OpDeleteRange: the end of the range, empty for no bound
	Expiry   time.Time // of OpPutTTL
	Last     bool      // last operation of its batch
	Time     time.Time // log time of the commit
}

// Changes gives out the committed operations from a position on, in log order, and then waits for
// more until ctx ends or the database closes (ErrClosed). The zero Position begins at the tail. ErrTrimmed: the
// log no longer reaches back that far; ErrLost: the position is not in this database's history. What
// reclaim moves within the log is left out, so that the log from its tail on is no copy of the database: who wants
// one reads a Snapshot, and then the changes from its Position on. An error ends the sequence; the end of ctx is one.
func (db *DB) Changes(ctx context.Context, from Position) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		err := db.feed(ctx, from, yield)
		if errors.Is(err, wal.ErrClosed) { // the database is closed log first
			err = ErrClosed
		}
		if err != nil {
			yield(Change{}, err)
		}
	}
}

// feed returns nil when the receiver has stopped.
func (db *DB) feed(ctx context.Context, from Position, yield func(Change, error) bool) error {
	if from == (Position{}) {
		from = db.position(db.log.Tail())
	} else if err := db.checkLineage(from); err != nil {
		return err
	}
	moved := make(chan struct{}, 1)
	defer db.marks.subscribe(moved)()
	r := db.log.NewReader(from.LSN)
	defer r.Close()
	d := decoder{values: true}
	resume := from
	for {
		for r.End() < db.feedEnd() && r.Next() {
			f := r.Frame()
			after := resume
			if f.Last() {
				after = Position{Epoch: f.Epoch, LSN: f.End()}
			}
			if more := db.feedFrame(&d, f, r.Raw(), resume, after, yield); !more {
				return nil
			}
			resume = after
		}
		if err := r.Err(); err != nil {
			return err
		}
		if db.closed.Load() {
			return ErrClosed
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// feedEnd is up to where a feed goes: what is committed, and on a delayed follower only what its readers see.
func (db *DB) feedEnd() wal.LSN {
	if db.ShowsLate() {
		return min(db.marks.committedLSN(), db.marks.visibleLSN())
	}
	return db.marks.committedLSN()
}

// feedFrame gives out the operations of one frame; false: the receiver wants no more.
func (db *DB) feedFrame(d *decoder, f wal.Frame, raw []byte, before, after Position, yield func(Change, error) bool) bool {
	var held *Change // one is held back, to learn whether it is the frame's last
	more := true
	err := d.frame(f, raw, func(_ wal.Ref, rec Record) error {
		if rec.Orig != 0 {
			return nil
		}
		if held != nil {
			if more = yield(*held, nil); !more {
				return context.Canceled
			}
		}
		c := Change{
			Position: before, Op: rec.Op, Key: bytes.Clone(rec.Key), Value: bytes.Clone(rec.Value),
			Last: rec.Last, Time: time.UnixMilli(f.Time),
		}
		if rec.Expiry != 0 {
			c.Expiry = time.UnixMilli(rec.Expiry)
		}
		held = &c
		return nil
	})
	switch {
	case !more:
		return false
	case err != nil:
		yield(Change{}, err)
		return false
	case held != nil:
		held.Position = after
		return yield(*held, nil)
	}
	return true
}

// checkLineage answers ErrLost for a position that another history than this one has reached.
func (db *DB) checkLineage(p Position) error {
	if db.log.Empty() {
		return nil
	}
	if p.LSN < db.log.Tail() {
		return fmt.Errorf("%w: position %v, the log begins at %v", ErrTrimmed, p, db.log.Tail())
	}
	if p.LSN <= db.log.Head() && db.log.EpochAt(p.LSN) != p.Epoch {
		return fmt.Errorf("%w: %v", ErrLost, p)
	}
	if p.LSN > db.log.Head() && p.Epoch < db.log.Epoch() {
		return fmt.Errorf("%w: %v, epoch %v has ended before it", ErrLost, p, p.Epoch)
	}
	return nil
}
