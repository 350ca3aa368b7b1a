package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// peer gives out the bytes of a log, as a node does: who asks must stand on the same history.
type peer struct {
	log   *wal.Log
	bytes []byte
	lie   func(p []byte) []byte // nil: it is honest
	asked int
}

func newPeer(t *testing.T, source []byte) *peer {
	_, l := heldLog(t, source)
	return &peer{log: l, bytes: source}
}

func (p *peer) fetch(_ context.Context, r *wal.MendRequest) ([]byte, error) {
	p.asked++
	if r.From >= p.log.Head() {
		return nil, wal.ErrBeyondEnd
	}
	digest, err := p.log.DigestAt(r.From)
	switch {
	case err != nil:
		return nil, err
	case r.Database != p.log.DatabaseID():
		return nil, wal.ErrDatabase
	case r.Known && r.From > 0 && digest != r.Digest:
		return nil, errors.New("digests differ")
	case r.From > 0 && len(r.History) == 0:
		return nil, errors.New("no history")
	}
	for _, h := range r.History {
		known := false
		for _, own := range p.log.History() {
			known = known || own.Epoch == h.Epoch && own.ID == h.ID && own.Leader == h.Leader
		}
		if !known {
			return nil, errors.New("another history")
		}
	}
	b := bytes.Clone(p.bytes[r.From:min(r.To, wal.LSN(len(p.bytes)))])
	if p.lie != nil {
		b = p.lie(b)
	}
	return b, nil
}

// hurt damages the log on a disk, and says how.
func hurt(t *testing.T, rng *rand.Rand, d *waltest.Disk, size int) string {
	t.Helper()
	const block = 4096
	at := rng.IntN(size)
	base := at / wal.MinSegmentSize * wal.MinSegmentSize
	name, off := segmentFile(base), (at-base)/block*block
	if rng.IntN(4) == 0 {
		off = 0 // the header
	}
	n := min(block, size-base-off)
	var err error
	what := []string{"flip", "zero", "noise", "missing", "short"}[rng.IntN(5)]
	switch what {
	case "flip":
		err = d.Flip(name, int64(off+rng.IntN(n)), 1<<rng.IntN(8))
	case "zero":
		err = d.Overwrite(name, int64(off), make([]byte, n))
	case "noise":
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		err = d.Overwrite(name, int64(off), p)
	case "missing":
		err = d.Remove(name)
		if err == nil {
			err = d.SyncDir(path.Dir(name))
		}
	case "short":
		err = d.TruncateFile(name, int64(off))
	}
	if err != nil { // that part of the file is gone already
		return "none"
	}
	return fmt.Sprintf("%s at %d", what, base+off)
}

// closedLog is a disk with the log of source, closed cleanly or as a kill leaves it.
func closedLog(t *testing.T, source []byte, clean bool) *waltest.Disk {
	t.Helper()
	d, l := heldLog(t, source)
	if clean {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return d.Kill()
}

// sameAs expects a log, opened by recovery, to hold what source holds.
func sameAs(t *testing.T, d *waltest.Disk, source []byte, what string) {
	t.Helper()
	l, err := openAhead(d)
	if err != nil {
		t.Fatalf("%s: open: %v", what, err)
	}
	defer l.Close()
	if got := whole(t, l); !bytes.Equal(got, source) {
		t.Fatalf("%s: %d bytes that are not those of the source's %d", what, len(got), len(source))
	}
}

// TestMendAnything: whatever damage there is, however much of it, below what was known to be durable, one call mends the log to the bytes that
// there were. It asks nobody where nothing is damaged.
func TestMendAnything(t *testing.T) {
	source := sourceLog(t, 4)
	p := newPeer(t, source)
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	for seed := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed, 9))
		clean := seed%2 == 0
		d := closedLog(t, source, clean)
		known := len(source)
		if !clean {
			known = len(source) / wal.MinSegmentSize * wal.MinSegmentSize // by the last header; the mark is written at Close
		}
		p.asked = 0
		if r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, p.fetch); err != nil || p.asked != 0 || len(r.Damaged)+len(r.Mended) != 0 {
			t.Fatalf("%d: a sound log: %+v, %v, asked %d times", seed, r, err, p.asked)
		}
		var hits []string
		for range 1 + rng.IntN(4) {
			hits = append(hits, hurt(t, rng, d, known))
		}
		what := fmt.Sprintf("seed %d, clean %v, %v", seed, clean, hits)
		v, err := wal.Verify(t.Context(), dbDir, &wal.Options{FS: d})
		damaged := err != nil || !v.OK() || v.Tail > 0 || v.End < wal.LSN(len(source))
		r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, p.fetch)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if damaged && (len(r.Mended) == 0 || r.Bytes == 0) {
			t.Fatalf("%s: nothing was mended: %+v", what, r)
		}
		for name := range d.Files() {
			if strings.HasSuffix(name, ".mend") {
				t.Fatalf("%s: %s was left", what, name)
			}
		}
		sameAs(t, d, source, what)
	}
}

