package fuzz

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// cutImage is a file of diverged/ that goes over the end of a segment, and the records in it.
type cutImage struct {
	name    string
	bytes   []byte
	records []string
}

var theCut = sync.OnceValue(func() *cutImage {
	disk := waltest.NewDisk()
	l, err := wal.Open("db", &wal.Options{FS: disk, SegmentSize: 64 << 10, Inline: true})
	check(err)
	check(l.Create(wal.Rule{}))
	im := &cutImage{}
	add := func(n int) {
		var b wal.Batch
		b.Add(append([]byte{0x81}, bytes.Repeat([]byte{byte(n), byte(n >> 3), byte(n * n)}, n)...))
		im.records = append(im.records, string(b.Record(0)))
		_, err := l.Append([]*wal.Batch{&b}, true)
		check(err)
	}
	add(10)
	im.records = nil
	boundary := l.Head()
	for n := 1; l.Head() < 70<<10; n++ {
		add(n * 37 % 1000)
	}
	check(l.Truncate(boundary))
	check(l.Close())
	for name, b := range disk.Files() {
		if strings.HasSuffix(name, ".cut") {
			im.name, im.bytes = name, b
		}
	}
	return im
})

// FuzzCut damages a file of what was cut from a log: it gives out records of the log from the first on, whole, and then
// either the end or an error that says where.
func FuzzCut(f *testing.F) {
	f.Fuzz(func(t *testing.T, kind uint8, at uint32, mask uint8, reseals bool) {
		im := theCut()
		b := bytes.Clone(im.bytes)
		off := int(at % uint32(len(b)))
		switch kind % 3 {
		case 0:
			b[off] ^= mask
		case 1:
			b = b[:off]
		default:
			clear(b[off&^511 : min(off&^511+512, len(b))])
		}
		if reseals && len(b) >= 128 && off < 128 {
			resealHeader(b)
		}
		disk := waltest.NewDisk()
		check(disk.MkdirAll("db/diverged", 0o700))
		check(disk.WriteFile(im.name, b))
		var got []string
		err := wal.ReadCut(disk, im.name, func(fr wal.Frame, raw []byte) error {
			if fr.Control() || fr.Seal() || len(raw) != fr.Raw {
				t.Errorf("frame %+v with %d bytes", fr, len(raw))
			}
			got = append(got, string(raw))
			return nil
		})
		all, out := strings.Join(im.records, ""), strings.Join(got, "")
		var c *wal.CorruptError
		switch {
		case err != nil && !errors.As(err, &c) && !errors.Is(err, wal.ErrVersion):
			t.Fatalf("kind %d at %d: %v", kind%3, off, err)
		case c != nil && (c.Path != im.name || c.Offset < 0 || c.Offset > int64(len(im.bytes)) || c.Reason == ""):
			t.Fatalf("kind %d at %d: the error says %+v", kind%3, off, c)
		case !strings.HasPrefix(all, out):
			t.Fatalf("kind %d at %d: what comes out is not what was cut: %d records", kind%3, off, len(got))
		case err == nil && len(out) != len(all):
			t.Fatalf("kind %d at %d: %d bytes of records without an error, %d were cut", kind%3, off, len(out), len(all))
		}
	})
}
