package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// script is a workload that makes every kind of change, step by step.
func script(w *world) []func() error {
	mark := map[string]int{} // items at some steps
	steps := []func() error{
		w.open,
		w.create,
		func() error { return w.append(false, []int{100}) },
		w.sync,
		func() error { return w.append(true, []int{10}, []int{300, 0, 20}, []int{2000}, []int{1500, 1500}) },
		func() error { return w.append(false, []int{40_000, 10, 5000}) }, // many frames
		func() error { return w.append(false, []int{10}) },
		func() error { return w.control(&wal.RuleRecord{}, 3, false) },
		func() error { return w.append(true, []int{30_000, 1, 30_000}) }, // and two segments
		func() error { return w.control(&wal.TailRecord{}, 2, true) },
	}
	fill := func(n int) {
		for i := range n {
			steps = append(steps, func() error { return w.append(i%3 == 2, repeat(2, 3000)...) })
		}
	}
	fill(12)
	steps = append(steps,
		w.epoch,
		func() error { mark["kept"] = len(w.items); return w.append(false, []int{100}) },
		w.close, w.open,
		func() error { return w.append(true, []int{100}) },
		func() error { return w.append(false, []int{100}) },
		func() error { return w.truncate(mark["kept"]) },
		func() error { return w.append(false, []int{700}) },
		func() error { mark["far"] = len(w.items); return w.append(true, []int{700}) })
	fill(30)
	steps = append(steps,
		func() error { return w.truncate(mark["far"]) }, // back over a segment's end
		func() error { return w.append(true, []int{200}) })
	fill(9)
	return append(steps,
		func() error { return w.trim(w.log.Durable()) },
		func() error { return w.append(true, []int{1}) },
		w.close, w.open,
		func() error { return w.append(false, []int{90_000}) },
		w.close)
}

