package engine_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
)

// TestQuorumMeetsEveryAcknowledgement goes through all sets: for up to six voters and every rule, whoever may have confirmed a write with
// the leader, each set of promises that is enough to lead has one of them, and no smaller number would do.
func TestQuorumMeetsEveryAcknowledgement(t *testing.T) {
	id := func(i int) (n wal.NodeID) {
		n[0] = byte(i + 1)
		return n
	}
	members := func(set, v int) (ids []wal.NodeID) {
		for i := range v {
			if set>>i&1 != 0 {
				ids = append(ids, id(i))
			}
		}
		return ids
	}
	for v := 1; v <= 6; v++ { // voters, the leader included: it is number 0
		for n := 1; n < v; n++ {
			rule := wal.Rule{Level: uint32(engine.Replicated(n))}
			for i := 1; i < v; i++ {
				rule.Voters = append(rule.Voters, wal.Voter{ID: id(i), Name: fmt.Sprint(i)})
			}
			missed := false // some set that is one smaller misses some acknowledgement: the quorum is no larger than it must be
			for promised := range 1 << v {
				enough := engine.QuorumMet(rule, id(0), members(promised, v))
				size := len(members(promised, v))
				if enough != (size >= v-n) {
					t.Fatalf("%d voters, n=%d: %d promises, enough: %v", v, n, size, enough)
				}
				for acked := range 1 << v {
					if acked&1 == 0 || len(members(acked, v)) != n+1 {
						continue
					}
					if enough && promised&acked == 0 {
						t.Fatalf("%d voters, n=%d: promises of %b, a write is on %b alone", v, n, promised, acked)
					}
					missed = missed || size == v-n-1 && promised&acked == 0
				}
			}
			if !missed {
				t.Errorf("%d voters, n=%d: fewer promises would do", v, n)
			}
		}
	}
	// Names that nobody has come with yet are voters, each of them: with two of them, two of three known nodes are too few for n=2.
	names := wal.Rule{Level: uint32(engine.Replicated(2)), Voters: []wal.Voter{{ID: id(1)}, {ID: id(2)}, {Name: "x"}, {Name: "y"}}}
	if engine.QuorumMet(names, id(0), []wal.NodeID{id(1), id(2)}) || !engine.QuorumMet(names, id(0), []wal.NodeID{id(0), id(1), id(2)}) {
		t.Error("five voters, two known by name only, n=2: want promises of three")
	}
	if engine.QuorumMet(names, id(0), []wal.NodeID{id(0), id(1), {}}) {
		t.Error("a promise of nobody counts")
	}
	// Promises of nodes that are no voters do not count.
	rule := wal.Rule{Level: uint32(engine.Replicated(1)), Voters: []wal.Voter{{ID: id(1)}, {ID: id(2)}}}
	if engine.QuorumMet(rule, id(0), []wal.NodeID{id(1), id(7), id(8)}) {
		t.Error("observers' promises count")
	}
}

// TestFurthest: the last epoch counts before the LSN, and refusals count for nothing.
func TestFurthest(t *testing.T) {
	vote := func(i byte, term uint32, end wal.LSN, granted bool) engine.NodeVote {
		return engine.NodeVote{Node: wal.Voter{ID: wal.NodeID{i}}, Vote: engine.Vote{Granted: granted, Last: wal.MakeEpoch(term, 0), End: end}}
	}
	for _, c := range []struct {
		name  string
		votes []engine.NodeVote
		want  byte
	}{
		{"alone", []engine.NodeVote{vote(1, 1, 10, true)}, 1},
		{"longer", []engine.NodeVote{vote(1, 1, 10, true), vote(2, 1, 20, true)}, 2},
		{"as long: its own", []engine.NodeVote{vote(1, 1, 20, true), vote(2, 1, 20, true)}, 1},
		{"a later epoch, shorter", []engine.NodeVote{vote(1, 1, 900, true), vote(2, 2, 20, true)}, 2},
		{"refused", []engine.NodeVote{vote(1, 1, 10, true), vote(2, 3, 90, false)}, 1},
	} {
		if got := engine.Furthest(c.votes); got != (wal.NodeID{c.want}) {
			t.Errorf("%s: %v, want %d", c.name, got, c.want)
		}
	}
}

// TestPromoteBehindAHeader: a log may end with the header of a segment.
func TestPromoteBehindAHeader(t *testing.T) {
	const segment = 64 << 10
	leader := open(t, t.TempDir(), &engine.Options{SegmentSize: segment, Compression: engine.NoCompression})
	for i := 0; leader.Log().Head() <= segment+wal.HeaderSize; i++ {
		mustPut(t, leader, fmt.Sprint("key", i), strings.Repeat("x", 5000))
	}
	for _, reopened := range []bool{false, true} {
		dir, opts := t.TempDir(), &engine.Options{Follower: true}
		f := open(t, dir, opts)
		feed(t, leader, f, segment+wal.HeaderSize)
		if reopened {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			f = open(t, dir, opts)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.Promote(ctx); err != nil {
			t.Fatalf("reopened %v: %v", reopened, err)
		}
		mustPut(t, f, "more", "1")
		wantGet(t, f.Get, "key0", strings.Repeat("x", 5000))
	}
}

// TestPromiseOnce: an epoch is promised to one candidate; below it, or at what the log has reached, to none, also after a reopen.
func TestPromiseOnce(t *testing.T) {
	leader := open(t, t.TempDir(), nil)
	dir, opts := t.TempDir(), &engine.Options{Follower: true}
	f := open(t, dir, opts)
	feed(t, leader, f, leader.Log().Head())
	grant := func(e wal.Epoch, want bool) {
		t.Helper()
		if got, err := f.GrantPromise(e); got != want || err != nil {
			t.Errorf("promise of %v: %v, %v; want %v", e, got, err, want)
		}
	}
	now := f.Log().Epoch()
	grant(now, false)
	grant(now.NextTerm().NextTerm(), true)
	grant(now.NextTerm().NextTerm(), false)
	grant(now.NextTerm(), false)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir, opts)
	grant(now.NextTerm().NextTerm(), false)
	grant(now.NextTerm().NextTerm().NextTerm(), true)
}
