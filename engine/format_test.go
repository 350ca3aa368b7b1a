package engine_test

import (
	"errors"
	"strings"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// tooOld expects an error that names both versions of a format level.
func tooOld(t *testing.T, what string, err error) {
	t.Helper()
	var v *wal.VersionError
	if !errors.Is(err, wal.ErrVersion) || !errors.As(err, &v) || v.What != "format level" || v.Need != 4 || v.Have != 3 || !strings.Contains(err.Error(), "version 4") {
		t.Errorf("%s: %v, want a version error that names 4 and 3", what, err)
	}
}

// TestFormatLevel: a new database has the newest level; an operator raises it, and it never falls. A node of an older build stores and confirms what comes, applies nothing
// from there on, answers with both versions, and cannot lead; it does not open either. A newer build goes on from there.
func TestFormatLevel(t *testing.T) {
	defer engine.KnowFormat(3)()
	dir := t.TempDir()
	leader := open(t, t.TempDir(), nil)
	if got := leader.FormatLevel(); got != 3 {
		t.Fatalf("a new database has level %d", got)
	}
	tooOld(t, "a level that this build does not know", leader.RaiseFormat(ctx, 4))
	if err := leader.RaiseFormat(ctx, 2); !errors.Is(err, engine.ErrInvalidOption) {
		t.Errorf("a lower level: %v", err)
	}
	mustPut(t, leader, "k", "before")
	f := open(t, dir, &engine.Options{Follower: true})
	before := leader.Log().Head()
	feed(t, leader, f, before)
	if err := f.RaiseFormat(ctx, 4); err == nil {
		t.Error("a follower raises the level")
	}

	engine.KnowFormat(4)
	if err := leader.RaiseFormat(ctx, 4); err != nil || leader.FormatLevel() != 4 {
		t.Fatalf("raised: %v, level %d", err, leader.FormatLevel())
	}
	if err := leader.RaiseFormat(ctx, 4); err != nil {
		t.Errorf("raised to what it is: %v", err)
	}
	mustPut(t, leader, "k", "after")
	end := leader.Log().Head()
	engine.KnowFormat(3)
	copyLog(t, leader, f, end)
	if err := f.FollowMark(end, 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "application has stopped", func() bool { _, err := f.Get([]byte("k")); return errors.Is(err, wal.ErrVersion) })
	_, err := f.Get([]byte("k"))
	tooOld(t, "Get", err)
	if !errors.Is(err, engine.ErrLoading) || f.Applied() != before || f.Log().Durable() != end {
		t.Errorf("%v; applied %v, durable %v; want %v, %v", err, f.Applied(), f.Log().Durable(), before, end)
	}
	tooOld(t, "Promote", f.Promote(ctx))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = engine.Open(dir, &engine.Options{Follower: true})
	tooOld(t, "Open", err)

	engine.KnowFormat(4)
	f = open(t, dir, &engine.Options{Follower: true})
	if err := f.FollowMark(end, 0); err != nil {
		t.Fatal(err)
	}
	wantGet(t, f.Get, "k", "after")
	if got := f.Stats().FormatLevel; got != 4 {
		t.Errorf("level %d", got)
	}
	if err := f.CutLog(before); err != nil {
		t.Fatal(err)
	}
	if got := f.FormatLevel(); got != 3 {
		t.Errorf("level %d after the record was cut", got)
	}
}

// TestFormatLevelOutlivesItsRecord: the level is known where its record is not read any more: behind a run of the index, and behind the tail.
func TestFormatLevelOutlivesItsRecord(t *testing.T) {
	defer engine.KnowFormat(4)()
	defer engine.FreezeEvery(4)()
	dir := t.TempDir()
	opts := &engine.Options{SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1}
	leader := open(t, dir, opts)
	for range 30 {
		mustPut(t, leader, "k", string(make([]byte, 8<<10)))
	}
	waitFor(t, "the index has runs", func() bool { return leader.Stats().Index.Runs > 0 })
	if err := leader.Close(); err != nil {
		t.Fatal(err)
	}
	engine.KnowFormat(3)
	_, err := engine.Open(dir, opts)
	tooOld(t, "a run of the index", err)

	engine.KnowFormat(4)
	leader = open(t, dir, opts)
	if got := leader.FormatLevel(); got != 4 {
		t.Errorf("level %d behind a run", got)
	}
	if _, err := leader.Reclaim(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the tail has moved", func() bool { leader.Trim(); return leader.Log().Tail() > 0 })
	tail := leader.Log().Tail()
	p := make([]byte, leader.Log().Head()-tail)
	if _, err := leader.Log().ReadAt(p, tail); err != nil {
		t.Fatal(err)
	}
	engine.KnowFormat(3)
	f := open(t, t.TempDir(), &engine.Options{Follower: true})
	if _, err := f.Log().AppendRaw(tail, p); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "application has stopped", func() bool { _, err := f.Get([]byte("k")); return errors.Is(err, wal.ErrVersion) })
	_, err = f.Get([]byte("k"))
	tooOld(t, "a tail record", err)
}

// TestFirstFormat: where the log has the first level, records say no more than that level has; a raise changes it.
func TestFirstFormat(t *testing.T) {
	restore := engine.KnowFormat(1)
	defer restore()
	leader := degradedLeader(t, t.TempDir())
	restore()
	mustPut(t, leader, "k", "v")
	got := leader.DegradedSpans()
	if len(got) != 1 || got[0].Reason != wal.DegradedUnknown || len(got[0].Missing) != 0 || leader.FormatLevel() != 1 {
		t.Errorf("at level %d: %+v", leader.FormatLevel(), got)
	}
	if err := leader.RaiseFormat(ctx, 2); err != nil {
		t.Fatal(err)
	}
	f := join(t, leader, "f")
	f.confirm()
	leader.PeerGone(f.id)
	mustPut(t, leader, "k", "w")
	if got := leader.DegradedSpans(); len(got) != 2 || got[1].Reason != wal.DegradedTooFew {
		t.Errorf("at level %d: %+v", leader.FormatLevel(), got)
	}
}
