package fuzz

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// image is a small log of two segments, and what is in it.
type image struct {
	disk    *waltest.Disk
	files   []string
	raw     []byte // its bytes from LSN 0 on
	records []string
}

var theImage = sync.OnceValue(func() *image {
	im := &image{disk: waltest.NewDisk()}
	l, err := wal.Open("db", &wal.Options{FS: im.disk, SegmentSize: 64 << 10, Inline: true})
	check(err)
	check(l.Create(wal.Rule{Level: 3}))
	for i := range 60 {
		var b wal.Batch
		rec := append([]byte{1}, bytes.Repeat(fmt.Appendf(nil, "%d.", i*i*7919), 1+i*13)...)
		b.Add(rec)
		_, err := l.Append([]*wal.Batch{&b}, true)
		check(err)
		_, err = l.Sync()
		check(err)
		rec[0] |= 0x80
		im.records = append(im.records, string(rec))
	}
	im.raw = make([]byte, l.Head())
	_, err = l.ReadAt(im.raw, 0)
	check(err)
	check(l.Close())
	for name := range im.disk.Files() {
		im.files = append(im.files, name)
	}
	slices.Sort(im.files)
	return im
})

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// contents reads all records of a log, joining those that span frames.
func contents(t *testing.T, l *wal.Log) []string {
	t.Helper()
	var out []string
	r := l.NewReader(l.Tail())
	defer r.Close()
	for r.Next() {
		switch f := r.Frame(); {
		case f.Control():
		case f.Continuation():
			out[len(out)-1] += string(r.Raw())
		default:
			out = append(out, string(r.Raw()))
		}
	}
	if r.Err() != nil {
		t.Fatalf("a recovered log does not read: %v", r.Err())
	}
	return out
}

// FuzzRecovery damages one file of a log that was closed cleanly: the log opens with all of it, or not at all, and the
// second open sees what the first did. Nothing that was known to be durable is ever cut.
func FuzzRecovery(f *testing.F) {
	f.Add(uint8(0), uint8(0), uint32(0), uint8(0))     // nothing
	f.Add(uint8(3), uint8(0), uint32(200), uint8(1))   // a bit of the first segment
	f.Add(uint8(4), uint8(1), uint32(300), uint8(0))   // the last segment cut short
	f.Add(uint8(1), uint8(0), uint32(4100), uint8(16)) // a bit of the mark
	f.Add(uint8(2), uint8(1), uint32(0), uint8(0))     // no node file
	f.Add(uint8(3), uint8(2), uint32(4096), uint8(0))  // a block of zeros
	f.Fuzz(func(t *testing.T, file, kind uint8, at uint32, mask uint8) {
		im := theImage()
		disk := im.disk.Kill()
		name := im.files[int(file)%len(im.files)]
		b, err := disk.ReadFile(name)
		check(err)
		if len(b) == 0 {
			return
		}
		off := int64(at) % int64(len(b))
		switch kind % 3 {
		case 0:
			check(disk.Flip(name, off, mask))
		case 1:
			check(disk.TruncateFile(name, off))
		default:
			off &^= 511
			check(disk.Overwrite(name, off, make([]byte, min(512, int64(len(b))-off))))
		}
		var first []string
		for round := range 2 {
			l, err := wal.Open("db", &wal.Options{FS: disk, Inline: true})
			if err != nil {
				if round == 1 {
					t.Fatalf("%s: the second open fails: %v", name, err)
				}
				return
			}
			if l.Empty() {
				t.Fatalf("%s: a log with durable records opens empty", name)
			}
			// Damage in the middle of what recovery does not scan shows when it is read.
			r := l.NewReader(l.Tail())
			for r.Next() {
			}
			r.Close()
			if err := r.Err(); err != nil {
				if !errors.Is(err, &wal.CorruptError{}) {
					var c *wal.CorruptError
					if !errors.As(err, &c) {
						t.Fatalf("%s: damage reads as %v", name, err)
					}
				}
				check(l.Close())
				return
			}
			got := contents(t, l)
			check(l.Close())
			if filepath.Base(name) != "node" && !slices.Equal(got, im.records) {
				t.Fatalf("%s kind %d at %d: %d of %d records, without an error", name, kind%3, off, len(got), len(im.records))
			}
			if round == 0 {
				first = got
			} else if !slices.Equal(got, first) {
				t.Fatalf("%s: the second open differs", name)
			}
		}
	})
}

// FuzzAppendRaw offers the bytes of a log, damaged in one place and split anywhere: what is taken is the same log, and
// nothing from the damage on is.
func FuzzAppendRaw(f *testing.F) {
	f.Add(uint32(0), uint8(0), uint16(1000))     // as it is
	f.Add(uint32(3), uint8(1), uint16(77))       // the magic
	f.Add(uint32(130), uint8(128), uint16(4096)) // the first frame
	f.Add(uint32(65600), uint8(2), uint16(9999)) // the second segment's header
	f.Add(uint32(0), uint8(0), uint16(0))        // a byte at a time, nearly
	f.Fuzz(func(t *testing.T, at uint32, mask uint8, piece uint16) {
		im := theImage()
		b := bytes.Clone(im.raw)
		pos := int(at) % len(b)
		b[pos] ^= mask
		l, err := wal.Open("db", &wal.Options{FS: waltest.NewDisk(), SegmentSize: 64 << 10, Inline: true})
		check(err)
		defer l.Close()
		size := int(piece)%8192 + 64
		var held []byte
		next := wal.LSN(0)
		for rest := b; len(rest) > 0; {
			n := min(size, len(rest))
			held, rest = append(held, rest[:n]...), rest[n:]
			taken, err := l.AppendRaw(next, held)
			held, next = held[taken:], next+wal.LSN(taken)
			if err != nil {
				break
			}
		}
		if mask == 0 && int(l.Head()) != len(b) {
			t.Fatalf("whole log offered, %d of %d bytes taken", l.Head(), len(b))
		}
		if mask != 0 && int(l.Head()) > pos {
			t.Fatalf("a byte is damaged at %d, the head is %d", pos, l.Head())
		}
		got := make([]byte, l.Head())
		if len(got) == 0 {
			return
		}
		if _, err := l.ReadAt(got, 0); err != nil || !bytes.Equal(got, im.raw[:len(got)]) {
			t.Fatalf("what was taken is not the log's (%v)", err)
		}
		contents(t, l)
	})
}
