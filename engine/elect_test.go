package engine_test

import (
	"context"
	"errors"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// voters reaches databases of the same process as a candidate's fellow voters; who is not among them is down.
type voters struct {
	t         *testing.T
	candidate *engine.DB
	others    map[wal.NodeID]*engine.DB
}

func (v voters) Leave()                    {}
func (v voters) Leader() (wal.Voter, bool) { return wal.Voter{}, false }

func (v voters) Ask(_ context.Context, n wal.Voter, e wal.Epoch) (engine.Vote, error) {
	db := v.others[n.ID]
	if db == nil {
		return engine.Vote{}, errors.New("it is down")
	}
	granted, err := db.GrantPromise(e)
	log := db.Log()
	return engine.Vote{Granted: granted, Promised: log.Promised(), Last: log.Epoch(), End: log.Head()}, err
}

func (v voters) Fetch(_ context.Context, n wal.Voter, _ wal.Epoch, vote engine.Vote) error {
	feed(v.t, v.others[n.ID], v.candidate, vote.End)
	return nil
}

// TestPromoteByTheRuleThatItCopies: a candidate that learns of another voter only from what it copies asks that one too, because it may be the
// only one that has what was acknowledged since.
func TestPromoteByTheRuleThatItCopies(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	follow := func(name string) (*engine.DB, *peer) {
		db := open(t, t.TempDir(), &engine.Options{Follower: true})
		feed(t, leader, db, leader.Log().Head())
		if _, err := leader.AdmitPeer(db.Log().NodeID(), name, name+".example:7380"); err != nil {
			t.Fatal(err)
		}
		feed(t, leader, db, leader.Log().Head())
		p := &peer{db: leader, id: db.Log().NodeID()}
		p.confirm()
		return db, p
	}
	b, _ := follow("b")
	c, _ := follow("c")
	feed(t, leader, b, leader.Log().Head())
	d, dp := follow("d") // c does not hear of it
	feed(t, leader, b, leader.Log().Head())
	(&peer{db: leader, id: b.Log().NodeID()}).confirm()
	done := write(t, leader, "k", "v")
	feed(t, leader, d, leader.Log().Head())
	dp.confirm()
	if err := <-done; err != nil { // on the leader's disk and on d's
		t.Fatal(err)
	}
	end := leader.Log().Head()

	c.SetElectorate(voters{t, c, map[wal.NodeID]*engine.DB{b.Log().NodeID(): b}})
	if err := c.Promote(t.Context()); !errors.Is(err, engine.ErrNoQuorum) {
		t.Errorf("promoted without the only one that has an acknowledged write: %v", err)
	}
	c.SetElectorate(voters{t, c, map[wal.NodeID]*engine.DB{b.Log().NodeID(): b, d.Log().NodeID(): d}})
	if err := c.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.Log().History(); got[len(got)-1].Start != end {
		t.Errorf("the new epoch begins at %v, acknowledged was up to %v", got[len(got)-1].Start, end)
	}
}

// TestOnlyAVoterLeads: a node that does not count for the rule would take a place among those that do, unknown to them: with a follower's promise it would
// commit on that one and itself, and the old leader, whose own promise is enough by the rule that it knows, would commit something else.
func TestOnlyAVoterLeads(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), Voters: []string{"v"}})
	follow := func(name string) *engine.DB {
		db := open(t, t.TempDir(), &engine.Options{Follower: true})
		feed(t, leader, db, leader.Log().Head())
		if _, err := leader.AdmitPeer(db.Log().NodeID(), name, name+".example:7380"); err != nil {
			t.Fatal(err)
		}
		return db
	}
	voter, other := follow("v"), follow("o")
	for _, db := range []*engine.DB{voter, other} {
		feed(t, leader, db, leader.Log().Head())
	}
	other.SetElectorate(voters{t, other, map[wal.NodeID]*engine.DB{voter.Log().NodeID(): voter}})
	if err := other.Promote(t.Context()); !errors.Is(err, engine.ErrNoQuorum) {
		t.Errorf("a node that is no voter was promoted: %v", err)
	}
	voter.SetElectorate(voters{t, voter, map[wal.NodeID]*engine.DB{}})
	if err := voter.Promote(t.Context()); err != nil {
		t.Errorf("the voter: %v", err)
	}
}

