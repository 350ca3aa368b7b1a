package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// feed copies the leader's log from the follower's head up to end, as package ship does, and waits for the index.
func feed(t *testing.T, leader, follower *engine.DB, end wal.LSN) {
	t.Helper()
	moved := make(chan struct{}, 1)
	defer follower.Subscribe(moved)()
	copyLog(t, leader, follower, end)
	for follower.Followed() < end {
		<-moved
	}
}

// copyLog copies the leader's log from the follower's head up to end, durably.
func copyLog(t *testing.T, leader, follower *engine.DB, end wal.LSN) {
	t.Helper()
	from := follower.Log().Head()
	p := make([]byte, end-from)
	if _, err := leader.Log().ReadAt(p, from); err != nil {
		t.Fatal(err)
	}
	if n, err := follower.Log().AppendRaw(from, p); err != nil || n != len(p) {
		t.Fatal(n, err)
	}
	if _, err := follower.Log().Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestCutLog: a follower that is cut back forgets what was cut, keeps what was before, also where one overwrote the
// other, and goes on; below its committed mark it refuses.
func TestCutLog(t *testing.T) {
	leader := open(t, t.TempDir(), nil)
	mustPut(t, leader, "kept", "1")
	mustPut(t, leader, "changed", "old")
	fork := leader.Log().Head()
	mustPut(t, leader, "changed", "new")
	mustPut(t, leader, "cut", "1")
	end := leader.Log().Head()

	f := open(t, t.TempDir(), &engine.Options{Follower: true})
	feed(t, leader, f, end)
	if err := f.FollowMark(fork, 0); err != nil {
		t.Fatal(err)
	}
	wantGet(t, f.Get, "changed", "old")
	wantMissing(t, f.Get, "cut")
	if err := f.CutLog(fork - 8); err == nil {
		t.Error("cut in the middle of a frame")
	}
	if err := f.CutLog(fork); err != nil {
		t.Fatal(err)
	}
	if f.Applied() != fork || f.Log().Head() != fork {
		t.Fatalf("applied %v, head %v; want %v", f.Applied(), f.Log().Head(), fork)
	}
	if err := f.FollowMark(end, 0); err != nil { // nothing there yet: nothing may show
		t.Fatal(err)
	}
	wantGet(t, f.Get, "kept", "1")
	wantGet(t, f.Get, "changed", "old")
	wantMissing(t, f.Get, "cut")

	// Another history from the fork on, at the same positions.
	log := leader.Log()
	if err := log.Truncate(fork); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		var b wal.Batch
		b.Add(engine.AppendRecord(nil, engine.Record{Op: engine.OpPut, Key: []byte("other"), Value: []byte("1")}))
		if _, err := log.Append([]*wal.Batch{&b}, true); err != nil {
			t.Fatal(err)
		}
	}
	feed(t, leader, f, log.Head())
	if err := f.FollowMark(log.Head(), 0); err != nil {
		t.Fatal(err)
	}
	wantGet(t, f.Get, "kept", "1")
	wantGet(t, f.Get, "changed", "old")
	wantGet(t, f.Get, "other", "1")
	wantMissing(t, f.Get, "cut")
}

// TestFollowerShowsWholeBatches: whatever mark it is told, a follower that has half of a batch shows none of it.
func TestFollowerShowsWholeBatches(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Compression: engine.NoCompression})
	mustPut(t, leader, "before", "1")
	start := leader.Log().Head()
	b := leader.NewBatch()
	for i := range 10 {
		b.Put(fmt.Append(nil, "k", i), make([]byte, 3000))
	}
	if _, err := leader.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	f := open(t, t.TempDir(), &engine.Options{Follower: true})
	feed(t, leader, f, start)
	if err := f.FollowMark(leader.Log().Head(), 0); err != nil {
		t.Fatal(err)
	}
	r := leader.Log().NewReader(start)
	defer r.Close()
	frames := 0
	for ; r.Next() && !r.Frame().Last(); frames++ {
		at, end := r.Frame().LSN, r.Frame().End()
		p := make([]byte, end-at)
		if _, err := leader.Log().ReadAt(p, at); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Log().AppendRaw(at, p); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the frame is in the index", func() bool { return f.Indexed("k0") })
		if f.Applied() != start || f.Visible() != start {
			t.Fatalf("applied %v, visible %v; the last whole batch ends at %v", f.Applied(), f.Visible(), start)
		}
		wantMissing(t, f.Get, "k0")
	}
	if frames < 2 {
		t.Fatalf("the batch has %d frames before its last", frames)
	}
	feed(t, leader, f, leader.Log().Head())
	for i := range 10 {
		wantGet(t, f.Get, fmt.Sprint("k", i), string(make([]byte, 3000)))
	}
}