// play runs a script until its first error. It closes the log then, as a process does that ends.
func play(w *world) error {
	for i, step := range script(w) {
		if err := step(); err != nil {
			if w.log != nil {
				_ = w.log.Close()
				w.log = nil
			}
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// TestCrashAnywhere lets the machine lose power at each change that a workload makes, and looks at what is left.
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	seeds, step := []uint64{0, 1, 2, 3, 4, 5}, 1
	if testing.Short() {
		seeds, step = []uint64{0, 2}, 5
	}
	points := 0
	for k := 0; ; k += step {
		d := waltest.NewDisk()
		d.WriteBackAtRandom(uint64(k))
		d.Inject(waltest.Fault{Skip: k, Crash: true})
		w := newWorld(d, dbDir)
		err := play(w)
		if !d.Crashed() {
			if err != nil {
				t.Fatalf("without a crash: %v", err)
			}
			break
		}
		points++
		if err != nil && !errors.Is(err, waltest.ErrCrashed) {
			t.Fatalf("crash at change %d: %v", k, err)
		}
		if open := d.Open(); len(open) > 0 {
			t.Fatalf("crash at change %d: left open: %q", k, open)
		}
		for _, seed := range seeds {
			if seed > 1 {
				seed += uint64(k) * 1000
			}
			if err := recoverTwice(w, d.Crash(seed)); err != nil {
				t.Errorf("crash at change %d, survivors %d: %v", k, seed, err)
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d changes, %d survivor sets each", points, len(seeds))
}

// recoverTwice opens what a crash has left, compares it with what was promised, and shows that a second recovery
// changes nothing, and that the log can be written again.
func recoverTwice(w *world, d *waltest.Disk) error {
	o := w.opts
	o.FS = d
	var before map[string][]byte
	var head wal.LSN
	for i := range 2 {
		l, err := wal.Open(dbDir, &o)
		if err != nil {
			return fmt.Errorf("recovery %d: %w", i, err)
		}
		err = w.check(l)
		report, now := l.Recovery(), l.Head()
		if e := l.Close(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("recovery %d: %w", i, err)
		}
		files := d.Files()
		if i == 1 {
			if report.Cut || report.Resumed || now != head || !maps.EqualFunc(before, files, bytes.Equal) {
				return fmt.Errorf("the second recovery changed something: %+v, head %v then %v, %s", report, head, now, changed(before, files))
			}
		}
		before, head = files, now
	}
	return goOn(w, d)
}

func changed(a, b map[string][]byte) string {
	var names []string
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return fmt.Sprintf("changed files %q", names)
}

// goOn writes to a recovered log, and finds it again after the next loss of power.
func goOn(w *world, d *waltest.Disk) error {
	n := newWorld(d, dbDir)
	if err := n.open(); err != nil {
		return err
	}
	if n.log.Empty() {
		if err := n.create(); err != nil {
			return fmt.Errorf("create again: %w", err)
		}
	} else {
		old, err := contents(n.log)
		if err != nil {
			return err
		}
		n.items, n.synced, n.tails = old, len(old), [2]wal.LSN{n.log.Tail(), n.log.Tail()}
	}
	n.nextID = w.nextID
	if err := n.append(true, []int{5000, 3}, []int{4}); err != nil {
		return fmt.Errorf("append after recovery: %w", err)
	}
	d.PowerOff()
	_ = n.log.Close()
	d = d.Crash(0)
	n.opts.FS = d
	if err := n.open(); err != nil {
		return fmt.Errorf("recovery after the next crash: %w", err)
	}
	err := n.check(n.log)
	return errors.Join(err, n.log.Close())
}

// TestCrashDuringRecovery lets the machine lose power at each change that recovery makes, and wants the outcome
// that an undisturbed recovery has.
func TestCrashDuringRecovery(t *testing.T) {
	t.Parallel()
	step := 5
	if testing.Short() {
		step = 97
	}
	points := 0
	for k := 0; ; k += step {
		d := waltest.NewDisk()
		d.Inject(waltest.Fault{Skip: k, Crash: true})
		w := newWorld(d, dbDir)
		if err := play(w); !d.Crashed() {
			if err != nil {
				t.Fatalf("without a crash: %v", err)
			}
			break
		}
		for _, seed := range []uint64{1, uint64(k) + 2} {
			left := d.Crash(seed)
			want, err := items(w, left.Kill())
			if err != nil {
				t.Fatalf("crash at change %d, survivors %d: %v", k, seed, err)
			}
			for j := 0; ; j++ {
				again := left.Kill()
				again.Inject(waltest.Fault{Skip: j, Crash: true})
				_, err := items(w, again)
				if !again.Crashed() {
					break
				}
				if err == nil {
					continue // in what a close does after it was told
				}
				points++
				got, err := items(w, again.Crash(uint64(j)))
				if err != nil || !slices.Equal(got, want) {
					t.Fatalf("crash at change %d, survivors %d, crash at change %d of recovery: %v; %d items, want %d", k, seed, j, err, len(got), len(want))
				}
			}
		}
	}
	t.Logf("%d crashes of recovery", points)
}

// items opens the log on a disk, checks it, and closes it.
func items(w *world, d *waltest.Disk) ([]item, error) {
	o := w.opts
	o.FS = d
	l, err := wal.Open(dbDir, &o)
	if err != nil {
		return nil, err
	}
	err = w.check(l)
	var got []item
	if err == nil && !l.Empty() {
		got, err = contents(l)
	}
	if e := l.Close(); err == nil {
		err = e
	}
	return got, err
}

// TestKillAnywhere kills the process, not the machine, at each change: all that was appended is there.
func TestKillAnywhere(t *testing.T) {
	t.Parallel()
	step := 3
	if testing.Short() {
		step = 19
	}
	for k := 0; ; k += step {
		d := waltest.NewDisk()
		in := d.Inject(waltest.Fault{Skip: k, Crash: true})
		w := newWorld(d, dbDir)
		err := play(w)
		if in.Hits() == 0 {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		w.synced = len(w.items) - w.unsure
		if err := recoverTwice(w, d.Kill()); err != nil {
			t.Fatalf("killed at change %d: %v", k, err)
		}
	}
}
