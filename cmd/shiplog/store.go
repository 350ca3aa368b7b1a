package main

import (
	"context"
	"errors"
	"time"

	"shiplog/cmd/shiplog/internal/resp"
	"shiplog/engine"
	"shiplog/wal"
)

// store is the database as the RESP server asks for it.
type store struct {
	db   *engine.DB
	full *fullDisk // nil: nobody is told
}

var _ resp.Store = store{}

// mapped is an error of the engine that the RESP server knows by another name.
type mapped struct{ cause, known error }

func (e *mapped) Error() string        { return e.cause.Error() }
func (e *mapped) Unwrap() error        { return e.cause }
func (e *mapped) Is(target error) bool { return target == e.known }

// known are the errors of the engine that have a reply of their own.
var known = []struct{ engine, resp error }{
	{engine.ErrNotFound, resp.ErrNotFound},
	{engine.ErrUnknownOutcome, resp.ErrUnknownOutcome}, // before its causes
	{engine.ErrReadOnly, resp.ErrReadOnly},
	{engine.ErrFenced, resp.ErrReadOnly},
	{engine.ErrLeaseLost, resp.ErrNotLeading},
	{engine.ErrLogOnly, resp.ErrLogOnly},
	{engine.ErrLoading, resp.ErrLoading},
	{engine.ErrTooFewFollowers, resp.ErrTooFewFollowers},
	{engine.ErrKeyTooLarge, resp.ErrTooLarge},
	{engine.ErrValueTooLarge, resp.ErrTooLarge},
	{engine.ErrBatchTooLarge, resp.ErrTooLarge},
	{wal.ErrTooLarge, resp.ErrTooLarge},
	{engine.ErrPoisoned, resp.ErrPoisoned}, // a sync can fail for lack of space; room does not mend that
	{engine.ErrNoSpace, resp.ErrNoSpace},
	{engine.ErrConflict, resp.ErrConflict},
	{engine.ErrNoQuorum, resp.ErrUnavailable},
}

func mapError(err error) error {
	if err == nil {
		return nil
	}
	if err == engine.ErrNotFound { //nolint:errorlint // the hot path: a miss is never wrapped, and a wrapped one is found below
		return resp.ErrNotFound
	}
	for _, k := range known {
		if errors.Is(err, k.engine) {
			return &mapped{err, k.resp}
		}
	}
	return err
}

func position(p wal.Position, err error) (resp.Position, error) {
	if err == nil {
		return resp.Position{Epoch: uint32(p.Epoch), LSN: uint64(p.LSN)}, nil
	}
	var outcome *engine.OutcomeError
	if errors.As(err, &outcome) {
		p = outcome.Position
	}
	return resp.Position{Epoch: uint32(p.Epoch), LSN: uint64(p.LSN)}, mapError(err)
}

func (s store) View(key []byte, fn func(value []byte) error) error {
	return mapError(s.db.View(key, fn))
}

func (s store) Entry(key []byte, fn func(value []byte, expiry int64) error) error {
	return mapError(s.db.ViewEntry(key, inMillis(fn)))
}

// inMillis hands on what expires in Unix milliseconds.
func inMillis(fn func(value []byte, expiry int64) error) func([]byte, time.Time) error {
	return func(value []byte, expiry time.Time) error {
		if expiry.IsZero() {
			return fn(value, 0)
		}
		return fn(value, expiry.UnixMilli())
	}
}

func (s store) Has(key []byte) (bool, error) { return has(s.db.View(key, nothing)) }

func nothing([]byte) error { return nil }

// has turns the result of a look at a value into whether there is one.
func has(err error) (bool, error) {
	if errors.Is(err, engine.ErrNotFound) {
		return false, nil
	}
	return err == nil, mapError(err)
}

func (s store) Keys(from []byte, fn func(key []byte) bool) error {
	return keys(s.db.NewIter(nil), from, fn)
}

// keys walks from a key on, and closes the iterator.
func keys(it *engine.Iterator, from []byte, fn func(key []byte) bool) error {
	for ok := it.SeekGE(from); ok && fn(it.Key()); ok = it.Next() {
	}
	return mapError(it.Close())
}

