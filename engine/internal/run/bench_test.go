package run_test

import (
	"context"
	"encoding/binary"
	"flag"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal"
	"shiplog/wal/vfs"
)

var benchKeys = flag.Int("run.keys", 10_000_000, "keys of the runs that are measured")

// load is a way to fill a run with keys of 16 bytes.
type load struct {
	name string
	next func(rng *rand.Rand, i int, key []byte) memindex.Version
}

// loads, the keys of each in order. A frame of 4 KiB of records takes some 2.5 KiB of log, a record 130 bytes of it.
var loads = []load{
	{"random", func() func(*rand.Rand, int, []byte) memindex.Version {
		var x float64
		return func(rng *rand.Rand, i int, key []byte) memindex.Version {
			if i == 0 {
				x = 0
			}
			x += rng.ExpFloat64() / float64(*benchKeys+10_000) // order statistics of uniform keys
			binary.BigEndian.PutUint64(key, uint64(math.Min(x, 0.999999)*math.MaxUint64))
			binary.BigEndian.PutUint64(key[8:], rng.Uint64())
			n := rng.IntN(*benchKeys)
			return memindex.Version{Ref: uint64(wal.MakeRef(wal.LSN(n/31*2560), n%31*130))}
		}
	}()},
	{"sequential", func(_ *rand.Rand, i int, key []byte) memindex.Version {
		copy(key, "account:")
		binary.BigEndian.PutUint64(key[8:], uint64(i))
		return memindex.Version{Ref: uint64(wal.MakeRef(wal.LSN(i/31*2560), i%31*130))}
	}},
}

// benchRun is a run that stays for all benchmarks of the process.
type benchRun struct {
	once sync.Once
	dir  string
	r    *run.Run
	some []byte // keys that it has, in random order
}

var benchRuns = make([]benchRun, len(loads))

func TestMain(m *testing.M) {
	code := m.Run()
	for i := range benchRuns {
		if r := benchRuns[i].r; r != nil {
			_ = r.Close()
			_ = os.RemoveAll(benchRuns[i].dir)
		}
	}
	os.Exit(code)
}

func fill(b *testing.B, l load, path string, each func(key []byte)) run.Info {
	w, err := run.NewWriter(vfs.OS, path, run.WriterOptions{Expected: uint64(*benchKeys)})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Abort()
	rng := rand.New(rand.NewPCG(1, 2))
	key := make([]byte, 16)
	for i := range *benchKeys {
		v := l.next(rng, i, key)
		if err := w.Add(key, v); err != nil {
			b.Fatal(err)
		}
		if each != nil {
			each(key)
		}
	}
	info, err := w.Finish()
	if err != nil {
		b.Fatal(err)
	}
	return info
}

func bench(b *testing.B, i int) *benchRun {
	br := &benchRuns[i]
	br.once.Do(func() {
		var err error
		if br.dir, err = os.MkdirTemp("", "run"); err != nil {
			b.Fatal(err)
		}
		path := filepath.Join(br.dir, "a.run")
		rng := rand.New(rand.NewPCG(3, 4))
		n := 0
		fill(b, loads[i], path, func(key []byte) {
			if n++; rng.IntN(10) == 0 {
				br.some = append(br.some, key...)
			}
		})
		rng.Shuffle(len(br.some)/16, func(i, j int) {
			var t [16]byte
			copy(t[:], br.some[16*i:])
			copy(br.some[16*i:16*i+16], br.some[16*j:])
			copy(br.some[16*j:], t[:])
		})
		if br.r, err = run.Open(vfs.OS, path); err != nil {
			b.Fatal(err)
		}
		if err := br.r.Verify(context.Background()); err != nil {
			b.Fatal(err)
		}
		it := br.r.NewIter() // touch all
		for it.First(); it.Valid(); it.Next() {
		}
	})
	return br
}

func eachLoad(b *testing.B, fn func(b *testing.B, br *benchRun)) {
	for i, l := range loads {
		b.Run("load="+l.name, func(b *testing.B) {
			br := bench(b, i)
			b.ReportAllocs()
			b.ResetTimer()
			start := cpuTime()
			fn(b, br)
			b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op")
			info := br.r.Info()
			b.ReportMetric(float64(info.Size)/float64(info.Keys), "B/key")
		})
	}
}

func BenchmarkGetHit(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		i := 0
		for b.Loop() {
			if i += 16; i > len(br.some)-16 {
				i = 0
			}
			if _, ok, err := br.r.Get(br.some[i:i+16], math.MaxUint64); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}

func BenchmarkGetMiss(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		i, passed := 0, 0
		key := make([]byte, 16)
		for b.Loop() {
			if i += 16; i > len(br.some)-16 {
				i = 0
			}
			copy(key, br.some[i:])
			key[15] ^= 1
			key[4] ^= byte(i)
			_, ok, err := br.r.Get(key, math.MaxUint64)
			if err != nil {
				b.Fatal(ok, err)
			}
			if ok {
				passed++
			}
		}
	})
}

func BenchmarkNext(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		it := br.r.NewIter()
		it.First()
		for b.Loop() {
			if !it.Next() {
				it.First()
			}
		}
	})
}

func BenchmarkPrev(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		it := br.r.NewIter()
		it.Last()
		for b.Loop() {
			if !it.Prev() {
				it.Last()
			}
		}
	})
}

func BenchmarkSeekNext50(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		it := br.r.NewIter()
		i := 0
		for b.Loop() {
			if i += 16; i > len(br.some)-16 {
				i = 0
			}
			it.SeekGE(br.some[i : i+16])
			for range 50 {
				it.Next()
			}
		}
	})
}

// BenchmarkWrite writes a run of the keys asked for; making them is a part of the time.
func BenchmarkWrite(b *testing.B) {
	for _, l := range loads {
		b.Run("load="+l.name, func(b *testing.B) {
			b.ReportAllocs()
			dir := b.TempDir()
			start := cpuTime()
			for b.Loop() {
				path := filepath.Join(dir, "w.run")
				fill(b, l, path, nil)
				if err := os.Remove(path); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(*benchKeys), "ns/key")
			b.ReportMetric(float64(cpuTime()-start)/float64(b.N)/float64(*benchKeys), "cpu-ns/key")
		})
	}
}

// BenchmarkOpen opens the run with its pages in the cache.
func BenchmarkOpen(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		for b.Loop() {
			r, err := run.Open(vfs.OS, br.r.Path())
			if err != nil {
				b.Fatal(err)
			}
			if err := r.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkTouch loads one byte after the other from places of the run that hang on the last byte: what a miss of the
// processor's caches costs here and now, in which the others are to be counted.
func BenchmarkTouch(b *testing.B) {
	eachLoad(b, func(b *testing.B, br *benchRun) {
		f, err := vfs.OS.OpenFile(br.r.Path(), os.O_RDONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		m, err := f.Map(br.r.Info().Size, false)
		if err != nil {
			b.Fatal(err)
		}
		defer m.Close()
		data := m.Bytes()
		for i := 0; i < len(data); i += 4096 {
			benchSink += data[i]
		}
		start := cpuTime()
		b.ResetTimer()
		x := uint64(1)
		for b.Loop() {
			at, _ := bits.Mul64(x, uint64(len(data)))
			benchSink += data[at]
			x = x*6364136223846793005 + 1442695040888963407 + uint64(data[at])
		}
		b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op")
	})
}

var benchSink byte