// TestLogTimeNeverFalls: a leader whose clock is behind its predecessor's revives nothing on a follower.
func TestLogTimeNeverFalls(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	leader := open(t, t.TempDir(), &engine.Options{Now: func() time.Time { return now }})
	b := leader.NewBatch()
	b.PutTTL([]byte("k"), []byte("v"), now.Add(time.Minute))
	if _, err := leader.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	f := open(t, t.TempDir(), &engine.Options{Follower: true, Now: func() time.Time { return now }})
	feed(t, leader, f, leader.Log().Head())
	tell := func(clock time.Time) {
		t.Helper()
		if err := f.FollowMark(leader.Log().Head(), clock.UnixMilli()); err != nil {
			t.Fatal(err)
		}
	}
	tell(now)
	wantGet(t, f.Get, "k", "v")
	tell(now.Add(time.Hour))
	wantMissing(t, f.Get, "k")
	before := f.LogTime()
	tell(now)
	if f.LogTime() < before {
		t.Errorf("log time fell from %d to %d", before, f.LogTime())
	}
	wantMissing(t, f.Get, "k")
}

// TestCutLogKeepsWhatWasConfirmed: what is committed under a rule that asked followers is not cut, and nothing has changed.
func TestCutLogKeepsWhatWasConfirmed(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	p := join(t, leader, "p")
	p.confirm()
	ends := []wal.LSN{}
	for _, k := range []string{"a", "b"} {
		done := write(t, leader, k, "1")
		p.confirm()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ends = append(ends, leader.Log().Head())
	}
	f := open(t, t.TempDir(), &engine.Options{Follower: true})
	feed(t, leader, f, ends[1])
	if err := f.FollowMark(ends[1], 0); err != nil {
		t.Fatal(err)
	}
	if err := f.CutLog(ends[0]); err == nil {
		t.Error("cut below the committed mark")
	}
	if f.Log().Head() != ends[1] || f.Visible() != ends[1] {
		t.Errorf("head %v, visible %v; want %v", f.Log().Head(), f.Visible(), ends[1])
	}
	wantGet(t, f.Get, "b", "1")
}

// TestSteppedDownWhileLoading: a leader that came back, and steps down before its rule held for what it had recovered, answers reads as a
// follower does: what it waited for may never come, and be cut.
func TestSteppedDownWhileLoading(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: disk})
	f := join(t, db, "f")
	f.confirm()
	putWith(t, db, f, "k")
	disk.PowerOff()
	db.Close()
	db = open(t, "db", &engine.Options{FS: disk.Crash(0)})
	if _, err := db.Get([]byte("k")); !errors.Is(err, engine.ErrLoading) {
		t.Fatalf("Get at a leader whose rule does not hold yet: %v, want ErrLoading", err)
	}
	if err := db.Follow(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Get([]byte("k")); errors.Is(err, engine.ErrLoading) {
		t.Errorf("Get at the follower: %v", err)
	}
}

// TestRuleChangeEndsWithTheTerm: a leader was elected while a change of the rule was on its way, by promises under both rules. It comes back after a
// crash, and the older rule, under which it counted itself as a follower, no longer holds anything up.
func TestRuleChangeEndsWithTheTerm(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: disk})
	l := join(t, db, "l")
	l.confirm()
	putWith(t, db, l, "k")
	p := join(t, db, "p") // a change that nobody confirms
	self := db.Log().NodeID()
	changed := db.Stats()
	if !changed.RuleChanging {
		t.Fatal("no change is on its way")
	}
	rule := wal.Rule{Level: uint32(engine.Replicated(2)), Voters: []wal.Voter{{ID: l.id, Name: "l"}, {ID: p.id, Name: "p"}}}
	if _, err := db.Log().StartEpoch(db.Log().Epoch().NextTerm(), rule); err != nil {
		t.Fatal(err)
	}
	disk.PowerOff()
	db.Close()
	db = open(t, "db", &engine.Options{FS: disk.Crash(0)})
	if db.Log().NodeID() != self {
		t.Fatal("another node")
	}
	if db.Stats().RuleChanging {
		t.Error("the change is still on its way in the term that began behind it")
	}
}

// TestPromoteBehindASeal: a log that ends with a seal has all its batches in the index, and its node can be promoted.
func TestPromoteBehindASeal(t *testing.T) {
	const segment = 64 << 10
	leader := open(t, t.TempDir(), &engine.Options{SegmentSize: segment})
	for leader.Log().Head() <= segment {
		mustPut(t, leader, "k", strings.Repeat("0123456789abcdef", 100))
	}
	follower := open(t, t.TempDir(), &engine.Options{Follower: true})
	p := make([]byte, segment)
	if _, err := leader.Log().ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := follower.Log().AppendRaw(0, p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := follower.Promote(ctx); err != nil {
		t.Errorf("log ends at %v, applied %v: %v", follower.Log().Head(), follower.Applied(), err)
	}
}
