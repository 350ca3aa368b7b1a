package ship_test

import (
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
)

// A voter that is taken out of the rule gets nothing more above the committed mark from that moment on, and what is
// committed still; put back, it is sent everything again.
func TestVoterTakenOut(t *testing.T) {
	for _, pushed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			rng := seeded(t, 31)
			l := newLeaderNode(t)
			c := startLeader(t, l, nil)
			defer c.stop()
			n := newFollowerNode(t)
			f := c.follow(n, ship.FollowerOptions{Name: "f"}, nil)
			id := n.log.NodeID()
			until(t, "voter", func() bool { return l.isVoter(id) })
			write := func() {
				l.write(t, 3000, rng)
				if pushed {
					c.leader.Push()
				}
			}
			write()
			until(t, "a voter is ahead of the committed mark", func() bool { return n.log.Head() == l.log.Head() })

			l.takeOut(id)
			before := n.log.Head()
			for range 5 {
				write()
				time.Sleep(3 * time.Second) // heartbeats and marks go on
			}
			if n.log.Head() != before {
				t.Fatalf("a follower that is no voter is at %s, committed is %s", n.log.Head(), l.Committed())
			}
			if p := c.leader.Peers(); len(p) != 1 || p[0].Voter {
				t.Errorf("peers: %+v", p)
			}
			l.commit()
			f.reaches(l.log.Head())
			write()
			time.Sleep(time.Second)
			if n.log.Head() != l.Committed() {
				t.Errorf("follower at %s, committed is %s", n.log.Head(), l.Committed())
			}

			l.putBack(id)
			until(t, "voter again", func() bool { return n.log.Head() == l.log.Head() })
			samePrefix(t, l.log, n.log)
			f.stop()
		})
	}
}
