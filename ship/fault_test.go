package ship_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

// smallLog returns a leader with a log of some hundred bytes: every position in its stream can be tried.
func smallLog(t testing.TB, rng *rand.Rand) *node {
	l := newLeaderNode(t)
	for range 4 {
		l.write(t, 1+rng.IntN(100), rng)
	}
	l.commit()
	return l
}

// cutAfter lets n bytes pass and then cuts.
func cutAfter(n int) func(p []byte) ([]byte, bool) {
	return func(p []byte) ([]byte, bool) {
		if len(p) > n {
			return p[:n], false
		}
		n -= len(p)
		return p, true
	}
}

// flipAt flips one bit of the byte at position n of the direction.
func flipAt(n int, bit byte) func(p []byte) ([]byte, bool) {
	return func(p []byte) ([]byte, bool) {
		if n >= 0 && n < len(p) {
			p[n] ^= 1 << bit
		}
		n -= len(p)
		return p, true
	}
}

// doubleAt sends the bytes of the write that holds position n twice, dropAt never, swapAt after the next write.
func doubleAt(n int) func(p []byte) ([]byte, bool) {
	return func(p []byte) ([]byte, bool) {
		if n >= 0 && n < len(p) {
			p = append(p, p...)
			n = -1
		}
		n -= len(p)
		return p, true
	}
}

func dropAt(n int) func(p []byte) ([]byte, bool) {
	return func(p []byte) ([]byte, bool) {
		if n >= 0 && n < len(p) {
			n = -1
			return nil, true
		}
		n -= len(p)
		return p, true
	}
}

func swapAt(n int) func(p []byte) ([]byte, bool) {
	var held []byte
	return func(p []byte) ([]byte, bool) {
		if held != nil {
			p = append(p, held...)
			held = nil
			n = -1
		} else if n >= 0 && n < len(p) {
			held = p
			return nil, true
		}
		n -= len(p)
		return p, true
	}
}

// eachPosition runs a follower that starts empty, whose first connection is altered at each position of one
// direction in turn and whose later ones are whole. It must end with the leader's bytes, and hold no other ever.
func eachPosition(t *testing.T, step int, alter func(at int) func(p []byte) ([]byte, bool), upward bool) {
	if testing.Short() {
		step *= 7
	}
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 2)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		for at, more := 0, true; more; at += step {
			n := newFollowerNode(t)
			var dials, seen atomic.Int32
			f := c.follow(n, ship.FollowerOptions{}, func(up, down *stream) {
				if dials.Add(1) > 1 {
					return
				}
				s := down
				if upward {
					s = up
				}
				m := alter(at)
				s.mangle = func(p []byte) ([]byte, bool) {
					seen.Add(int32(len(p)))
					return m(p)
				}
			})
			f.reaches(l.log.Head())
			samePrefix(t, l.log, n.log)
			// A little longer than it took: heartbeats pass as well.
			time.Sleep(2500 * time.Millisecond)
			samePrefix(t, l.log, n.log)
			f.stop()
			n.close()
			more = int(seen.Load()) > at && at < 1500
		}
	})
}

func TestCutAtEveryByte(t *testing.T) {
	t.Run("down", func(t *testing.T) { eachPosition(t, 1, cutAfter, false) })
	t.Run("up", func(t *testing.T) { eachPosition(t, 1, cutAfter, true) })
}

func TestFlipAtEveryByte(t *testing.T) {
	flip := func(at int) func(p []byte) ([]byte, bool) { return flipAt(at, byte(at%8)) }
	t.Run("down", func(t *testing.T) { eachPosition(t, 3, flip, false) })
	t.Run("up", func(t *testing.T) { eachPosition(t, 3, flip, true) })
}

func TestDoubledDroppedAndReorderedWrites(t *testing.T) {
	for name, alter := range map[string]func(at int) func(p []byte) ([]byte, bool){"doubled": doubleAt, "dropped": dropAt, "swapped": swapAt} {
		t.Run(name, func(t *testing.T) { eachPosition(t, 11, alter, false) })
	}
}

// Bytes that arrive one at a time make no difference.
func TestSplitAtEveryByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 3)
		l := newLeaderNode(t)
		size := 100 << 10
		if testing.Short() {
			size = 8 << 10
		}
		l.fill(t, size, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		for _, most := range []int{1, 2, 3, 7, 31, 4095} {
			n := newFollowerNode(t)
			f := c.follow(n, ship.FollowerOptions{}, func(up, down *stream) { up.most, down.most = most, most })
			f.reaches(l.log.Head())
			samePrefix(t, l.log, n.log)
			f.stop()
			n.close()
		}
	})
}

