package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
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

// heldLog is an open log on a simulated disk with the bytes of another's, all synced.
func heldLog(t *testing.T, source []byte) (*waltest.Disk, *wal.Log) {
	t.Helper()
	d := waltest.NewDisk()
	l, err := openAhead(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := receive(l, source, len(source), func() int { return 1 << 20 }); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	return d, l
}

// TestRepairByRead: a read that meets damage has it repaired and is made once more, wherever in the log it is; without a repair it names file,
// offset and LSN.
func TestRepairByRead(t *testing.T) {
	source := sourceLog(t, 3)
	rng := rand.New(rand.NewPCG(3, 3))
	for range 20 {
		d, l := heldLog(t, source)
		at := rng.IntN(len(source) - 8)
		base := at / wal.MinSegmentSize * wal.MinSegmentSize
		if at -= base; at < wal.HeaderSize {
			at = wal.HeaderSize // readers do not look at headers
		}
		if err := d.Flip(segmentFile(base), int64(at), 1<<rng.IntN(8)); err != nil {
			t.Fatal(err)
		}
		read := func() error {
			r := l.NewReader(0)
			for r.Next() {
			}
			if r.Err() == nil && r.End() < l.Head() {
				return fmt.Errorf("the reader stops at %v", r.End())
			}
			return r.Err()
		}
		var c *wal.CorruptError
		err := read()
		if err == nil {
			continue // the zeros behind a seal are the scrubber's
		}
		if !errors.As(err, &c) || c.LSN > wal.LSN(base+at) || c.Path == "" {
			t.Fatalf("damage at %d: %v", base+at, err)
		}
		asked := 0
		l.SetRepair(func(lsn wal.LSN, _ error) bool {
			asked++
			from := int(lsn) / wal.MinSegmentSize * wal.MinSegmentSize
			_, err := l.Repair(wal.LSN(from), source[from:min(len(source), from+wal.MinSegmentSize)])
			return err == nil
		})
		if err := read(); err != nil || asked != 1 {
			t.Fatalf("damage at %d: %v after %d repairs", base+at, err, asked)
		}
		l.SetRepair(nil)
	}
}

// TestRepairByView: a frame that is looked at in place is repaired as one that is read is, and shown once; one that cannot be repaired is
// not shown.
func TestRepairByView(t *testing.T) {
	source := sourceLog(t, 3)
	d, l := heldLog(t, source)
	good := map[wal.LSN][]byte{}
	r := l.NewReader(0)
	for r.Next() {
		at := r.Frame().LSN
		if err := l.ViewFrame(at, func(_ wal.Frame, stored []byte) error {
			good[at] = bytes.Clone(stored)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if r.Err() != nil || len(good) < 3 {
		t.Fatalf("%d frames, %v", len(good), r.Err())
	}
	for at, want := range good {
		off := int64(uint64(at) % wal.MinSegmentSize)
		base := int(uint64(at)) - int(off)
		if err := d.Flip(segmentFile(base), off+wal.FrameHeaderSize, 4); err != nil {
			t.Fatal(err)
		}
		shown, asked := 0, 0
		view := func() error {
			return l.ViewFrame(at, func(_ wal.Frame, stored []byte) error {
				if shown++; !bytes.Equal(stored, want) {
					t.Errorf("frame at %v: other bytes are shown", at)
				}
				return nil
			})
		}
		var c *wal.CorruptError
		if err := view(); !errors.As(err, &c) || c.LSN != at || shown != 0 {
			t.Fatalf("damage at %v: %v, shown %d times", at, err, shown)
		}
		l.SetRepair(func(lsn wal.LSN, _ error) bool {
			asked++
			_, err := l.Repair(wal.LSN(base), source[base:min(len(source), base+wal.MinSegmentSize)])
			return err == nil && lsn == at
		})
		if err := view(); err != nil || shown != 1 || asked != 1 {
			t.Fatalf("damage at %v: %v after %d repairs, shown %d times", at, err, asked, shown)
		}
		mine := errors.New("the caller's")
		if err := l.ViewFrame(at, func(wal.Frame, []byte) error { return mine }); !errors.Is(err, mine) || asked != 1 {
			t.Fatalf("the caller's error became %v after %d repairs", err, asked)
		}
		l.SetRepair(nil)
	}
}

// TestDigestOfDamage: no digest is made of a frame that does not hold, be it only its checksum that is damaged; once it is repaired, the
// digest is the right one.
func TestDigestOfDamage(t *testing.T) {
	const size = 1 << 20 // a digest is remembered every 64 KiB
	d := waltest.NewDisk()
	open := func() *wal.Log {
		l, err := wal.Open(dbDir, &wal.Options{FS: d, SegmentSize: size, Inline: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	l := open()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	first := l.Head()
	for l.Head() < 500_000 {
		if _, err := l.Append([]*wal.Batch{batch(2, 3000)}, true); err != nil {
			t.Fatal(err)
		}
	}
	last := l.Head()
	want, err := l.DigestAt(last)
	if err != nil {
		t.Fatal(err)
	}
	for l.Head() < size+5000 {
		if _, err := l.Append([]*wal.Batch{batch(4, 3000)}, true); err != nil {
			t.Fatal(err)
		}
	}
	good := whole(t, l)[:size]
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open() // it remembers no digests of the first segment
	if err := d.Flip(segmentFile(0), int64(first), 1); err != nil {
		t.Fatal(err)
	}
	var c *wal.CorruptError
	if got, err := l.DigestAt(last); !errors.As(err, &c) || c.LSN != first {
		t.Fatalf("a digest of damage: %v, %v", got, err)
	}
	if _, err := l.Repair(0, good); err != nil {
		t.Fatal(err)
	}
	if got, err := l.DigestAt(last); err != nil || got != want {
		t.Fatalf("digest %v, want %v: %v", got, want, err)
	}
}

// TestRepairForeign: frames that are sound in themselves, of the same database and at their place, but of another history, are damage, and
// are not taken for a repair: also in the segment that is being written, with an end that is not synced.
func TestRepairForeign(t *testing.T) {
	disk := waltest.NewDisk()
	l, err := openAhead(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	appendOne := func(id uint32, sync bool) wal.LSN {
		if _, err := l.Append([]*wal.Batch{batch(id, 1000)}, sync); err != nil {
			t.Fatal(err)
		}
		if sync {
			if _, err := l.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		return l.Head()
	}
	from := l.Head()
	to := appendOne(2, true)
	other := whole(t, l)
	if err := l.Truncate(from); err != nil {
		t.Fatal(err)
	}
	if appendOne(4, true) != to {
		t.Fatal("the other history is of another length")
	}
	if appendOne(6, false); l.Durable() != to {
		t.Fatal("nothing is unsynced")
	}
	good := whole(t, l)
	if _, err := l.Repair(0, other); err == nil {
		t.Error("another history was taken for a repair")
	}
	if !bytes.Equal(whole(t, l), good) {
		t.Fatal("another history was written")
	}
	if err := disk.Overwrite(segmentFile(0), int64(from), other[from:to]); err != nil {
		t.Fatal(err)
	}
	var c *wal.CorruptError
	if err := l.Scrub(0); !errors.As(err, &c) {
		t.Errorf("another history passes for sound: %v", err)
	}
	if _, err := l.Repair(0, good); err != nil || !bytes.Equal(whole(t, l), good) {
		t.Fatal(err)
	}
	if err := l.Scrub(0); err != nil {
		t.Fatal(err)
	}
}
