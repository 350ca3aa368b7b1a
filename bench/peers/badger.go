package main

import (
	"errors"

	"github.com/dgraph-io/badger/v4"
)

type badgerStore struct{ db *badger.DB }

// openBadger takes the defaults, which suit values that stay in the tree, with no conflict detection (these writes are
// blind), no metrics, and a block cache of the common size.
func openBadger(c *Config) (Store, error) {
	o := badger.DefaultOptions(c.Dir).
		WithSyncWrites(c.Durable).
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithBlockCacheSize(c.Cache).
		WithLogger(nil)
	db, err := badger.Open(o)
	if err != nil {
		return nil, err
	}
	return &badgerStore{db}, nil
}

func (s *badgerStore) Session() (Session, error) { return &badgerSession{s.db}, nil }

func (s *badgerStore) Close() error { return s.db.Close() }

type badgerSession struct{ db *badger.DB }

// Put needs no copies: Commit returns once the memtable has its own.
func (s *badgerSession) Put(key, value []byte) error {
	return s.PutBatch([]Pair{{key, value}})
}

func (s *badgerSession) PutBatch(pairs []Pair) error {
	tx := s.db.NewTransaction(true)
	defer tx.Discard()
	for _, p := range pairs {
		if err := tx.Set(p.Key, p.Value); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (s *badgerSession) Get(key []byte, fn func(value []byte)) (bool, error) {
	tx := s.db.NewTransaction(false)
	defer tx.Discard()
	item, err := tx.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = item.Value(func(value []byte) error {
		fn(value)
		return nil
	})
	return err == nil, err
}

// Scan does not prefetch values: they are in the tree, beside the keys, and prefetching only pays for those that are not.
func (s *badgerSession) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	tx := s.db.NewTransaction(false)
	defer tx.Discard()
	it := tx.NewIterator(badger.IteratorOptions{})
	defer it.Close()
	for it.Seek(start); it.Valid() && limit > 0; limit-- {
		item := it.Item()
		err := item.Value(func(value []byte) error {
			fn(item.Key(), value)
			return nil
		})
		if err != nil {
			return err
		}
		if limit > 1 {
			it.Next()
		}
	}
	return nil
}

func (s *badgerSession) Close() error { return nil }