// Cuts in a long stream, at random: each connection goes on where the one before ended, and none starts over.
func TestResumesWhereItStood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 4)
		l := newLeaderNode(t)
		l.fill(t, 2<<20, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		n := newFollowerNode(t)
		var total atomic.Int64
		f := c.follow(n, ship.FollowerOptions{}, func(up, down *stream) {
			down.limit = 16 << 10
			cut := cutAfter(20000 + rng.IntN(300<<10))
			down.mangle = func(p []byte) ([]byte, bool) {
				q, ok := cut(p)
				total.Add(int64(len(q)))
				return q, ok
			}
		})
		f.reaches(l.log.Head())
		samePrefix(t, l.log, n.log)
		st := f.f.Status()
		if st.Attempts < 5 {
			t.Errorf("%d connections: the cuts did not bite", st.Attempts)
		}
		// Each break costs at most what was on the way, one frame that was not whole, and a handshake.
		if over := total.Load() - int64(l.log.Head()); over > int64(st.Attempts)*(24<<10) {
			t.Errorf("%d bytes more than the log came down the wire in %d connections", over, st.Attempts)
		}
		f.stop()
	})
}

// A peer that vanishes without a word is noticed by both sides, and everything of it is freed.
func TestHalfOpenIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 5)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		n := newFollowerNode(t)
		var silent atomic.Bool
		vanish := func(p []byte) ([]byte, bool) {
			if silent.Load() {
				return nil, true
			}
			return p, true
		}
		dials := 0
		f := c.follow(n, ship.FollowerOptions{}, func(up, down *stream) {
			if dials++; dials == 1 {
				up.mangle, down.mangle = vanish, vanish
			}
		})
		f.reaches(l.log.Head())
		until(t, "admitted", func() bool { return l.isVoter(n.log.NodeID()) })
		silent.Store(true)
		began := time.Now()
		until(t, "the leader notices", func() bool { return l.goneCalls() > 0 })
		if d := time.Since(began); d > ship.DefaultTimeout+ship.DefaultHeartbeat {
			t.Errorf("noticed after %v", d)
		}
		until(t, "the follower comes back", func() bool { return f.f.Status().Attempts == 2 && f.f.Status().Connected })
		if d := time.Since(began); d > ship.DefaultTimeout+3*ship.DefaultHeartbeat {
			t.Errorf("back after %v", d)
		}
		if g := l.goneCalls(); g != 1 {
			t.Errorf("PeerGone called %d times, want once", g)
		}
		f.stop()
	})
}

// While one follower takes nothing, another gets everything, and pushes return.
func TestStalledFollowerSlowsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 6)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		slow, fast := newFollowerNode(t), openNode(t, nil, t.TempDir())
		var down *stream
		fs := c.follow(slow, ship.FollowerOptions{Name: "slow"}, func(_, d *stream) { down = d; d.limit = 4 << 10 })
		ff := c.follow(fast, ship.FollowerOptions{Name: "fast"}, nil)
		until(t, "both are voters", func() bool { return l.isVoter(slow.log.NodeID()) && l.isVoter(fast.log.NodeID()) })
		down.mu.Lock()
		down.stalled = true
		down.mu.Unlock()
		for range 500 {
			l.write(t, 4000, rng)
			c.leader.Push()
			l.commit()
			time.Sleep(time.Millisecond)
		}
		ff.reaches(l.log.Head())
		samePrefix(t, l.log, fast.log)
		if s := slow.log.Head(); s+4000*100 > l.log.Head() {
			t.Errorf("the stalled follower is at %s of %s: it was not stalled", s, l.log.Head())
		}
		down.mu.Lock()
		down.stalled = false
		down.moved.Broadcast()
		down.mu.Unlock()
		fs.reaches(l.log.Head())
		samePrefix(t, l.log, slow.log)
		fs.stop()
		ff.stop()
	})
}

