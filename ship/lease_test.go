package ship_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

// leaser is a leader node that wants leases, and lender a follower node that gives them, both as the test says.
type leaser struct {
	*node
	mu    sync.Mutex
	wants bool
	asked time.Time // of the newest lease
}

func (l *leaser) WantsReadLease() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wants
}

func (l *leaser) PeerLease(_ wal.NodeID, asked time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = asked
}

func (l *leaser) newest() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *leaser) want(wants bool) {
	l.mu.Lock()
	l.wants = wants
	l.mu.Unlock()
	l.node.mu.Lock()
	defer l.node.mu.Unlock()
	for ch := range l.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

type lender struct {
	*node
	mu       sync.Mutex
	refuses  bool
	lent     time.Time
	released int
}

func (l *lender) LendRead(wal.Epoch) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuses {
		return false
	}
	l.lent = time.Now()
	return true
}

func (l *lender) ReleaseRead() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released++
}

func (l *lender) set(refuses bool) (lent time.Time, released int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuses = refuses
	return l.lent, l.released
}

// TestReadLeases: a lease is renewed before it runs out, counted from before it was lent, also on a slow line; a follower that lends none gives
// none; what the leader does not want any more is given back at once.
func TestReadLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leaser{node: newLeaderNode(t)}
		leader, err := ship.NewLeader(l, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := &cluster{t: t, node: l.node, leader: leader, ln: newMemListener(), served: make(chan error, 1)}
		go func() { c.served <- leader.Serve(c.ln) }()
		f := &lender{node: newFollowerNode(t)}
		follower, err := ship.NewFollower(f, &ship.FollowerOptions{
			Upstream: "leader:1", Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		run := make(chan error, 1)
		go func() { run <- follower.Run(ctx) }()
		time.Sleep(3 * time.Second)
		if lent, _ := f.set(false); !lent.IsZero() || !l.newest().IsZero() {
			t.Error("a lease that nobody has asked for")
		}
		l.want(true)
		time.Sleep(time.Second)
		for range 40 {
			time.Sleep(77 * time.Millisecond)
			synctest.Wait()
			lent, _ := f.set(false)
			asked := l.newest()
			if asked.After(lent) || time.Since(asked) > ship.ReadLease/2 {
				t.Fatalf("asked %v ago, lent %v ago", time.Since(asked), time.Since(lent))
			}
		}
		lent, _ := f.set(true) // it is about to promise another
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := l.newest(); got.After(lent) {
			t.Errorf("a lease that was not lent counts: asked %v after the last", got.Sub(lent))
		}
		f.set(false)
		time.Sleep(time.Second)
		_, before := f.set(false)
		l.want(false)
		time.Sleep(5 * time.Millisecond)
		synctest.Wait()
		if _, released := f.set(false); released == before {
			t.Error("not given back")
		}
		cancel()
		<-run
		c.stop()
	})
}
