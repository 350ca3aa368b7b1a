package wal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// TestFaultAnywhere makes each change that a workload makes fail, once or from then on, goes on, and then looks at what
// a loss of power, or a restart of the process alone, leaves of what was acknowledged.
func TestFaultAnywhere(t *testing.T) {
	t.Parallel()
	poisoned, step := 0, 1
	if testing.Short() {
		step = 17
	}
	for _, times := range []int{1, waltest.Forever} {
		for k := 0; ; k += step {
			d := waltest.NewDisk()
			in := d.Inject(waltest.Fault{Skip: k, Times: times, Bytes: int64(k) * 37 % 1000})
			w := newWorld(d, dbDir)
			sick, err := suffer(w, in)
			if err != nil {
				t.Fatalf("fault at change %d, %d times: %v", k, times, err)
			}
			if open := d.Open(); len(open) > 0 {
				t.Fatalf("fault at change %d, %d times: left open: %q", k, times, open)
			}
			if in.Hits() == 0 {
				break
			}
			if sick {
				poisoned++
			}
			for _, left := range []*waltest.Disk{d.Crash(0), d.Crash(uint64(k) + 2), d.Kill()} {
				if err := survive(w, left); err != nil {
					t.Fatalf("fault at change %d, %d times: %v", k, times, err)
				}
			}
			dropped := d.Kill()
			dropped.DropCache()
			if err := survive(w, dropped); err != nil {
				t.Fatalf("fault at change %d, %d times, cache dropped: %v", k, times, err)
			}
		}
	}
	if poisoned == 0 {
		t.Error("no fault poisoned the log")
	}
}

// suffer appends for a while, whatever fails. It reports whether the log was poisoned.
func suffer(w *world, in *waltest.Injection) (poisoned bool, err error) {
	for try := 0; w.log == nil; try++ {
		if try == 2 {
			in.End() // a fault that stays: nothing more can happen
		}
		if err := w.open(); err != nil && (in.Hits() == 0 || !errors.Is(err, syscall.EIO)) {
			return false, err
		}
	}
	defer func() {
		l := w.log
		w.log = nil
		if e := l.Close(); e == nil && !poisoned && err == nil {
			w.synced = len(w.items) - w.unsure
		}
	}()
	for try := 0; w.log.Empty() && w.log.Err() == nil; try++ {
		if try == 2 {
			in.End()
		}
		if err := w.create(); err != nil && !errors.Is(err, syscall.EIO) {
			return false, err
		}
	}
	for i := range 36 {
		if w.log.Err() != nil {
			return true, refuses(w.log)
		}
		if i == 18 {
			if err := w.epoch(); err != nil && !errors.Is(err, syscall.EIO) {
				return false, err
			}
			continue
		}
		before := w.log.Head()
		if err := w.append(i%2 == 0, []int{3000 + i}, []int{i, 700}); err != nil {
			if !errors.Is(err, syscall.EIO) {
				return false, err
			}
			if w.log.Err() == nil && w.log.Head() != before {
				return false, fmt.Errorf("a refused append moved the head from %v to %v: %w", before, w.log.Head(), err)
			}
		}
	}
	return w.log.Err() != nil, nil
}

// refuses checks that a poisoned log takes nothing any more, and that nothing becomes durable.
func refuses(l *wal.Log) error {
	durable := l.Durable()
	for range 2 {
		if _, err := l.Append([]*wal.Batch{batch(9999, 10)}, false); !errors.Is(err, wal.ErrPoisoned) {
			return fmt.Errorf("append to a poisoned log: %w", err)
		}
		if _, err := l.Sync(); l.Head() > durable && !errors.Is(err, wal.ErrPoisoned) {
			return fmt.Errorf("sync of a poisoned log: %w", err)
		}
	}
	if l.Durable() != durable {
		return fmt.Errorf("a poisoned log became durable from %v to %v", durable, l.Durable())
	}
	if _, err := l.ReadAt(make([]byte, 1), durable); err == nil {
		return errors.New("a poisoned log gave out bytes that are not durable")
	}
	return nil
}

