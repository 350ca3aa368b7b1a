package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// filled is a database of several segments and runs on a disk, closed, and its keys.
func filled(t *testing.T, opts *engine.Options, dir string) model {
	t.Helper()
	defer engine.FreezeEvery(300)()
	db, err := engine.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	m := model{}
	for i := range 40 {
		b := db.NewBatch()
		for k := range 50 {
			key, value := fmt.Sprintf("key%05d", (i*50+k)*7919%2000), fmt.Sprint(i, strings.Repeat(".", k*4))
			b.Put([]byte(key), []byte(value))
			m[key] = value
		}
		if _, err := db.Commit(ctx, b, engine.Default); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return m
}

// readEverything reads by all ways there are. Each answer must be right, or an error that says that the medium has failed. It returns how many answers of both kinds there were.
func readEverything(t *testing.T, db *engine.DB, m model) (right, failed int) {
	t.Helper()
	judge := func(what string, ok bool, err error) {
		t.Helper()
		var c *wal.CorruptError
		switch {
		case err != nil && strings.Contains(err.Error(), "invalid memory address"):
			t.Errorf("%s: an error as of a broken program: %v", what, err)
		case err == nil && ok:
			right++
		case errors.Is(err, wal.ErrIO), errors.Is(err, engine.ErrLoading), errors.As(err, &c):
			failed++
		default:
			t.Errorf("%s: %v, right: %t", what, err, ok)
		}
	}
	for k, want := range m {
		v, err := db.Get([]byte(k))
		judge("Get "+k, string(v) == want, err)
		ok := false
		err = db.View([]byte(k), func(v []byte) error { ok = string(v) == want; return nil })
		judge("View "+k, ok, err)
	}
	snap := db.Snapshot()
	for _, new := range []func() *engine.Iterator{func() *engine.Iterator { return db.NewIter(nil) }, func() *engine.Iterator { return snap.NewIter(nil) }} {
		for _, back := range []bool{false, true} {
			it, n, ok := new(), 0, true
			first, next := it.First, it.Next
			if back {
				first, next = it.Last, it.Prev
			}
			for on := first(); on; on = next() {
				k, v := string(it.Key()), it.Value()
				if !it.Valid() { // the value could not be had
					break
				}
				ok = ok && m[k] == string(v)
				n++
			}
			err := it.Close()
			if !ok {
				t.Errorf("a scan of %d keys shows what was never written, and ends with %v", n, err)
			}
			judge("scan", n == len(m), err)
		}
	}
	snap.Close()
	n := 0
	var err error
	for _, e := range db.Changes(t.Context(), engine.Position{}) {
		if err = e; err != nil {
			break
		}
		if n++; n == 2000 {
			break
		}
	}
	judge("Changes", n == 2000, err)
	_, err = db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		_, err := tx.Get([]byte("key00007"))
		return err
	})
	judge("transaction", true, err)
	return right, failed
}

// TestBadMedium makes the files of an open database unreadable, one after the other: loads through maps fault, and reads answer EIO. Whoever reads there gets an error, in whatever way it reads, in
// front or in the background; all others get what they ask for; the process lives, and writes go on where they need nothing of it. A database that is opened on such a disk cuts
// nothing. With the medium healed everything is there.
func TestBadMedium(t *testing.T) {
	opts := &engine.Options{FS: waltest.NewDisk(), SegmentSize: 64 << 10, CacheSize: -1, Compression: engine.NoCompression, SpaceFactor: -1}
	m := filled(t, opts, "db")
	first := opts.FS.(*waltest.Disk).Kill()
	broken := 0
	for _, name := range slices.Sorted(maps.Keys(first.Files())) {
		if ext := filepath.Ext(name); ext != ".seg" && ext != ".run" {
			continue
		}
		if broken++; testing.Short() && broken%3 != 0 {
			continue
		}
		disk := first.Kill()
		o := *opts
		o.FS = disk
		db := open(t, "db", &o)
		if right, failed := readEverything(t, db, m); failed != 0 {
			t.Fatalf("before: %d right, %d failed", right, failed)
		}
		if err := disk.FailRange(name, 0, -1, false); err != nil {
			t.Fatal(err)
		}
		right, failed := readEverything(t, db, m)
		if right == 0 || failed == 0 {
			t.Errorf("%s: %d right, %d failed", name, right, failed)
		}
		if filepath.Ext(name) == ".run" {
			mustPut(t, db, "key00007", m["key00007"]) // the log has nothing to do with it
		}
		if err := db.Close(); err != nil && !errors.Is(err, wal.ErrIO) && !errors.Is(err, engine.ErrPoisoned) {
			t.Errorf("%s: close: %v", name, err)
		}
		if db, err := engine.Open("db", &o); err == nil {
			readEverything(t, db, m)
			if err := db.Close(); err != nil && !errors.Is(err, wal.ErrIO) && !errors.Is(err, engine.ErrPoisoned) {
				t.Errorf("%s: close: %v", name, err)
			}
		} else if !errors.Is(err, wal.ErrIO) && !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("%s: open: %v", name, err)
		}
		if err := disk.HealRange(name); err != nil && !errors.Is(err, os.ErrNotExist) { // a run may have been given up
			t.Fatal(err)
		}
		db = open(t, "db", &o)
		waitFor(t, "all is read", func() bool {
			it := db.NewIter(nil)
			for ok := it.First(); ok; ok = it.Next() {
			}
			return it.Close() == nil
		})
		if got := state(t, db); !maps.Equal(got, m) {
			t.Errorf("%s: %d keys with the medium healed, want %d", name, len(got), len(m))
		}
		db.Close()
	}
	if broken < 4 {
		t.Errorf("%d files", broken)
	}
}