// TestMendTakesOnlyWhatFits: copies that are damaged, short, empty, or of another history, change no byte that they do not mend.
func TestMendTakesOnlyWhatFits(t *testing.T) {
	source := sourceLog(t, 4)
	p := newPeer(t, source)
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	refused := 0
	for seed := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed, 10))
		d := closedLog(t, source, true)
		var hits []string
		for range 1 + rng.IntN(3) {
			hits = append(hits, hurt(t, rng, d, len(source)))
		}
		lie := rng.IntN(4)
		p.lie = func(b []byte) []byte {
			switch lie {
			case 0:
				return b[:rng.IntN(len(b))]
			case 1:
				return nil
			case 2:
				for range 100 {
					b[rng.IntN(len(b))] ^= 0x40
				}
			default:
				b[rng.IntN(len(b))] ^= 1
			}
			return b
		}
		what := fmt.Sprintf("seed %d, lie %d, %v", seed, lie, hits)
		before := d.Files()
		_, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, p.fetch)
		after := d.Files()
		if err != nil {
			refused++
		}
		for name, now := range after {
			if strings.HasSuffix(name, ".mend") {
				t.Fatalf("%s: %s was left", what, name)
			}
			if was, there := before[name]; there && bytes.Equal(now, was) || !strings.HasSuffix(name, ".seg") {
				continue
			}
			base := 0
			if _, err := fmt.Sscanf(path.Base(name), "%x.seg", &base); err != nil {
				t.Fatal(name, err)
			}
			want := source[base:min(base+wal.MinSegmentSize, len(source))]
			if len(now) < len(want) || !bytes.Equal(now[:len(want)], want) {
				t.Fatalf("%s: %s was changed, and is not what it was before the damage; %v", what, name, err)
			}
		}
		if len(after) < len(before) {
			t.Fatalf("%s: files are gone: %s", what, changed(before, after))
		}
		if err == nil {
			sameAs(t, d, source, what)
		}
	}
	if refused < rounds/2 {
		t.Errorf("%d of %d lies were refused", refused, rounds)
	}
}