// survive recovers, compares with what was acknowledged, and lets the machine lose power: all that recovery let count as
// durable must be there then, although pages that were never written may have counted as clean.
func survive(w *world, d *waltest.Disk) error {
	got, err := openAndLeave(w, d)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	d.PowerOff()
	after, err := items(w, d.Crash(0))
	if err != nil {
		return fmt.Errorf("recover after another crash: %w", err)
	}
	if !slices.Equal(got, after) {
		return fmt.Errorf("recovery let %d items count as durable, the next one found %d", len(got), len(after))
	}
	return nil
}

// openAndLeave opens the log on a disk, checks it, and leaves it to the loss of power.
func openAndLeave(w *world, d *waltest.Disk) ([]item, error) {
	o := w.opts
	o.FS = d
	l, err := wal.Open(dbDir, &o)
	if err != nil {
		return nil, err
	}
	defer func() {
		d.PowerOff()
		_ = l.Close()
	}()
	if err := w.check(l); err != nil {
		return nil, err
	}
	if l.Empty() {
		return nil, nil
	}
	return contents(l)
}

// TestFailedOpen makes each call that Open makes fail, reads too. Open must fail, cut nothing, and work the next time.
func TestFailedOpen(t *testing.T) {
	s := killedSmall(t, medium...)
	for k := 0; ; k++ {
		d := s.disk.Kill()
		in := d.Inject(waltest.Fault{Op: ^waltest.Op(0), Skip: k})
		o := s.world.opts
		o.FS = d
		l, err := wal.Open(dbDir, &o)
		if err == nil {
			got, e := contents(l)
			err = errors.Join(e, l.Close())
			if err == nil && !equalItems(got, s.world.items) {
				err = fmt.Errorf("%d items of %d", len(got), len(s.world.items))
			}
		}
		if in.Hits() == 0 {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatalf("call %d fails: %v", k, err)
		}
		if open := d.Open(); len(open) > 0 {
			t.Fatalf("call %d fails: left open: %q", k, open)
		}
		got, err := items(s.world, d)
		if err != nil || !equalItems(got, s.world.items) {
			t.Fatalf("call %d failed: the next Open finds %d items of %d, %v", k, len(got), len(s.world.items), err)
		}
	}
}

