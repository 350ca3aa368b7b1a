package ship_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// An unclean restart of the leader loses bytes that a voter has: the voter cuts back to the fork, and goes on.
func TestUncleanRestartOfTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 1)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		n, f := c.joined(ship.FollowerOptions{})
		until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
		committed := l.log.Head()
		for range 5 {
			l.write(t, 300, rng)
		}
		lost := l.log.Head()
		until(t, "sent", func() bool { return n.log.Head() == lost })
		c.stop()
		f.stop()
		// What a restart does: cut at what the disk had, next restart of the same term.
		if err := l.log.Truncate(committed); err != nil {
			t.Fatal(err)
		}
		if _, err := l.log.StartEpoch(l.log.Epoch().NextRestart(), wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		l.write(t, 200, rng)
		l.commit()
		c = startLeader(t, l, nil)
		defer c.stop()
		f = c.follow(n, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		samePrefix(t, l.log, n.log)
		if st := f.f.Status(); st.Cuts != 1 {
			t.Errorf("%d cuts, want 1", st.Cuts)
		}
		if n.log.Epoch() != wal.MakeEpoch(1, 1) || n.log.Promised() != wal.MakeEpoch(1, 1) {
			t.Errorf("follower is at epoch %s, promised %s", n.log.Epoch(), n.log.Promised())
		}
		f.stop()
	})
}

// The same fork below the follower's own committed mark, or after another term, is for an operator.
func TestDivergenceIsNotCutAway(t *testing.T) {
	for _, c := range []struct {
		name  string
		next  func(wal.Epoch) wal.Epoch
		mark  bool // the follower knows its end as committed
		rigid bool // the follower's node cannot take back what it has applied
		want  error
	}{
		{"below the committed mark", wal.Epoch.NextRestart, true, false, ship.ErrDivergedCommitted},
		{"below the committed mark, a higher term", wal.Epoch.NextTerm, true, false, ship.ErrDivergedCommitted},
		{"applied by a node that cannot cut", wal.Epoch.NextRestart, false, true, ship.ErrDiverged},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := seeded(t, 2)
				l := smallLog(t, rng)
				cl := startLeader(t, l, nil)
				n, f := cl.joined(ship.FollowerOptions{})
				until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
				fork := l.log.Head()
				l.write(t, 300, rng)
				if c.mark {
					l.commit()
					f.reaches(l.log.Head())
				}
				end := l.log.Head()
				until(t, "sent", func() bool { return n.log.Head() == end })
				cl.stop()
				f.stop()
				if err := l.log.Truncate(fork); err != nil {
					t.Fatal(err)
				}
				if _, err := l.log.StartEpoch(c.next(l.log.Epoch()), wal.Rule{}); err != nil {
					t.Fatal(err)
				}
				l.mu.Lock()
				l.committed = fork
				l.mu.Unlock()
				l.write(t, 200, rng)
				l.commit()
				cl = startLeader(t, l, nil)
				defer cl.stop()
				var as ship.FollowerNode = n
				if c.rigid {
					as = struct{ ship.FollowerNode }{n}
				}
				r, err := ship.NewFollower(as, &ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return cl.ln.dial(nil) }})
				if err != nil {
					t.Fatal(err)
				}
				err = r.Run(t.Context())
				var e *ship.Error
				if !errors.Is(err, c.want) || !errors.As(err, &e) || e.LSN != fork || !ship.Final(err) {
					t.Errorf("run returned %v, want %v naming %s", err, c.want, fork)
				}
				if n.log.Head() != end {
					t.Errorf("the follower's log was cut to %s", n.log.Head())
				}
			})
		})
	}
}

