package engine_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"shiplog/engine"
)

// TestScanReadsAhead: long scans, whose values are read before they are asked for, show what single reads show: both ways,
// with turns, with values that do not fit, that expire and that are not asked for; and leave nothing behind when they are given up.
func TestScanReadsAhead(t *testing.T) {
	for _, o := range []engine.Options{
		{},
		{Compression: engine.NoCompression, CacheSize: -1},
		{Compression: engine.Zstd, CacheSize: 1 << 20, MemIndexSize: 1 << 20, SegmentSize: 1 << 20},
	} {
		now := time.UnixMilli(1_000_000)
		o.Now = func() time.Time { return now }
		o.Commit = engine.Written
		db := open(t, t.TempDir(), &o)
		rng := rand.New(rand.NewPCG(3, 4))
		want := map[string][]byte{}
		const n = 9000
		for _, i := range rng.Perm(n) {
			key := fmt.Sprintf("key %06d", i)
			value := bytes.Repeat([]byte(key), rng.IntN(20))
			if i%1500 == 700 {
				value = bytes.Repeat([]byte(key), 30_000) // more than is read ahead at once
			}
			b := db.NewBatch()
			switch i % 10 {
			case 3:
				b.PutTTL([]byte(key), value, now.Add(time.Duration(rng.IntN(2)+1)*time.Second))
			case 4:
				b.Put([]byte(key), []byte("old"))
				b.Delete([]byte(key))
			default:
				b.Put([]byte(key), value)
			}
			if _, err := db.Commit(ctx, b, engine.Default); err != nil {
				t.Fatal(err)
			}
		}
		now = now.Add(1500 * time.Millisecond)
		mustPut(t, db, "key", "moves the log time on")
		var keys []string
		for i := range n {
			key := fmt.Sprintf("key %06d", i)
			if v, err := db.Get([]byte(key)); err == nil {
				want[key] = v
				keys = append(keys, key)
			}
		}
		if len(keys) < n*7/10 || len(keys) == n {
			t.Fatalf("%d keys", len(keys))
		}
		all := &engine.IterOptions{Lower: []byte("key ")}
		thereAndBack(t, db.NewIter(all), keys, want, func() bool { return true })
		thereAndBack(t, db.NewIter(all), keys, want, func() bool { return rng.IntN(3) > 0 })

		it := db.NewIter(all)
		at := 0
		for ok := it.First(); ok; { // turns at random
			if string(it.Key()) != keys[at] || !bytes.Equal(it.Value(), want[keys[at]]) {
				t.Fatalf("%q at %d, want %q", it.Key(), at, keys[at])
			}
			if rng.IntN(2000) == 0 && at > 0 {
				at--
				ok = it.Prev()
			} else {
				at++
				ok = it.Next()
			}
		}
		if err := it.Close(); err != nil || at != len(keys) {
			t.Fatal(at, err)
		}

		var wg sync.WaitGroup
		for range 4 { // given up at any place
			seed := rng.Uint64()
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, 0))
				for range 20 {
					it := db.NewIter(all)
					steps := rng.IntN(len(keys))
					for i, ok := 0, it.First(); ok && i < steps; i, ok = i+1, it.Next() {
						if !bytes.Equal(it.Value(), want[keys[i]]) {
							t.Errorf("%q at %d", it.Key(), i)
						}
					}
					if err := it.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// thereAndBack expects an iterator to show the keys, there and back, and the values of those that are asked for.
func thereAndBack(t *testing.T, it *engine.Iterator, keys []string, want map[string][]byte, ask func() bool) {
	t.Helper()
	check := func(key string) {
		if string(it.Key()) != key || ask() && !bytes.Equal(it.Value(), want[key]) {
			t.Fatalf("%q has %.40q, want %q with %.40q", it.Key(), it.Value(), key, want[key])
		}
	}
	i := 0
	for ok := it.First(); ok; ok = it.Next() {
		check(keys[i])
		i++
	}
	if i != len(keys) {
		t.Fatalf("%d of %d keys", i, len(keys))
	}
	ok := it.Last()
	for _, key := range slices.Backward(keys) {
		if !ok {
			t.Fatal(it.Err())
		}
		check(key)
		ok = it.Prev()
	}
	if err := it.Close(); err != nil || ok {
		t.Fatal(err)
	}
}