// TestMendOtherHistory: frames that are sound here are never given up for others, though those are sound too and of the same database; and where
// the end of the log is damaged, bytes of a later epoch than this log knows of are none that it has lost.
func TestMendOtherHistory(t *testing.T) {
	d := waltest.NewDisk()
	open := func() *wal.Log {
		t.Helper()
		l, err := openAhead(d)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	put := func(id uint32) wal.LSN {
		t.Helper()
		if _, err := l.Append([]*wal.Batch{batch(id, 3000)}, true); err != nil {
			t.Fatal(err)
		}
		return l.Head()
	}
	first := put(2)
	fork := put(4)
	second := put(6)
	put(8)
	mine := whole(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	own := d.Kill()
	l = open()
	defer l.Close()
	if err := l.Truncate(fork); err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartEpoch(l.Epoch().NextRestart(), wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		put(10)
	}
	theirs := &peer{log: l, bytes: whole(t, l)}

	for _, test := range []struct {
		what     string
		from, to wal.LSN // zeroed
	}{
		{"before the fork, frames behind it are sound", first, fork},
		{"at the fork, a frame behind it is sound", fork, second},
		{"from the fork on", fork, wal.LSN(len(mine))},
	} {
		damaged := own.Kill()
		if err := damaged.Overwrite(segmentFile(0), int64(test.from), make([]byte, test.to-test.from)); err != nil {
			t.Fatal(err)
		}
		before := damaged.Files()
		r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: damaged}, theirs.fetch)
		var c *wal.CorruptError
		if !errors.As(err, &c) || len(r.Left) != 1 || len(r.Mended) != 0 {
			t.Errorf("%s: %+v, %v", test.what, r, err)
		}
		if s := changed(before, damaged.Files()); strings.Contains(s, ".seg") {
			t.Errorf("%s: changed: %s", test.what, s)
		}
	}
}

// TestMendSameEpoch: frames of the same database, place, epoch and length that this log never had. What shows them is, in turn, a frame
// that is sound here, the digest in the next segment's header, and the one that a clean close has noted.
func TestMendSameEpoch(t *testing.T) {
	start := waltest.NewDisk()
	open := func(d *waltest.Disk) *wal.Log {
		t.Helper()
		l, err := wal.Open(dbDir, &wal.Options{FS: d, SegmentSize: wal.MinSegmentSize, Inline: true, Now: func() time.Time { return time.UnixMilli(1_700_000_000_000) }})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open(start)
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	write := func(ids ...uint32) (d *waltest.Disk, l *wal.Log, ends []wal.LSN) {
		t.Helper()
		d = start.Kill()
		l = open(d)
		for _, id := range ids {
			if _, err := l.Append([]*wal.Batch{batch(id, 9000)}, true); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Sync(); err != nil { // the next frame says so
				t.Fatal(err)
			}
			ends = append(ends, l.Head())
		}
		return d, l, ends
	}
	for _, test := range []struct {
		what         string
		mine, theirs []uint32
		clean        bool
	}{
		{"a sound frame", []uint32{2, 4, 6, 8}, []uint32{2, 14, 16, 8}, false},
		{"the next header", []uint32{2, 4, 6, 8, 10, 12, 14, 16, 18}, []uint32{2, 44, 6, 8, 10, 12, 14, 16, 18}, false},
		{"a clean close", []uint32{2, 4, 6, 8}, []uint32{2, 44, 6, 8}, true},
	} {
		d, own, ends := write(test.mine...)
		want := whole(t, own)
		if test.clean {
			if err := own.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			defer own.Close()
		}
		d = d.Kill()
		_, other, _ := write(test.theirs...)
		defer other.Close()
		theirs := &peer{log: other, bytes: whole(t, other)}
		if len(theirs.bytes) != len(want) {
			t.Fatal("the other log is of another length")
		}
		if err := d.Overwrite(segmentFile(0), int64(ends[0]), make([]byte, ends[1]-ends[0])); err != nil {
			t.Fatal(err)
		}
		before := d.Files()
		r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, theirs.fetch)
		if err == nil || len(r.Mended) != 0 || strings.Contains(changed(before, d.Files()), ".seg") {
			t.Errorf("%s: %+v, %v, changed %s", test.what, r, err, changed(before, d.Files()))
		}
		_, same, _ := write(test.mine...)
		defer same.Close()
		honest := &peer{log: same, bytes: want}
		if _, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, honest.fetch); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
	}
}