// An upstream that has lost what the follower knows to be committed is refused, again and again, and not followed.
func TestUpstreamBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 3)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		n := newFollowerNode(t)
		f := c.follow(n, ship.FollowerOptions{}, nil)
		keep := l.log.Head()
		l.fill(t, 1000, rng)
		f.reaches(l.log.Head())
		c.stop()
		f.stop()
		if err := l.log.Truncate(keep); err != nil { // and no new epoch: a disk from yesterday
			t.Fatal(err)
		}
		l.mu.Lock()
		l.committed = keep
		l.mu.Unlock()
		c = startLeader(t, l, nil)
		defer c.stop()
		f = c.follow(n, ship.FollowerOptions{}, nil)
		until(t, "refused", func() bool { return errors.Is(f.f.Status().LastError, ship.ErrBehind) })
		if ship.Final(f.f.Status().LastError) {
			t.Error("final")
		}
		f.stop()
	})
}

func TestTrimmedUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 4)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		n, f := c.joined(ship.FollowerOptions{})
		f.stop()
		l.fill(t, 4*testSegment, rng)
		if err := l.log.TrimBefore(2 * testSegment); err != nil {
			t.Fatal(err)
		}
		f = c.follow(n, ship.FollowerOptions{}, nil)
		err := <-f.done
		var e *ship.Error
		if !errors.Is(err, ship.ErrTrimmed) || !errors.As(err, &e) || e.LSN != l.log.Tail() {
			t.Errorf("run returned %v, want ErrTrimmed naming %s", err, l.log.Tail())
		}
		// A new one starts at the tail.
		fresh := newFollowerNode(t)
		f = c.follow(fresh, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		samePrefix(t, l.log, fresh.log)
		if fresh.log.Tail() != l.log.Tail() {
			t.Errorf("starts at %s, want %s", fresh.log.Tail(), l.log.Tail())
		}
		f.stop()
		c.stop()
	})
}

// A follower of a follower gets what is committed, with the leader's clock; nobody there is ever a voter.
func TestCascade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 5)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		mid, low := newFollowerNode(t), newFollowerNode(t)
		mid.refuseAll = true
		fm := c.follow(mid, ship.FollowerOptions{}, nil)
		fm.reaches(l.log.Head())
		relay := startLeader(t, mid, &ship.LeaderOptions{Upstream: func() *ship.Follower { return fm.f }, Now: func() time.Time { return time.Unix(1, 0) }})
		defer relay.stop()
		fl := relay.follow(low, ship.FollowerOptions{}, nil)
		fl.reaches(l.log.Head())
		end := l.write(t, 100, rng)
		until(t, "the middle has it", func() bool { return mid.log.Head() == end })
		time.Sleep(5 * time.Second)
		if low.log.Head() >= end {
			t.Error("uncommitted bytes were passed on")
		}
		l.commit()
		fl.reaches(end)
		samePrefix(t, l.log, low.log)
		st := fl.f.Status()
		if st.Hops != 1 || st.Leader != l.log.NodeID() || st.UpstreamID != mid.log.NodeID() {
			t.Errorf("status: %+v", st)
		}
		if d := time.Since(st.LeaderClock); d < 0 || d > 10*time.Second {
			t.Errorf("leader's clock at the end of the chain is off by %v", d)
		}
		fl.stop()
		fm.stop()
	})
}

// Two nodes that follow each other notice.
func TestRingOfUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 6)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		a, b := newFollowerNode(t), newFollowerNode(t)
		for _, n := range []*node{a, b} {
			f := c.follow(n, ship.FollowerOptions{}, nil)
			f.reaches(l.log.Head())
			f.stop()
		}
		c.stop()
		var fa, fb *ship.Follower
		ca := startLeader(t, a, &ship.LeaderOptions{Upstream: func() *ship.Follower { return fa }})
		cb := startLeader(t, b, &ship.LeaderOptions{Upstream: func() *ship.Follower { return fb }})
		dial := func(c *cluster) ship.FollowerOptions {
			return ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) }}
		}
		oa, ob := dial(cb), dial(ca)
		fa, _ = ship.NewFollower(a, &oa)
		fb, _ = ship.NewFollower(b, &ob)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 2)
		go func() { done <- fa.Run(ctx) }()
		go func() { done <- fb.Run(ctx) }()
		until(t, "ring found", func() bool {
			return errors.Is(fa.Status().LastError, ship.ErrLoop) || errors.Is(fb.Status().LastError, ship.ErrLoop)
		})
		cancel()
		<-done
		<-done
		ca.stop()
		cb.stop()
	})
}

