package wal_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// These tests stand at guards of the log that a crash or a flipped bit seldom meets.

func steps(t *testing.T, all ...func() error) {
	t.Helper()
	for i, step := range all {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func segmentPath(base wal.LSN) string { return filepath.Join(dbDir, "log", base.String()+".seg") }

// TestMarkIsNeverAhead has the mark file written while the log holds what is not durable: a crash that loses those bytes is
// no damage.
func TestMarkIsNeverAhead(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	w.opts.Inline = false
	steps(t, w.open, w.create, func() error { return w.append(true, []int{10}) })
	durable := w.log.Durable()
	steps(t, func() error { return w.append(false, []int{3000}) })
	w.log.SetCommitted(durable)
	crashed := d.Crash(0)
	for told := false; !told; runtime.Gosched() { // the mark that says so was written behind the append
		crashed = d.Crash(0)
		b, err := crashed.ReadFile(filepath.Join(dbDir, "mark"))
		for _, slot := range []int{0, 4096} {
			told = told || err == nil && len(b) >= slot+88 && wal.LSN(binary.LittleEndian.Uint64(b[slot+40:])) == durable
		}
	}
	steps(t, w.log.Close)
	w.opts.FS = crashed
	w.synced = 2
	steps(t, w.open, func() error { return w.check(w.log) })
	if r := w.log.Recovery(); r.End != durable || w.log.Committed() != durable {
		t.Errorf("recovered to %v, committed %v; durable was %v", r.End, w.log.Committed(), durable)
	}
	steps(t, w.close)
}

// TestCleanCloseIsAPromise: where the mark file is lost, the note of a clean close still tells damage from a torn tail.
func TestCleanCloseIsAPromise(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(false, []int{100}, []int{2000}) })
	last := w.items[len(w.items)-1].start
	steps(t, w.close)
	d = d.Kill()
	steps(t,
		func() error { return d.Remove(filepath.Join(dbDir, "mark")) },
		func() error { return d.Flip(segmentPath(0), int64(last)+40, 1) })
	w.opts.FS = d
	if err := w.open(); !errors.Is(err, &wal.CorruptError{}) {
		t.Errorf("got %v", err)
	}
}

// TestTruncateKeepsWhatItCuts: what is cut is in diverged/, byte for byte behind the header of its segment, and durable.
func TestTruncateKeepsWhatItCuts(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) })
	keep, from := len(w.items), w.log.Head()
	steps(t, func() error { return w.append(true, repeat(50, 3000)...) }) // over the end of a segment
	epoch, to := w.log.Epoch(), w.log.Head()
	want := make([]byte, to-from)
	if _, err := w.log.ReadAt(want, from); err != nil {
		t.Fatal(err)
	}
	steps(t, func() error { return w.truncate(keep) })
	d = d.Crash(0)
	steps(t, w.close)
	name := filepath.Join(dbDir, "diverged", strings.Join([]string{epoch.String(), from.String(), to.String()}, "-")+".cut")
	got, err := d.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var h wal.Header
	if err := h.Unmarshal(got); err != nil || h.Base != 0 {
		t.Errorf("header %+v, %v", h, err)
	}
	if !bytes.Equal(got[wal.HeaderSize:], want) {
		t.Errorf("%d bytes are kept, not the %d that were cut", len(got)-wal.HeaderSize, len(want))
	}
}

// TestCrashWhileTrimming removes several segments at once and loses power in each call: what is left begins at one of the
// places between, and has no gap.
func TestCrashWhileTrimming(t *testing.T) {
	for k := 0; ; k++ {
		d := waltest.NewDisk()
		w := newWorld(d, dbDir)
		steps(t, w.open, w.create)
		for range 5 {
			steps(t, func() error { return w.append(true, repeat(40, 3000)...) })
		}
		if w.log.Head() < 4*wal.MinSegmentSize {
			t.Fatalf("head %v", w.log.Head())
		}
		d.Inject(waltest.Fault{Skip: k, Crash: true})
		err := w.trim(w.log.Durable())
		crashed := d.Crashed()
		_ = w.log.Close()
		for seed := range uint64(4) {
			w.opts.FS = d.Crash(seed)
			steps(t, w.open, func() error { return w.check(w.log) }, w.log.Close)
		}
		if !crashed {
			if err != nil || k < 4 {
				t.Fatalf("%d calls, %v", k, err)
			}
			return
		}
	}
}

