package main

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

type pebbleStore struct {
	db    *pebble.DB
	write *pebble.WriteOptions
}

// openPebble configures Pebble much as CockroachDB does: large memtables, early compaction of level 0, a bloom filter
// of 10 bits a key on every level, two compactions at once; and a block cache of the common size.
func openPebble(c *Config) (Store, error) {
	cache := pebble.NewCache(c.Cache)
	defer cache.Unref()
	o := &pebble.Options{
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                64 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       1000,
		LBaseMaxBytes:               64 << 20,
		MaxOpenFiles:                16384,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      quietPebble{},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].BlockSize = pebbleBlockSize
		o.Levels[i].IndexBlockSize = 256 << 10
	}
	db, err := pebble.Open(c.Dir, o)
	if err != nil {
		return nil, err
	}
	s := &pebbleStore{db: db, write: pebble.NoSync}
	if c.Durable {
		s.write = pebble.Sync
	}
	return s, nil
}

const pebbleBlockSize = 4 << 10

type quietPebble struct{}

func (quietPebble) Infof(string, ...any)  {}
func (quietPebble) Errorf(string, ...any) {}
func (quietPebble) Fatalf(format string, args ...any) {
	pebble.DefaultLogger.Fatalf(format, args...)
}

func (s *pebbleStore) Session() (Session, error) { return &pebbleSession{s.db, s.write}, nil }

// Close flushes the memtable, which Pebble would otherwise replay from its log at the next open.
func (s *pebbleStore) Close() error { return errors.Join(s.db.Flush(), s.db.Close()) }

type pebbleSession struct {
	db    *pebble.DB
	write *pebble.WriteOptions
}

func (s *pebbleSession) Put(key, value []byte) error { return s.db.Set(key, value, s.write) }

func (s *pebbleSession) PutBatch(pairs []Pair) error {
	b := s.db.NewBatch()
	for _, p := range pairs {
		if err := b.Set(p.Key, p.Value, nil); err != nil {
			return err
		}
	}
	if err := b.Commit(s.write); err != nil {
		return err
	}
	return b.Close()
}

func (s *pebbleSession) Get(key []byte, fn func(value []byte)) (bool, error) {
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	fn(value)
	return true, closer.Close()
}

func (s *pebbleSession) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return err
	}
	for ok := it.SeekGE(start); ok && limit > 0; limit-- {
		value, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(err, it.Close())
		}
		fn(it.Key(), value)
		if limit > 1 {
			ok = it.Next()
		}
	}
	return it.Close()
}

func (s *pebbleSession) Close() error { return nil }
