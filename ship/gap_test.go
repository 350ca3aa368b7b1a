package ship_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"

	"shiplog/ship"
)

// TestGapFromSibling: a follower whose end has been trimmed upstream copies what it lacks from a sibling that still has it, past one
// that cannot be reached and one that has no more than itself, and goes on where it was; where no sibling has it, it starts over.
func TestGapFromSibling(t *testing.T) {
	for name, has := range map[string]bool{"a sibling has it": true, "none has it": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(6, 6))
				l := smallLog(t, rng)
				c := startLeader(t, l, nil)
				n, f := c.joined(ship.FollowerOptions{Name: "n"})
				f.stop()
				old, f := c.joined(ship.FollowerOptions{Name: "old"})
				f.stop()
				sibling, g := c.joined(ship.FollowerOptions{Name: "sibling"})
				l.fill(t, 4*testSegment, rng)
				until(t, "the sibling has everything", func() bool { return sibling.Committed() == l.log.Head() && sibling.log.Durable() == l.log.Head() })
				if !has {
					if err := sibling.log.TrimBefore(2 * testSegment); err != nil {
						t.Fatal(err)
					}
				}
				if err := l.log.TrimBefore(2 * testSegment); err != nil {
					t.Fatal(err)
				}
				servers := map[string]*cluster{"old": startLeader(t, old, nil), "sibling": startLeader(t, sibling, nil)}
				asked := map[string]int{}
				calls := &ship.CallOptions{Dial: func(_ context.Context, addr string) (net.Conn, error) {
					asked[addr]++
					if s := servers[addr]; s != nil {
						return s.ln.dial(nil)
					}
					return nil, errors.New("nobody is there")
				}}
				again, err := ship.NewFollower(restarter{n}, &ship.FollowerOptions{
					Dial:     func(context.Context) (net.Conn, error) { return c.ln.dial(nil) },
					Siblings: func() ([]string, *ship.CallOptions) { return []string{"dead", "old", "sibling"}, calls },
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- again.Run(ctx) }()
				until(t, "all is copied", func() bool { return n.log.Head() == l.log.Head() })
				samePrefix(t, l.log, n.log)
				st := again.Status()
				if has != (st.Restarts == 0) || has != (n.log.Tail() == 0) {
					t.Errorf("%d restarts, the log begins at %s", st.Restarts, n.log.Tail())
				}
				for _, addr := range []string{"dead", "old", "sibling"} {
					if asked[addr] == 0 {
						t.Errorf("%s was not asked", addr)
					}
				}
				cancel()
				<-done
				g.stop()
				c.stop()
				for _, s := range servers {
					s.stop()
				}
			})
		})
	}
}
