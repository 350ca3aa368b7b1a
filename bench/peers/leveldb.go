package main

import (
	"errors"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

type levelStore struct {
	db    *leveldb.DB
	write *opt.WriteOptions
}

// openLevelDB gives goleveldb a large write buffer, larger tables, a bloom filter of 10 bits a key, a block cache of the
// common size, and no compactions triggered by seeks.
func openLevelDB(c *Config) (Store, error) {
	db, err := leveldb.OpenFile(c.Dir, &opt.Options{
		BlockCacheCapacity:     int(c.Cache),
		CompactionTableSize:    8 << 20,
		CompactionTotalSize:    64 << 20,
		DisableSeeksCompaction: true,
		Filter:                 filter.NewBloomFilter(10),
		OpenFilesCacheCapacity: 4096,
		WriteBuffer:            64 << 20,
	})
	if err != nil {
		return nil, err
	}
	return &levelStore{db, &opt.WriteOptions{Sync: c.Durable}}, nil
}

func (s *levelStore) Session() (Session, error) {
	return &levelSession{db: s.db, write: s.write}, nil
}

func (s *levelStore) Close() error { return s.db.Close() }

type levelSession struct {
	db    *leveldb.DB
	write *opt.WriteOptions
	batch leveldb.Batch
}

func (s *levelSession) Put(key, value []byte) error { return s.db.Put(key, value, s.write) }

func (s *levelSession) PutBatch(pairs []Pair) error {
	s.batch.Reset()
	for _, p := range pairs {
		s.batch.Put(p.Key, p.Value)
	}
	return s.db.Write(&s.batch, s.write)
}

func (s *levelSession) Get(key []byte, fn func(value []byte)) (bool, error) {
	value, err := s.db.Get(key, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	fn(value)
	return true, nil
}

func (s *levelSession) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	it := s.db.NewIterator(&util.Range{Start: start}, nil)
	defer it.Release()
	for ok := it.First(); ok && limit > 0; limit-- {
		fn(it.Key(), it.Value())
		if limit > 1 {
			ok = it.Next()
		}
	}
	return it.Error()
}

func (s *levelSession) Close() error { return nil }
