package main

import (
	"context"
	"errors"

	"shiplog/engine"
)

type shiplogStore struct{ db *engine.DB }

// openShiplog takes the defaults, with a cache of the common size.
func openShiplog(c *Config) (Store, error) {
	return openEngine(c, &engine.Options{})
}

// openShiplogSorted has what was written in random order written again in order while nothing else is, as the
// compactions of a log-structured tree do.
func openShiplogSorted(c *Config) (Store, error) {
	return openEngine(c, &engine.Options{SortWhenIdle: true})
}

func openEngine(c *Config, o *engine.Options) (Store, error) {
	o.Commit, o.CacheSize = engine.Written, c.Cache
	if c.Durable {
		o.Commit = engine.Durable
	}
	db, err := engine.Open(c.Dir, o)
	if err != nil {
		return nil, err
	}
	return &shiplogStore{db}, nil
}

func (s *shiplogStore) Session() (Session, error) {
	return &shiplogSession{db: s.db, batch: s.db.NewBatch()}, nil
}

func (s *shiplogStore) Close() error { return s.db.Close() }

type shiplogSession struct {
	db    *engine.DB
	batch *engine.Batch
}

func (s *shiplogSession) Put(key, value []byte) error { return s.db.Put(key, value) }

func (s *shiplogSession) PutBatch(pairs []Pair) error {
	s.batch.Reset()
	for _, p := range pairs {
		s.batch.Put(p.Key, p.Value)
	}
	_, err := s.db.Commit(context.Background(), s.batch, engine.Default)
	return err
}

func (s *shiplogSession) Get(key []byte, fn func(value []byte)) (bool, error) {
	err := s.db.View(key, func(value []byte) error {
		fn(value)
		return nil
	})
	if errors.Is(err, engine.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (s *shiplogSession) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	it := s.db.NewIter(nil)
	for ok := it.SeekGE(start); ok && limit > 0; limit-- {
		fn(it.Key(), it.Value())
		if limit > 1 {
			ok = it.Next()
		}
	}
	return it.Close()
}

func (s *shiplogSession) Close() error { return nil }