// Shutdown lets followers have what they are due, and they come back afterwards.
func TestShutdownDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 7)
		l := newLeaderNode(t)
		c := startLeader(t, l, nil)
		n := newFollowerNode(t)
		var ln atomic.Pointer[memListener]
		ln.Store(c.ln)
		f := startFollower(t, n, ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) {
			return ln.Load().dial(func(_, d *stream) { d.limit = 1 << 10 })
		}})
		until(t, "connected", func() bool { return f.f.Status().Connected })
		l.fill(t, 200<<10, rng)
		c.stop()
		until(t, "all received", func() bool { return n.log.Head() == l.log.Head() })
		until(t, "told why", func() bool { return errors.Is(f.f.Status().LastError, ship.ErrShutdown) || !f.f.Status().Connected })
		c = startLeader(t, l, nil)
		defer c.stop()
		ln.Store(c.ln)
		l.fill(t, 1000, rng)
		f.reaches(l.log.Head())
		f.stop()
	})
}

// Shutdown whose time is up does not say that it cut followers off where there were none.
func TestShutdownWithoutFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over, cancel := context.WithCancel(t.Context())
		cancel()
		l := smallLog(t, seeded(t, 8))
		for range 20 {
			c := startLeader(t, l, nil)
			if err := c.leader.Shutdown(over); err != nil {
				t.Fatalf("without followers: %v", err)
			}
			c.stop()
		}
	})
}

// A node that comes back while its old connection lingers takes its place: PeerGone of the old comes first.
func TestSecondConnectionReplacesTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := smallLog(t, seeded(t, 8))
		c := startLeader(t, l, nil)
		defer c.stop()
		n, f1 := c.joined(ship.FollowerOptions{})
		until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
		f2 := c.follow(n, ship.FollowerOptions{}, nil)
		until(t, "replaced", func() bool { return errors.Is(f1.f.Status().LastError, ship.ErrReplaced) })
		f1.stop()
		until(t, "second is a voter", func() bool { return f2.f.Status().Connected && l.isVoter(n.log.NodeID()) })
		if p := c.leader.Peers(); len(p) != 1 {
			t.Errorf("%d peers", len(p))
		}
		f2.stop()
	})
}

// Fresh-as-of and lag are right when idle, and when cut off.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 9)
		l := smallLog(t, rng)
		c := startLeader(t, l, &ship.LeaderOptions{Name: "boss", Addr: "10.0.0.1:6380"})
		n, f := c.joined(ship.FollowerOptions{Name: "f1", Addr: "10.0.0.2:7380"})
		time.Sleep(time.Hour)
		st := f.f.Status()
		if d := time.Since(st.FreshAsOf); d > 2*time.Second || st.LagBytes != 0 || !st.Connected {
			t.Errorf("idle for an hour: fresh as of %v ago, lag %d", d, st.LagBytes)
		}
		if st.UpstreamName != "boss" || st.UpstreamAddr != "10.0.0.1:6380" {
			t.Errorf("status %+v", st)
		}
		n.mu.Lock()
		n.frozen, n.applied = true, l.log.Head()
		n.mu.Unlock()
		before := l.log.Head()
		l.fill(t, 1000, rng)
		time.Sleep(time.Minute)
		st = f.f.Status()
		if d := time.Since(st.FreshAsOf); d < 59*time.Second || st.LagBytes != uint64(l.log.Head()-before) {
			t.Errorf("applying nothing for a minute: fresh as of %v ago, lag %d", d, st.LagBytes)
		}
		p := c.leader.Peers()
		if len(p) != 1 || p[0].Name != "f1" || p[0].Addr != "10.0.0.2:7380" || p[0].Applied != before || p[0].Durable != l.log.Head() {
			t.Errorf("peers %+v", p)
		}
		n.mu.Lock()
		n.frozen = false
		n.mu.Unlock()
		c.stop()
		time.Sleep(time.Minute)
		st = f.f.Status()
		if d := time.Since(st.FreshAsOf); d < 59*time.Second || st.Connected || st.LastError == nil {
			t.Errorf("cut off for a minute: fresh as of %v ago, %+v", d, st)
		}
		f.stop()
	})
}

