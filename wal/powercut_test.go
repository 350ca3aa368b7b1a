package wal_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// TestPowerCuts cuts the power of real file systems while a log is written: no acknowledged append is lost.
func TestPowerCuts(t *testing.T) {
	kinds := []string{"ext4", "xfs"}
	cuts := waltest.PowerCuts(t, 100, 10) / len(kinds)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewMount(t, kind, 64<<20)
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 0))
			w := newWorld(vfs.OS, filepath.Join(m.Dir, "db"))
			w.opts.Inline = false // with all that goes on in the background
			t.Cleanup(func() {
				if w.log != nil {
					_ = w.log.Close()
				}
			})
			lost, torn := 0, 0
			for cut := range cuts {
				if err := writeUntilCut(w, m, rng); err != nil {
					t.Fatalf("seed %d, cut %d: %v", seed, cut, err)
				}
				if err := m.Restart(); err != nil {
					t.Fatalf("seed %d, cut %d: mount again: %v", seed, cut, err)
				}
				appended, synced := len(w.items), w.synced
				if err := recoverCut(w); err != nil {
					t.Fatalf("seed %d, cut %d: %v", seed, cut, err)
				}
				if len(w.items) < appended {
					lost++
				}
				if w.log.Recovery().Cut {
					torn++
				}
				t.Logf("cut %d: %d appended, %d acknowledged, %d left", cut, appended, synced, len(w.items))
			}
			if err := w.close(); err != nil {
				t.Fatal(err)
			}
			if lost == 0 && cuts >= 10 {
				t.Error("no cut lost anything: was the power cut at all?")
			}
			t.Logf("%d cuts, %d lost what was not synced, %d left a torn tail; no acknowledged append was lost", cuts, lost, torn)
		})
	}
}

// writeUntilCut writes through an open log, or a new one, until the power fails: between two calls, or while appends
// go on. No sync runs meanwhile: the shutdown of a file system takes a moment, and a sync inside that moment may
// succeed without having reached the disk, which no loss of power does.
func writeUntilCut(w *world, m *waltest.Mount, rng *rand.Rand) error {
	if w.log == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	if w.log.Empty() {
		if err := w.create(); err != nil {
			return err
		}
	}
	cut := make(chan error, 1)
	after, aside := 1+rng.IntN(40), rng.IntN(2) == 0
	for i := 0; ; i++ {
		if i == after {
			if aside { // in the middle of whatever the log is doing
				go func() { cut <- m.Shutdown() }()
			} else {
				cut <- m.Shutdown()
			}
		}
		sync := rng.IntN(3) == 0 && !(aside && i >= after)
		if err := w.append(sync, []int{rng.IntN(3000)}, []int{rng.IntN(200)}); err != nil {
			if i < after {
				l := w.log
				w.log = nil
				return errors.Join(err, l.Close())
			}
			break
		}
		if len(cut) > 0 && i > after+50 { // stores through the map go on without power
			break
		}
	}
	err := <-cut
	l := w.log
	w.log = nil
	_ = l.Close() // whatever it says
	return err
}

// recoverCut opens what the cut has left, checks it, and takes it as what is acknowledged from now on. Now and then it
// makes room.
func recoverCut(w *world) error {
	if err := w.open(); err != nil {
		return err
	}
	if err := w.check(w.log); err != nil {
		return err
	}
	if w.log.Empty() {
		w.items, w.unsure, w.synced = nil, 0, 0
		return nil
	}
	got, err := contents(w.log)
	if err != nil {
		return err
	}
	w.items, w.unsure, w.synced = got, 0, len(got)
	if w.log.Head()-w.log.Tail() > 1<<20 {
		w.tails[1] = w.log.Durable()
		if err := w.log.TrimBefore(w.log.Durable()); err != nil {
			return err
		}
		w.tails = [2]wal.LSN{w.log.Tail(), w.log.Tail()}
	}
	return nil
}

// TestFullMount fills real file systems.
func TestFullMount(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewMount(t, kind, 8<<20)
			w := newWorld(vfs.OS, filepath.Join(m.Dir, "db"))
			w.opts.Inline = false
			t.Cleanup(func() {
				if w.log != nil {
					_ = w.log.Close()
				}
			})
			ballast := filepath.Join(m.Dir, "ballast")
			if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{w.open(), w.create()} {
				if err != nil {
					t.Fatal(err)
				}
			}
			fill := func() {
				t.Helper()
				var err error
				for i := 0; err == nil; i++ {
					err = w.append(i%8 == 0, []int{20_000})
				}
				if !errors.Is(err, wal.ErrNoSpace) || errors.Is(err, wal.ErrPoisoned) {
					t.Fatalf("want a full disk, got %v", err)
				}
				w.drop()
				if got, err := contents(w.log); err != nil || len(got) != len(w.items) {
					t.Fatalf("read on a full disk: %d items of %d, %v", len(got), len(w.items), err)
				}
			}
			fill()
			full := len(w.items)
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			fill() // without opening again
			if len(w.items) < full+50 {
				t.Errorf("%d batches before there was room, %d after", full, len(w.items))
			}
			for _, step := range []func() error{w.close, w.open, func() error { return w.check(w.log) }} {
				if err := step(); err != nil {
					t.Fatalf("on a full disk: %v", err)
				}
			}
			if err := w.log.TrimBefore(w.log.Durable()); err != nil {
				t.Fatal(err)
			}
			if err := w.append(true, []int{100}); err != nil {
				t.Fatalf("when there is room again: %v", err)
			}
			if err := w.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
