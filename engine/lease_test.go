package engine_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// grant is a lease that the test grants and takes away.
type grant struct {
	lost     atomic.Bool
	until    atomic.Pointer[func() bool] // set: the lease runs as long as it says so
	term     uint32
	refused  error
	narrowed func()
}

func (g *grant) Held() bool {
	if until := g.until.Load(); until != nil {
		return (*until)()
	}
	return !g.lost.Load()
}

func (g *grant) Term(_ context.Context, least uint32) (uint32, error) {
	g.term = max(g.term, least)
	return g.term, g.refused
}

func (g *grant) Narrow(context.Context) error {
	if g.narrowed != nil {
		g.narrowed()
	}
	return g.refused
}

// TestLeaseEndsBeforeTheRuleHolds: what voters confirm after the end of the lease is not acknowledged, not shown and not committed; nothing is
// read, and nothing more is written.
func TestLeaseEndsBeforeTheRuleHolds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := &grant{}
		db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: waltest.NewDisk(), Lease: g})
		f := join(t, db, "f")
		f.confirm()
		done := write(t, db, "k", "v")
		before, head := db.Committed(), db.Log().Head()
		g.lost.Store(true)
		f.confirm()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatal("acknowledged after the end of the lease: ", err)
		default:
		}
		if db.Committed() != before || db.Visible() != before {
			t.Errorf("committed %v, visible %v; were %v", db.Committed(), db.Visible(), before)
		}
		if err := db.Put([]byte("l"), nil); !errors.Is(err, engine.ErrLeaseLost) || errors.Is(err, engine.ErrUnknownOutcome) {
			t.Errorf("a write without the lease: %v", err)
		}
		if _, err := db.Get([]byte("k")); !errors.Is(err, engine.ErrLeaseLost) {
			t.Errorf("a read without the lease: %v", err)
		}
		if db.Log().Head() != head {
			t.Error("the log went on without the lease")
		}
		if err := db.Follow(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, engine.ErrUnknownOutcome) {
			t.Errorf("the write in flight: %v", err)
		}
		wantMissing(t, db.Get, "k") // as any follower answers
	})
}

// TestLeaseEndsBehindTheRule: a caller that wakes up after the end of the lease, when its write is visible already, gets no
// acknowledgement; nor does one of a conditional operation.
func TestLeaseEndsBehindTheRule(t *testing.T) {
	for _, level := range []engine.Level{engine.Written, engine.Durable} {
		g := &grant{}
		db := open(t, "db", &engine.Options{Commit: level, FS: waltest.NewDisk(), Lease: g})
		mustPut(t, db, "k", "1")
		shown := db.Visible()
		until := func() bool { return db.Visible() == shown }
		g.until.Store(&until)
		if err := db.Put([]byte("k"), []byte("2")); !errors.Is(err, engine.ErrLeaseLost) || !errors.Is(err, engine.ErrUnknownOutcome) {
			t.Errorf("%v: %v", level, err)
		}
		if db.Visible() == shown {
			t.Fatal("the write was refused, not unacknowledged")
		}
	}
}

// TestReadMeetsTheEndOfItsLease: a value that was looked up when the lease had run out is not returned, nor that there is none.
func TestReadMeetsTheEndOfItsLease(t *testing.T) {
	g := &grant{}
	db := open(t, "db", &engine.Options{FS: waltest.NewDisk(), Lease: g})
	mustPut(t, db, "k", "1")
	s := db.Snapshot()
	defer s.Close()
	g.lost.Store(true)
	for _, key := range []string{"k", "none"} {
		for what, get := range map[string]func([]byte) ([]byte, error){"Get": db.Get, "Snapshot.Get": s.Get} {
			if v, err := get([]byte(key)); !errors.Is(err, engine.ErrLeaseLost) {
				t.Errorf("%s(%s) = %q, %v", what, key, v, err)
			}
		}
	}
	if it := db.NewIter(nil); it.First() || !errors.Is(it.Close(), engine.ErrLeaseLost) {
		t.Error("a scan was answered")
	}
}