// Only voters are sent what is not committed.
func TestNothingAboveTheCommittedMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 7)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		observer, named, voter := newFollowerNode(t), newFollowerNode(t), newFollowerNode(t)
		fo := c.follow(observer, ship.FollowerOptions{Observer: true}, nil)
		fv := c.follow(voter, ship.FollowerOptions{}, nil)
		until(t, "voter", func() bool { return l.isVoter(voter.log.NodeID()) })
		l.mu.Lock()
		l.refuseAll = true
		l.mu.Unlock()
		fn := c.follow(named, ship.FollowerOptions{}, nil)
		committed := l.log.Head()
		fo.reaches(committed)
		fn.reaches(committed)
		for range 20 {
			l.write(t, 500, rng)
			c.leader.Push()
		}
		if _, err := l.log.Sync(); err != nil { // durable is not committed
			t.Fatal(err)
		}
		head := l.log.Head()
		until(t, "voter has all", func() bool { return voter.log.Head() == head })
		time.Sleep(10 * time.Second)
		if observer.log.Head() != committed || named.log.Head() != committed {
			t.Errorf("observer at %s, refused at %s; committed is %s", observer.log.Head(), named.log.Head(), committed)
		}
		for _, p := range c.leader.Peers() {
			if p.Voter != (p.ID == voter.log.NodeID()) {
				t.Errorf("peer %s: voter is %v", p.ID, p.Voter)
			}
		}
		// The mark alone is not enough either: the leader's disk must have it.
		l.write(t, 500, rng)
		l.moveCommitted(l.log.Head())
		time.Sleep(10 * time.Second)
		if observer.log.Head() > head {
			t.Errorf("observer at %s, durable on the leader is %s", observer.log.Head(), head)
		}
		l.commit()
		fo.reaches(l.log.Head())
		fn.reaches(l.log.Head())
		fo.stop()
		fn.stop()
		fv.stop()
	})
}

// Attempts are spaced by the back-off, and the follower returns when told to at any point of it.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFollowerNode(t)
		var at []time.Duration
		began := time.Now()
		f := startFollower(t, n, ship.FollowerOptions{
			Jitter: func() float64 { return 0.5 },
			Dial: func(context.Context) (net.Conn, error) {
				at = append(at, time.Since(began))
				return nil, errors.New("refused")
			},
		})
		time.Sleep(time.Minute)
		f.stop()
		want := 50 * time.Millisecond * 3 / 4
		for i := 1; i < len(at); i++ {
			if got := at[i] - at[i-1]; got != want {
				t.Errorf("pause %d is %v, want %v", i, got, want)
			}
			want = min(2*want, 5*time.Second*3/4)
		}
		if len(at) < 15 {
			t.Errorf("%d attempts in a minute", len(at))
		}
	})
}

// The digest in a mark finds bytes that differ although every frame is valid: two nodes that wrote in one epoch
// would show like this.
func TestDigestMismatchStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 8)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		n, f := c.joined(ship.FollowerOptions{})
		f.stop()
		c.stop()
		// The follower's log goes on by itself, in the leader's epoch and salt.
		at := n.log.Head()
		own := n.write(t, 40, rng)
		l.write(t, 40, rng)
		l.write(t, 40, rng)
		l.commit()
		if own <= at || l.log.Head() <= own {
			t.Fatal("logs are not as the test needs them")
		}
		c = startLeader(t, l, nil)
		defer c.stop()
		f = c.follow(n, ship.FollowerOptions{}, nil)
		if err := <-f.done; !errors.Is(err, ship.ErrDigest) || !ship.Final(err) {
			t.Errorf("run returned %v, want ErrDigest", err)
		}
	})
}

// An upstream whose log was rewritten under the follower's feet, in the stream: the mark's digest differs.
func TestDigestMismatchInStreamStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 9)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		n, f := c.joined(ship.FollowerOptions{})
		until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
		// The leader's log is cut and written anew to the same end: what no leader does.
		from := l.log.Head()
		one, two := make([]byte, 64), bytes.Repeat([]byte{1}, 64)
		write := func(rec []byte) wal.LSN {
			rec[0] = 1
			for i := 1; i < len(rec); i++ {
				rec[i] = byte(rng.Uint32())
			}
			var b wal.Batch
			b.Add(rec)
			r, err := l.log.Append([]*wal.Batch{&b}, true)
			if err != nil {
				t.Fatal(err)
			}
			return r.End
		}
		end := write(one)
		until(t, "sent", func() bool { return n.log.Head() == end })
		time.Sleep(3 * time.Second)
		if err := l.log.Truncate(from); err != nil {
			t.Fatal(err)
		}
		if got := write(two); got != end {
			t.Skipf("rewritten log ends at %s, not %s", got, end)
		}
		write(two)
		if err := <-f.done; !errors.Is(err, ship.ErrDigest) {
			t.Errorf("run returned %v, want ErrDigest", err)
		}
	})
}
