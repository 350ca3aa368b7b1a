package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"

	"shiplog/engine"
	"shiplog/wal/waltest"
)

// script is a workload of which every commit is known: models[i] is the state after i of them.
type script struct {
	commits []func(b *engine.Batch)
	models  []model
}

func newScript() *script {
	s := &script{models: []model{{}}}
	m := model{}
	add := func(fn func(b *engine.Batch), apply func()) {
		s.commits = append(s.commits, fn)
		apply()
		s.models = append(s.models, maps.Clone(m))
	}
	put := func(k, v string) {
		add(func(b *engine.Batch) { b.Put([]byte(k), []byte(v)) }, func() { m[k] = v })
	}
	for i := range 6 {
		put(fmt.Sprint("k", i%4), strings.Repeat(fmt.Sprint("value", i, " "), 1+i*40))
	}
	put("large", strings.Repeat("0123456789abcdef", 5000)) // several frames, and more than one segment with the next
	add(func(b *engine.Batch) {
		for i := range 300 {
			b.Put(fmt.Appendf(nil, "batch%d", i), fmt.Appendf(nil, "%d and some more bytes", i*i))
		}
		b.Delete([]byte("k1"))
	}, func() {
		for i := range 300 {
			m[fmt.Sprint("batch", i)] = fmt.Sprintf("%d and some more bytes", i*i)
		}
		delete(m, "k1")
	})
	add(func(b *engine.Batch) { b.DeleteRange([]byte("batch1"), []byte("batch2")) }, func() {
		for _, k := range m.sorted("batch1", "batch2") {
			delete(m, k)
		}
	})
	put("k1", "again")
	put("large", strings.Repeat("fedcba9876543210", 6000))
	add(func(b *engine.Batch) { b.Delete([]byte("large")) }, func() { delete(m, "large") })
	put("end", "of the script")
	return s
}

// run opens the database, commits from done on until something fails, and returns how many commits
// were acknowledged. In the middle it closes and opens again.
func (s *script) run(disk *waltest.Disk, opts engine.Options) int {
	opts.FS = disk
	acked := 0
	for acked < len(s.commits) {
		db, err := engine.Open("db", &opts)
		if err != nil {
			return acked
		}
		until := len(s.commits)
		if acked == 0 {
			until /= 2
		}
		for acked < until {
			b := db.NewBatch()
			s.commits[acked](b)
			if _, err := db.Commit(ctx, b, engine.Durable); err != nil {
				db.Close()
				return acked
			}
			acked++
		}
		if db.Close() != nil {
			return acked
		}
	}
	return acked
}

