package engine

import (
	"fmt"
	"time"

	"shiplog/wal"
)

// Batch collects operations that one Commit applies atomically and in order. It is not safe for
// concurrent use; after Commit it may be Reset and used again. Operations that break a limit are
// remembered, and Commit answers with the first such error without writing anything.
//
// A batch of deletes alone may use the space that the log holds in reserve, so that a full disk can be cleared.
type Batch struct {
	w   wal.Batch
	err error
}

// Put sets key to value. Both are copied.
func (b *Batch) Put(key, value []byte) {
	if !b.fits(key, value) {
		return
	}
	b.w.Buf = appendPut(b.w.Buf, key, value)
	b.end(false)
}

// PutTTL sets key to value until the expiry, to the millisecond; judged by log time on every node alike. The zero time
// means never, as in what GetEntry returns.
func (b *Batch) PutTTL(key, value []byte, expiry time.Time) {
	if expiry.IsZero() {
		b.Put(key, value)
		return
	}
	b.putTTL(key, value, recordExpiry(expiry))
}

// recordExpiry is an expiry as a record holds it, where 0 stands for none: the one millisecond of that number moves to the next.
func recordExpiry(t time.Time) int64 {
	if ms := t.UnixMilli(); ms != 0 {
		return ms
	}
	return 1
}

func (b *Batch) putTTL(key, value []byte, expiryMs int64) {
	if !b.fits(key, value) {
		return
	}
	b.w.Buf = appendPutTTL(b.w.Buf, key, value, expiryMs)
	b.end(false)
}

// Delete removes key, if it is there.
func (b *Batch) Delete(key []byte) {
	if !b.fits(key, nil) {
		return
	}
	b.w.Buf = appendDelete(b.w.Buf, key)
	b.end(true)
}

// DeleteRange removes every key in [start, end) that is there when the batch is committed; an empty
// end means no upper bound.
func (b *Batch) DeleteRange(start, end []byte) {
	if !b.fits(start, nil) || !b.fits(end, nil) {
		return
	}
	b.w.Buf = appendDeleteRange(b.w.Buf, start, end)
	b.end(true)
}

// end ends the operation that was appended. A batch is urgent while all its operations give space back.
func (b *Batch) end(givesBack bool) {
	if len(b.w.Buf) > MaxBatchSize {
		b.w.Truncate(b.w.Len())
		b.err = fmt.Errorf("%w: the limit is %d bytes", ErrBatchTooLarge, MaxBatchSize)
		return
	}
	b.w.Urgent = givesBack && (b.w.Urgent || b.w.Len() == 0)
	b.w.End()
}

// Len is the number of operations in the batch.
func (b *Batch) Len() int { return b.w.Len() }

// Size is the number of bytes that the operations take in the log before compression.
func (b *Batch) Size() int { return len(b.w.Buf) }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	b.w.Reset()
	b.err = nil
}

func (b *Batch) fits(key, value []byte) bool {
	switch {
	case b.err != nil:
		return false
	case len(key) > MaxKeySize:
		b.err = fmt.Errorf("%w: %d bytes, the limit is %d", ErrKeyTooLarge, len(key), MaxKeySize)
	case len(value) > MaxValueSize:
		b.err = fmt.Errorf("%w: %d bytes, the limit is %d", ErrValueTooLarge, len(value), MaxValueSize)
	}
	return b.err == nil
}

// NewBatch returns an empty batch.
func (db *DB) NewBatch() *Batch { return &Batch{} }
