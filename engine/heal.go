package engine

import (
	"context"
	"errors"
	"time"

	"shiplog/wal"
)

// A Healer mends damage in this node's log, from a peer's copy: nil means that what stands at an LSN is sound again. It may be called
// concurrently, and answers at once where it has just failed.
type Healer func(ctx context.Context, at wal.LSN) error

// healTimeout bounds how long a read waits for the log to be mended.
const healTimeout = 10 * time.Second

// SetHealer says who mends the log. A read that meets damage asks it, and is made again; so is what a follower found that this
// node had sent. Nil: damage stays, and reads of it answer a *wal.CorruptError.
func (db *DB) SetHealer(h Healer) {
	if h == nil {
		db.healer.Store(nil)
		return
	}
	db.healer.Store(&h)
}

// Damaged implements ship.DamageTaker.
func (db *DB) Damaged(at wal.LSN) {
	if h := db.healer.Load(); h != nil && !db.closed.Load() {
		go func() { // bounded by healTimeout
			ctx, cancel := context.WithTimeout(context.Background(), healTimeout)
			defer cancel()
			if err := (*h)(ctx, at); err != nil {
				db.opts.Logger.Error("a follower found damage here", "lsn", at.String(), "error", err)
			}
		}()
	}
}

// healed reports whether the damage that a read of a record has met is mended, so that the read can be made again.
func (db *DB) healed(at wal.LSN, err error) bool {
	var c *wal.CorruptError
	switch h := db.healer.Load(); {
	case h == nil:
		return false
	case errors.As(err, &c) && c.LSN != 0:
		at = c.LSN
		fallthrough
	case errors.Is(err, wal.ErrIO):
		ctx, cancel := context.WithTimeout(context.Background(), healTimeout)
		defer cancel()
		return (*h)(ctx, at) == nil
	}
	return false
}
