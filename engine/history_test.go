package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestHistoryBelowTheTail: the epochs whose records have gone with the segments below the tail are known all the same: after a
// reopen, with and without an index, and to a follower that has copied the log from its tail.
func TestHistoryBelowTheTail(t *testing.T) {
	for _, runs := range []int{0, 1, 10} {
		t.Run(fmt.Sprint("runs=", runs), func(t *testing.T) {
			defer engine.FreezeEvery(runs)()
			disk := waltest.NewDisk()
			opts := engine.Options{FS: disk, SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1}
			var db *engine.DB
			for epoch := range 4 {
				db = open(t, "db", &opts)
				for i := range 5 {
					mustPut(t, db, fmt.Sprint("key", i), strings.Repeat(fmt.Sprint(epoch), 3000))
				}
				if epoch < 3 {
					disk = disk.Kill() // a new epoch when it is opened again
					opts.FS = disk
				}
			}
			want := slices.Clone(db.Log().History())
			if len(want) != 4 {
				t.Fatalf("%d epochs: %v", len(want), want)
			}
			for i := 0; db.Log().Tail() <= want[3].Start; i++ {
				mustPut(t, db, "more", strings.Repeat("x", 50_000))
				if _, err := db.Reclaim(); err != nil || i > 20 {
					t.Fatalf("the log begins at %v: %v", db.Log().Tail(), err)
				}
				waitFor(t, "what reclaim has written is committed", func() bool { return db.Log().Committed() == db.Log().Head() })
				db.Trim()
			}
			for i := range 2 * runs { // runs that end behind the tail record
				mustPut(t, db, fmt.Sprint("key", i), "last")
			}
			if got := db.Log().History(); !slices.Equal(got, want) {
				t.Fatalf("before it was closed: %v, want %v", got, want)
			}
			for _, index := range []string{"as it was left", "removed"} {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				if index == "removed" {
					dropIndex(t, disk)
				}
				db = open(t, "db", &opts)
				if got := db.Log().History(); !slices.Equal(got, want) {
					t.Errorf("with the index %s: %v, want %v", index, got, want)
				}
			}

			fopts := opts
			fopts.FS, fopts.Follower = waltest.NewDisk(), true
			f := open(t, "f", &fopts)
			copyFrom(t, db, f, db.Log().Tail())
			waitFor(t, "the follower has applied it", func() bool { return f.Applied() == db.Log().Head() })
			if got := f.Log().History(); !slices.Equal(got, want) {
				t.Errorf("on a follower: %v, want %v", got, want)
			}
		})
	}
}

// copyFrom gives an empty follower the leader's log from its tail.
func copyFrom(t *testing.T, leader, f *engine.DB, tail wal.LSN) {
	t.Helper()
	p := make([]byte, leader.Log().Head()-tail)
	if _, err := leader.Log().ReadAt(p, tail); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(p); {
		n, err := f.Log().AppendRaw(tail+wal.LSN(at), p[at:])
		if err != nil || n == 0 {
			t.Fatalf("%d bytes of %d: %v", at, len(p), err)
		}
		at += n
	}
	if _, err := f.Log().Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.FollowMark(f.Log().BatchEnd(), 0); err != nil {
		t.Fatal(err)
	}
}

// TestMoreEpochsThanATailRecordCarries: the oldest are left out, and reclaim goes on.
func TestMoreEpochsThanATailRecordCarries(t *testing.T) {
	opts := &engine.Options{FS: waltest.NewDisk(), SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1}
	db := open(t, "db", opts)
	for range 300 {
		if _, err := db.Log().StartEpoch(db.Log().Epoch().NextRestart(), wal.Rule{Level: uint32(engine.Durable)}); err != nil {
			t.Fatal(err)
		}
	}
	want := slices.Clone(db.Log().History())
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, "db", opts)
	for i := range 40 {
		mustPut(t, db, fmt.Sprint("key", i), strings.Repeat("x", 3000))
	}
	if err := db.MoveTail(64 << 10); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the tail is committed", func() bool { return db.Log().Committed() == db.Log().Head() })
	db.Trim()
	if db.Log().Tail() == 0 {
		t.Fatal("nothing was given up")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, "db", opts)
	if got := db.Log().History(); !slices.Equal(got, want[len(want)-256:]) {
		t.Errorf("%d epochs from %v, want 256 from %v", len(got), got[0], want[len(want)-256])
	}
}