// TestSyncFailsOnce shows that a failed sync is final although the next one would succeed.
func TestSyncFailsOnce(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	for _, err := range []error{w.open(), w.create(), w.append(true, []int{10})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	durable := w.log.Durable()
	if err := w.append(false, []int{20}); err != nil {
		t.Fatal(err)
	}
	d.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg"})
	for range 3 {
		if got, err := w.log.Sync(); !errors.Is(err, wal.ErrPoisoned) || !errors.Is(err, syscall.EIO) || got != durable {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	if err := refuses(w.log); err != nil {
		t.Fatal(err)
	}
	if err := w.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := survive(w, d.Kill()); err != nil {
		t.Fatal(err)
	}
}

// TestLyingSync lets syncs of segments do nothing. One node cannot know; but once a mark or a close says that the bytes
// were durable, their loss must be seen.
func TestLyingSync(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	for _, step := range []func() error{w.open, w.create, func() error { return w.append(true, []int{10}) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	d.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Lie: true, Times: waltest.Forever})
	if err := w.append(true, []int{2000}); err != nil {
		t.Fatal(err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	o := w.opts
	o.FS = d.Crash(0)
	if _, err := wal.Open(dbDir, &o); !errors.Is(err, &wal.CorruptError{}) {
		t.Fatalf("got %v", err)
	}
}

// TestStalledSync shows that appends and reads go on while the disk does not answer, and what its answer covers.
func TestStalledSync(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	for _, err := range []error{w.open(), w.create(), w.append(false, []int{10})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	covered := w.log.Head()
	stall := make(chan struct{})
	in := d.Inject(waltest.Fault{Op: waltest.OpSync, Stall: stall})
	type answer struct {
		durable wal.LSN
		err     error
	}
	answers := make(chan answer)
	go func() {
		durable, err := w.log.Sync()
		answers <- answer{durable, err}
	}()
	for in.Hits() == 0 {
	}
	if err := w.append(false, []int{30}); err != nil {
		t.Fatal(err)
	}
	if got, err := contents(w.log); err != nil || len(got) != len(w.items) {
		t.Fatalf("%d items, %v", len(got), err)
	}
	if w.log.Durable() >= covered {
		t.Fatal("durable before the disk has answered")
	}
	close(stall)
	if a := <-answers; a.err != nil || a.durable != covered {
		t.Fatalf("got %v, %v; %v was appended before the sync began", a.durable, a.err, covered)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
}

// TestSilentDisk: a disk that does not answer in time has failed. What it answers later makes nothing durable.
func TestSilentDisk(t *testing.T) {
	for _, op := range []waltest.Op{waltest.OpSync, waltest.OpWrite} {
		t.Run(op.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { silentDisk(t, op) })
		})
	}
}

func silentDisk(t *testing.T, op waltest.Op) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	told := make(chan error, 2)
	w.opts.Poisoned = func(err error) { told <- err }
	for _, err := range []error{w.open(), w.create(), w.append(true, []int{10})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	durable := w.log.Durable()
	stall, answer := make(chan struct{}), make(chan error, 1)
	in := d.Inject(waltest.Fault{Op: op, Path: "*.seg", Stall: stall})
	go func() {
		_, err := w.log.Append([]*wal.Batch{batch(1, 20)}, true)
		if err == nil {
			_, err = w.log.Sync()
		}
		answer <- err
	}()
	if err := <-told; !errors.Is(err, wal.ErrPoisoned) || !errors.Is(err, wal.ErrStalled) {
		t.Errorf("told %v", err)
	}
	if in.Hits() == 0 || w.log.Stalled() < 20*time.Millisecond || !errors.Is(w.log.Err(), wal.ErrStalled) {
		t.Errorf("%d calls stalled, for %v: %v", in.Hits(), w.log.Stalled(), w.log.Err())
	}
	close(stall)
	if err := <-answer; !errors.Is(err, wal.ErrStalled) || w.log.Durable() != durable {
		t.Errorf("the late answer gave %v, durable %v, was %v", err, w.log.Durable(), durable)
	}
	if w.log.Stalled() != 0 {
		t.Error("it is still waited for")
	}
	_ = w.log.Close()
	w.opts.Poisoned = nil
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk gives the log disks of all sizes. Whatever does not fit is refused before anything has happened, the log
// closes, opens, reads, and goes on once there is room.
func TestFullDisk(t *testing.T) {
	for blocks := int64(1); blocks < 70; blocks++ {
		d := waltest.NewDisk()
		d.SetCapacity(blocks * 4096)
		if err := fill(d, func() { d.SetCapacity(blocks*4096 + 256<<10) }, func() { d.SetCapacity(blocks * 4096) }); err != nil {
			t.Fatalf("disk of %d blocks: %v", blocks, err)
		}
	}
}

// fill appends until the disk is full, and then with more room.
func fill(d *waltest.Disk, more, less func()) error {
	w := newWorld(d, dbDir)
	full := func(err error) error {
		if errors.Is(err, wal.ErrNoSpace) && !errors.Is(err, wal.ErrPoisoned) {
			return nil
		}
		return fmt.Errorf("want a full disk: %w", err)
	}
	if err := w.open(); err != nil {
		return full(err)
	}
	if err := w.create(); err != nil {
		_ = w.log.Close()
		return full(err)
	}
	var err error
	for i := 0; ; i++ {
		head := w.log.Head()
		if err = w.append(i%4 == 0, []int{2000 + i}, []int{i}); err != nil {
			if w.log.Head() != head {
				return fmt.Errorf("a refused append moved the head: %w", err)
			}
			break
		}
	}
	if err := full(err); err != nil {
		return err
	}
	w.drop()
	if got, err := contents(w.log); err != nil || len(got) != len(w.items) {
		return fmt.Errorf("read on a full disk: %d items of %d: %w", len(got), len(w.items), err)
	}
	if err := w.sync(); err != nil {
		return fmt.Errorf("sync on a full disk: %w", err)
	}
	urgent := batch(w.nextID, 100)
	urgent.Urgent = true
	w.nextID++
	if _, err := w.log.Append([]*wal.Batch{urgent}, true); err != nil {
		return fmt.Errorf("an urgent batch, for which there is a reserve: %w", err)
	}
	w.items = append(w.items, item{id: w.nextID - 1, end: w.log.Head()})
	if err := w.control(&wal.FormatRecord{}, 6, true); err != nil {
		return fmt.Errorf("a control record, for which there is a reserve: %w", err)
	}
	if err := w.log.Promise(wal.MakeEpoch(9, 0)); err != nil {
		return fmt.Errorf("a promise, without which nobody else can lead: %w", err)
	}
	more()
	for i := range 10 {
		if err := w.append(true, []int{1000 + i}); err != nil {
			return fmt.Errorf("append when there is room again: %w", err)
		}
	}
	less()
	if err := w.close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := w.open(); err != nil {
		return fmt.Errorf("open on a full disk: %w", err)
	}
	if err := w.check(w.log); err != nil {
		return fmt.Errorf("opened on a full disk: %w", err)
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("close on a full disk: %w", err)
	}
	return survive(w, d.Crash(0))
}

// TestBadSectors makes parts of a segment unreadable under its map: an error to that reader, and to nobody else.
func TestBadSectors(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	for _, step := range []func() error{w.open, w.create, func() error { return w.append(true, repeat(30, 1000)...) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dbDir, "log", wal.LSN(0).String()+".seg")
	bad, err := w.log.DigestAt(w.log.Head())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.FailRange(name, 8192, 4096, false); err != nil {
		t.Fatal(err)
	}
	ok, failed := 0, 0
	for _, it := range w.items {
		for _, read := range []func() error{
			func() error { return w.log.ViewFrame(it.start, func(wal.Frame, []byte) error { return nil }) },
			func() error { _, _, err := w.log.ReadFrame(it.start, nil); return err },
			func() error { _, err := w.log.ReadAt(make([]byte, 64), it.start); return err },
		} {
			switch err := read(); {
			case err == nil:
				ok++
			case errors.Is(err, wal.ErrIO):
				failed++
				var e *wal.IOError
				if !errors.As(err, &e) || e.Path != name || e.LSN != wal.LSN(e.Offset) || e.Offset < 8192-2000 || e.Offset >= 8192+4096 {
					t.Errorf("item at %v: the error does not say where: %v", it.start, err)
				}
			default:
				t.Errorf("item at %v: %v", it.start, err)
			}
		}
	}
	if ok == 0 || failed == 0 {
		t.Errorf("%d reads went well, %d failed", ok, failed)
	}
	if err := d.HealRange(name); err != nil {
		t.Fatal(err)
	}
	if got, err := w.log.DigestAt(w.log.Head()); err != nil || got != bad {
		t.Errorf("after it was healed: %v, %v", got, err)
	}
	if got, err := contents(w.log); err != nil || len(got) != len(w.items) {
		t.Errorf("after it was healed: %d items, %v", len(got), err)
	}
	if err := d.FailRange(name, 0, -1, true); err != nil {
		t.Fatal(err)
	}
	w.idle()
	if err := w.append(false, []int{10}); !errors.Is(err, wal.ErrPoisoned) || !errors.Is(err, wal.ErrIO) {
		t.Errorf("store: got %v", err)
	}
	if err := refuses(w.log); err != nil {
		t.Error(err)
	}
	if err := w.log.Close(); err != nil {
		t.Error(err)
	}
}

// TestLiveTruncate cuts a segment file of a real file system under the map of a running log: SIGBUS.
func TestLiveTruncate(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(vfs.OS, dir)
	for _, step := range []func() error{w.open, w.create, func() error { return w.append(true, repeat(30, 1000)...) }, w.close, w.open, func() error { return w.append(true, []int{10}) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "log", wal.LSN(0).String()+".seg"), 8192); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.log.ReadFrame(w.items[0].start, nil); err != nil {
		t.Errorf("what is left: %v", err)
	}
	last := w.items[len(w.items)-1].start
	if _, _, err := w.log.ReadFrame(last, nil); !errors.Is(err, wal.ErrIO) {
		t.Errorf("what is gone: %v", err)
	}
	if _, err := contents(w.log); err == nil {
		t.Error("a reader did not notice")
	}
	w.idle()
	if err := w.append(false, []int{10}); !errors.Is(err, wal.ErrPoisoned) {
		t.Error("an append did not notice")
	}
	_ = w.log.Close()
	if _, err := wal.Open(dir, &w.opts); !errors.Is(err, &wal.CorruptError{}) {
		t.Errorf("opened again: %v", err)
	}
}

// TestFailedSyncBehindTheFirstSegment: what recovery writes again after a failed sync gets to the disk where the log ends in a later segment too, and in an
// epoch that began before. Recovery has looked for its beginning by then, up to a frame of the last segment, and pages of a file that is mapped stay in the cache.
func TestFailedSyncBehindTheFirstSegment(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.open())
	must(w.create())
	must(w.append(true, []int{5000}))
	must(w.epoch())
	for w.log.Head() < wal.MinSegmentSize+wal.MinSegmentSize/2 {
		must(w.append(true, []int{5000}))
	}
	must(w.close())
	must(w.open())
	must(w.append(true, []int{700}))
	d.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg"})
	if err := w.append(true, []int{700}); !errors.Is(err, wal.ErrPoisoned) {
		t.Fatalf("append: %v, want ErrPoisoned", err)
	}
	left := d.Kill()
	must(survive(w, left))
	d.PowerOff()
	_ = w.log.Close() // the machine is off
}

// TestCutWithAFailedSyncIsFinished: a cut whose sync fails is finished by the next Open, and what is written behind it then gets to the disk: after the failed
// sync the system takes the last page for written.
func TestCutWithAFailedSyncIsFinished(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.open())
	must(w.create())
	must(w.append(true, []int{700}))
	keep := w.log.Head()
	must(w.append(true, []int{700}))
	must(w.close()) // the mark is at the end
	must(w.open())
	d.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg"})
	if err := w.log.Truncate(keep); !errors.Is(err, wal.ErrPoisoned) {
		t.Fatalf("cut: %v, want ErrPoisoned", err)
	}
	left := d.Kill()
	d.PowerOff()
	_ = w.log.Close() // the machine is off
	o := w.opts
	o.FS = left
	l, err := wal.Open(dbDir, &o)
	must(err)
	if l.Head() != keep {
		t.Fatalf("the log ends at %v, want %v", l.Head(), keep)
	}
	_, err = l.Append([]*wal.Batch{batch(99, 900)}, true)
	must(err)
	end, err := l.Sync()
	must(err)
	left.PowerOff()
	_ = l.Close()
	o.FS = left.Crash(0)
	l, err = wal.Open(dbDir, &o)
	must(err)
	if l.Head() != end {
		t.Errorf("the log ends at %v, it was durable up to %v", l.Head(), end)
	}
	must(l.Close())
}

// TestErasureWithAFailedSync: an Open that erases a torn tail and cannot sync that fails; the next one finds no torn tail, and what is written behind the end gets
// to the disk all the same.
func TestErasureWithAFailedSync(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.open())
	must(w.create())
	must(w.append(true, []int{700}))
	keep := w.log.Head()
	must(w.append(true, []int{700}))
	must(w.close())
	must(w.open())
	must(w.log.Truncate(keep)) // the mark is at the end, and the log not closed cleanly
	torn := d.Kill()
	d.PowerOff()
	_ = w.log.Close() // the machine is off
	must(torn.Overwrite(filepath.Join(dbDir, "log", wal.LSN(0).String()+".seg"), int64(keep), []byte("torn")))
	in := torn.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Times: 2})
	o := w.opts
	o.FS = torn
	if _, err := wal.Open(dbDir, &o); err == nil || in.Hits() == 0 {
		t.Fatalf("open: %v, %d syncs have failed", err, in.Hits())
	}
	left := torn.Kill()
	o.FS = left
	l, err := wal.Open(dbDir, &o)
	must(err)
	_, err = l.Append([]*wal.Batch{batch(99, 900)}, true)
	must(err)
	end, err := l.Sync()
	must(err)
	left.PowerOff()
	_ = l.Close() // the machine is off
	o.FS = left.Crash(0)
	l, err = wal.Open(dbDir, &o)
	must(err)
	if l.Head() != end {
		t.Errorf("the log ends at %v, it was durable up to %v", l.Head(), end)
	}
	must(l.Close())
}
