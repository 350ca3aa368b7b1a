package bench

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"shiplog/engine"
	"shiplog/wal/vfs"
)

// coldKeys is how many keys the benchmarks of a cold page cache load.
func coldKeys() uint64 {
	if testing.Short() {
		return 1 << 18
	}
	return 1 << 22
}

// BenchmarkScanCold is the ordered scan after a random load, with values, where nothing is in the page cache: everything comes from the disk,
// frame by frame in an order that the disk does not know. Where the system keeps pages all the same (a file system in memory), it is the warm scan.
func BenchmarkScanCold(b *testing.B) {
	n := coldKeys()
	dir := b.TempDir()
	opts := &engine.Options{Commit: engine.Written, SpaceFactor: -1}
	db := reopen(b, dir, opts)
	fill(b, db, n)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	keys := 0
	for b.Loop() {
		b.StopTimer()
		forget(b, dir)
		db := reopen(b, dir, opts)
		b.StartTimer()
		it := db.NewIter(nil)
		for ok := it.First(); ok; ok = it.Next() {
			if len(it.Value()) != valueSize {
				b.Fatal(it.Err())
			}
			keys++
		}
		if err := it.Close(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(keys)/b.Elapsed().Seconds(), "cold-keys/s")
}

// BenchmarkSeekCold is a seek to a random key and 50 steps, with values: the first hundred after the page cache was emptied.
func BenchmarkSeekCold(b *testing.B) {
	const seeks = 100
	n := coldKeys()
	dir := b.TempDir()
	opts := &engine.Options{Commit: engine.Written, SpaceFactor: -1}
	db := reopen(b, dir, opts)
	fill(b, db, n)
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	rounds := 0
	for b.Loop() {
		b.StopTimer()
		forget(b, dir)
		db := reopen(b, dir, opts)
		b.StartTimer()
		rounds++
		before := vfs.MajorFaults()
		for range seeks {
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
		b.StopTimer()
		b.ReportMetric(float64(vfs.MajorFaults()-before)/seeks, "faults/seek")
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(rounds*seeks), "us/seek")
}

func reopen(b *testing.B, dir string, opts *engine.Options) *engine.DB {
	b.Helper()
	db, err := engine.Open(dir, opts)
	if err != nil {
		b.Fatal(err)
	}
	return db
}

// forget has the system forget what it keeps of a closed database's log and index.
func forget(b *testing.B, dir string) {
	b.Helper()
	for _, sub := range []string{"log", "index"} {
		names, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			b.Fatal(err)
		}
		for _, e := range names {
			f, err := vfs.OS.OpenFile(filepath.Join(dir, sub, e.Name()), os.O_RDWR, 0)
			if err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil { // dirty pages stay
				b.Fatal(err)
			}
			if err := f.DropCache(0); err != nil {
				b.Fatal(err)
			}
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