// What a follower has received and not synced is not told as durable.
func TestReceivedIsNotDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := smallLog(t, seeded(t, 10))
		c := startLeader(t, l, nil)
		defer c.stop()
		n, f := c.joined(ship.FollowerOptions{Observer: true, SyncDelay: time.Hour, SyncBytes: 1 << 40})
		time.Sleep(10 * time.Second)
		if a := l.acked(n.log.NodeID()); a.Received != l.log.Head() || a.Durable >= a.Received {
			t.Errorf("acknowledged %+v, received is %s, durable %s", a, l.log.Head(), n.log.Durable())
		}
		time.Sleep(time.Hour)
		if a := l.acked(n.log.NodeID()); a.Durable != l.log.Head() {
			t.Errorf("acknowledged %+v an hour later", a)
		}
		f.stop()
	})
}

// A follower that lags is no voter before it has caught up with what was committed.
func TestAdmittedOnceCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 11)
		l := newLeaderNode(t)
		l.fill(t, 1500<<10, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		n := newFollowerNode(t)
		var down *stream
		passed := 0
		f := c.follow(n, ship.FollowerOptions{}, func(_, d *stream) {
			down = d
			d.limit = 16 << 10
			d.mangle = func(p []byte) ([]byte, bool) {
				if passed += len(p); passed > 700<<10 {
					d.stalled = true
				}
				return p, true
			}
		})
		until(t, "stalled in the middle", func() bool { return l.acked(n.log.NodeID()).Received > 0 })
		time.Sleep(3 * time.Second)
		if l.isVoter(n.log.NodeID()) {
			t.Errorf("voter at %s of %s", n.log.Head(), l.log.Head())
		}
		down.mu.Lock()
		down.stalled, down.mangle = false, nil
		down.moved.Broadcast()
		down.mu.Unlock()
		f.reaches(l.log.Head())
		until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
		f.stop()
	})
}

// A follower that has lost its marks takes its upstream's word for its end, by the digest, and goes on.
func TestLostMarkFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 12)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		l.fill(t, 3*testSegment, rng)
		disk := waltest.NewDisk()
		n := openNode(t, disk, "f")
		f := c.follow(n, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		f.stop()
		time.Sleep(time.Second) // the mark is written when the log has been idle
		disk = disk.Kill()
		if err := disk.Overwrite("f/mark", 0, make([]byte, 8192)); err != nil {
			t.Fatal(err)
		}
		n = openNode(t, disk, "f")
		if !n.log.Recovery().MarkLost {
			t.Fatal("the mark is not lost")
		}
		l.fill(t, 1000, rng)
		f = c.follow(n, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		samePrefix(t, l.log, n.log)
		f.stop()
	})
}

// Power cuts at a follower: it comes back with what it has acknowledged as durable, and goes on from there.
func TestPowerCutsAtTheFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 13)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		disk := waltest.NewDisk()
		for round := range uint64(40) {
			n := openNode(t, disk, "f")
			var acked wal.LSN
			if round > 0 {
				acked = l.acked(n.log.NodeID()).Durable
			}
			if n.log.Head() < acked {
				t.Fatalf("round %d: %s was acknowledged as durable, the log ends at %s", round, acked, n.log.Head())
			}
			samePrefix(t, l.log, n.log)
			f := c.follow(n, ship.FollowerOptions{Observer: round%2 == 0, SyncDelay: 5 * time.Millisecond}, nil)
			for range 1 + rng.IntN(30) {
				l.write(t, 1+rng.IntN(5000), rng)
				if rng.IntN(3) == 0 {
					l.commit()
				}
				time.Sleep(time.Duration(rng.IntN(4000)) * time.Microsecond)
			}
			disk.PowerOff()
			f.cancel()
			<-f.done
			synctest.Wait()
			n.close()
			disk = disk.Crash(rng.Uint64())
		}
	})
}