// TestFilesCutShort cuts the files of an open database short under its maps, by another process's hand: SIGBUS, which is an error to who reads there and to nobody else.
func TestFilesCutShort(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "db")
	opts := &engine.Options{SegmentSize: 64 << 10, CacheSize: -1, Compression: engine.NoCompression, SpaceFactor: -1}
	m := filled(t, opts, dir)
	names, err := filepath.Glob(filepath.Join(dir, "*", "*.[sr][eu][gn]"))
	if err != nil || len(names) < 4 {
		t.Fatal(names, err)
	}
	for i, name := range names {
		if testing.Short() && i%3 != 1 {
			continue
		}
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		db := open(t, dir, opts)
		readEverything(t, db, m)
		if err := os.Truncate(name, 4096); err != nil {
			t.Fatal(err)
		}
		if right, failed := readEverything(t, db, m); right == 0 || failed == 0 {
			t.Errorf("%s: %d right, %d failed", filepath.Base(name), right, failed)
		}
		db.Close() // whatever it says
		if filepath.Ext(name) == ".seg" {
			if err := os.WriteFile(name, good, 0o600); err != nil {
				t.Fatal(err)
			}
		} // a run is made again by itself
	}
	db := open(t, dir, opts)
	waitFor(t, "all is read", func() bool {
		it := db.NewIter(nil)
		for ok := it.First(); ok; ok = it.Next() {
		}
		return it.Close() == nil
	})
	if got := state(t, db); !maps.Equal(got, m) {
		t.Errorf("%d keys, want %d", len(got), len(m))
	}
}

// TestDerivedFiles loses, empties, shortens and garbles each file that is derived from the log or may be forgotten, one at a time: the database opens and has everything.
func TestDerivedFiles(t *testing.T) {
	opts := &engine.Options{FS: waltest.NewDisk(), SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1}
	m := filled(t, opts, "db")
	db := open(t, "db", opts)
	db.HoldSlot(wal.NodeID{1}, "f", db.Log().Tail())
	db.ReleaseSlot(wal.NodeID{1})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	good := opts.FS.(*waltest.Disk).Kill()
	seen := map[string]bool{}
	files := good.Files()
	for i, name := range slices.Sorted(maps.Keys(files)) {
		base, p := filepath.Base(name), files[name]
		if filepath.Ext(name) == ".seg" || base == "node" || base == "node.tmp" || base == "mark" || base == "LOCK" {
			continue
		}
		if seen[base] = true; testing.Short() && i%2 != 0 {
			continue
		}
		junk := make([]byte, len(p))
		for i := range junk {
			junk[i] = p[i] ^ byte(i*7+1)
		}
		for what, damage := range map[string]func(d *waltest.Disk) error{
			"is missing":  func(d *waltest.Disk) error { return d.Remove(name) },
			"is empty":    func(d *waltest.Disk) error { return d.WriteFile(name, nil) },
			"is shorter":  func(d *waltest.Disk) error { return d.WriteFile(name, p[:len(p)/2]) },
			"is junk":     func(d *waltest.Disk) error { return d.WriteFile(name, junk) },
			"is of zeros": func(d *waltest.Disk) error { return d.WriteFile(name, make([]byte, len(p))) },
			"is longer":   func(d *waltest.Disk) error { return d.WriteFile(name, append(p[:len(p):len(p)], junk...)) },
		} {
			o := *opts
			disk := good.Kill()
			o.FS = disk
			if err := damage(disk); err != nil {
				t.Fatal(err)
			}
			db, err := engine.Open("db", &o)
			if err != nil {
				t.Errorf("%s %s: %v", name, what, err)
				continue
			}
			waitFor(t, "all is read", func() bool {
				it := db.NewIter(nil)
				for ok := it.First(); ok; ok = it.Next() {
				}
				return it.Close() == nil
			})
			if got := state(t, db); !maps.Equal(got, m) {
				t.Errorf("%s %s: %d keys, want %d", name, what, len(got), len(m))
			}
			if err := db.Close(); err != nil {
				t.Errorf("%s %s: close: %v", name, what, err)
			}
		}
	}
	if !seen["slots"] || len(seen) < 4 {
		t.Errorf("there are %v", seen)
	}
}
