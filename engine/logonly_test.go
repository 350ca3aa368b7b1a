package engine_test

import (
	"errors"
	"fmt"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// followerOf makes a follower that has copied a leader's log, and the peer that the leader knows it as. It is admitted; reads says what the leader
// was told of its readers.
func followerOf(t *testing.T, leader *engine.DB, name string, o engine.Options, reads bool) (*engine.DB, *peer, bool) {
	t.Helper()
	o.Follower = true
	f := open(t, t.TempDir(), &o)
	feed := feed
	if o.ApplyDelay > 0 {
		feed = copyLog
	}
	feed(t, leader, f, leader.Log().Head())
	leader.PeerReads(f.Log().NodeID(), name, reads)
	voter, err := leader.AdmitPeer(f.Log().NodeID(), name, name+".example:7380")
	if err != nil {
		t.Fatal(err)
	}
	feed(t, leader, f, leader.Log().Head())
	p := &peer{db: leader, id: f.Log().NodeID()}
	return f, p, voter
}

// report tells the leader what the follower says of itself.
func (p *peer) report(f *engine.DB) {
	p.db.PeerAck(p.id, f.Log().Head(), f.Log().Durable(), f.Applied(), f.Visible())
}

// TestLogOnly: a node that keeps the log confirms a write under a rule that asks for disks, follows the committed mark, answers every read with
// one error, and has what was written once it is opened without the option; also where it had an index before.
func TestLogOnly(t *testing.T) {
	defer engine.FreezeEvery(4)()
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	f, p, voter := followerOf(t, leader, "f", engine.Options{LogOnly: true}, false)
	if !voter {
		t.Fatal("no voter under a rule that asks for disks")
	}
	p.report(f)
	for i := range 20 {
		done := write(t, leader, fmt.Sprint("k", i%7), fmt.Sprint(i))
		feed(t, leader, f, leader.Log().Head())
		p.report(f)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	end := leader.Log().Head()
	if err := f.FollowMark(end, 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the mark is taken up: control records are looked at first", func() bool { return f.Committed() >= end })
	if f.Committed() != end || f.Applied() != 0 || f.Visible() != 0 {
		t.Errorf("committed %v, applied %v, visible %v; want %v, 0, 0", f.Committed(), f.Applied(), f.Visible(), end)
	}
	if s := f.Stats(); !s.LogOnly || s.Loading || s.Keys != 0 || s.Rule != engine.Replicated(1) || len(s.Voters) != 1 {
		t.Errorf("stats: %+v", s)
	}
	refuses := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, engine.ErrLogOnly) {
			t.Errorf("%s: %v, want ErrLogOnly", what, err)
		}
	}
	_, err := f.Get([]byte("k1"))
	refuses("Get", err)
	snap := f.Snapshot()
	_, err = snap.Get([]byte("k1"))
	snap.Close()
	refuses("Snapshot.Get", err)
	it := f.NewIter(nil)
	it.First()
	refuses("iterator", it.Close())
	refuses("WaitApplied", f.WaitApplied(ctx, engine.Position{Epoch: f.Log().Epoch(), LSN: end}))
	refuses("Promote", f.Promote(ctx))
	if err := f.Put([]byte("k"), nil); !errors.Is(err, engine.ErrReadOnly) {
		t.Errorf("Put: %v", err)
	}
	if o, err := f.Outcome(engine.Position{Epoch: f.Log().Epoch(), LSN: end}); o != engine.Committed || err != nil {
		t.Errorf("Outcome: %v, %v", o, err)
	}
	if _, err := engine.Open(t.TempDir(), &engine.Options{LogOnly: true}); !errors.Is(err, engine.ErrInvalidOption) {
		t.Errorf("LogOnly without Follower: %v", err)
	}

	dir := f.Log().Dir()
	reopen := func(f *engine.DB, logOnly bool) *engine.DB {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return open(t, dir, &engine.Options{Follower: true, LogOnly: logOnly})
	}
	check := func(f *engine.DB) {
		t.Helper()
		for i := range 7 {
			want, err := leader.Get(fmt.Append(nil, "k", i))
			if err != nil {
				t.Fatal(err)
			}
			wantGet(t, f.Get, fmt.Sprint("k", i), string(want))
		}
	}
	f = reopen(f, false)
	check(f)
	waitFor(t, "runs of an index that is to go", func() bool { return f.Stats().Index.Runs > 0 })
	f = reopen(f, true)
	if s := f.Stats(); s.Index.Runs != 0 || s.Committed != end || s.Rule != engine.Replicated(1) {
		t.Errorf("with LogOnly again: %+v", s)
	}
	_, err = f.Get([]byte("k1"))
	refuses("Get", err)
	check(reopen(f, false))
}

// TestLogOnlyIsNoReader: Applied never counts a node without readers: one that connects under such a rule is no voter, a change to such a rule is
// refused with too few others, and a call that asks for readers is answered by who has them.
func TestLogOnlyIsNoReader(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Applied(1)})
	f, p, voter := followerOf(t, leader, "f", engine.Options{LogOnly: true}, false)
	p.report(f)
	if voter || len(leader.Rule().Voters) != 0 {
		t.Errorf("voter %v, rule %v", voter, leader.Rule())
	}
	if err := leader.Put([]byte("k"), nil); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Errorf("a write that nobody can apply: %v", err)
	}

	leader = open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	f, p, voter = followerOf(t, leader, "f", engine.Options{LogOnly: true}, false)
	p.report(f)
	if !voter {
		t.Fatal("no voter")
	}
	toReaders := engine.Rule{Level: engine.Applied(1), Voters: []string{"f"}}
	if err := leader.SetRule(ctx, toReaders, false); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Errorf("a rule that its only voter cannot meet: %v", err)
	}
	g, q, _ := followerOf(t, leader, "g", engine.Options{}, true)
	p.report(f)
	q.report(g)
	b := leader.NewBatch()
	b.Put([]byte("k"), []byte("v"))
	done := make(chan error, 1)
	go func() {
		_, err := leader.Commit(ctx, b, engine.Applied(1))
		done <- err
	}()
	waitFor(t, "the write is in the log", func() bool { return leader.Stats().Applied > g.Log().Head() })
	end := leader.Log().Head()
	feed(t, leader, f, end)
	p.db.PeerAck(p.id, end, end, end, end) // whatever it says of readers
	if err := g.FollowMark(end, 0); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("returned before anybody's readers see it: %v", err)
	default:
	}
	feed(t, leader, g, end)
	q.report(g)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLogOnlyVotes: what was confirmed by the disk of a node without an index alone is found there by the next leader; and such a node keeps its
