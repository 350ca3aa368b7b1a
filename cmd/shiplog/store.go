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
type store struct{ db *engine.DB }

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

func (s store) Has(key []byte) (bool, error) {
	switch err := s.db.View(key, func([]byte) error { return nil }); {
	case err == nil:
		return true, nil
	case errors.Is(err, engine.ErrNotFound):
		return false, nil
	default:
		return false, mapError(err)
	}
}

type batch struct{ *engine.Batch }

func (b batch) DeleteAll() { b.DeleteRange(nil, nil) }

func (s store) NewBatch() resp.Batch { return batch{new(engine.Batch)} }

func (s store) Commit(ctx context.Context, b resp.Batch) (resp.Position, error) {
	return position(s.db.Commit(ctx, b.(batch).Batch, engine.Default))
}

func (s store) Update(ctx context.Context, fn func(tx resp.Tx) error) (resp.Position, error) {
	return position(s.db.Update(ctx, engine.Default, func(tx *engine.Tx) error { return fn(transaction{tx}) }))
}

type transaction struct{ tx *engine.Tx }

func (t transaction) Get(key []byte) ([]byte, time.Time, error) {
	value, expiry, err := t.tx.GetEntry(key)
	return value, expiry, mapError(err)
}

func (t transaction) Has(key []byte) (bool, error) {
	ok, err := t.tx.Has(key)
	return ok, mapError(err)
}

func (t transaction) Put(key, value []byte, expiry time.Time) error {
	if expiry.IsZero() {
		return mapError(t.tx.Put(key, value))
	}
	return mapError(t.tx.PutTTL(key, value, expiry))
}

func (t transaction) Delete(key []byte) error { return mapError(t.tx.Delete(key)) }

func (s store) NewIterator() (resp.Iterator, error) {
	it := s.db.NewIter(nil)
	if err := it.Err(); err != nil {
		_ = it.Close() // it returns err again
		return nil, mapError(err)
	}
	return it, nil
}

func (s store) Limits() (maxKey, maxValue int) { return engine.MaxKeySize, engine.MaxValueSize }

func (s store) Writable() bool { return s.db.Role() == engine.Leader }

// Now is log time, by which the engine judges expiry. It may be ahead of the wall clock, or behind after that was set.
func (s store) Now() time.Time { return time.UnixMilli(s.db.LogTime()) }
