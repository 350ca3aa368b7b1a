package ship_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"shiplog/ship"
	"shiplog/wal"
)

// playUpstream has n follow an upstream that the test plays by hand, once: do begins behind the Join. What do returns is
// the result.
func playUpstream[T any](t *testing.T, n *node, do func(p *peer) T) T {
	t.Helper()
	result := make(chan T, 1)
	dialled := false
	f := startFollower(t, n, ship.FollowerOptions{Secret: secret, Dial: func(context.Context) (net.Conn, error) {
		if dialled {
			return nil, errors.New("gone")
		}
		dialled = true
		a, b := memPipe()
		go func() { // ends with do
			defer b.Close()
			p, err := prove(b, ship.Acceptor)
			if err == nil {
				_, _, err = p.next() // Join
			}
			if err != nil {
				t.Errorf("handshake: %v", err)
			}
			result <- do(p)
		}()
		return a, nil
	}})
	r := <-result
	f.cancel()
	<-f.done
	return r
}

// TestWelcomeThatDoesNotFit: a follower that has a log believes no upstream that says that it has the same, where it can
// know better, and appends nothing of it.
func TestWelcomeThatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *ship.Welcome, n *node)
		want   ship.Code
	}{
		{"another database", func(w *ship.Welcome, _ *node) { w.Database[0] ^= 1 }, ship.CodeDatabase},
		{"another digest", func(w *ship.Welcome, _ *node) { w.Digest ^= 1 }, ship.CodeDigest},
		{"another start", func(w *ship.Welcome, _ *node) { w.Start -= 8 }, ship.CodeProtocol},
		{"another history", func(w *ship.Welcome, _ *node) { w.History[0].ID ^= 1 }, ship.CodeSplitBrain},
		{"an epoch below the promise", func(_ *ship.Welcome, n *node) {
			if err := n.log.Promise(wal.MakeEpoch(9, 0)); err != nil {
				panic(err)
			}
		}, ship.CodeFenced},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, n := smallLog(t, seeded(t, 1)), newFollowerNode(t)
				head := l.log.Head()
				if k, err := n.log.AppendRaw(0, content(t, l.log, 0, head)); err != nil || k != int(head) {
					t.Fatal(k, err)
				}
				w := welcomeOf(l)
				w.History = append([]wal.HistoryEntry(nil), w.History...)
				w.Start = head
				var err error
				if w.Digest, err = l.log.DigestAt(head); err != nil {
					t.Fatal(err)
				}
				w.Head = l.write(t, 100, seeded(t, 2))
				l.commit()
				more := content(t, l.log, head, w.Head)
				r := playUpstream(t, n, func(p *peer) *ship.Refusal {
					c.change(w, n)
					p.send(w)
					p.data(w.Start, more)
					r, err := p.refused()
					if err != nil {
						t.Errorf("no refusal: %v", err)
					}
					return r
				})
				if r != nil && r.Code != c.want {
					t.Errorf("refused with code %d (%v) %q, want %d (%v)", r.Code, r.Code, r.Text, c.want, c.want)
				}
				if n.log.Head() != head {
					t.Errorf("the follower's log went from %v to %v", head, n.log.Head())
				}
			})
		})
	}
}

// TestEpochInTheStreamIsPromised: an epoch that begins in the stream is persisted before anything in it is acknowledged.
func TestEpochInTheStreamIsPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n := smallLog(t, seeded(t, 1)), newFollowerNode(t)
		w := welcomeOf(l)
		next := w.Epoch.NextRestart()
		if _, err := l.log.StartEpoch(next, wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		w.Head = l.log.Head()
		bytes := content(t, l.log, 0, w.Head)
		promised := playUpstream(t, n, func(p *peer) wal.Epoch {
			p.send(w)
			p.data(0, bytes)
			for {
				_, m, err := p.next()
				if err != nil {
					t.Errorf("no acknowledgement: %v", err)
					return 0
				}
				if a, ok := m.(*ship.Ack); ok && a.Epoch == next {
					return n.log.Promised()
				}
			}
		})
		if promised != next {
			t.Errorf("acknowledged in %v, promised %v", next, promised)
		}
	})
}
