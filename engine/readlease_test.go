package engine_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// lends says that a voter lends from now on.
func (p *peer) lends() { p.db.PeerLease(p.id, time.Now()) }

// TestReadLease: a leader's reads are answered while as many voters as the rule asks for have lent; they wait a moment for a renewal, and are
// refused at once when that has not come.
func TestReadLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := open(t, "db", &engine.Options{Commit: engine.Replicated(2), FS: waltest.NewDisk(), ReadLeases: true})
		var all []*peer
		for _, name := range []string{"a", "b", "c"} {
			all = append(all, join(t, db, name))
		}
		for _, p := range all {
			p.confirm()
		}
		if !db.WantsReadLease() {
			t.Fatal("no leases are asked for")
		}
		took := func() (time.Duration, error) {
			began := time.Now()
			_, err := db.Get([]byte("k"))
			return time.Since(began), err
		}
		if d, err := took(); !errors.Is(err, engine.ErrLeaseLost) || d > engine.ReadLease {
			t.Errorf("before any lease: %v after %v", err, d)
		}
		all[0].lends()
		if _, err := took(); !errors.Is(err, engine.ErrLeaseLost) {
			t.Errorf("with one lease of two: %v", err)
		}
		all[0].lends()
		all[1].lends()
		if d, err := took(); !errors.Is(err, engine.ErrNotFound) || d != 0 {
			t.Errorf("with two leases: %v after %v", err, d)
		}
		time.Sleep(engine.ReadLease * 8 / 10)
		wantMissing(t, db.Get, "k")
		time.Sleep(engine.ReadLease / 10) // the voters' leases run on, for a margin
		go func() {
			time.Sleep(engine.ReadLease / 2)
			all[1].lends()
			all[2].lends()
		}()
		if d, err := took(); !errors.Is(err, engine.ErrNotFound) || d != engine.ReadLease/2 {
			t.Errorf("renewed half a lease later: %v after %v", err, d)
		}
		time.Sleep(2 * engine.ReadLease)
		if d, err := took(); !errors.Is(err, engine.ErrLeaseLost) || d != 0 {
			t.Errorf("long after the leases: %v after %v, want at once", err, d)
		}
		if s := db.Stats(); s.Loading {
			t.Error("the state waits for leases")
		}
	})
}

// TestReadMeetsTheEndOfTheLead: a read that waits for leases when its node is fenced, or steps down, is refused; it is not answered as a
// follower's.
func TestReadMeetsTheEndOfTheLead(t *testing.T) {
	for what, end := range map[string]func(db *engine.DB) error{
		"fenced":    func(db *engine.DB) error { return db.Fence(db.Log().Epoch().NextTerm()) },
		"step down": func(db *engine.DB) error { return db.Follow(t.Context()) },
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: waltest.NewDisk(), ReadLeases: true})
				f := join(t, db, "f")
				f.confirm()
				f.lends()
				time.Sleep(engine.ReadLease)
				read := make(chan error, 1)
				go func() {
					_, err := db.Get([]byte("k"))
					read <- err
				}()
				synctest.Wait()
				if err := end(db); err != nil {
					t.Fatal(err)
				}
				if err := <-read; !errors.Is(err, engine.ErrLeaseLost) {
					t.Error(err)
				}
				f.lends()
				if _, err := db.Get([]byte("k")); what == "fenced" && !errors.Is(err, engine.ErrLeaseLost) {
					t.Errorf("a fenced leader's read: %v", err)
				}
			})
		})
	}
}

// TestPromiseWaitsForTheLease: a voter that has lent grants a promise only when that has run out, or was given back, and lends nothing meanwhile,
// nor to that leader afterwards. One that has restarted takes it that it had lent.
func TestPromiseWaitsForTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		leader := open(t, "leader", &engine.Options{Commit: engine.Replicated(1), FS: waltest.NewDisk()})
		disk := waltest.NewDisk()
		f := open(t, "f", &engine.Options{Follower: true, FS: disk})
		feed(t, leader, f, leader.Log().Head())
		if _, err := leader.AdmitPeer(f.Log().NodeID(), "f", "f.example:7380"); err != nil {
			t.Fatal(err)
		}
		feed(t, leader, f, leader.Log().Head())
		epoch := leader.Log().Epoch()
		next := epoch
		promise := func() time.Duration {
			t.Helper()
			next = next.NextTerm()
			began := time.Now()
			if ok, err := f.GrantPromise(next); !ok || err != nil {
				t.Fatal(ok, err)
			}
			return time.Since(began)
		}
		if !f.LendRead(epoch) {
			t.Fatal("nothing lent")
		}
		go func() {
			time.Sleep(engine.ReadLease / 2)
			if f.LendRead(epoch) {
				t.Error("lent while a promise waits")
			}
		}()
		if d := promise(); d != engine.ReadLease {
			t.Errorf("promised after %v", d)
		}
		if f.LendRead(epoch) || !f.LendRead(next) {
			t.Error("lent to the old leader, or not to the new one")
		}
		go func() {
			time.Sleep(engine.ReadLease / 4)
			f.ReleaseRead()
		}()
		if d := promise(); d != engine.ReadLease/4 {
			t.Errorf("promised after %v, it was given back before", d)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f = open(t, "f", &engine.Options{Follower: true, FS: disk})
		if d := promise(); d != engine.ReadLease {
			t.Errorf("promised %v after a restart", d)
		}
		f.LendRead(next)
		began := time.Now()
		f.SetElectorate(voters{t, f, map[wal.NodeID]*engine.DB{leader.Log().NodeID(): leader}})
		if err := f.Promote(t.Context()); err != nil || time.Since(began) < engine.ReadLease {
			t.Errorf("promoted after %v: %v", time.Since(began), err)
		}
	})
}
