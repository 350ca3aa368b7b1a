package engine_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
)

// TestSlots: the log is kept from where a follower has it on its disk on, also while one with a name is away and while this node
// is restarted; up to a number of bytes, or a time, past which the slot says why it was given up. One without a name is
// kept nothing for when it goes.
func TestSlots(t *testing.T) {
	const segment = 64 << 10
	var clock atomic.Int64
	clock.Store(1_000_000)
	opts := &engine.Options{
		Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression, MaxPinned: 6 * segment, MaxPinnedAge: time.Hour,
		Now: func() time.Time { return time.UnixMilli(clock.Load()) },
	}
	dir := t.TempDir()
	db := open(t, dir, opts)
	rng, m := rand.New(rand.NewPCG(8, 8)), model{}
	churn(t, db, rng, m, 200)
	named, unnamed := wal.NodeID{1}, wal.NodeID{2}
	from := db.Log().Head()
	db.HoldSlot(named, "f", db.Log().Tail())
	db.PeerAck(named, from, from, from, from)
	db.HoldSlot(unnamed, "", from)
	slot := func() engine.SlotStats {
		t.Helper()
		for _, s := range db.Slots() {
			if s.Name == "f" {
				return s
			}
		}
		t.Fatal("no slot")
		return engine.SlotStats{}
	}
	if s := slot(); !s.Connected || s.From != from || s.Bytes != 0 || s.Lag != 0 || len(db.Slots()) != 2 {
		t.Fatalf("%+v of %d", s, len(db.Slots()))
	}
	db.ReleaseSlot(named)
	db.ReleaseSlot(unnamed)
	if len(db.Slots()) != 1 {
		t.Fatalf("%+v", db.Slots())
	}
	// It holds the log while the tail would move on.
	for db.Stats().Head < from+3*segment {
		churn(t, db, rng, m, 50)
	}
	clock.Add(60_000)
	waitFor(t, "the tail would move past the slot", func() bool { return slot().Pinned > 0 })
	waitFor(t, "it lags in time", func() bool { return slot().Lag > 0 })
	if s := slot(); db.Log().Tail() > from || s.GivenUp != "" || s.Bytes < 3*segment || s.Left <= 0 || s.Left > time.Hour || s.Gone != time.Minute {
		t.Fatalf("tail %v, slot at %v: %+v", db.Log().Tail(), from, s)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, dir, opts)
	if s := slot(); s.From != from || s.Connected || s.Gone != time.Minute {
		t.Fatalf("after a restart: %+v", s)
	}
	churn(t, db, rng, m, 20)
	if db.Log().Tail() > from {
		t.Fatalf("tail %v after the restart, the slot is at %v", db.Log().Tail(), from)
	}

	// Past the cap it is given up, and the log is free.
	for end := time.Now().Add(20 * time.Second); slot().GivenUp == ""; {
		churn(t, db, rng, m, 50)
		if time.Now().After(end) {
			t.Fatalf("%+v", slot())
		}
	}
	if s := slot(); !strings.Contains(s.GivenUp, "bytes of log") || s.Pinned != 0 {
		t.Errorf("%+v", s)
	}
	waitFor(t, "the tail moves on", func() bool { return db.Log().Tail() > from })

	// It is back, and goes for too long.
	db.HoldSlot(named, "f", db.Log().Tail())
	db.PeerAck(named, 0, db.Log().Head(), 0, 0)
	if s := slot(); s.GivenUp != "" || !s.Connected {
		t.Errorf("%+v", s)
	}
	if err := db.DropSlot("f"); !errors.Is(err, engine.ErrInvalidOption) {
		t.Errorf("dropped under a connection: %v", err)
	}
	db.ReleaseSlot(named)
	clock.Add(3_700_000)
	for end := time.Now().Add(20 * time.Second); slot().GivenUp == ""; {
		churn(t, db, rng, m, 50)
		if time.Now().After(end) {
			t.Fatalf("%+v", slot())
		}
	}
	if s := slot(); !strings.Contains(s.GivenUp, "away for 1h") {
		t.Errorf("%+v", s)
	}
	if err := db.DropSlot("f"); err != nil || len(db.Slots()) != 0 {
		t.Errorf("dropped: %v, %v", err, db.Slots())
	}
	if err := db.DropSlot("f"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("dropped twice: %v", err)
	}
	settled(t, db, m, segment)
}

// TestSlotPasses: a node that connects again before its old connection has ended keeps its slot; a new disk under an old name takes
// it over; and a leader that leads no more lets go of who goes elsewhere.
func TestSlotPasses(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "a", "1")
	a, b := wal.NodeID{1}, wal.NodeID{2}
	db.HoldSlot(a, "f", 0)
	db.HoldSlot(a, "f", 0)
	db.ReleaseSlot(a)
	if s := db.Slots(); len(s) != 1 || !s[0].Connected {
		t.Fatalf("%+v", s)
	}
	db.HoldSlot(b, "f", 0)
	db.ReleaseSlot(a) // late
	if s := db.Slots(); len(s) != 1 || !s[0].Connected || s[0].ID != b {
		t.Fatalf("%+v", s)
	}
	db.HoldSlot(a, "g", 0)
	db.ReleaseSlot(a)
	if err := db.Follow(ctx); err != nil {
		t.Fatal(err)
	}
	if s := db.Slots(); len(s) != 1 || s[0].Name != "f" {
		t.Fatalf("%+v", s)
	}
	db.ReleaseSlot(b)
	if s := db.Slots(); len(s) != 0 {
		t.Fatalf("%+v", s)
	}
	db.HoldSlot(b, "f", 0) // behind a follower now
	db.ReleaseSlot(b)
	if s := db.Slots(); len(s) != 1 || s[0].Connected {
		t.Fatalf("%+v", s)
	}
}