// TestMendEnd: where the end of a log that was killed is damaged, it takes from another what that has of the same epoch, the lost end of what was
// durable included, and nothing of a later epoch.
func TestMendEnd(t *testing.T) {
	d := waltest.NewDisk()
	open := func() *wal.Log {
		t.Helper()
		l, err := openAhead(d)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	put := func(id uint32) wal.LSN {
		t.Helper()
		if _, err := l.Append([]*wal.Batch{batch(id, 3000)}, true); err != nil {
			t.Fatal(err)
		}
		return l.Head()
	}
	first := put(2)
	put(4)
	if err := l.Close(); err != nil { // the mark says that this was durable
		t.Fatal(err)
	}
	l = open()
	defer l.Close()
	end := put(6)
	own := d.Kill()
	if _, err := l.StartEpoch(l.Epoch().NextRestart(), wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	put(8)
	p := &peer{log: l, bytes: whole(t, l)}
	if err := own.Overwrite(segmentFile(0), int64(first), make([]byte, end-first)); err != nil {
		t.Fatal(err)
	}
	if _, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: own}, p.fetch); err != nil {
		t.Fatal(err)
	}
	sameAs(t, own, p.bytes[:end], "the end")
}

// TestMendCrash: the machine loses power at each change that a repair makes. What is there then is a segment as it was or as it should be, and
// the call is made again.
func TestMendCrash(t *testing.T) {
	source := sourceLog(t, 4)
	p := newPeer(t, source)
	points := 0
	for seed := range uint64(6) {
		for k := 0; ; k++ {
			rng := rand.New(rand.NewPCG(seed, 11))
			d := closedLog(t, source, true)
			var hits []string
			for range 3 {
				hits = append(hits, hurt(t, rng, d, len(source)))
			}
			what := fmt.Sprintf("seed %d, %v, crash at change %d", seed, hits, k)
			before := d.Files()
			d.WriteBackAtRandom(uint64(k))
			d.Inject(waltest.Fault{Skip: k, Crash: true})
			_, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, p.fetch)
			if !d.Crashed() {
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				break
			}
			points++
			for survivors := range uint64(3) {
				left := d.Crash(survivors)
				for name, now := range left.Files() {
					if !strings.HasSuffix(name, ".seg") {
						continue
					}
					base := 0
					if _, err := fmt.Sscanf(path.Base(name), "%x.seg", &base); err != nil {
						t.Fatal(name, err)
					}
					want := source[base:min(base+wal.MinSegmentSize, len(source))]
					if was, there := before[name]; !(there && bytes.Equal(now, was)) && (len(now) < len(want) || !bytes.Equal(now[:len(want)], want)) {
						t.Fatalf("%s, survivors %d: %s is neither what it was nor what it should be", what, survivors, name)
					}
				}
				if _, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: left}, p.fetch); err != nil {
					t.Fatalf("%s, survivors %d: again: %v", what, survivors, err)
				}
				sameAs(t, left, source, what)
			}
		}
	}
	t.Logf("%d crashes", points)
}

