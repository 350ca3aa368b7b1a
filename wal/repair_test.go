package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"shiplog/wal"
)

// TestRepairTakesOnlyWhatFits: damage anywhere in what is durable of a segment is found; a copy that is damaged too, of another
// log, or too short is refused and changes nothing; the right one mends the segment, the log's last one too, and reads go on.
func TestRepairTakesOnlyWhatFits(t *testing.T) {
	const segment = 64 << 10
	fill := func(dir, text string) *wal.Log {
		l, err := wal.Open(dir, &wal.Options{SegmentSize: segment})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := l.Create(wal.Rule{Level: 2}); err != nil {
			t.Fatal(err)
		}
		for i := range 400 {
			var b wal.Batch
			b.Add(fmt.Appendf(nil, "%s %d %x", text, i, rand.New(rand.NewPCG(uint64(i), 1)).Perm(100)))
			if _, err := l.Append([]*wal.Batch{&b}, true); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		return l
	}
	dir := t.TempDir()
	l, other := fill(dir, "this"), fill(t.TempDir(), "other")
	bases := l.Segments()
	if len(bases) < 3 {
		t.Fatal(bases)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	for _, base := range bases {
		end := min(base+segment, l.Durable())
		good, foreign := make([]byte, end-base), make([]byte, end-base)
		if _, err := l.ReadAt(good, base); err != nil {
			t.Fatal(err)
		}
		if _, err := other.ReadAt(foreign, base); err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("%s/log/%v.seg", dir, base)
		for range 10 {
			at := rng.IntN(len(good))
			write := func(p []byte, at int) {
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteAt(p, int64(at)); err != nil {
					t.Fatal(err)
				}
			}
			bad := bytes.Clone(good[at:min(len(good), at+1+rng.IntN(9000))])
			bad[0] ^= 1 << rng.IntN(8)
			for i := range bad[1:] {
				bad[1+i] ^= byte(rng.Uint32())
			}
			write(bad, at)
			var c *wal.CorruptError
			if err := l.Scrub(base); !errors.As(err, &c) || c.LSN < base || c.LSN > base+wal.LSN(at) {
				t.Fatalf("damage at %v: %v", base+wal.LSN(at), err)
			}
			worse := bytes.Clone(good)
			worse[rng.IntN(len(worse))] ^= 0x40
			for what, p := range map[string][]byte{"damaged": worse, "foreign": foreign, "short": good[:at], "none": nil} {
				if n, err := l.Repair(base, p); err == nil || n != 0 {
					t.Fatalf("a %s copy was taken: %d, %v", what, n, err)
				}
			}
			if n, err := l.Repair(base, good); err != nil || n == 0 {
				t.Fatalf("damage of %d bytes at %v: %d, %v", len(bad), base+wal.LSN(at), n, err)
			}
			if err := l.Scrub(base + wal.LSN(at)); err != nil {
				t.Fatal(err)
			}
			now, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(now[:len(good)], good) {
				t.Fatal("not mended", err)
			}
		}
	}
	if err := l.Scrub(l.Durable() + segment); !errors.Is(err, wal.ErrBeyondEnd) {
		t.Error(err)
	}
	if _, err := l.Repair(bases[0]+64, nil); !errors.Is(err, wal.ErrInvalid) {
		t.Error(err)
	}
	var b wal.Batch
	b.Add([]byte("goes on"))
	if _, err := l.Append([]*wal.Batch{&b}, true); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Verify(t.Context()); err != nil || !r.OK() {
		t.Fatal(r.Damage, err)
	}
}
