package engine_test

import (
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// feed copies the leader's log from the follower's head up to end, as package ship does, and waits for the index.
func feed(t *testing.T, leader, follower *engine.DB, end wal.LSN) {
	t.Helper()
	from := follower.Log().Head()
	p := make([]byte, end-from)
	if _, err := leader.Log().ReadAt(p, from); err != nil {
		t.Fatal(err)
	}
	moved := make(chan struct{}, 1)
	defer follower.Subscribe(moved)()
	if n, err := follower.Log().AppendRaw(from, p); err != nil || n != len(p) {
		t.Fatal(n, err)
	}
	if _, err := follower.Log().Sync(); err != nil {
		t.Fatal(err)
	}
	for follower.Applied() < end {
		<-moved
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
	if err := f.CutLog(fork - 8); err == nil {
		t.Error("cut below the committed mark")
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