// startsOver is an electorate of a candidate whose follower, as it ends, gives the log up to copy it anew; and may have begun to.
type startsOver struct {
	voters
	copied wal.LSN
}

func (s startsOver) Leave() {
	if err := s.candidate.StartOver(); err != nil {
		s.t.Error(err)
	}
	if s.copied > 0 {
		for _, leader := range s.others {
			feed(s.t, leader, s.candidate, s.copied)
		}
	}
}

// TestPromoteWhileTheCopyBeginsAnew: a follower that gives its log up while it is asked to lead knows neither rule nor history: it refuses, also where the
// header of the first segment is there again, and nothing else.
func TestPromoteWhileTheCopyBeginsAnew(t *testing.T) {
	for _, copied := range []wal.LSN{0, wal.HeaderSize} {
		leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Written})
		mustPut(t, leader, "k", "v")
		f := open(t, t.TempDir(), &engine.Options{Follower: true})
		feed(t, leader, f, leader.Log().Head())
		f.SetElectorate(startsOver{voters{t, f, map[wal.NodeID]*engine.DB{leader.Log().NodeID(): leader}}, copied})
		if err := f.Promote(t.Context()); !errors.Is(err, engine.ErrLoading) {
			t.Errorf("with %d bytes of the new copy: %v, want ErrLoading", copied, err)
		}
		if _, err := f.Get([]byte("k")); !errors.Is(err, engine.ErrLoading) {
			t.Errorf("with %d bytes of the new copy a read answers %v", copied, err)
		}
		_ = f.Close()
		_ = leader.Close()
	}
}

// TestTwoLeadersOfOneEpoch: under a rule by which two elections need no voter in common, two nodes that do not hear of each other begin the same
// epoch. Neither commits; to promote one of them again changes nothing, and does by force: it begins a higher epoch, and the other is fenced.
func TestTwoLeadersOfOneEpoch(t *testing.T) {
	leader := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(2), Voters: []string{"a", "b"}})
	follow := func(name string) *engine.DB {
		db := open(t, t.TempDir(), &engine.Options{Follower: true})
		feed(t, leader, db, leader.Log().Head())
		if _, err := leader.AdmitPeer(db.Log().NodeID(), name, name+".example:7380"); err != nil {
			t.Fatal(err)
		}
		return db
	}
	a, b := follow("a"), follow("b")
	for _, db := range []*engine.DB{a, b} {
		feed(t, leader, db, leader.Log().Head())
		db.SetElectorate(voters{t, db, map[wal.NodeID]*engine.DB{}})
		if err := db.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if a.Log().Epoch() != b.Log().Epoch() {
		t.Fatalf("epochs %v and %v", a.Log().Epoch(), b.Log().Epoch())
	}
	old := a.Log().Epoch()
	a.SetElectorate(voters{t, a, map[wal.NodeID]*engine.DB{b.Log().NodeID(): b}})
	if c, err := a.PromoteWith(t.Context(), engine.PromoteOptions{}); err != nil || c.Epoch != old {
		t.Errorf("promoted where it leads: %+v, %v", c, err)
	}
	if c, err := a.PromoteWith(t.Context(), engine.PromoteOptions{Force: true, DryRun: true}); err != nil || c.Epoch != old || a.Role() != engine.Leader {
		t.Errorf("a dry run: %+v, %v; it is %v", c, err, a.Role())
	}
	c, err := a.PromoteWith(t.Context(), engine.PromoteOptions{Force: true})
	if err != nil || c.Epoch.Term() != old.Term()+1 || a.Log().Epoch() != c.Epoch || a.Role() != engine.Leader {
		t.Errorf("by force: %+v, %v; epoch %v, %v", c, err, a.Log().Epoch(), a.Role())
	}
	if f := b.Stats().Fenced; f != c.Epoch {
		t.Errorf("the other is fenced by %v, want %v", f, c.Epoch)
	}
	if err := b.Put([]byte("k"), []byte("v")); !errors.Is(err, engine.ErrFenced) {
		t.Errorf("a write at the other: %v", err)
	}
}
