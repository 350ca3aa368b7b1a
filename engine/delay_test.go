package engine_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
)

// hands is a clock that goes on by hand.
type hands struct{ ms atomic.Int64 }

func (h *hands) now() time.Time { return time.UnixMilli(h.ms.Load()) }

const (
	someDay = int64(1_700_000_000_000)
	minute  = int64(60_000)
)

// delayedGroup is a leader with a clock of its own, and a follower that shows what is an hour old. The follower's clock stands: only the leader's says how late it is.
func delayedGroup(t *testing.T, o engine.Options) (leader, f *engine.DB, clock *hands, reopen func() *engine.DB) {
	clock = &hands{}
	clock.ms.Store(someDay)
	o.Now, o.SpaceFactor = clock.now, -1
	leader = open(t, t.TempDir(), &o)
	still := &hands{}
	still.ms.Store(1)
	dir := t.TempDir()
	reopen = func() *engine.DB {
		return open(t, dir, &engine.Options{Follower: true, ApplyDelay: time.Hour, Now: still.now})
	}
	return leader, reopen(), clock, reopen
}

// shows waits until the follower's readers see a value.
func shows(t *testing.T, f *engine.DB, key, value string) {
	t.Helper()
	waitFor(t, key+" is "+value, func() bool {
		v, err := f.Get([]byte(key))
		return err == nil && string(v) == value
	})
}

// tell has the follower know what is committed, and what the leader's clock shows.
func tell(t *testing.T, f *engine.DB, committed wal.LSN, clock *hands) {
	t.Helper()
	if err := f.FollowMark(committed, clock.ms.Load()); err != nil {
		t.Fatal(err)
	}
}

// TestDelayed: a delayed follower has on its disk, and knows as committed, what it does not show; shows it, as it was, when it is old enough by the leader's
// clock; shows no less after a restart; and a promotion applies everything.
func TestDelayed(t *testing.T) {
	leader, f, clock, reopen := delayedGroup(t, engine.Options{})
	mustPut(t, leader, "k", "old")
	b := leader.NewBatch()
	b.PutTTL([]byte("short"), []byte("lived"), time.UnixMilli(someDay+10*minute))
	if _, err := leader.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	first := leader.Log().Head()
	clock.ms.Add(30 * minute)
	mustPut(t, leader, "k", "new")
	mustPut(t, leader, "added", "1")
	end := leader.Log().Head()
	copyLog(t, leader, f, end)
	clock.ms.Store(someDay + 60*minute)
	tell(t, f, end, clock)
	shows(t, f, "k", "old")
	wantMissing(t, f.Get, "added")
	wantGet(t, f.Get, "short", "lived") // as it was an hour ago
	wantMissing(t, leader.Get, "short")
	waitFor(t, "it has the committed mark", func() bool { return f.Committed() == end })
	if s := f.Stats(); s.Visible != first || s.Applied != first || s.Committed != end || s.Durable != end || s.ApplyDelay != time.Hour {
		t.Errorf("visible %v, applied %v, committed %v, durable %v; want %v, %v, %v, %v", s.Visible, s.Applied, s.Committed, s.Durable, first, first, end, end)
	}
	if got := f.ShownUntil(); got != someDay+30*minute {
		t.Errorf("shown until %d, want %d", got, someDay+30*minute)
	}
	for c, err := range f.Changes(ctx, engine.Position{}) {
		if err != nil || string(c.Value) == "new" {
			t.Fatalf("the feed shows %q, %v", c.Value, err)
		}
		if string(c.Key) == "short" {
			break
		}
	}

	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = reopen() // nobody tells it the time
	shows(t, f, "k", "old")
	wantMissing(t, f.Get, "added")
	if s := f.Stats(); s.Committed != end {
		t.Errorf("committed %v after a restart, want %v", s.Committed, end)
	}

	c, err := f.PromoteWith(ctx, engine.PromoteOptions{DryRun: true})
	if err != nil || c.Unapplied != end-first {
		t.Errorf("a promotion would have %v to apply (%v), want %v", c.Unapplied, err, end-first)
	}
	wantMissing(t, f.Get, "added")
	if err := f.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	shows(t, f, "k", "new")
	wantGet(t, f.Get, "added", "1")
	wantMissing(t, f.Get, "short")
}