// TestNarrowComesFirst: nobody else may have the lease when a degraded span, or a change of the rule, is written; a change that is not recorded
// there is not written.
func TestNarrowComesFirst(t *testing.T) {
	g := &grant{}
	db := open(t, t.TempDir(), &engine.Options{
		Commit: engine.Replicated(1), Lease: g, TooFew: engine.Degrade, DegradeAfter: time.Millisecond,
	})
	self := db.Log().NodeID()
	f := join(t, db, "f")
	f.confirm()
	putWith(t, db, f, "k")
	f.confirm()
	if got := db.Eligible(); !slices.Equal(got, []wal.NodeID{self, f.id}) {
		t.Errorf("eligible with a voter that has all: %v", got)
	}
	check := func(what string, change func() error) {
		t.Helper()
		g.refused = errors.New("etcd is away")
		head := db.Log().Head()
		if err := change(); !errors.Is(err, g.refused) || db.Log().Head() != head {
			t.Fatalf("%s, unrecorded: %v, head %v, was %v", what, err, db.Log().Head(), head)
		}
		g.refused = nil
		calls := 0
		g.narrowed = func() {
			calls++
			if db.Log().Head() != head {
				t.Errorf("%s: written before it was recorded", what)
			}
			if got := db.Eligible(); !slices.Equal(got, []wal.NodeID{self}) {
				t.Errorf("%s: eligible meanwhile: %v", what, got)
			}
		}
		err := change()
		g.narrowed = nil
		if err != nil || calls != 1 {
			t.Fatalf("%s: %v, recorded %d times", what, err, calls)
		}
	}
	db.PeerGone(f.id)
	check("degraded", func() error { return db.Put([]byte("l"), nil) })
	if got := db.Eligible(); !slices.Equal(got, []wal.NodeID{self}) {
		t.Errorf("eligible in a degraded span: %v", got)
	}
	if _, err := db.AdmitPeer(f.id, "f", "f.example:7380"); err != nil {
		t.Fatal(err)
	}
	f.confirm() // ends the span
	f.confirm()
	if got := db.Eligible(); !slices.Equal(got, []wal.NodeID{self, f.id}) {
		t.Errorf("eligible after the degraded span: %v", got)
	}
	check("rule", func() error {
		changed := make(chan error, 1)
		go func() {
			changed <- db.SetRule(context.Background(), engine.Rule{Level: engine.Durable, Voters: []string{"f"}}, false)
		}()
		for {
			select {
			case err := <-changed:
				return err
			default:
				f.confirm()
			}
		}
	})
}

// TestNoEpochWithoutTheLease: a promotion begins the term that the lease grants, and none when it grants none; a database that exists is not
// opened as a leader.
func TestNoEpochWithoutTheLease(t *testing.T) {
	disk := waltest.NewDisk()
	g := &grant{}
	db := open(t, "db", &engine.Options{FS: disk, Lease: g})
	mustPut(t, db, "k", "1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Open("db", &engine.Options{FS: disk, Lease: g}); !errors.Is(err, engine.ErrInvalidOption) {
		t.Fatalf("opened as a leader: %v", err)
	}
	db = open(t, "db", &engine.Options{FS: disk, Lease: g, Follower: true})
	g.refused = errors.New("taken")
	before := db.Log().Epoch()
	if err := db.Promote(t.Context()); !errors.Is(err, g.refused) || db.Log().Epoch() != before || db.Log().Promised() > before {
		t.Errorf("promoted without the lease: %v, epoch %v, promised %v", err, db.Log().Epoch(), db.Log().Promised())
	}
	g.refused, g.term = nil, 7
	if err := db.Promote(t.Context()); err != nil || db.Log().Epoch() != wal.MakeEpoch(7, 0) {
		t.Errorf("%v, epoch %v; the lease granted term 7", err, db.Log().Epoch())
	}
	mustPut(t, db, "k", "2")
}
