package engine

import (
	"bytes"
	"context"
	"strconv"
)

// The conditional operations below are decided in log order, against everything written before
// them, visible or not; the log holds only what they came to. Each answer, a refusal too, is returned
// once all that it was decided on is visible. Their errors are those of Commit.

// PutIfAbsent sets key to value if it has none, and reports whether it did. It returns when the commit rule and level l hold for
// what was written, as Commit does; after a refusal, when all that it rests on is visible. An error that matches ErrUnknownOutcome: it may
// have been written. Safe for concurrent use.
func (db *DB) PutIfAbsent(ctx context.Context, l Level, key, value []byte) (bool, Position, error) {
	done := false
	pos, err := db.conditional(ctx, l, key, func(v *view, b *Batch) error {
		done = false
		_, found, err := v.get(key)
		if err != nil || found {
			return err
		}
		done = true
		b.Put(key, value)
		return b.err
	})
	return err == nil && done, pos, err // done belongs to the pipeline while the outcome is not known
}

// CompareAndSwap sets key to value if its current value is old, and reports whether it did. A nil
// old stands for a key that has no value. An expiry of the old value is not kept. It returns when, and fails as, PutIfAbsent does.
func (db *DB) CompareAndSwap(ctx context.Context, l Level, key, old, value []byte) (bool, Position, error) {
	done := false
	pos, err := db.conditional(ctx, l, key, func(v *view, b *Batch) error {
		done = false
		e, found, err := v.get(key)
		if err != nil || found != (old != nil) || found && !bytes.Equal(e.value, old) {
			return err
		}
		done = true
		b.Put(key, value)
		return b.err
	})
	return err == nil && done, pos, err // done belongs to the pipeline while the outcome is not known
}

// Increment adds delta to the decimal int64 that key holds, 0 where it holds none, keeps its expiry,
// and returns the sum. ErrNotInteger: the value is no such number, or the sum does not fit. It returns when, and fails as,
// PutIfAbsent does; one whose outcome is not known must not just be made again.
func (db *DB) Increment(ctx context.Context, l Level, key []byte, delta int64) (int64, Position, error) {
	var sum int64
	pos, err := db.conditional(ctx, l, key, func(v *view, b *Batch) error {
		e, found, err := v.get(key)
		if err != nil {
			return err
		}
		old := int64(0)
		if found {
			if old, err = strconv.ParseInt(string(e.value), 10, 64); err != nil || strconv.FormatInt(old, 10) != string(e.value) {
				return ErrNotInteger
			}
		}
		sum = old + delta
		if (sum > old) != (delta > 0) && delta != 0 {
			return ErrNotInteger
		}
		value := strconv.AppendInt(nil, sum, 10)
		if e.expiry != 0 {
			b.putTTL(key, value, e.expiry)
		} else {
			b.Put(key, value)
		}
		return b.err
	})
	if err != nil {
		return 0, pos, err
	}
	return sum, pos, nil
}

func (db *DB) conditional(ctx context.Context, l Level, key []byte, decide decision) (Position, error) {
	if err := l.Validate(); err != nil {
		return Position{}, err
	}
	if len(key) > MaxKeySize {
		return Position{}, ErrKeyTooLarge
	}
	return db.commitBatch(ctx, &Batch{}, l, decide)
}