// state reads everything that a database shows.
func state(t *testing.T, db *engine.DB) model {
	t.Helper()
	m := model{}
	it := db.NewIter(nil)
	for ok := it.First(); ok; ok = it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestCrashAtEveryCall loses power in each call that changes or syncs something, and opens what
// different parts of the unsynced bytes leave: every acknowledged commit is there, at most the one
// in hand beside them, and a second open sees the same.
func TestCrashAtEveryCall(t *testing.T) {
	s := newScript()
	for _, level := range []engine.Level{engine.Durable, engine.Written} {
		t.Run(level.String(), func(t *testing.T) {
			defer engine.FreezeEvery(7)() // runs are written and merged meanwhile
			opts := engine.Options{Commit: level, SegmentSize: 64 << 10, CommitTimeout: -1}
			for k := 0; ; k++ {
				disk := waltest.NewDisk()
				disk.Inject(waltest.Fault{Skip: k, Crash: true})
				acked := s.run(disk, opts)
				crashed := disk.Crashed()
				disk.PowerOff()
				for seed := range uint64(4) {
					checkSurvivor(t, s, disk.Crash(seed+seed/2*uint64(k)*1000), opts, acked, fmt.Sprintf("call %d, survivors %d", k, seed))
				}
				if !crashed {
					t.Logf("%d calls", k)
					return
				}
				if testing.Short() {
					k += 4
				}
			}
		})
	}
}

func checkSurvivor(t *testing.T, s *script, disk *waltest.Disk, opts engine.Options, acked int, what string) {
	t.Helper()
	opts.FS = disk
	var first model
	for round := range 2 {
		db, err := engine.Open("db", &opts)
		if err != nil {
			t.Fatalf("%s: open %d: %v", what, round, err)
		}
		got := state(t, db)
		if err := db.Close(); err != nil {
			t.Fatalf("%s: close: %v", what, err)
		}
		if round == 0 {
			first = got
			if !maps.Equal(got, s.models[acked]) && (acked == len(s.commits) || !maps.Equal(got, s.models[acked+1])) {
				t.Fatalf("%s: %d commits were acknowledged; %d keys are there, which is not the state after them", what, acked, len(got))
			}
		} else if !maps.Equal(got, first) {
			t.Fatalf("%s: the second open has changed the state", what)
		}
	}
}

// TestFaultsOfTheIndex makes each call on the index's files fail, once: no commit notices, nothing stays open, and the
// state is the same after a reopen.
func TestFaultsOfTheIndex(t *testing.T) {
	s := newScript()
	defer engine.FreezeEvery(20)()
	opts := engine.Options{Commit: engine.Written, SegmentSize: 64 << 10}
	for _, path := range []string{"*.run", "MANIFEST*", "index"} {
		t.Run(path, func(t *testing.T) {
			for k := 0; ; k++ {
				disk := waltest.NewDisk()
				fault := disk.Inject(waltest.Fault{
					Op: waltest.Changes | waltest.OpOpen | waltest.OpRead | waltest.OpMap | waltest.OpReadDir | waltest.OpStat, Path: path, Skip: k,
				})
				if acked := s.run(disk, opts); acked != len(s.commits) && path != "index" { // Open needs its directory
					t.Fatalf("call %d: %d of %d commits", k, acked, len(s.commits))
				}
				if open := disk.Open(); len(open) > 0 {
					t.Fatalf("call %d: after Close there are open: %q", k, open)
				}
				if fault.Hits() == 0 {
					t.Logf("%d calls", k)
					return
				}
				acked := s.run(disk, opts)
				checkSurvivor(t, s, disk, opts, len(s.commits), fmt.Sprint("call ", k, " after ", acked))
			}
		})
	}
}

// TestFailedSync: after one failed fdatasync nothing is acknowledged, no later sync is believed,
// reads go on, and what was acknowledged before is there after a crash.
func TestFailedSync(t *testing.T) {
	disk := waltest.NewDisk()
	opts := &engine.Options{FS: disk, SegmentSize: 64 << 10}
	db, err := engine.Open("db", opts)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, db, "a", "1")
	disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg"})
	err = db.Put([]byte("a"), []byte("2"))
	if !errors.Is(err, engine.ErrUnknownOutcome) || !errors.Is(err, engine.ErrPoisoned) {
		t.Fatalf("Put over a failing disk: %v", err)
	}
	for range 3 {
		if err := db.Put([]byte("b"), []byte("3")); !errors.Is(err, engine.ErrPoisoned) {
			t.Fatalf("Put after a failed sync: %v", err)
		}
	}
	wantGet(t, db.Get, "a", "1")
	if db.Stats().Failed == nil {
		t.Error("Stats does not say that the log has failed")
	}
	db.Close()
	opts.FS = disk.Crash(0)
	db = open(t, "db", opts)
	wantGet(t, db.Get, "a", "1")
	wantMissing(t, db.Get, "b")
	mustPut(t, db, "c", "4")
}

