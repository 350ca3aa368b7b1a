package engine_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// visible reports whether the key has a value that readers see.
func visible(db *engine.DB, key string) bool {
	_, err := db.Get([]byte(key))
	return err == nil
}

// TestNewVoterDoesNotCountAlone: a write behind the record that admits a voter needs the voters before it as well, until
// the record is committed under both.
func TestNewVoterDoesNotCountAlone(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	a := join(t, db, "a")
	a.confirm()
	putWith(t, db, a, "first")

	b := join(t, db, "b")
	done := write(t, db, "k", "1")
	b.confirm()
	if visible(db, "k") || !db.Stats().RuleChanging {
		t.Fatal("the new voter's disk alone let a write commit: the old rule did not hold")
	}
	a.confirm()
	if err := <-done; err != nil || !visible(db, "k") {
		t.Fatalf("both have confirmed: %v, visible %v", err, visible(db, "k"))
	}
	if db.Stats().RuleChanging {
		t.Error("the change is not over")
	}
	done = write(t, db, "l", "1")
	b.confirm() // the rule is any one of the two now
	if err := <-done; err != nil || !visible(db, "l") {
		t.Errorf("either voter's disk is enough: %v", err)
	}
}

// putWith puts a key and has the voter confirm it.
func putWith(t *testing.T, db *engine.DB, p *peer, key string) {
	t.Helper()
	done := write(t, db, key, "1")
	p.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestRuleChangeSurvivesRestart: a leader that comes back with a change that was not committed still holds both rules.
func TestRuleChangeSurvivesRestart(t *testing.T) {
	for _, clean := range []bool{true, false} {
		disk := waltest.NewDisk()
		db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: disk})
		a := join(t, db, "a")
		a.confirm()
		putWith(t, db, a, "first")
		join(t, db, "b")
		if !clean {
			disk = disk.Crash(0)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, "db", &engine.Options{FS: disk})
		b := join(t, db, "b")
		b.confirm()
		a = join(t, db, "a")
		at := db.Committed()
		db.PeerAck(a.id, at, at, at, at)
		done := write(t, db, "k", "1")
		b.confirm()
		if visible(db, "k") || !db.Stats().RuleChanging {
			t.Fatalf("clean %v: committed under the new rule alone", clean)
		}
		a.confirm()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestSetRule removes a voter that will not return, and changes the level.
func TestSetRule(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	a, b := join(t, db, "a"), join(t, db, "b")
	a.confirm()
	b.confirm()
	a.confirm()
	ctx := context.Background()
	set := func(r engine.Rule, force bool, confirm ...*peer) error {
		t.Helper()
		moved := make(chan struct{}, 1)
		defer db.Subscribe(moved)()
		before := db.Applied()
		done := make(chan error, 1)
		go func() { done <- db.SetRule(ctx, r, force) }()
		for db.Applied() == before {
			select {
			case <-moved:
			case err := <-done:
				return err
			}
		}
		for _, p := range confirm {
			p.confirm()
		}
		return <-done
	}
	db.PeerGone(b.id)
	if err := set(engine.Rule{Level: engine.Replicated(1), Voters: []string{"a"}}, false, a); err != nil {
		t.Fatal(err)
	}
	if r := db.Rule(); r.Level != engine.Replicated(1) || !slices.Equal(r.Voters, []string{"a"}) || db.IsVoter(b.id) || !db.IsVoter(a.id) {
		t.Fatalf("rule %v", r)
	}
	if voter, err := db.AdmitPeer(b.id, "b", ""); voter || err != nil {
		t.Errorf("a name that was taken out was admitted: %v, %v", voter, err)
	}
	db.PeerGone(b.id)
	b.confirm()
	done := write(t, db, "k", "1")
	b.confirm()
	if visible(db, "k") {
		t.Error("who was taken out still counts")
	}
	a.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	// The only voter goes: nothing can be changed without force, which is recorded.
	db.PeerGone(a.id)
	for _, r := range []engine.Rule{{Level: engine.Durable}, {Level: engine.Replicated(1), Voters: []string{"b"}}} {
		if err := set(r, false); !errors.Is(err, engine.ErrTooFewFollowers) {
			t.Fatalf("%v with nobody there: %v", r, err)
		}
	}
	if err := set(engine.Rule{Level: engine.Durable}, true); err != nil {
		t.Fatal(err)
	}
	mustPut(t, db, "alone", "1")
	if s := db.Stats(); s.Rule != engine.Durable || s.RuleChanging || s.Degraded != 0 {
		t.Errorf("after the forced change: %+v", s)
	}
	degraded := 0
	for r := db.Log().NewReader(0); r.Next(); {
		if r.Frame().Control() {
			if c, err := wal.DecodeControl(r.Raw()); err == nil {
				if _, ok := c.(*wal.DegradedRecord); ok {
					degraded++
				}
			}
		}
	}
	if degraded != 2 {
		t.Errorf("%d records of the degraded span", degraded)
	}

	// Back to a synchronous rule, with one that is named now.
	if voter, err := db.AdmitPeer(b.id, "b", ""); voter || err != nil {
		t.Fatal(voter, err)
	}
	b.confirm()
	if err := set(engine.Rule{Level: engine.Replicated(1), Voters: []string{"b"}}, false); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Fatalf("b does not vote yet: %v", err)
	}
	if err := set(engine.Rule{Level: engine.Durable, Voters: []string{"b"}}, false); err != nil {
		t.Fatal(err)
	}
	b.confirm()
	if err := set(engine.Rule{Level: engine.Replicated(1), Voters: []string{"b"}}, false, b); err != nil {
		t.Fatal(err)
	}
	putWith(t, db, b, "together")
}

