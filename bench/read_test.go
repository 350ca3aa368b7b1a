package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"shiplog/engine"
)

// loaded opens a database with n keys, written in random order in batches of 100.
func loaded(tb testing.TB, n uint64) *engine.DB {
	tb.Helper()
	db := open(tb, &engine.Options{Commit: engine.Written})
	fill(tb, db, n)
	return db
}

func fill(tb testing.TB, db *engine.DB, n uint64) {
	tb.Helper()
	vals := newValues()
	batch := db.NewBatch()
	for i := uint64(0); i < n; {
		batch.Reset()
		for range min(100, n-i) {
			batch.Put(key(nil, scatter(i, n)), vals.get(i, valueSize))
			i++
		}
		if _, err := db.Commit(context.Background(), batch, engine.Default); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkGet is random reads of 100 B values out of compressed frames of 4 KiB; nothing is cached,
// every read verifies and decompresses its frame.
func BenchmarkGet(b *testing.B) {
	const n = 1 << 20
	db := loaded(b, n)
	for _, miss := range []bool{false, true} {
		b.Run(fmt.Sprintf("missing=%v", miss), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(3, 4))
			k := make([]byte, 0, keySize)
			took := make([]float64, 0, 1<<20)
			b.ReportAllocs()
			for b.Loop() {
				i := rng.Uint64N(n)
				if miss {
					i += n
				}
				k = key(k, i)
				start := time.Now()
				err := db.View(k, func([]byte) error { return nil })
				if len(took) < cap(took) {
					took = append(took, float64(time.Since(start).Nanoseconds()))
				}
				if (err != nil) != miss || miss && !errors.Is(err, engine.ErrNotFound) {
					b.Fatal(i, err)
				}
			}
			b.ReportMetric(quantile(took, 0.5)/1e3, "p50-us")
			b.ReportMetric(quantile(took, 0.99)/1e3, "p99-us")
		})
	}
}

// BenchmarkScan is the ordered scan of everything after a random load, with values.
func BenchmarkScan(b *testing.B) {
	for _, sorted := range []bool{false, true} {
		for _, cache := range []int64{-1, 0} {
			b.Run(fmt.Sprintf("sorted=%v/cache=%v", sorted, cache == 0), func(b *testing.B) { benchScan(b, sorted, cache) })
		}
	}
}

// rested loads n keys in random order and, if asked, waits until they have been written again in their order.
func rested(b *testing.B, n uint64, sorted bool, cache int64) *engine.DB {
	db := open(b, &engine.Options{Commit: engine.Written, CacheSize: cache, SegmentSize: 16 << 20, SortWhenIdle: sorted})
	fill(b, db, n)
	head := db.Stats().Head
	for sorted && db.Stats().Tail+16<<20 < head {
		time.Sleep(50 * time.Millisecond)
	}
	return db
}

func benchScan(b *testing.B, sorted bool, cache int64) {
	const n = 1 << 20
	db := rested(b, n, sorted, cache)
	keys := 0
	for b.Loop() {
		it := db.NewIter(nil)
		bytes := 0
		for ok := it.First(); ok; ok = it.Next() {
			bytes += len(it.Key()) + len(it.Value())
			keys++
		}
		if err := it.Close(); err != nil || bytes != n*(keySize+valueSize) {
			b.Fatal(bytes, err)
		}
	}
	b.ReportMetric(float64(keys)/b.Elapsed().Seconds(), "keys/s")
}

// BenchmarkSeek is a seek to a random key and 50 steps, with values.
func BenchmarkSeek(b *testing.B) {
	for _, sorted := range []bool{false, true} {
		b.Run(fmt.Sprintf("sorted=%v", sorted), func(b *testing.B) { benchSeek(b, sorted) })
	}
}

func benchSeek(b *testing.B, sorted bool) {
	const n = 1 << 20
	db := rested(b, n, sorted, 0)
	rng := rand.New(rand.NewPCG(5, 6))
	for b.Loop() {
		it := db.NewIter(nil)
		ok := it.SeekGE(key(nil, rng.Uint64N(n-50)))
		for range 50 {
			if !ok || len(it.Value()) != valueSize {
				b.Fatal(it.Err())
			}
			ok = it.Next()
		}
		if err := it.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReplay is Open of a database of a million records: read, verify, decompress, index.
func BenchmarkReplay(b *testing.B) {
	const n = 1 << 20
	dir := b.TempDir()
	db, err := engine.Open(dir, &engine.Options{Commit: engine.Written})
	if err != nil {
		b.Fatal(err)
	}
	fill(b, db, n)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer() // without its index's runs it replays all
		if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		db, err := engine.Open(dir, nil)
		if err != nil {
			b.Fatal(err)
		}
		if keys := db.Stats().Keys; keys != n {
			b.Fatal("keys", keys)
		}
		b.StopTimer()
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
