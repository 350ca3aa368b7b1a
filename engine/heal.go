package engine

import (
	"context"
	"time"

	"shiplog/wal"
)

// A Healer mends damage in this node's log, from a peer's copy: nil means that what stands at an LSN is sound again. It may be called
// concurrently, and answers at once where it has just failed.
type Healer func(ctx context.Context, at wal.LSN) error

// healTimeout bounds how long a read waits for the log to be mended.
const healTimeout = 10 * time.Second

// SetHealer says who mends the log. Whoever meets damage in it (a point read, a scan, a feed of changes, a follower's index, reclaim) asks it
// and reads again; so is what a follower found that this node had sent. Nil: damage stays, and reads of it answer a *wal.CorruptError.
func (db *DB) SetHealer(h Healer) {
	if h == nil {
		db.healer.Store(nil)
		db.log.SetRepair(nil)
		return
	}
	db.healer.Store(&h)
	db.log.SetRepair(db.healed)
}

// Damaged implements ship.DamageTaker.
func (db *DB) Damaged(at wal.LSN) {
	if h := db.healer.Load(); h != nil && !db.closed.Load() {
		go func() { // bounded by healTimeout
			ctx, cancel := context.WithTimeout(context.Background(), healTimeout)
			defer cancel()
			if err := (*h)(ctx, at); err != nil {
				db.opts.Logger.Error("damage met in sending to a follower", "lsn", at.String(), "error", err)
			}
		}()
	}
}

// healed reports whether damage that a read has met is mended, so that the read can be made again. The healer looks at what the
// database is doing; who reads may hold a lock that this needs, so it is waited for, and not for ever.
func (db *DB) healed(at wal.LSN, _ error) bool {
	h := db.healer.Load()
	if h == nil || db.closed.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), healTimeout)
	done := make(chan bool, 1)
	go func() { // bounded by healTimeout, and by what the reader holds
		defer cancel()
		done <- (*h)(ctx, at) == nil
	}()
	select {
	case ok := <-done:
		return ok
	case <-ctx.Done():
	}
	select {
	case ok := <-done: // the answer came first: with it the context ends
		return ok
	default:
		return false
	}
}