func (s store) Len() (int64, error) {
	if s.db.KeepsLogOnly() {
		return 0, resp.ErrLogOnly
	}
	stats := s.db.Stats()
	if stats.Loading {
		return 0, mapError(engine.ErrLoading)
	}
	return int64(stats.Keys), nil
}

// Now is log time, by which the engine judges expiry. It may be ahead of the wall clock, or behind after that was set.
func (s store) Now() int64 { return s.db.ReadTime() }

type batch struct{ *engine.Batch }

func (b batch) PutTTL(key, value []byte, expiry int64) {
	b.Batch.PutTTL(key, value, time.UnixMilli(expiry))
}

func (b batch) DeleteAll() { b.DeleteRange(nil, nil) }

func (s store) NewBatch() resp.Batch { return batch{new(engine.Batch)} }

func (s store) Commit(ctx context.Context, b resp.Batch) (resp.Position, error) {
	p, err := s.db.Commit(ctx, b.(batch).Batch, engine.Default)
	s.full.note(time.Now, err)
	return position(p, err)
}

func (s store) Update(ctx context.Context, fn func(tx resp.Tx) error) (resp.Position, error) {
	p, err := s.db.Update(ctx, engine.Default, func(tx *engine.Tx) error { return fn(transaction{tx}) })
	s.full.note(time.Now, err)
	return position(p, err)
}

func (s store) NewWatch() resp.Watch { return watch{s.db.NewWatch()} }

func (s store) Limits() (maxKey, maxValue int) { return engine.MaxKeySize, engine.MaxValueSize }

func (s store) Writable() bool { return s.db.Role() == engine.Leader }

type watch struct{ *engine.Watch }

func (w watch) Add(key []byte) error { return mapError(w.Watch.Add(key)) }

func (s store) Snapshot() resp.Snapshot { return snapshot{s.db.Snapshot(), s} }

type snapshot struct {
	*engine.Snapshot
	s store
}

func (s snapshot) View(key []byte, fn func(value []byte) error) error {
	return mapError(s.Snapshot.View(key, fn))
}

func (s snapshot) Entry(key []byte, fn func(value []byte, expiry int64) error) error {
	return mapError(s.ViewEntry(key, inMillis(fn)))
}

func (s snapshot) Has(key []byte) (bool, error) { return has(s.Snapshot.View(key, nothing)) }

func (s snapshot) Keys(from []byte, fn func(key []byte) bool) error {
	return keys(s.NewIter(nil), from, fn)
}

func (s snapshot) Len() (int64, error) { return s.s.Len() }

func (s snapshot) Now() int64 { return s.Snapshot.Now().UnixMilli() }

type transaction struct{ tx *engine.Tx }

func (t transaction) View(key []byte, fn func(value []byte) error) error {
	return mapError(t.tx.ViewEntry(key, func(value []byte, _ time.Time) error { return fn(value) }))
}

func (t transaction) Entry(key []byte, fn func(value []byte, expiry int64) error) error {
	return mapError(t.tx.ViewEntry(key, inMillis(fn)))
}

func (t transaction) Has(key []byte) (bool, error) {
	ok, err := t.tx.Has(key)
	return ok, mapError(err)
}

func (t transaction) Keys(from []byte, fn func(key []byte) bool) error {
	return mapError(t.tx.Keys(from, nil, fn))
}

func (t transaction) Len() (int64, error) {
	n, err := t.tx.Len()
	return int64(n), mapError(err)
}

func (t transaction) Now() int64 { return t.tx.Now().UnixMilli() }

func (t transaction) Put(key, value []byte, expiry int64) error {
	if expiry == 0 {
		return mapError(t.tx.Put(key, value))
	}
	return mapError(t.tx.PutTTL(key, value, time.UnixMilli(expiry)))
}

func (t transaction) Delete(key []byte) error { return mapError(t.tx.Delete(key)) }

func (t transaction) DeleteAll() error { return mapError(t.tx.DeleteRange(nil, nil)) }

func (t transaction) Unchanged(w resp.Watch) (bool, error) {
	same, err := t.tx.Unchanged(w.(watch).Watch)
	return same, mapError(err)
}
