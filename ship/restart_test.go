package ship_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// restarter is a node that can give up its log.
type restarter struct{ *node }

func (r restarter) StartOver() error {
	r.mu.Lock()
	r.committed = 0
	r.mu.Unlock()
	return r.log.Reset()
}

// TestStartOver: a follower whose end has been trimmed upstream starts over at the tail by itself, and ends with the same bytes.
func TestStartOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(4, 4))
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		n, f := c.joined(ship.FollowerOptions{})
		f.stop()
		l.fill(t, 4*testSegment, rng)
		if err := l.log.TrimBefore(2 * testSegment); err != nil {
			t.Fatal(err)
		}
		dial := func(context.Context) (net.Conn, error) { return c.ln.dial(nil) }
		again, err := ship.NewFollower(restarter{n}, &ship.FollowerOptions{Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- again.Run(ctx) }()
		until(t, "all is copied", func() bool { return n.log.Head() == l.log.Head() })
		samePrefix(t, l.log, n.log)
		if n.log.Tail() != l.log.Tail() || n.log.Tail() == 0 {
			t.Errorf("starts at %s, want %s", n.log.Tail(), l.log.Tail())
		}
		if got := again.Status().Restarts; got != 1 {
			t.Errorf("%d restarts, want 1", got)
		}
		cancel()
		<-done
		c.stop()
	})
}

// TestCandidateKeepsItsLog: a node that is to lead does not give its log up for the copy of a voter that has trimmed past its end: it may be one of few
// that hold it, and the voter can lead itself.
func TestCandidateKeepsItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(4, 6))
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		n, f := c.joined(ship.FollowerOptions{})
		f.stop()
		l.fill(t, 4*testSegment, rng)
		if err := l.log.TrimBefore(2 * testSegment); err != nil {
			t.Fatal(err)
		}
		epoch := wal.MakeEpoch(9, 0)
		for _, log := range []*wal.Log{l.log, n.log} {
			if err := log.Promise(epoch); err != nil {
				t.Fatal(err)
			}
		}
		head := n.log.Head()
		candidate, err := ship.NewFollower(restarter{n}, &ship.FollowerOptions{
			Candidate: epoch, Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := candidate.Run(ctx); !errors.Is(err, ship.ErrTrimmed) {
			t.Errorf("the candidate's copy ends with %v, want ErrTrimmed", err)
		}
		if n.log.Head() != head || n.log.Tail() != 0 || candidate.Status().Restarts != 0 {
			t.Errorf("the log is [%v, %v) after %d restarts, it was [0, %v)", n.log.Tail(), n.log.Head(), candidate.Status().Restarts, head)
		}
		c.stop()
	})
}

// TestStartOverWithoutAMark: a follower whose mark file was lost takes nothing before an upstream has confirmed its end. One that has trimmed past that end
// confirms it too, by the history that they share, and the follower starts over.
func TestStartOverWithoutAMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(4, 5))
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		disk := waltest.NewDisk()
		n := openNode(t, disk, "f")
		f := c.follow(n, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		f.stop()
		disk = disk.Kill()
		if err := disk.Remove("f/mark"); err != nil {
			t.Fatal(err)
		}
		n = openNode(t, disk, "f")
		if !n.log.Recovery().MarkLost {
			t.Fatal("the mark is not lost")
		}
		l.fill(t, 4*testSegment, rng)
		if err := l.log.TrimBefore(2 * testSegment); err != nil {
			t.Fatal(err)
		}
		again, err := ship.NewFollower(restarter{n}, &ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- again.Run(ctx) }()
		until(t, "all is copied", func() bool { return n.log.Head() == l.log.Head() })
		samePrefix(t, l.log, n.log)
		cancel()
		<-done
		c.stop()
	})
}

// TestStartOverAnotherHistory: without a history in common it is not for the follower to give its log up.
func TestStartOverAnotherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 5))
		disk := waltest.NewDisk()
		l := openNode(t, disk, "leader")
		if err := l.log.Create(wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		l.fill(t, 20_000, rng)
		c := startLeader(t, l, nil)
		n, f := c.joined(ship.FollowerOptions{})
		f.stop()
		c.stop()
		if _, err := l.log.StartEpoch(wal.MakeEpoch(2, 0), wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		l.fill(t, 4*testSegment, rng)
		if err := l.log.TrimBefore(2 * testSegment); err != nil {
			t.Fatal(err)
		}
		// Opened anew, the leader's log knows no more than the epochs that it holds.
		l.close()
		l = openNode(t, disk, "leader")
		c = startLeader(t, l, nil)
		end := n.log.Head()
		again, err := ship.NewFollower(restarter{n}, &ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) }})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- again.Run(t.Context()) }()
		select {
		case err = <-done:
		case <-time.After(time.Minute):
			t.Fatal("still running: ", again.Status().LastError)
		}
		if !ship.Final(err) || n.log.Head() != end {
			t.Errorf("run returned %v; head %v, was %v", err, n.log.Head(), end)
		}
		c.stop()
	})
}