// TestCrashWhileCutting cuts back over several segments and loses power in each call: the log is whole, or cut to the end.
func TestCrashWhileCutting(t *testing.T) {
	for k := 0; ; k++ {
		d := waltest.NewDisk()
		w := newWorld(d, dbDir)
		steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) })
		keep := len(w.items)
		for range 5 {
			steps(t, func() error { return w.append(true, repeat(40, 3000)...) })
		}
		steps(t, w.close, w.open) // the mark says that all is durable
		all := len(w.items)
		d.Inject(waltest.Fault{Skip: k, Crash: true})
		err := w.truncate(keep)
		crashed := d.Crashed()
		_ = w.log.Close()
		for seed := range uint64(4) {
			w.opts.FS = d.Crash(seed)
			steps(t, w.open)
			got, err := contents(w.log)
			if n := len(got); err != nil || n != keep && n != all {
				t.Fatalf("call %d, survivors %d: %d items, %v; want %d or %d", k, seed, n, err, keep, all)
			}
			steps(t, w.log.Close)
		}
		if !crashed {
			if err != nil || k < 10 {
				t.Fatalf("%d calls, %v", k, err)
			}
			return
		}
	}
}

// copyRaw offers the first n bytes of a log to an empty one, and says how far that was taken.
func copyRaw(t *testing.T, to *wal.Log, p []byte) (wal.LSN, error) {
	t.Helper()
	at := wal.LSN(0)
	for int(at) < len(p) {
		n, err := to.AppendRaw(at, p[at:min(int(at)+100_000, len(p))])
		at += wal.LSN(n)
		if err != nil || n == 0 {
			return at, err
		}
	}
	return at, nil
}

// whole returns all bytes of a log.
func whole(t *testing.T, l *wal.Log) []byte {
	t.Helper()
	p := make([]byte, l.Head())
	if _, err := l.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestForeignPromise: what a leader's frames promise is about the leader's disk. A follower that has lost bytes of its own
// that were never synced has a torn tail, whatever the frames behind say.
func TestForeignPromise(t *testing.T) {
	w := newWorld(waltest.NewDisk(), dbDir)
	steps(t, w.open, w.create)
	for range 5 {
		steps(t, func() error { return w.append(true, []int{1000}) })
	}
	p := whole(t, w.log)
	lost := w.items[2].start
	d := waltest.NewDisk()
	f := newWorld(d, dbDir)
	steps(t, f.open, func() error { _, err := copyRaw(t, f.log, p); return err })
	if f.log.Head() != wal.LSN(len(p)) || f.log.Durable() > lost {
		t.Fatalf("head %v, durable %v", f.log.Head(), f.log.Durable())
	}
	d = d.Kill()
	steps(t, f.log.Close, func() error { return d.Flip(segmentPath(0), int64(lost)+40, 1) })
	f.opts.FS = d
	steps(t, f.open)
	if r := f.log.Recovery(); !r.Cut || r.CutFrom != lost {
		t.Errorf("recovery %+v, want a cut at %v", r, lost)
	}
	steps(t, f.log.Close, w.close)
}

// TestHostileHeaders changes fields of the second segment's header and makes its checksum fit: no follower takes it, and
// verification finds it on disk.
func TestHostileHeaders(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(true, repeat(50, 3000)...) })
	p := whole(t, w.log)
	steps(t, w.close)
	const second = wal.MinSegmentSize
	for name, change := range map[string]func(h []byte){
		"digest":   func(h []byte) { h[96] ^= 1 },
		"epoch":    func(h []byte) { binary.LittleEndian.PutUint32(h[56:], uint32(wal.MakeEpoch(0, 7))) },
		"log time": func(h []byte) { binary.LittleEndian.PutUint64(h[88:], 1) },
		"salt":     func(h []byte) { h[32] ^= 1 },
		"size":     func(h []byte) { binary.LittleEndian.PutUint64(h[48:], 2*wal.MinSegmentSize) },
		"base":     func(h []byte) { binary.LittleEndian.PutUint64(h[40:], 2*wal.MinSegmentSize) },
		"a zero":   func(h []byte) { h[110] = 1 },
		"two at once": func(h []byte) {
			binary.LittleEndian.PutUint32(h[56:], uint32(wal.MakeEpoch(0, 7)))
			binary.LittleEndian.PutUint64(h[88:], 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := bytes.Clone(p)
			change(q[second:])
			resum(q[second : second+wal.HeaderSize])
			f := newWorld(waltest.NewDisk(), dbDir)
			steps(t, f.open)
			at, err := copyRaw(t, f.log, q)
			if at != second || !errors.Is(err, wal.ErrInvalid) && !errors.Is(err, wal.ErrDatabase) {
				t.Errorf("taken up to %v, %v", at, err)
			}
			steps(t, f.log.Close)
			disk := d.Kill()
			steps(t, func() error { return disk.Overwrite(segmentPath(second), 0, q[second:second+wal.HeaderSize]) })
			o := w.opts
			o.FS = disk
			if r, err := wal.Verify(context.Background(), dbDir, &o); err == nil && r.OK() {
				t.Error("on disk: Verify says ok")
			}
			l, err := wal.Open(dbDir, &o)
			if err == nil { // recovery begins in the segment of the mark, and takes the word of its header
				_ = l.Close()
			} else if !errors.Is(err, &wal.CorruptError{}) {
				t.Errorf("on disk: %v", err)
			}
		})
	}
}

