package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// small is a small database on a simulated disk, and what is known of it.
type small struct {
	name   string
	world  *world
	disk   *waltest.Disk
	files  map[string][]byte // on disk
	frames []wal.Frame
	end    wal.LSN // of the log
	marked wal.LSN // what the mark file, or the note of a clean close, says
}

// closedSmall was closed cleanly: nothing may be cut.
func closedSmall(t *testing.T, steps ...func(w *world) error) *small {
	t.Helper()
	s := buildSmall(t, "closed", steps)
	if err := s.world.close(); err != nil {
		t.Fatal(err)
	}
	s.marked = s.end
	return s.shorten(t)
}

// killedSmall lost power after its last sync: damage that nothing behind it speaks against cannot be told from a torn
// tail.
func killedSmall(t *testing.T, steps ...func(w *world) error) *small {
	t.Helper()
	s := buildSmall(t, "killed", steps)
	s.disk = s.disk.Crash(0)
	_ = s.world.log.Close()
	return s.shorten(t)
}

// shorten takes most of the zeros behind the end from the last file, which reads as before and copies faster.
func (s *small) shorten(t *testing.T) *small {
	t.Helper()
	size := wal.LSN(s.world.opts.SegmentSize)
	base := s.end / size * size
	if err := s.disk.TruncateFile(s.segment(base), min(int64(size), int64(s.end-base)+1000)); err != nil {
		t.Fatal(err)
	}
	s.files = s.disk.Files()
	return s
}

func buildSmall(t *testing.T, name string, steps []func(w *world) error) *small {
	t.Helper()
	s := &small{name: name, disk: waltest.NewDisk()}
	s.world = newWorld(s.disk, dbDir)
	for _, step := range append([]func(w *world) error{(*world).open, (*world).create}, steps...) {
		if err := step(s.world); err != nil {
			t.Fatal(err)
		}
		if r := s.world.log.Recovery(); r.Clean {
			s.marked = r.End // by the last close
		}
	}
	s.end = s.world.log.Head()
	r := s.world.log.NewReader(0)
	for r.Next() {
		s.frames = append(s.frames, r.Frame())
	}
	if r.Err() != nil || len(s.frames) == 0 {
		t.Fatal(len(s.frames), r.Err())
	}
	return s
}

// frameAt returns the start of the frame or segment header that holds an LSN.
func (s *small) frameAt(at wal.LSN) wal.LSN {
	size := wal.LSN(s.world.opts.SegmentSize)
	start := at / size * size
	for _, f := range s.frames {
		if f.LSN <= at && f.LSN > start {
			start = f.LSN
		}
	}
	return start
}

// window returns where damage that is not below a mark may begin to be read as a torn tail: behind the last promise of a
// frame that is whole.
func (s *small) window(at, to wal.LSN) wal.LSN {
	w := s.marked
	for _, f := range s.frames {
		if f.HasPromise && (f.End() <= at || f.LSN >= to) {
			w = max(w, f.Promise)
		}
	}
	return w
}

func (s *small) segment(base wal.LSN) string {
	return filepath.Join(dbDir, "log", base.String()+".seg")
}

// damage gives the database other files in place of its own, opens it, and judges what the log makes of it. The damage
// to the log begins at LSN at and ends before to; elsewhere both are 0. It returns what happened.
func (s *small) damage(other map[string][]byte, at, to wal.LSN) (string, error) {
	d := s.disk.Kill()
	for name, p := range other {
		if err := d.WriteFile(name, p); err != nil {
			return "", err
		}
	}
	o := s.world.opts
	o.FS = d
	if err := s.verify(&o, at, to); err != nil {
		return "", err
	}
	l, err := wal.Open(dbDir, &o)
	if err != nil {
		var c *wal.CorruptError
		if !errors.As(err, &c) || c.Path == "" || c.Reason == "" {
			return "", fmt.Errorf("an error of no known kind, or without a place: %w", err)
		}
		for name, p := range d.Files() {
			want, ok := other[name]
			if !ok {
				want = s.files[name]
			}
			if !bytes.Equal(p, want) {
				return "", fmt.Errorf("damage was reported, and %s was changed", name)
			}
		}
		return "refused", nil
	}
	report := l.Recovery()
	got, err := contents(l)
	if e := l.Close(); e != nil {
		return "", e
	}
	if err != nil {
		if !errors.Is(err, &wal.CorruptError{}) && !errors.Is(err, wal.ErrIO) {
			return "", fmt.Errorf("read: an error of no known kind: %w", err)
		}
		return "found on read", nil
	}
	whole := s.world.items
	if len(got) == len(whole) && equalItems(got, whole) {
		if to <= at || at >= s.end || report.Cut {
			return "harmless", nil
		}
		if err := s.copyOut(d, at); err != nil {
			return "", err
		}
		return "found by a follower", nil
	}
	if len(got) > len(whole) || !equalItems(got, whole[:len(got)]) {
		return "", fmt.Errorf("other items than were written: %+v", got)
	}
	switch window := s.window(at, to); {
	case s.frameAt(at) < window || report.End < window:
		return "", fmt.Errorf("cut at %v, known to be durable up to %v", report.End, window)
	case !report.Cut:
		return "ends sooner", nil
	case report.CutFrom > s.frameAt(at):
		return "", fmt.Errorf("cut at %v, the damage is at %v", report.CutFrom, at)
	}
	return "cut", nil
}

