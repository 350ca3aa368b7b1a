package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shiplog/engine"
)

const (
	keySize   = 16
	valueSize = 100
)

// key writes the i-th key in key order.
func key(dst []byte, i uint64) []byte {
	dst = append(dst[:0], "key-"...)
	var digits [20]byte
	s := strconv.AppendUint(digits[:0], i, 10)
	for range keySize - len(dst) - len(s) {
		dst = append(dst, '0')
	}
	return append(dst, s...)
}

// scatter maps 0..n-1 to itself one to one, in an order without pattern: n must be a power of two.
func scatter(i, n uint64) uint64 {
	for range 3 {
		i = (i*0x9E3779B97F4A7C15 + 0x7F4A7C15) & (n - 1)
		i ^= i >> 7
	}
	return i
}

// values gives about half compressible values of the given size.
type values struct{ pool []byte }

func newValues() *values {
	rng := rand.New(rand.NewPCG(1, 2))
	v := &values{pool: make([]byte, 1<<20)}
	for i := 0; i < len(v.pool); i += 8 {
		word := rng.Uint64()
		if i%16 == 0 {
			word = 0x6162616261626162
		}
		binary.LittleEndian.PutUint64(v.pool[i:], word)
	}
	return v
}

func (v *values) get(i uint64, size int) []byte {
	at := int(i*64) % (len(v.pool) - size)
	return v.pool[at : at+size]
}

func open(tb testing.TB, opts *engine.Options) *engine.DB {
	tb.Helper()
	db, err := engine.Open(tb.TempDir(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}

// bareLog is the floor of a durable write: an allocated file, one pwrite and one fdatasync.
type bareLog struct {
	f   *os.File
	at  int64
	buf []byte
}

const bareSize = 64 << 20

func newBareLog(tb testing.TB, size int) *bareLog {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "bare"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	if err := unix.Fallocate(int(f.Fd()), 0, 0, bareSize); err != nil {
		tb.Fatal(err)
	}
	return &bareLog{f: f, buf: make([]byte, size)}
}

func (l *bareLog) write(tb testing.TB) {
	if l.at+int64(len(l.buf)) > bareSize {
		l.at = 0
	}
	if _, err := l.f.WriteAt(l.buf, l.at); err != nil {
		tb.Fatal(err)
	}
	l.at += int64(len(l.buf))
	if err := unix.Fdatasync(int(l.f.Fd())); err != nil {
		tb.Fatal(err)
	}
}

// cpuTime is the processor time that this process has used, its kernel's part included.
func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// timed runs fn n times and returns the nanoseconds of each run on average.
func timed(n int, fn func()) float64 {
	start := time.Now()
	for range n {
		fn()
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n)
}

// median of what was measured; p is 0.5 for it, 0.99 for the 99th percentile.
func quantile(v []float64, p float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[min(len(v)-1, int(p*float64(len(v))))]
}

// parallel runs fn in n goroutines until each has done its share of total calls.
func parallel(n, total int, fn func(worker, i int)) {
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := w; i < total; i += n {
				fn(w, i)
			}
		})
	}
	wg.Wait()
}
