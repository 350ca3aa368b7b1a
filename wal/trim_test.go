package wal_test

import (
	"fmt"
	"slices"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestTrimInterrupted removes segments, of which some begin inside a batch, and loses power or the process in each call: the log opens, begins
// at a whole batch, and the next removal leaves nothing of what was to go.
func TestTrimInterrupted(t *testing.T) {
	t.Parallel()
	base := waltest.NewDisk()
	w := newWorld(base, dbDir)
	w.opts.Compression = wal.NoCompression
	for i, step := range []func() error{
		w.open, w.create,
		func() error { return w.append(true, []int{1000}) },
		func() error { return w.append(true, []int{200_000}) }, // over three segments and more
		func() error { return w.append(true, []int{1000}) },
		func() error { return w.append(true, []int{40_000}) },
		func() error { return w.append(true, []int{40_000}) },
		func() error { return w.append(true, []int{1000}) },
	} {
		if err := step(); err != nil {
			t.Fatal(i, err)
		}
	}
	target := w.log.TailBelow(w.log.Durable())
	if err := w.log.Close(); err != nil {
		t.Fatal(err)
	}
	headless := 0
	for k := 0; ; k++ {
		d := base.Kill()
		c := *w
		if c.opts.FS = d; c.open() != nil {
			t.Fatal("open")
		}
		d.Inject(waltest.Fault{Op: waltest.OpRemove | waltest.OpSyncDir, Skip: k, Crash: true})
		err := c.trim(target)
		crashed := d.Crashed()
		if !crashed && err != nil {
			t.Fatal(err)
		}
		d.PowerOff()
		_ = c.log.Close()
		for i, left := range []*waltest.Disk{d.Kill(), d.Crash(0), d.Crash(1), d.Crash(uint64(k) + 2)} {
			what := fmt.Sprintf("call %d, survivor %d", k, i)
			c := c
			if c.opts.FS = left; c.open() != nil {
				t.Fatalf("%s: does not open: %v", what, c.open())
			}
			names, err := left.ReadDir(dbDir + "/log")
			if err != nil {
				t.Fatal(err)
			}
			if names[0] < c.log.Tail().String() {
				headless++
			}
			c.tails[0], c.tails[1] = 0, target
			if err := c.check(c.log); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if err := c.trim(target); err != nil {
				t.Fatalf("%s: trim again: %v", what, err)
			}
			if err := c.log.Close(); err != nil {
				t.Fatal(err)
			}
			if names, err = left.ReadDir(dbDir + "/log"); err != nil || slices.Min(names) != target.String()+".seg" {
				t.Fatalf("%s: after another removal there is %q, %v; want %v first", what, names, err, target)
			}
		}
		if !crashed {
			break
		}
	}
	if headless == 0 {
		t.Error("no segment was ever left without the beginning of its batch")
	}
}