// verify shows that Verify, which reads everything, meets damage between two LSNs.
func (s *small) verify(o *wal.Options, at, to wal.LSN) error {
	r, err := wal.Verify(context.Background(), dbDir, o)
	if err != nil {
		if errors.Is(err, &wal.CorruptError{}) {
			return nil
		}
		return fmt.Errorf("verify: %w", err)
	}
	if to > at && at < s.end && r.OK() && r.TornBytes == 0 && r.End >= s.end {
		return fmt.Errorf("verify did not see damage at %v", at)
	}
	for _, c := range r.Damage {
		if c.Path == "" || c.Reason == "" {
			return fmt.Errorf("verify: damage without a place: %w", c)
		}
	}
	return nil
}

// copyOut copies a log whose damage no reader meets, as to a follower, which must refuse it there.
func (s *small) copyOut(d *waltest.Disk, at wal.LSN) error {
	o := s.world.opts
	o.FS = d
	from, err := wal.Open(dbDir, &o)
	if err != nil {
		return err
	}
	defer from.Close()
	o.FS = waltest.NewDisk()
	to, err := wal.Open(dbDir, &o)
	if err != nil {
		return err
	}
	defer to.Close()
	p := make([]byte, from.Head())
	if _, err := from.ReadAt(p, 0); err != nil {
		return err
	}
	if n, err := to.AppendRaw(0, p); !errors.Is(err, wal.ErrInvalid) || wal.LSN(n) > at {
		return fmt.Errorf("damage at %v was not seen; a follower took %d bytes: %w", at, n, err)
	}
	return nil
}

func equalItems(a, b []item) bool {
	return slices.EqualFunc(a, b, func(a, b item) bool { return a.id == b.id && a.control == b.control })
}

// tally counts outcomes and stops a test after some failures.
type tally struct {
	t        *testing.T
	outcomes map[string]int
	failed   int
}

func newTally(t *testing.T) *tally { return &tally{t: t, outcomes: map[string]int{}} }

func (c *tally) add(what, outcome string, err error) {
	c.t.Helper()
	c.outcomes[outcome]++
	if err != nil {
		c.t.Errorf("%s: %v", what, err)
		if c.failed++; c.failed >= 5 {
			c.t.FailNow()
		}
	}
}

func sync1(sizes ...int) func(w *world) error {
	return func(w *world) error { return w.append(true, sizes) }
}

func reopen(w *world) error {
	if err := w.close(); err != nil {
		return err
	}
	return w.open()
}

// tiny is a log of a few hundred bytes with frames of each kind.
var tiny = []func(w *world) error{sync1(20), reopen, sync1(300), sync1(30, 0), (*world).epoch, sync1(10), sync1(7)}

