package wal_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"shiplog/wal"
)

// halfRandom fills p with bytes of which about half can be compressed away.
func halfRandom(p []byte, rng *rand.Rand) {
	for i := range p {
		p[i] = 'x'
		if i%2 == 0 {
			p[i] = byte(rng.Uint32())
		}
	}
}

func benchLog(b *testing.B, o *wal.Options) *wal.Log {
	b.Helper()
	l, err := wal.Open(b.TempDir(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	if err := l.Create(wal.Rule{}); err != nil {
		b.Fatal(err)
	}
	return l
}

// one returns a batch of one record of n bytes.
func one(n int) *wal.Batch {
	b := new(wal.Batch)
	p := make([]byte, n)
	halfRandom(p, rand.New(rand.NewPCG(1, 2)))
	p[0] = 1
	b.Add(p)
	return b
}

// BenchmarkAppend stores groups of one-record batches without a sync.
func BenchmarkAppend(b *testing.B) {
	for _, group := range []int{1, 32} {
		for _, size := range []int{120, 1024} {
			b.Run(fmt.Sprintf("group=%d/size=%d", group, size), func(b *testing.B) {
				l := benchLog(b, nil)
				var batches []*wal.Batch
				for range group {
					batches = append(batches, one(size))
				}
				b.SetBytes(int64(group * size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := l.Append(batches, false); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkDurable compares a durable append with a bare write and fdatasync of the same size.
func BenchmarkDurable(b *testing.B) {
	for _, size := range []int{120, 64 << 10} {
		b.Run(fmt.Sprintf("size=%d/bare", size), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			bareSync(b, f, size)
		})
		b.Run(fmt.Sprintf("size=%d/log", size), func(b *testing.B) {
			l := benchLog(b, &wal.Options{Compression: wal.NoCompression})
			batches := []*wal.Batch{one(size)}
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := l.Append(batches, true); err != nil {
					b.Fatal(err)
				}
				if _, err := l.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadRecord reads 100-byte records at random out of frames of 4 KiB.
func BenchmarkReadRecord(b *testing.B) {
	for _, c := range []wal.Compression{wal.S2, wal.Zstd, wal.NoCompression} {
		b.Run("codec="+c.String(), func(b *testing.B) {
			l := benchLog(b, &wal.Options{Compression: c})
			refs := fillRecords(b, l, 200_000)
			rng := rand.New(rand.NewPCG(3, 4))
			var buf wal.Buffer
			b.ReportAllocs()
			for b.Loop() {
				if err := l.ReadRecord(refs[rng.IntN(len(refs))], &buf, func([]byte) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// fillRecords appends n records of 100 bytes in full frames.
func fillRecords(b *testing.B, l *wal.Log, n int) []wal.Ref {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var refs []wal.Ref
	p := make([]byte, 100)
	batch := new(wal.Batch)
	for len(refs) < n {
		batch.Reset()
		for range 40 {
			halfRandom(p, rng)
			p[0] = 1
			batch.Add(p)
		}
		if _, err := l.Append([]*wal.Batch{batch}, false); err != nil {
			b.Fatal(err)
		}
		for i := range batch.Len() {
			refs = append(refs, batch.Ref(i))
		}
	}
	return refs
}

// BenchmarkReader walks a log from its tail: full frames, and frames of one record.
func BenchmarkReader(b *testing.B) {
	for _, name := range []string{"full/codec=s2", "full/codec=none", "single"} {
		b.Run("frames="+name, func(b *testing.B) {
			o := &wal.Options{}
			if name == "full/codec=none" {
				o.Compression = wal.NoCompression
			}
			l := benchLog(b, o)
			n := 200_000
			if name == "single" {
				batches := []*wal.Batch{one(100)}
				for range n {
					if _, err := l.Append(batches, false); err != nil {
						b.Fatal(err)
					}
				}
			} else {
				n = len(fillRecords(b, l, n))
			}
			b.SetBytes(int64(n) * 100)
			for b.Loop() {
				r := l.NewReader(l.Tail())
				for r.Next() { // only walked
				}
				if r.Err() != nil {
					b.Fatal(r.Err())
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
