package engine_test

import (
	"reflect"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
)

// degradedLeader is a leader that falls back to its own disk at once, with voters f and g that are not there.
func degradedLeader(t *testing.T, dir string) *engine.DB {
	return open(t, dir, &engine.Options{
		Commit: engine.Replicated(1), Voters: []string{"f", "g"}, TooFew: engine.Degrade, DegradeAfter: time.Millisecond,
		SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1,
	})
}

func sameSpans(t *testing.T, what string, db *engine.DB, want []engine.DegradedSpan) {
	t.Helper()
	if got := db.DegradedSpans(); !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, want %+v", what, got, want)
	}
}

// TestLedger: degraded spans are listed with their ends, times, reasons and the voters that were missing; the same on the leader, on a follower, after a reopen,
// after the tail has passed them, and on a copy that begins there.
func TestLedger(t *testing.T) {
	dir := t.TempDir()
	leader := degradedLeader(t, dir)
	sameSpans(t, "a new database", leader, []engine.DegradedSpan{})
	from := leader.Log().Head()
	mustPut(t, leader, "k", "alone")
	got := leader.DegradedSpans()
	if len(got) != 1 || got[0].From != from || got[0].To != 0 || got[0].Began.IsZero() || !got[0].Ended.IsZero() ||
		got[0].Reason != wal.DegradedTooFew || !reflect.DeepEqual(got[0].Missing, []string{"f", "g"}) {
		t.Fatalf("the open span: %+v; it begins at %v", got, from)
	}
	f := join(t, leader, "f")
	f.confirm() // which ends the span
	got = leader.DegradedSpans()
	if len(got) != 1 || got[0].To != leader.Log().Head() || got[0].Ended.Before(got[0].Began) {
		t.Fatalf("the span that has ended: %+v; the log ends at %v", got, leader.Log().Head())
	}
	done := write(t, leader, "k", "both")
	f.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	leader.PeerGone(f.id)
	mustPut(t, leader, "k", "alone again")
	got = leader.DegradedSpans()
	if len(got) != 2 || got[1].To != 0 || !reflect.DeepEqual(got[1].Missing, []string{"f", "g"}) {
		t.Fatalf("the second span: %+v", got)
	}

	follower := open(t, t.TempDir(), &engine.Options{Follower: true})
	feed(t, leader, follower, leader.Log().Head())
	sameSpans(t, "a follower", follower, got)
	if err := leader.Close(); err != nil {
		t.Fatal(err)
	}
	opened := openReplayed(t, dir)
	sameSpans(t, "what the log of the leader says", opened, got)
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}

	leader = degradedLeader(t, dir)
	for range 30 {
		mustPut(t, leader, "k", string(make([]byte, 8<<10)))
	}
	if _, err := leader.Reclaim(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the tail has moved", func() bool { leader.Trim(); return leader.Log().Tail() > 0 })
	now := leader.DegradedSpans()
	if len(now) < 2 || !reflect.DeepEqual(now[:1], got[:1]) {
		t.Fatalf("after the tail has moved: %+v, before it %+v", now, got)
	}
	tail := leader.Log().Tail()
	p := make([]byte, leader.Log().Head()-tail)
	if _, err := leader.Log().ReadAt(p, tail); err != nil {
		t.Fatal(err)
	}
	late := open(t, t.TempDir(), &engine.Options{Follower: true})
	if _, err := late.Log().AppendRaw(tail, p); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the copy is applied", func() bool { return late.Followed() == leader.Log().Head() })
	sameSpans(t, "a copy that begins at the tail", late, now)
}

// openReplayed opens a leader's directory as a follower: what it says comes from the log alone.
func openReplayed(t *testing.T, dir string) *engine.DB {
	t.Helper()
	return open(t, dir, &engine.Options{Follower: true})
}

// TestLedgerCut: what is cut was no span; a span whose end is cut is open again, and ends with the epoch of who is promoted.
func TestLedgerCut(t *testing.T) {
	leader := degradedLeader(t, t.TempDir())
	before := leader.Log().Head()
	mustPut(t, leader, "k", "alone")
	inside := leader.Log().Head()
	f := join(t, leader, "f")
	f.confirm()
	follow := func() *engine.DB {
		db := open(t, t.TempDir(), &engine.Options{Follower: true})
		feed(t, leader, db, leader.Log().Head())
		return db
	}
	a := follow()
	if err := a.CutLog(before); err != nil {
		t.Fatal(err)
	}
	sameSpans(t, "cut before the span", a, []engine.DegradedSpan{})
	if s := a.Stats(); s.Degraded != 0 {
		t.Errorf("degraded since %v after a cut before it", s.Degraded)
	}
	b := follow()
	if err := b.CutLog(inside); err != nil {
		t.Fatal(err)
	}
	if got := b.DegradedSpans(); len(got) != 1 || got[0].To != 0 || !got[0].Ended.IsZero() || b.Stats().Degraded != before {
		t.Errorf("cut inside the span: %+v, degraded since %v", got, b.Stats().Degraded)
	}
	if _, err := b.PromoteWith(ctx, engine.PromoteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := b.DegradedSpans(); len(got) != 1 || got[0].To == 0 || got[0].Ended.IsZero() {
		t.Errorf("after a promotion: %+v", got)
	}
}