// TestEveryBit inverts each bit of a small database, in each of its files, and looks at what comes of it.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	for _, s := range []*small{closedSmall(t, tiny...), killedSmall(t, tiny...)} {
		t.Run(s.name, func(t *testing.T) {
			c := newTally(t)
			for name, p := range s.files {
				log := name == s.segment(0)
				for off := range p {
					if log && wal.LSN(off) > s.end+64 && off%509 != 0 || !log && off%4096 > 128 && off%509 != 0 {
						continue // zeros like those before
					}
					for bit := range 8 {
						if testing.Short() && (off+bit)%17 != 0 {
							continue
						}
						q := bytes.Clone(p)
						q[off] ^= 1 << bit
						at, to := wal.LSN(0), wal.LSN(0)
						if log {
							at, to = wal.LSN(off), wal.LSN(off+1)
						}
						outcome, err := s.damage(map[string][]byte{name: q}, at, to)
						c.add(fmt.Sprintf("%s: byte %d, bit %d", name, off, bit), outcome, err)
						if outcome == "cut" && s.name == "closed" || outcome == "ends sooner" {
							t.Errorf("%s: byte %d, bit %d: %s", name, off, bit, outcome)
						}
					}
				}
			}
			t.Log(c.outcomes)
		})
	}
}

// TestFirstHeader inverts each bit of the only header of a log that lost power before its first mark was written: that
// there was a log is known, so its file must not be taken for one that never was a segment.
func TestFirstHeader(t *testing.T) {
	s := killedSmall(t, sync1(20), sync1(30))
	name, c := s.segment(0), newTally(t)
	for bit := range 8 * wal.HeaderSize {
		p := bytes.Clone(s.files[name])
		p[bit/8] ^= 1 << (bit % 8)
		outcome, err := s.damage(map[string][]byte{name: p}, wal.LSN(bit/8), wal.LSN(bit/8+1))
		if err == nil && outcome != "refused" {
			err = errors.New(outcome)
		}
		c.add(fmt.Sprintf("bit %d", bit), outcome, err)
	}
}

// TestEveryLength gives the segment file of a small database each length, and each other file too.
func TestEveryLength(t *testing.T) {
	t.Parallel()
	for _, s := range []*small{closedSmall(t, tiny...), killedSmall(t, tiny...)} {
		t.Run(s.name, func(t *testing.T) {
			c := newTally(t)
			for name, p := range s.files {
				for n := range p {
					log := name == s.segment(0)
					if log && wal.LSN(n) > s.end+64 && n%509 != 0 || !log && n%4096 > 128 && n%509 != 0 {
						continue
					}
					if testing.Short() && n%7 != 0 {
						continue
					}
					at, to := wal.LSN(0), wal.LSN(0)
					if log && wal.LSN(n) < s.end {
						at, to = wal.LSN(n), s.end
						for int(at) < len(p) && p[at] == 0 {
							at++ // what reads as before is not damaged
						}
					}
					outcome, err := s.damage(map[string][]byte{name: p[:n]}, at, to)
					c.add(fmt.Sprintf("%s: %d bytes left", name, n), outcome, err)
				}
			}
			t.Log(c.outcomes)
		})
	}
}

// medium is a log of three segments.
var medium = []func(w *world) error{
	sync1(30_000), sync1(100, 20_000), reopen, sync1(40_000, 1), (*world).epoch, sync1(30_000), sync1(10), sync1(22_000),
	sync1(7), sync1(12),
}

// TestDamagedBlocks zeroes sectors, swaps blocks, and inverts bits here and there in a log of several segments.
func TestDamagedBlocks(t *testing.T) {
	t.Parallel()
	for _, s := range []*small{closedSmall(t, medium...), killedSmall(t, medium...)} {
		t.Run(s.name, func(t *testing.T) {
			c, stride := newTally(t), 1
			if testing.Short() {
				stride = 7
			}
			size := s.world.opts.SegmentSize
			for base := wal.LSN(0); base < s.end; base += wal.LSN(size) {
				name := s.segment(base)
				p := make([]byte, size)
				copy(p, s.files[name])
				overwrite := func(what string, changes map[int][]byte) {
					q := bytes.Clone(p)
					at, to := wal.LSN(1<<63), wal.LSN(0)
					for off, b := range changes {
						for i := range b {
							if b[i] != p[off+i] {
								at, to = min(at, base+wal.LSN(off+i)), max(to, base+wal.LSN(off+i+1))
							}
						}
						copy(q[off:], b)
					}
					if to == 0 {
						return // the same bytes
					}
					outcome, err := s.damage(map[string][]byte{name: q}, at, to)
					c.add(fmt.Sprintf("%s: %s", name, what), outcome, err)
				}
				for off := 0; off < len(p); off += 512 * stride {
					overwrite(fmt.Sprintf("sector at %d is zero", off), map[int][]byte{off: make([]byte, 512)})
				}
				for off := 37; off < len(p); off += 997 * stride {
					overwrite(fmt.Sprintf("bit at %d", off), map[int][]byte{off: {p[off] ^ 1<<(off%8)}})
				}
				for a := 0; a+4096 <= len(p); a += 4096 {
					for b := a + 4096; b+4096 <= len(p); b += 3 * 4096 * stride {
						overwrite(fmt.Sprintf("blocks at %d and %d change places", a, b), map[int][]byte{a: p[b : b+4096], b: p[a : a+4096]})
					}
				}
			}
			t.Log(c.outcomes)
		})
	}
}

