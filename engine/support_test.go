package engine_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
)

// TestSupportOf: who can be elected by those that answer, and who could then commit. Node 1 leads, node 2 asks.
func TestSupportOf(t *testing.T) {
	for _, c := range []struct {
		rule            engine.Level
		voters          int // leader included
		answered        []int
		elects, commits bool
	}{
		{engine.Durable, 3, nil, true, true},
		{engine.Replicated(1), 2, nil, true, false}, // its promise alone is a quorum; nobody would confirm a write
		{engine.Replicated(1), 2, []int{1}, true, true},
		{engine.Replicated(1), 3, nil, false, false},
		{engine.Replicated(1), 3, []int{3}, true, true},
		{engine.Replicated(1), 3, []int{2}, false, false}, // itself, under another address
		{engine.Replicated(1), 3, []int{9}, false, false}, // no voter
		{engine.Replicated(2), 3, []int{3}, true, false},
		{engine.Replicated(2), 5, []int{3}, false, false},
		{engine.Replicated(2), 5, []int{3, 4}, true, true},
		{engine.Received(1), 5, []int{3, 4}, false, true},
		{engine.Received(1), 5, []int{3, 4, 5}, true, true},
		{engine.Applied(3), 5, []int{3}, true, false},
		{engine.Applied(3), 5, []int{3, 4, 5}, true, true},
	} {
		rule := wal.Rule{Level: uint32(c.rule)}
		for i := 2; i <= c.voters; i++ {
			rule.Voters = append(rule.Voters, wal.Voter{ID: wal.NodeID{byte(i)}, Name: fmt.Sprint(i)})
		}
		var answered []wal.NodeID
		for _, i := range c.answered {
			answered = append(answered, wal.NodeID{byte(i)})
		}
		want := engine.Support{Answered: len(c.answered), Elects: c.elects, Commits: c.commits}
		if got := engine.SupportOf(rule, wal.NodeID{1}, wal.NodeID{2}, answered); got != want {
			t.Errorf("%v of %d voters, answered by %v: %+v, want %+v", c.rule, c.voters, c.answered, got, want)
		}
	}
	stranger := engine.SupportOf(wal.Rule{Level: uint32(engine.Replicated(1)), Voters: []wal.Voter{{ID: wal.NodeID{2}}}}, wal.NodeID{1}, wal.NodeID{9}, []wal.NodeID{{1}, {2}})
	if stranger.Elects {
		t.Error("a node that is no voter could be elected")
	}
}

// silent is an electorate in which the other voters never answer.
type silent struct{ voters }

func (s silent) Ask(ctx context.Context, v wal.Voter, e wal.Epoch) (engine.Vote, error) {
	if s.others[v.ID] != nil {
		return engine.Vote{}, nil
	}
	<-ctx.Done()
	return engine.Vote{}, ctx.Err()
}

// TestSupport asks voters of which some never answer, and one is left out: those that answer count, nobody has promised anything, and it does not wait for more than is
// asked for.
func TestSupport(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), CommitTimeout: time.Minute})
	var others []*engine.DB
	for _, name := range []string{"b", "c"} {
		db := open(t, t.TempDir(), &engine.Options{Follower: true})
		feed(t, leader, db, leader.Log().Head())
		if _, err := leader.AdmitPeer(db.Log().NodeID(), name, name+".example:7380"); err != nil {
			t.Fatal(err)
		}
		others = append(others, db)
	}
	for _, db := range others {
		feed(t, leader, db, leader.Log().Head())
	}
	b, c := others[0], others[1]
	elects := func(s engine.Support) bool { return s.Elects }
	ask := func(ctx context.Context, besides wal.NodeID, answer ...*engine.DB) engine.Support {
		t.Helper()
		reach := map[wal.NodeID]*engine.DB{}
		for _, db := range answer {
			reach[db.Log().NodeID()] = db
		}
		b.SetElectorate(silent{voters{t, b, reach}})
		s, err := b.Support(ctx, besides, elects)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if s := ask(over, wal.NodeID{}); s.Elects || s.Commits || s.Answered != 0 {
		t.Errorf("nobody answers: %+v", s)
	}
	if s := ask(over, leader.Log().NodeID()); s.Elects {
		t.Errorf("nobody answers, the leader is not asked: %+v", s)
	}
	soon, stop := context.WithTimeout(t.Context(), 100*time.Millisecond) // there is nobody to wait for
	defer stop()
	if s := ask(soon, leader.Log().NodeID(), leader); s.Elects || s.Answered != 0 {
		t.Errorf("the leader answers, and is not asked: %+v", s)
	}
	enough := engine.Support{Answered: 1, Elects: true, Commits: true}
	if s := ask(t.Context(), wal.NodeID{}, c); s != enough {
		t.Errorf("one answers, the leader never: %+v", s)
	}
	if s := ask(t.Context(), c.Log().NodeID(), leader); s != enough {
		t.Errorf("the leader answers, the other is not asked: %+v", s)
	}
	for _, db := range []*engine.DB{leader, b, c} {
		if db.Log().Promised() > db.Log().Epoch() {
			t.Error("a promise was asked for")
		}
	}
}

// TestShort: a leader is short while fewer voters are connected than its rule asks for, caught up or not, and never under a rule that asks none, in a degraded
// span, or as a follower.
func TestShort(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), TooFew: engine.Degrade, DegradeAfter: time.Millisecond})
	check := func(when string, want bool) {
		t.Helper()
		if got := db.Short(); got != want {
			t.Errorf("%s: short %v, want %v", when, got, want)
		}
	}
	check("without voters", true)
	f := join(t, db, "f")
	check("with one that has yet to catch up", false)
	f.confirm()
	check("with one", false)
	db.PeerGone(f.id)
	check("it has gone", true)
	mustPut(t, db, "k", "v")
	check("in a degraded span", false)
	if err := db.Follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("as a follower", false)
	db = open(t, t.TempDir(), &engine.Options{Commit: engine.Durable})
	check("under durable", false)
}