// TestMendRefused: a log that is open, a directory that is none, one without a log.
func TestMendRefused(t *testing.T) {
	source := sourceLog(t, 1)
	d, l := heldLog(t, source)
	p := newPeer(t, source)
	if _, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, p.fetch); !errors.Is(err, wal.ErrLocked) {
		t.Errorf("an open log: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := wal.Mend(t.Context(), "/nowhere", &wal.Options{FS: d}, p.fetch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := wal.Mend(t.Context(), t.TempDir(), nil, p.fetch); !errors.Is(err, wal.ErrNoDatabase) {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestSendShortFile: what lies past the end of a segment's file reads as zeros, and is sent as zeros.
func TestSendShortFile(t *testing.T) {
	dir := t.TempDir()
	l, err := wal.Open(dir, &wal.Options{SegmentSize: wal.MinSegmentSize})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	for l.Head() < 2*wal.MinSegmentSize {
		if _, err := l.Append([]*wal.Batch{batch(2, 14_000)}, true); err != nil {
			t.Fatal(err)
		}
	}
	good := whole(t, l)
	n := len(bytes.TrimRight(good[:wal.MinSegmentSize], "\x00"))
	if n == wal.MinSegmentSize {
		t.Fatal("the seal has no zeros")
	}
	if err := os.Truncate(filepath.Join(dir, "log", "0000000000000000.seg"), int64(n)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan []byte, 1)
	go func() { // ends with the connection
		c, err := ln.Accept()
		if err != nil {
			close(got)
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- b
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sent, err := l.SendTo(c, 0, wal.LSN(len(good)))
	c.Close()
	if b := <-got; err != nil || sent != int64(len(good)) || !bytes.Equal(b, good) {
		t.Errorf("sent %d of %d bytes, came %d: %v", sent, len(good), len(b), err)
	}
}

// TestMendGivenUp: damage in what the other node has given up ends the front of the log, also when that is done by a call that crashes anywhere; damage behind that is
// mended, and where nothing sound would be left everything stays as it is.
func TestMendGivenUp(t *testing.T) {
	source := sourceLog(t, 5)
	honest := newPeer(t, source)
	const size = wal.MinSegmentSize
	fetch := func(tail wal.LSN) wal.MendSource {
		return func(ctx context.Context, r *wal.MendRequest) ([]byte, error) {
			if r.From < tail {
				return nil, fmt.Errorf("peer: %w", wal.ErrTrimmed)
			}
			return honest.fetch(ctx, r)
		}
	}
	spoilt := func(segments ...int) *waltest.Disk {
		d := closedLog(t, source, false)
		for _, i := range segments {
			if err := d.Overwrite(segmentFile(i*size), 0, make([]byte, 3*4096)); err != nil { // header and all
				t.Fatal(err)
			}
		}
		return d
	}
	begins := func(d *waltest.Disk, at int, what string) {
		t.Helper()
		l, err := openAhead(d)
		if err != nil {
			t.Fatalf("%s: open: %v", what, err)
		}
		defer l.Close()
		got := make([]byte, len(source)-at)
		if _, err := l.ReadAt(got, wal.LSN(at)); err != nil || l.Tail() != wal.LSN(at) || !bytes.Equal(got, source[at:]) {
			t.Fatalf("%s: the log begins at %v, want %d; %v", what, l.Tail(), at, err)
		}
	}
	for _, c := range []struct {
		damaged []int
		tail    wal.LSN
		begins  int
	}{
		{[]int{1}, 2 * size, 2 * size},
		{[]int{1}, 4 * size, 2 * size},
		{[]int{0}, 3 * size, size},
		{[]int{1, 2}, 2 * size, 2 * size},
		{[]int{1, 2}, 3 * size, 3 * size},
		{[]int{1, 3}, 2 * size, 2 * size},
	} {
		what := fmt.Sprintf("segments %v, tail %v", c.damaged, c.tail)
		for k := 0; ; k++ {
			d := spoilt(c.damaged...)
			d.Inject(waltest.Fault{Skip: k, Crash: true})
			r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, fetch(c.tail))
			if !d.Crashed() {
				if err != nil || r.Gone == nil || len(r.Damaged) != len(c.damaged) || r.Segments != 6 {
					t.Fatalf("%s: %+v, %v", what, r, err)
				}
				for survivors := range uint64(3) {
					begins(d.Crash(survivors), c.begins, what)
				}
				break
			}
			for survivors := range uint64(3) {
				left := d.Crash(survivors)
				if r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: left}, fetch(c.tail)); err != nil {
					t.Fatalf("%s, crash at change %d: again: %+v, %v", what, k, r, err)
				}
				begins(left, c.begins, what)
			}
		}
	}
	d := closedLog(t, source, true)
	if err := d.Overwrite(segmentFile(5*size), 0, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	before := d.Files()
	if r, err := wal.Mend(t.Context(), dbDir, &wal.Options{FS: d}, fetch(wal.MaxRefLSN)); !errors.Is(err, wal.ErrTrimmed) || len(r.Left) == 0 {
		t.Errorf("nothing sound behind the damage: %+v, %v", r, err)
	}
	for name, was := range before {
		if now := d.Files()[name]; !bytes.Equal(was, now) {
			t.Errorf("%s has changed", name)
		}
	}
}