// TestDamagedDirectory loses, renames, doubles and mixes files.
func TestDamagedDirectory(t *testing.T) {
	s := closedSmall(t, medium...)
	other := closedSmall(t, medium...)
	size := wal.LSN(s.world.opts.SegmentSize)
	first, second, third := s.segment(0), s.segment(size), s.segment(2*size)
	read := func(s *small, name string) []byte { return bytes.Clone(s.files[name]) }
	for _, c := range []struct {
		name   string
		damage func(d *waltest.Disk) error
		want   error
	}{
		{"the last segment is missing", func(d *waltest.Disk) error { return d.Remove(third) }, &wal.CorruptError{}},
		{"a segment in the middle is missing", func(d *waltest.Disk) error { return d.Remove(second) }, &wal.CorruptError{}},
		{"all segments are missing", func(d *waltest.Disk) error {
			return errors.Join(d.Remove(first), d.Remove(second), d.Remove(third))
		}, &wal.CorruptError{}},
		{"the directory of segments is missing", func(d *waltest.Disk) error {
			return d.Rename(filepath.Dir(first), dbDir+"/lost")
		}, &wal.CorruptError{}},
		{"a segment under another's name", func(d *waltest.Disk) error { return d.WriteFile(second, read(s, first)) }, &wal.CorruptError{}},
		{"a segment twice, behind the end", func(d *waltest.Disk) error { return d.WriteFile(s.segment(3*size), read(s, second)) }, &wal.CorruptError{}},
		{"a segment of another database", func(d *waltest.Disk) error { return d.WriteFile(second, read(other, second)) }, wal.ErrDatabase},
		{"all segments of another database", func(d *waltest.Disk) error {
			return errors.Join(d.WriteFile(first, read(other, first)), d.WriteFile(second, read(other, second)), d.WriteFile(third, read(other, third)))
		}, wal.ErrDatabase},
		{"a file of zeros behind the end", func(d *waltest.Disk) error { return d.WriteFile(s.segment(3*size), make([]byte, 1000)) }, nil},
		{"an empty file behind the end", func(d *waltest.Disk) error { return d.WriteFile(s.segment(3*size), nil) }, nil},
		{"a file with a strange name", func(d *waltest.Disk) error { return d.WriteFile(dbDir+"/log/notes.txt", []byte("x")) }, nil},
		{"a segment header of the next version", func(d *waltest.Disk) error {
			p := read(s, third)
			p[8]++
			return d.WriteFile(third, resum(p))
		}, wal.ErrVersion},
		{"the node file is missing", func(d *waltest.Disk) error { return d.Remove(dbDir + "/node") }, nil},
		{"the mark file is missing", func(d *waltest.Disk) error { return d.Remove(dbDir + "/mark") }, nil},
	} {
		d := s.disk.Kill()
		if err := c.damage(d); err != nil {
			t.Fatal(err)
		}
		before := d.Files()
		o := s.world.opts
		o.FS = d
		l, err := wal.Open(dbDir, &o)
		if (c.want == nil) != (err == nil) || !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		if err != nil {
			after := d.Files()
			for name := range before {
				if filepath.Dir(name) == filepath.Dir(first) && !slices.Equal(before[name], after[name]) {
					t.Errorf("%s: %s was changed", c.name, name)
				}
			}
			continue
		}
		if got, err := contents(l); err != nil || !equalItems(got, s.world.items) {
			t.Errorf("%s: %d items, want %d, %v", c.name, len(got), len(s.world.items), err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
