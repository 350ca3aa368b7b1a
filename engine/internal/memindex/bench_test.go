package memindex_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"shiplog/engine/internal/memindex"
)

// benchKey writes the i-th 16-byte key: 8 shared bytes, then a permutation of
// the numbers in random order, or the numbers themselves.
func benchKey(k []byte, i uint64, random bool) {
	copy(k, "account:")
	if random {
		i *= 0x9E3779B97F4A7C15
		i ^= i >> 29
		i *= 0xBF58476D1CE4E5B9
	}
	binary.BigEndian.PutUint64(k[8:], i)
}

// fill returns a table of n keys. The floor follows closely, as it does
// without snapshots.
func fill(n uint64, random bool) *memindex.Table {
	t := memindex.New()
	k := make([]byte, 16)
	for i := range n {
		benchKey(k, i, random)
		t.Insert(k, i+1, memindex.Put)
		t.SetFloor(i)
	}
	t.Wait()
	return t
}

func BenchmarkInsert(b *testing.B) {
	for _, random := range []bool{true, false} {
		for _, n := range []uint64{2_000_000, 5_000_000} {
			b.Run(fmt.Sprintf("random=%v/keys=%d", random, n), func(b *testing.B) {
				k := make([]byte, 16)
				var t *memindex.Table
				i := n
				for range b.N {
					if i == n {
						b.StopTimer()
						t, i = memindex.New(), 0
						b.StartTimer()
					}
					benchKey(k, i, random)
					i++
					t.Insert(k, i, memindex.Put)
				}
				t.Wait()
				b.ReportMetric(float64(t.Bytes())/float64(i), "B/key")
			})
		}
	}
}

func BenchmarkOverwrite(b *testing.B) {
	const n = 5_000_000
	t := fill(n, true)
	k := make([]byte, 16)
	ref := uint64(n + 1)
	b.ReportAllocs()
	for b.Loop() {
		benchKey(k, rand.Uint64N(n), true)
		ref++
		t.Insert(k, ref, memindex.Put)
		t.SetFloor(ref)
	}
}

func BenchmarkGet(b *testing.B) {
	const n = 5_000_000
	t := fill(n, true)
	for _, miss := range []uint64{0, n} {
		b.Run(fmt.Sprintf("missing=%v", miss > 0), func(b *testing.B) {
			k := make([]byte, 16)
			b.ReportAllocs()
			for b.Loop() {
				benchKey(k, miss+rand.Uint64N(n), true)
				if _, ok := t.Latest(k); ok == (miss > 0) {
					b.Fatal("wrong answer")
				}
			}
		})
	}
}

func BenchmarkScan(b *testing.B) {
	for _, random := range []bool{true, false} {
		for _, reverse := range []bool{false, true} {
			b.Run(fmt.Sprintf("random=%v/reverse=%v", random, reverse), func(b *testing.B) {
				const n = 2_000_000
				t := fill(n, random)
				var c memindex.Chunk
				keys := 0
				b.ResetTimer()
				b.ReportAllocs()
				for range b.N {
					var lo, hi []byte
					open := false
					for {
						t.Scan(&c, lo, hi, open, n+1, reverse, 256)
						keys += c.Len()
						if !c.More() {
							break
						}
						if k := c.Key(c.Len() - 1); reverse {
							hi = append(hi[:0], k...)
						} else {
							lo, open = append(lo[:0], k...), true
						}
					}
				}
				b.ReportMetric(float64(keys)/1e6/b.Elapsed().Seconds(), "Mkeys/s")
			})
		}
	}
}

func BenchmarkSeek(b *testing.B) {
	const n = 5_000_000
	t := fill(n, true)
	k := make([]byte, 16)
	var c memindex.Chunk
	for b.Loop() {
		benchKey(k, rand.Uint64N(2*n), true)
		t.Scan(&c, k, nil, false, n+1, false, 1)
	}
}

// BenchmarkInsertScan inserts a key and looks at it in order, in turn.
func BenchmarkInsertScan(b *testing.B) {
	const n = 1_000_000
	t := fill(n, true)
	k := make([]byte, 16)
	var c memindex.Chunk
	i := uint64(n)
	for b.Loop() {
		i++
		benchKey(k, i, true)
		t.Insert(k, i, memindex.Put)
		if t.Scan(&c, k, nil, false, i+1, false, 1); c.Len() != 1 {
			b.Fatal("inserted key missing")
		}
	}
}

// BenchmarkQueue inserts at one end and deletes at the other.
func BenchmarkQueue(b *testing.B) {
	t := memindex.New()
	k := make([]byte, 16)
	const length = 100_000
	var i uint64
	for b.Loop() {
		benchKey(k, i, false)
		t.Insert(k, 2*i+1, memindex.Put)
		if i >= length {
			benchKey(k, i-length, false)
			t.Insert(k, 2*i+2, memindex.Delete)
		}
		i++
		t.SetFloor(2 * i)
	}
	b.ReportMetric(float64(t.Bytes()), "B")
}
