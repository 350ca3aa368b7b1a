package fuzz

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// image is a small log of two segments, and what is in it.
type image struct {
	disk    *waltest.Disk // closed cleanly
	killed  *waltest.Disk // before that
	files   []string
	raw     []byte   // its bytes from LSN 0 on
	frames  []uint64 // where headers and frames stand in it
	records []string
	marked  int // how many of them the mark of killed knows
}

// markedAt is the commit before which the mark of a killed image was written. The few behind it are known to be durable by what
// later frames promise, all but the last.
const markedAt = 26

var theImage = sync.OnceValue(func() *image {
	im := &image{disk: waltest.NewDisk()}
	open := func() *wal.Log {
		l, err := wal.Open("db", &wal.Options{FS: im.disk, SegmentSize: 64 << 10, Inline: true})
		check(err)
		return l
	}
	l := open()
	check(l.Create(wal.Rule{Level: 3}))
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 30 {
		var b wal.Batch
		n := 1
		if i == 20 {
			n = 12 // several frames
		}
		for k := range n {
			size := 1500 + i*40
			if i == 5 {
				size = 20_000 // a record over several frames
			}
			rec := append([]byte{1}, fmt.Appendf(nil, "%d.%d ", i*i*7919, k)...)
			if i%3 == 0 { // shrinks when it is packed
				rec = append(rec, bytes.Repeat(rec, 20*i)...)
			}
			for len(rec) < size && i%3 != 0 {
				rec = append(rec, byte(rng.Uint32()))
			}
			b.Add(rec)
			if k == n-1 {
				rec[0] |= 0x80
			}
			im.records = append(im.records, string(rec))
		}
		if i == markedAt { // the mark says that all before is durable
			im.marked = len(im.records) - n
			check(l.Close())
			l = open()
		}
		_, err := l.Append([]*wal.Batch{&b}, true)
		check(err)
		_, err = l.Sync()
		check(err)
	}
	if l.Head() < 66<<10 {
		panic(fmt.Sprintf("the image ends at %v, inside its first segment", l.Head()))
	}
	im.raw = make([]byte, l.Head())
	_, err := l.ReadAt(im.raw, 0)
	check(err)
	im.killed = im.disk.Kill()
	check(l.Close())
	for o := validPrefix(im.raw[:128]); int(o.at) < len(im.raw); {
		im.frames = append(im.frames, o.at)
		if at := o.at; at%o.size == 0 && !o.header(im.raw[at:]) || at%o.size != 0 && !o.frame(im.raw[at:]) {
			panic(fmt.Sprintf("the description of the format has no frame at %d", at))
		}
	}
	im.frames = append(im.frames, 0)
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

// The states that FuzzRecovery finds a log in.
const (
	closedCleanly = iota
	killed        // after its last commit; the mark is older by some records
	markLost      // closed cleanly
	states
)

// found returns the disk of the image in a state, and how many of its records are known to be durable.
func (im *image) found(state uint8) (disk *waltest.Disk, durable int) {
	switch state % states {
	case killed:
		return im.killed.Kill(), im.marked
	case markLost:
		disk = im.disk.Kill()
		check(disk.Remove("db/mark"))
		return disk, len(im.records)
	}
	return im.disk.Kill(), len(im.records)
}

// FuzzRecovery damages one file of a log that was closed cleanly, or not: the log opens with all that was known to be
// durable, or not at all, and the second open sees what the first did.
func FuzzRecovery(f *testing.F) {
	f.Fuzz(func(t *testing.T, state, file, kind uint8, at uint32, mask uint8) {
		im := theImage()
		disk, durable := im.found(state)
		name := im.files[int(file)%len(im.files)]
		b, err := disk.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || len(b) == 0 {
			return
		}
		check(err)
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
		if base := filepath.Base(name); base == "node" || base == "mark" && state%states == killed {
			durable = 0 // what was known is lost with it
		} else if kind%3 == 0 {
			durable = max(durable, len(im.records)-1) // a flipped bit takes no promise with it, unless it is in the last frame
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
				var c *wal.CorruptError
				if !errors.As(err, &c) && !errors.Is(err, wal.ErrIO) { // a map faults behind the end of a file
					t.Fatalf("%s: damage reads as %v", name, err)
				}
				check(l.Close())
				return
			}
			got := contents(t, l)
			check(l.Close())
			if len(got) < durable || len(got) > len(im.records) || !slices.Equal(got, im.records[:len(got)]) {
				t.Fatalf("%s kind %d at %d: %d of %d records, %d were known to be durable", name, kind%3, off, len(got), len(im.records), durable)
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
	f.Fuzz(func(t *testing.T, at uint32, mask uint8, piece uint16) {
		im := theImage()
		b := bytes.Clone(im.raw)
		pos := int(at % uint32(len(b)))
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