// TestForcedRuleSurvivesACrash forces a change and loses the marks: the change is not open again.
func TestForcedRuleSurvivesACrash(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: disk})
	a := join(t, db, "a")
	a.confirm()
	putWith(t, db, a, "first")
	db.PeerGone(a.id)
	if err := db.SetRule(context.Background(), engine.Rule{Level: engine.Replicated(1), Voters: []string{"b"}}, true); err != nil {
		t.Fatal(err)
	}
	db = open(t, "db", &engine.Options{FS: disk.Crash(0)})
	if db.Stats().RuleChanging {
		t.Error("the rule before the forced change is back")
	}
	b := join(t, db, "b")
	b.confirm()
	putWith(t, db, b, "k")
}

// TestSetRuleTimeout: a change whose voters do not answer is in the log, and its caller is told where.
func TestSetRuleTimeout(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), CommitTimeout: 20 * time.Millisecond})
	a, b := join(t, db, "a"), join(t, db, "b")
	a.confirm()
	b.confirm()
	a.confirm()
	err := db.SetRule(context.Background(), engine.Rule{Level: engine.Replicated(2), Voters: []string{"a", "b"}}, false)
	var unknown *engine.OutcomeError
	if !errors.As(err, &unknown) || !errors.Is(err, engine.ErrUnknownOutcome) || unknown.Position.LSN == 0 {
		t.Fatalf("nobody confirms: %v", err)
	}
	a.confirm()
	if !db.Stats().RuleChanging {
		t.Error("one of two has confirmed, and the change is over")
	}
	b.confirm()
	if o, err := db.Outcome(unknown.Position); err != nil || o != engine.Committed || db.Stats().RuleChanging {
		t.Errorf("outcome %v, %v", o, err)
	}
}

func TestSetRuleRefuses(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	for _, r := range []engine.Rule{
		{},
		{Level: engine.Replicated(1)},
		{Level: engine.Replicated(0), Voters: []string{"a"}},
		{Level: engine.Durable, Voters: []string{"a", "a"}},
		{Level: engine.Durable, Voters: []string{""}},
		{Level: engine.Durable, Voters: make([]string, engine.MaxVoters+1)},
	} {
		if err := db.SetRule(context.Background(), r, true); !errors.Is(err, engine.ErrInvalidOption) {
			t.Errorf("%v: %v", r, err)
		}
	}
	f := open(t, t.TempDir(), &engine.Options{Follower: true})
	if err := f.SetRule(context.Background(), engine.Rule{Level: engine.Durable}, false); !errors.Is(err, engine.ErrReadOnly) {
		t.Errorf("on a follower: %v", err)
	}
}