// TestFullDisk: a typed error before anything is written, reads go on, and writes work again in the
// same process once there is room.
func TestFullDisk(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk, SegmentSize: 1 << 20, Compression: engine.NoCompression})
	mustPut(t, db, "a", "1")
	disk.SetCapacity(disk.Used() + 4<<20)
	value := []byte(strings.Repeat("x", 100_000))
	var err error
	n := 0
	for ; err == nil; n++ {
		err = db.Put(fmt.Append(nil, n), value)
		if n > 1000 {
			t.Fatal("the disk is never full")
		}
	}
	if !errors.Is(err, engine.ErrNoSpace) {
		t.Fatalf("Put on a full disk: %v", err)
	}
	head := db.Stats().Head
	if err := db.Put([]byte("b"), value); !errors.Is(err, engine.ErrNoSpace) {
		t.Fatalf("second Put on a full disk: %v", err)
	}
	if db.Stats().Head != head {
		t.Error("a refused write was appended")
	}
	wantGet(t, db.Get, "a", "1")
	wantGet(t, db.Get, "0", string(value))
	disk.SetCapacity(0)
	for i := range 50 {
		mustPut(t, db, fmt.Sprint("more", i), string(value))
	}
	wantGet(t, db.Get, "more49", string(value))
}

// TestCrashWhileAnEpochBegins loses power in each call of an open after an unclean stop, which begins an epoch, and then in each call of the open
// after that: whatever of the promise to itself and of the epoch's record got to the disk, the node goes on leading, in an epoch
// that it has not begun before.
func TestCrashWhileAnEpochBegins(t *testing.T) {
	opts := engine.Options{SegmentSize: 64 << 10}
	opts.FS = waltest.NewDisk()
	mustPut(t, open(t, "db", &opts), "a", "1")
	first := opts.FS.(*waltest.Disk).Crash(1)
	// after opens a database with a loss of power in call k, and returns what survives.
	after := func(disk *waltest.Disk, k int, seed uint64) (survivor *waltest.Disk, crashed bool) {
		disk = disk.Kill()
		disk.Inject(waltest.Fault{Skip: k, Crash: true})
		opts.FS = disk
		if db, err := engine.Open("db", &opts); err == nil {
			defer db.Close()
		}
		crashed = disk.Crashed()
		disk.PowerOff()
		return disk.Crash(seed), crashed
	}
	calls := 0
	for k := 0; ; k++ {
		for seed := range uint64(3) {
			once, crashed := after(first, k, seed)
			if !crashed {
				t.Logf("%d calls, %d cases", k, calls)
				return
			}
			for j := 0; ; j += 2 {
				twice, crashed := after(once, j, seed)
				opts.FS = twice
				db, err := engine.Open("db", &opts)
				if err != nil {
					t.Fatalf("calls %d and %d, survivors %d: %v", k, j, seed, err)
				}
				wantGet(t, db.Get, "a", "1")
				mustPut(t, db, "b", "2")
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				calls++
				if !crashed || testing.Short() {
					break
				}
			}
		}
	}
}

// TestFollowWithAFailedDisk: a leader whose log cannot be synced any more follows when it is told to, says what is wrong, answers reads, and refuses
// to lead again, to be cut and to start over.
func TestFollowWithAFailedDisk(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk, Commit: engine.Written})
	mustPut(t, db, "a", "1")
	if _, err := db.Log().Sync(); err != nil {
		t.Fatal(err)
	}
	mustPut(t, db, "b", "2")
	disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Times: waltest.Forever, Err: syscall.EIO})
	if err := db.Follow(ctx); !errors.Is(err, syscall.EIO) && !errors.Is(err, engine.ErrPoisoned) {
		t.Fatalf("Follow: %v", err)
	}
	if db.Role() != engine.Follower {
		t.Fatalf("it is the %v", db.Role())
	}
	wantGet(t, db.Get, "a", "1")
	for what, do := range map[string]func() error{
		"promote":    func() error { return db.Promote(ctx) },
		"cut":        func() error { return db.CutLog(db.Log().BatchEnd()) },
		"start over": db.StartOver,
	} {
		if err := do(); !errors.Is(err, engine.ErrPoisoned) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantGet(t, db.Get, "a", "1")
}
