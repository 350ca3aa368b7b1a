package fuzz

import (
	"bytes"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// FuzzFrame changes one byte of one frame or header of a log and makes its checks fit again, so that what decides is
// not the checksum. A follower takes exactly what the description of the format says is a log, however it comes in
// pieces; recovery of the same bytes ends at the last batch end of it, or reports damage, and never shows more.
func FuzzFrame(f *testing.F) {
	f.Fuzz(func(t *testing.T, frame uint16, off uint16, mask uint8, piece uint16, seal bool) {
		im := theImage()
		p := bytes.Clone(im.raw)
		at := im.frames[int(frame)%len(im.frames)]
		size := uint64(128)
		if at%(64<<10) != 0 {
			size = (32 + uint64(le.Uint32(p[at+8:])) + 7) &^ 7 // with its padding
		}
		if at > 0 || off%128 >= 104 { // the first header founds the log, whatever it says
			p[at+uint64(off)%size] ^= mask
		}
		if seal && size != 128 {
			reseal(p, le.Uint64(p[32:]), at)
		} else if seal && at > 0 {
			resealHeader(p[at:])
		}
		want := validPrefix(p)
		l, err := wal.Open("db", &wal.Options{FS: waltest.NewDisk(), SegmentSize: 64 << 10, Inline: true})
		check(err)
		defer l.Close()
		feedPieces(l, p, int(piece)%8192+64)
		if got := uint64(l.Head()); got != want.at {
			t.Fatalf("change at %d+%d by %x: the log takes %d bytes, %d are valid", at, uint64(off)%size, mask, got, want.at)
		}
		if want.at == 0 {
			return // without a header there is no log
		}
		if uint64(l.BatchEnd()) != want.batchEnd {
			t.Fatalf("change at %d+%d by %x: the last batch ends at %d, not at %d", at, uint64(off)%size, mask, l.BatchEnd(), want.batchEnd)
		}
		recovered(t, im, p, want)
	})
}

// feedPieces offers a log piece by piece until it is refused.
func feedPieces(l *wal.Log, p []byte, size int) {
	var held []byte
	next := wal.LSN(0)
	for rest := p; len(rest) > 0; {
		n := min(size, len(rest))
		held, rest = append(held, rest[:n]...), rest[n:]
		taken, err := l.AppendRaw(next, held)
		held, next = held[taken:], next+wal.LSN(taken)
		if err != nil {
			return
		}
	}
}

// recovered opens a log with these bytes on disk, without mark and clean close.
func recovered(t *testing.T, im *image, p []byte, want *oracle) {
	t.Helper()
	disk := im.disk.Kill()
	check(disk.Remove("db/mark"))
	check(disk.Remove("db/node"))
	for base := 0; base < len(p); base += 64 << 10 {
		check(disk.WriteFile("db/log/"+wal.LSN(base).String()+".seg", p[base:min(base+64<<10, len(p))]))
	}
	l, err := wal.Open("db", &wal.Options{FS: disk, Inline: true})
	if err != nil {
		return // damage, by what follows
	}
	defer l.Close()
	if l.Empty() {
		t.Fatal("recovered empty")
	}
	// Damage in front of the segment that recovery scans shows when it is read.
	r := l.NewReader(0)
	defer r.Close()
	for r.Next() {
	}
	if r.Err() == nil && uint64(l.Head()) != want.batchEnd {
		t.Fatalf("recovery ends at %d, the last whole batch at %d", l.Head(), want.batchEnd)
	}
}

// FuzzBatches stores batches of records of these sizes in one group: each record is found by its ref, each batch ends
// with a marked record, frames keep to their limits, and after a crash of the process all is the same.
func FuzzBatches(f *testing.F) {
	f.Fuzz(func(t *testing.T, sizes []byte, sync bool) {
		if len(sizes) > 200 {
			return
		}
		disk := waltest.NewDisk()
		o := &wal.Options{FS: disk, SegmentSize: 64 << 10, Inline: true}
		l, err := wal.Open("db", o)
		check(err)
		check(l.Create(wal.Rule{}))
		batches, want := batchesOf(sizes)
		if _, err := l.Append(batches, sync); err != nil {
			t.Fatal(err)
		}
		checkBatches(t, l, batches, want)
		check(l.Close())
		o.FS = disk.Kill()
		l, err = wal.Open("db", o)
		check(err)
		defer l.Close()
		checkBatches(t, l, batches, want)
	})
}

// batchesOf makes batches: the upper two bits of a byte say what comes, the lower six how long it is.
func batchesOf(sizes []byte) (batches []*wal.Batch, want [][]byte) {
	b := &wal.Batch{}
	for i, s := range sizes {
		n := int(s & 63)
		switch s >> 6 {
		case 1:
			n *= 100
		case 2:
			n *= 1000
		case 3: // a new batch
			batches, b = append(batches, b), &wal.Batch{}
			n++
		}
		rec := append([]byte{1, byte(i), byte(i >> 8)}, bytes.Repeat([]byte{byte(i*7 + n)}, n)...)
		b.Add(rec)
	}
	batches = append(batches, b)
	for _, b := range batches {
		for i := range b.Len() {
			rec := bytes.Clone(b.Record(i))
			if i == b.Len()-1 {
				rec[0] |= 0x80
			}
			want = append(want, rec)
		}
	}
	return batches, want
}

func checkBatches(t *testing.T, l *wal.Log, batches []*wal.Batch, want [][]byte) {
	t.Helper()
	var whole []byte
	r := l.NewReader(0)
	defer r.Close()
	for r.Next() {
		f := r.Frame()
		switch {
		case f.Control() || f.Seal():
			continue
		case f.Raw > 4096 && f.Records+boolInt(f.Continuation()) != 1:
			t.Fatalf("%d records share a frame of %d bytes", f.Records, f.Raw)
		case f.Raw > 16<<10:
			t.Fatalf("a frame of %d bytes, a quarter of a segment is the limit", f.Raw)
		}
		whole = append(whole, r.Raw()...)
	}
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	if all := bytes.Join(want, nil); !bytes.Equal(whole, all) {
		t.Fatalf("the log has %d bytes of records, %d were stored", len(whole), len(all))
	}
	n := 0
	var buf wal.Buffer
	for _, b := range batches {
		for i := range b.Len() {
			err := l.ReadRecord(b.Ref(i), &buf, func(p []byte) error {
				if !bytes.HasPrefix(p, want[n]) {
					t.Fatalf("record %d is not at its ref %v", n, b.Ref(i))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
