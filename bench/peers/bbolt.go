package main

import (
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

type bboltStore struct {
	db      *bbolt.DB
	batched bool
}

var bboltBucket = []byte("b")

// openBbolt maps enough at once that growing never waits for readers, keeps the free list in memory as a hash map,
// and, for several durable writers, lets them share transactions (DB.Batch), waiting for each other about as long as a
// sync takes.
func openBbolt(c *Config) (Store, error) {
	db, err := bbolt.Open(filepath.Join(c.Dir, "bolt.db"), 0o600, &bbolt.Options{
		NoSync:          !c.Durable,
		NoFreelistSync:  true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: 8 << 30,
		NoStatistics:    true,
		Timeout:         time.Second,
	})
	if err != nil {
		return nil, err
	}
	db.MaxBatchSize = c.Writers
	db.MaxBatchDelay = 300 * time.Microsecond
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bboltBucket)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &bboltStore{db, c.Durable && c.Writers > 1}, nil
}

func (s *bboltStore) Session() (Session, error) { return &bboltSession{s.db, s.batched}, nil }

func (s *bboltStore) Close() error { return s.db.Close() }

type bboltSession struct {
	db      *bbolt.DB
	batched bool
}

func (s *bboltSession) Put(key, value []byte) error {
	put := func(tx *bbolt.Tx) error { return tx.Bucket(bboltBucket).Put(key, value) }
	if s.batched {
		return s.db.Batch(put)
	}
	return s.db.Update(put)
}

func (s *bboltSession) PutBatch(pairs []Pair) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bboltBucket)
		for _, p := range pairs {
			if err := b.Put(p.Key, p.Value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *bboltSession) Get(key []byte, fn func(value []byte)) (found bool, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		if value := tx.Bucket(bboltBucket).Get(key); value != nil {
			found = true
			fn(value)
		}
		return nil
	})
	return found, err
}

func (s *bboltSession) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bboltBucket).Cursor()
		for k, v := c.Seek(start); k != nil && limit > 0; limit-- {
			fn(k, v)
			if limit > 1 {
				k, v = c.Next()
			}
		}
		return nil
	})
}

func (s *bboltSession) Close() error { return nil }
