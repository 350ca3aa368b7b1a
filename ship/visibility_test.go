package ship_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// shower is a node that says whether writes wait for what followers' readers see.
type shower struct {
	*node
	awaited bool
}

func (s shower) AwaitsVisibility() bool { return s.awaited }

// TestAwaitedVisibility: where writes wait until followers show them, no time passes between the commit and the news that the follower shows it; else
// the mark and the acknowledgement wait for company.
func TestAwaitedVisibility(t *testing.T) {
	for _, awaited := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l, n := newLeaderNode(t), newFollowerNode(t)
			leader, err := ship.NewLeader(shower{l, awaited}, nil)
			if err != nil {
				t.Fatal(err)
			}
			c := &cluster{t: t, node: l, leader: leader, ln: newMemListener(), served: make(chan error, 1)}
			go func() { c.served <- leader.Serve(c.ln) }()
			f, err := ship.NewFollower(shower{n, awaited}, &ship.FollowerOptions{
				Upstream: "leader:1", Name: "f", Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) },
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			run := make(chan error, 1)
			go func() { run <- f.Run(ctx) }()
			until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
			time.Sleep(time.Second)
			end := l.write(t, 100, seeded(t, 3))
			leader.Push()
			synctest.Wait()
			if a := l.acked(n.log.NodeID()); a.Durable != end || a.Visible == end {
				t.Fatalf("acknowledged %+v of %s", a, end)
			}
			l.commit()
			synctest.Wait()
			if got := l.acked(n.log.NodeID()).Visible == end; got != awaited {
				t.Errorf("awaited %v, told at once %v", awaited, got)
			}
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if a := l.acked(n.log.NodeID()); a.Visible != end {
				t.Errorf("awaited %v: not told after 10 ms: %+v", awaited, a)
			}
			cancel()
			<-run
			c.stop()
		})
	}
}

// TestStalledUpstream: a leader whose disk does not answer says so in its heartbeats, and takes it back.
func TestStalledUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 7)
		disk := waltest.NewDisk()
		l := openNode(t, disk, "leader")
		if err := l.log.Create(wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		l.fill(t, 1000, rng)
		c := startLeader(t, l, nil)
		_, f := c.joined(ship.FollowerOptions{})
		stall, done := make(chan struct{}), make(chan error, 1)
		disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Stall: stall})
		go func() {
			var b wal.Batch
			b.Add([]byte("late"))
			_, err := l.log.Append([]*wal.Batch{&b}, true)
			if _, e := l.log.Sync(); err == nil {
				err = e
			}
			done <- err
		}()
		if f.f.Status().Stalled {
			t.Error("stalled from the beginning")
		}
		until(t, "the follower knows", func() bool { return f.f.Status().Stalled })
		close(stall)
		if err := <-done; err != nil {
			t.Error(err)
		}
		until(t, "the follower knows that it is over", func() bool { return !f.f.Status().Stalled })
		f.stop()
		c.stop()
	})
}
