package ship_test

import (
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
)

func TestStreamAndAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 1)
		l := newLeaderNode(t)
		l.fill(t, 300<<10, rng) // several segments
		c := startLeader(t, l, &ship.LeaderOptions{Name: "l"})
		defer c.stop()
		n := newFollowerNode(t)
		l.onAck = func() {
			if p := n.log.Promised(); p < l.log.Epoch() {
				t.Errorf("acknowledges in epoch %s and has promised %s", l.log.Epoch(), p)
			}
		}
		f := c.follow(n, ship.FollowerOptions{Name: "f"}, nil)
		defer f.stop()
		f.reaches(l.log.Head())
		samePrefix(t, l.log, n.log)
		until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
		// What is not committed yet goes to a voter; its acknowledgement says how far it is.
		end := l.write(t, 100, rng)
		until(t, "ack of everything", func() bool {
			a := l.acked(n.log.NodeID())
			return a.Received == end && a.Durable == end && a.Applied == end
		})
		if n.Committed() >= end || n.Visible() >= end {
			t.Errorf("follower takes %s for committed, which it is not", n.Committed())
		}
		told := time.Now()
		l.commit()
		f.reaches(end)
		if d := time.Since(told); d > 10*time.Millisecond { // of virtual time
			t.Errorf("the follower heard of the committed mark after %v", d)
		}
		until(t, "visible", func() bool { return l.acked(n.log.NodeID()).Visible == end })
	})
}