// copy equal through a cut, and removes what the tail has given up.
func TestLogOnlyVotes(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1})
	f, p, _ := followerOf(t, leader, "f", engine.Options{LogOnly: true}, false)
	g, q, _ := followerOf(t, leader, "g", engine.Options{}, true)
	all := func() {
		feed(t, leader, f, leader.Log().Head())
		feed(t, leader, g, leader.Log().Head())
		p.report(f)
		q.report(g)
	}
	all()
	for i := range 40 {
		done := write(t, leader, fmt.Sprint("k", i%4), string(make([]byte, 8<<10)))
		all()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	moved := make(chan error, 1)
	go func() {
		_, err := leader.Reclaim()
		moved <- err
	}()
	for ended := false; !ended; {
		select {
		case err := <-moved:
			if ended = true; err != nil {
				t.Fatal(err)
			}
		default:
			all()
		}
	}
	all()
	for _, db := range []*engine.DB{f, g} {
		if err := db.FollowMark(leader.Log().Head(), 0); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "segments are removed", func() bool { db.Trim(); return db.Log().Tail() > 0 })
	}
	if tail := f.Log().Tail(); tail == 0 || tail != g.Log().Tail() {
		t.Errorf("the log begins at %v here, at %v elsewhere", tail, g.Log().Tail())
	}

	done := write(t, leader, "alone", "v")
	feed(t, leader, f, leader.Log().Head())
	p.report(f)
	if err := <-done; err != nil { // on the leader's disk and on f's
		t.Fatal(err)
	}
	g.SetElectorate(voters{t, g, map[wal.NodeID]*engine.DB{f.Log().NodeID(): f}})
	if err := g.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	if !g.Indexed("alone") {
		t.Error("an acknowledged write was not fetched")
	}
	fork := f.Log().Head()
	feed(t, g, f, g.Log().Head())
	if err := f.CutLog(fork); err != nil {
		t.Fatal(err)
	}
	if f.Followed() != fork || f.Stats().Rule != engine.Replicated(1) {
		t.Errorf("after a cut to %v: followed up to %v, rule %v", fork, f.Followed(), f.Stats().Rule)
	}
	feed(t, g, f, g.Log().Head())
	a, err1 := f.Log().DigestAt(f.Log().Head())
	b, err2 := g.Log().DigestAt(f.Log().Head())
	if a != b || err1 != nil || err2 != nil {
		t.Errorf("digests %v and %v; %v, %v", a, b, err1, err2)
	}
}