// TestDelayedGoesOn: what is held back is shown as time goes on, without anything new; and a follower that is not promoted after all goes on
// holding back what comes.
func TestDelayedGoesOn(t *testing.T) {
	leader, f, clock, _ := delayedGroup(t, engine.Options{})
	for i := range 5 {
		mustPut(t, leader, "k", fmt.Sprint(i))
		clock.ms.Add(10 * minute)
	}
	end := leader.Log().Head()
	copyLog(t, leader, f, end)
	for i := range 4 {
		clock.ms.Store(someDay + int64(60+10*i)*minute)
		tell(t, f, end, clock)
		shows(t, f, "k", fmt.Sprint(i))
		if f.Visible() == end || f.ShownUntil() != someDay+int64(i+1)*10*minute {
			t.Errorf("visible up to %v of %v, shown until %d", f.Visible(), end, f.ShownUntil())
		}
	}
	f.SetElectorate(refusing{})
	if _, err := f.PromoteWith(ctx, engine.PromoteOptions{}); err != nil {
		t.Fatal(err) // an asynchronous rule asks nobody
	}
	if err := f.Follow(ctx); err != nil {
		t.Fatal(err)
	}
	if f.ShownUntil() != 0 {
		t.Errorf("it holds back from %d on, and has applied everything", f.ShownUntil())
	}
}

// refusing is an electorate that reaches nobody.
type refusing struct{ voters }

// TestDelayedCut: a fork above what is shown is cut, and the other history is shown instead when its time has come; what the rule was is read from what
// is held back.
func TestDelayedCut(t *testing.T) {
	leader, f, clock, _ := delayedGroup(t, engine.Options{})
	mustPut(t, leader, "k", "kept")
	fork := leader.Log().Head()
	clock.ms.Add(10 * minute)
	mustPut(t, leader, "k", "cut")
	end := leader.Log().Head()
	copyLog(t, leader, f, end)
	tell(t, f, fork, clock)
	if err := f.CutLog(fork); err != nil {
		t.Fatal(err)
	}
	if err := leader.Log().Truncate(fork); err != nil {
		t.Fatal(err)
	}
	var b wal.Batch
	b.Add(engine.AppendRecord(nil, engine.Record{Op: engine.OpPut, Key: []byte("k"), Value: []byte("other")}))
	if _, err := leader.Log().Append([]*wal.Batch{&b}, true); err != nil {
		t.Fatal(err)
	}
	end = leader.Log().Head()
	copyLog(t, leader, f, end)
	clock.ms.Store(someDay + 60*minute)
	tell(t, f, end, clock)
	shows(t, f, "k", "kept")
	clock.ms.Store(someDay + 80*minute)
	tell(t, f, end, clock)
	shows(t, f, "k", "other")

	// A rule that asks followers, held back: what it has committed is not cut by the rule before it.
	q := join(t, leader, "q")
	q.confirm()
	clock.ms.Add(minute)
	set := make(chan error, 1)
	go func() {
		set <- leader.SetRule(ctx, engine.Rule{Level: engine.Replicated(1), Voters: []string{"q"}}, false)
	}()
	waitFor(t, "the rule is set", func() bool { q.confirm(); return len(set) > 0 })
	if err := <-set; err != nil {
		t.Fatal(err)
	}
	at := leader.Log().Head()
	done := write(t, leader, "k", "confirmed")
	q.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	copyLog(t, leader, f, leader.Log().Head())
	tell(t, f, leader.Log().Head(), clock)
	waitFor(t, "it has the committed mark", func() bool { return f.Committed() == leader.Log().Head() })
	if f.CommittedAlone(at) {
		t.Error("what a rule asks followers for may be cut")
	}
	if err := f.CutLog(at); err == nil {
		t.Error("what is committed was cut because it is not shown")
	}
}

// TestDelayedIsNoReader: Applied does not count a follower whose readers are late on purpose, however far it says that it is.
func TestDelayedIsNoReader(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Applied(1)})
	_, _, voter := followerOf(t, leader, "f", engine.Options{ApplyDelay: time.Hour}, false)
	if voter {
		t.Error("a voter whose readers nobody waits for")
	}
	if err := leader.Put([]byte("k"), nil); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Errorf("Put: %v", err)
	}
}