// TestCopyIsAnotherNode: the copy of a directory is a node of its own, knows whose copy it is, keeps the promise and does
// not believe that its bytes are on disk.
func TestCopyIsAnotherNode(t *testing.T) {
	dir, other := filepath.Join(t.TempDir(), "db"), filepath.Join(t.TempDir(), "copy")
	w := newWorld(vfs.OS, dir)
	steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) },
		func() error { return w.log.Promise(wal.MakeEpoch(7, 0)) })
	id := w.log.NodeID()
	steps(t, w.close, func() error { return os.CopyFS(other, os.DirFS(dir)) }, w.open)
	if w.log.NodeID() != id || !w.log.Recovery().Clean {
		t.Errorf("the original is node %v, was %v; recovery %+v", w.log.NodeID(), id, w.log.Recovery())
	}
	steps(t, w.close)
	w.dir = other
	steps(t, w.open, func() error { return w.check(w.log) })
	r := w.log.Recovery()
	if w.log.NodeID() == id || r.PreviousNode != id || r.Clean || w.log.Promised() != wal.MakeEpoch(7, 0) {
		t.Errorf("the copy is node %v, the original %v; promised %v, recovery %+v", w.log.NodeID(), id, w.log.Promised(), r)
	}
	steps(t, w.close)
}

// TestPromise: a promise is on disk when it is given, is never lowered, and stands against epochs of this node's own. One
// that could not be stored was not given.
func TestPromise(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	high, low := wal.MakeEpoch(5, 0), wal.MakeEpoch(4, 9)
	steps(t, w.open, w.create, func() error { return w.log.Promise(high) })
	crashed := d.Crash(0)
	steps(t, w.close)
	w.opts.FS = crashed
	steps(t, w.open)
	if got := w.log.Promised(); got != high {
		t.Fatalf("promised %v before a power cut, %v after it", high, got)
	}
	if err := w.log.Promise(low); !errors.Is(err, wal.ErrEpoch) {
		t.Errorf("a lower promise: %v", err)
	}
	head := w.log.Head()
	if _, err := w.log.StartEpoch(low, wal.Rule{}); !errors.Is(err, wal.ErrEpoch) || w.log.Head() != head {
		t.Errorf("an epoch below the promise: %v", err)
	}
	crashed.Inject(waltest.Fault{Op: waltest.OpSync, Path: "node.tmp"})
	if err := w.log.Promise(wal.MakeEpoch(6, 0)); err == nil || w.log.Promised() != high {
		t.Errorf("a promise that could not be stored: %v, promised %v", err, w.log.Promised())
	}
	if _, err := w.log.StartEpoch(high, wal.Rule{}); err != nil {
		t.Errorf("the epoch that was promised: %v", err)
	}
	steps(t, w.close)
}
