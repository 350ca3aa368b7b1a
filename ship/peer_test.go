package ship_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

// peer speaks the protocol by hand, as it likes.
type peer struct {
	c          net.Conn
	out, in    uint64 // keys
	sent, rcvd uint64 // numbers
}

// prove goes through the handshake as either side.
func prove(c net.Conn, side ship.Side) (*peer, error) {
	return proveAs(c, ship.Hello{MinProtocol: 1, MaxProtocol: 1, MinFormat: 1, MaxFormat: 1, Side: side, Kind: ship.KindStream})
}

// proveAs is prove with a Hello that says something else.
func proveAs(c net.Conn, mine ship.Hello) (*peer, error) {
	side := mine.Side
	p, buf := ship.AppendHello(nil, mine), make([]byte, ship.HelloSize)
	proof := make([]byte, ship.ProofSize)
	if side == ship.Dialer {
		if _, err := c.Write(p); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		tr := ship.Transcript(p, buf)
		if _, err := c.Write(ship.AppendProof(nil, ship.Proof{MAC: tr.DialerProof(secret)})); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, proof); err != nil {
			return nil, err
		}
		d, a := tr.Keys(secret)
		return &peer{c: c, out: d, in: a}, nil
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil, err
	}
	tr := ship.Transcript(buf, p)
	if _, err := c.Write(p); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, proof); err != nil {
		return nil, err
	}
	if _, err := c.Write(ship.AppendProof(nil, ship.Proof{MAC: tr.AcceptorProof(secret)})); err != nil {
		return nil, err
	}
	d, a := tr.Keys(secret)
	return &peer{c: c, out: a, in: d}, nil
}

func (p *peer) send(m ship.Message) {
	_, _ = p.c.Write(ship.AppendMessage(nil, m, p.out, p.sent)) // the test sees the answer, or that there is none
	p.sent++
}

func (p *peer) data(lsn wal.LSN, body []byte) {
	h := ship.Header{Type: ship.TypeData, Flags: ship.DataHead | ship.DataSync, LSN: lsn, Length: uint32(len(body))}
	_, _ = p.c.Write(append(ship.AppendHeader(nil, h, p.out, p.sent), body...))
	p.sent++
}

// next reads one message; Data without its body, which is skipped.
func (p *peer) next() (ship.Header, ship.Message, error) {
	buf := make([]byte, ship.HeaderSize)
	if _, err := io.ReadFull(p.c, buf); err != nil {
		return ship.Header{}, nil, err
	}
	h, err := ship.DecodeHeader(buf)
	if err != nil {
		return h, nil, err
	}
	body := make([]byte, h.Length)
	if _, err := io.ReadFull(p.c, body); err != nil {
		return h, nil, err
	}
	h, m, err := decode(slices.Concat(buf, body), p.in, p.rcvd)
	p.rcvd++
	return h, m, err
}

// refused reads until the other side refuses, and returns why.
func (p *peer) refused() (*ship.Refusal, error) {
	for {
		_, m, err := p.next()
		if err != nil {
			return nil, err
		}
		if r, ok := m.(*ship.Refusal); ok {
			return r, nil
		}
	}
}

func welcomeOf(l *node) *ship.Welcome {
	return &ship.Welcome{
		Database: l.log.DatabaseID(), Node: l.log.NodeID(), Leader: l.log.NodeID(), Epoch: l.log.Epoch(), Head: l.log.Head(),
		SegmentSize: testSegment, HeartbeatMS: 1000, TimeoutMS: 5000, History: l.log.History(),
	}
}

// Followers of an upstream that knows the secret and does not keep to the protocol hang up, say why, and have
// written nothing that the log's own checks do not carry.
func TestUpstreamThatBreaksTheRules(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(p *peer, l, other *node, t *testing.T)
		want ship.Code
		ends wal.LSN // the follower's log; 0: empty
	}{
		{"welcome with another start", func(p *peer, l, _ *node, _ *testing.T) {
			w := welcomeOf(l)
			w.Start = 8
			p.send(w)
		}, ship.CodeProtocol, 0},
		{"welcome of the follower's own node", func(p *peer, l, other *node, _ *testing.T) {
			w := welcomeOf(l)
			w.Node = other.log.NodeID()
			p.send(w)
		}, ship.CodeSelf, 0},
		{"welcome whose epoch is not its history's", func(p *peer, l, _ *node, _ *testing.T) {
			w := welcomeOf(l)
			w.Epoch++
			p.send(w)
		}, ship.CodeProtocol, 0},
		{"an ack", func(p *peer, l, _ *node, _ *testing.T) {
			p.send(welcomeOf(l))
			p.send(&ship.Ack{})
		}, ship.CodeProtocol, 0},
		{"data with a gap", func(p *peer, l, _ *node, t *testing.T) {
			p.send(welcomeOf(l))
			p.data(0, content(t, l.log, 0, 128))
			p.data(136, content(t, l.log, 136, l.log.Head()))
		}, ship.CodeProtocol, 128},
		{"data that does not validate", func(p *peer, l, _ *node, t *testing.T) {
			p.send(welcomeOf(l))
			b := content(t, l.log, 0, l.log.Head())
			b[len(b)-1] ^= 1
			p.data(0, b)
		}, ship.CodeCorrupt, 1},
		{"the first header of another database", func(p *peer, l, _ *node, t *testing.T) {
			p.send(welcomeOf(l))
			p.data(0, content(t, newLeaderNode(t).log, 0, 128))
		}, ship.CodeProtocol, 0},
		{"garbage for the first header", func(p *peer, l, _ *node, _ *testing.T) {
			p.send(welcomeOf(l))
			p.data(0, make([]byte, 4096))
		}, ship.CodeCorrupt, 0},
		{"a digest that is not the log's", func(p *peer, l, _ *node, t *testing.T) {
			p.send(welcomeOf(l))
			p.data(0, content(t, l.log, 0, l.log.Head()))
			p.send(&ship.Mark{Head: l.log.Head(), Committed: l.log.Head(), Epoch: l.log.Epoch(), HasDigest: true, DigestLSN: l.log.Head(), Digest: 1})
		}, ship.CodeDigest, 2},
		{"a digest of another place", func(p *peer, l, _ *node, t *testing.T) {
			p.send(welcomeOf(l))
			p.data(0, content(t, l.log, 0, l.log.Head()))
			p.send(&ship.Mark{Head: l.log.Head(), Epoch: l.log.Epoch(), HasDigest: true, DigestLSN: 128, Digest: 1})
		}, ship.CodeProtocol, 2},
		{"an epoch that falls", func(p *peer, l, _ *node, t *testing.T) {
			p.send(welcomeOf(l))
			p.send(&ship.Mark{Head: l.log.Head(), Epoch: l.log.Epoch() - 1})
		}, ship.CodeProtocol, 0},
		{"a ring", func(p *peer, l, _ *node, _ *testing.T) {
			p.send(welcomeOf(l))
			p.send(&ship.Mark{Head: l.log.Head(), Epoch: l.log.Epoch(), Hops: 1000})
		}, ship.CodeLoop, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, n := smallLog(t, seeded(t, 1)), newFollowerNode(t)
				answers := make(chan *ship.Refusal, 1)
				dialled := false
				f := startFollower(t, n, ship.FollowerOptions{Secret: secret, Dial: func(context.Context) (net.Conn, error) {
					if dialled {
						return nil, errors.New("gone")
					}
					dialled = true
					a, b := memPipe()
					go func() {
						defer b.Close()
						p, err := prove(b, ship.Acceptor)
						if err == nil {
							_, _, err = p.next() // Join
						}
						if err != nil {
							t.Errorf("handshake: %v", err)
							return
						}
						c.do(p, l, n, t)
						r, err := p.refused()
						if err != nil {
							t.Errorf("no refusal: %v", err)
						}
						answers <- r
					}()
					return a, nil
				}})
				if r := <-answers; r != nil && r.Code != c.want {
					t.Errorf("refused with code %d (%v) %q, want %d (%v)", r.Code, r.Code, r.Text, c.want, c.want)
				}
				if n.Committed() != 0 {
					t.Errorf("took %s for committed", n.Committed())
				}
				switch end := n.log.Head(); {
				case c.ends == 0 && !n.log.Empty(), c.ends > 2 && end != c.ends, c.ends == 1 && end >= l.log.Head(), c.ends == 2 && end != l.log.Head():
					t.Errorf("the follower's log ends at %s", end)
				}
				samePrefix(t, l.log, n.log)
				f.cancel()
				<-f.done
			})
		})
	}
}

// The same the other way round.
func TestFollowerThatBreaksTheRules(t *testing.T) {
	join := func(f func(*ship.Join)) *ship.Join {
		j := &ship.Join{Node: id(0xf1), Role: ship.RoleVoter, Empty: true, Name: "f1"}
		f(j)
		return j
	}
	same := func(*ship.Join) {}
	for _, c := range []struct {
		name string
		do   func(p *peer, l *node)
		want ship.Code
	}{
		{"an ack for a join", func(p *peer, _ *node) { p.send(&ship.Ack{}) }, ship.CodeProtocol},
		{"a join without a node ID", func(p *peer, _ *node) { p.send(join(func(j *ship.Join) { j.Node = wal.NodeID{} })) }, ship.CodeProtocol},
		{"a join of the leader's own node", func(p *peer, l *node) {
			p.send(join(func(j *ship.Join) { j.Node = l.log.NodeID() }))
		}, ship.CodeSelf},
		{"two joins", func(p *peer, _ *node) { p.send(join(same)); p.send(join(same)) }, ship.CodeProtocol},
		{"data", func(p *peer, _ *node) { p.send(join(same)); p.data(0, []byte{1}) }, ship.CodeProtocol},
		{"an ack of what was not sent", func(p *peer, l *node) {
			p.send(join(same))
			p.send(&ship.Ack{Received: l.log.Head() + 8})
		}, ship.CodeProtocol},
		{"an ack that falls", func(p *peer, l *node) {
			p.send(join(same))
			for range 3 { // welcome, data, mark
				_, _, _ = p.next()
			}
			p.send(&ship.Ack{Received: l.log.Head()})
			p.send(&ship.Ack{Received: 128})
		}, ship.CodeProtocol},
		{"an ack of a higher epoch", func(p *peer, l *node) {
			p.send(join(same))
			p.send(&ship.Ack{Epoch: wal.MakeEpoch(7, 0)})
		}, ship.CodeFenced},
		{"a split brain", func(p *peer, l *node) {
			h := l.log.History()[0]
			h.ID++
			p.send(join(func(j *ship.Join) {
				j.Empty, j.Database, j.History, j.End = false, l.log.DatabaseID(), []wal.HistoryEntry{h}, 128
			}))
		}, ship.CodeSplitBrain},
		{"an end inside a frame", func(p *peer, l *node) {
			p.send(join(func(j *ship.Join) {
				j.Empty, j.Database, j.History, j.End = false, l.log.DatabaseID(), l.log.History(), 136
			}))
		}, ship.CodeDigest},
		{"another digest", func(p *peer, l *node) {
			p.send(join(func(j *ship.Join) {
				j.Empty, j.Database, j.History, j.End, j.Digest = false, l.log.DatabaseID(), l.log.History(), l.log.Head(), 1
			}))
		}, ship.CodeDigest},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := smallLog(t, seeded(t, 1))
				cl := startLeader(t, l, &ship.LeaderOptions{Secret: secret})
				defer cl.stop()
				nc, err := cl.ln.dial(nil)
				if err != nil {
					t.Fatal(err)
				}
				p, err := prove(nc, ship.Dialer)
				if err != nil {
					t.Fatal(err)
				}
				c.do(p, l)
				r, err := p.refused()
				if err != nil || r.Code != c.want {
					t.Errorf("got %+v, %v; want code %d (%v)", r, err, c.want, c.want)
				}
				_ = nc.Close()
				if c.want == ship.CodeFenced && l.fencedAt() != wal.MakeEpoch(7, 0) {
					t.Errorf("fenced at %s", l.fencedAt())
				}
				until(t, "session gone", func() bool { return len(cl.leader.Peers()) == 0 })
			})
		})
	}
}

// A follower that speaks and takes nothing does not hold up the committing goroutine, for ever; its memory at the
// leader is what it was.
func TestPushNeverWaits(t *testing.T) {
	rng := seeded(t, 1)
	l := diskNode(t, 1<<20)
	if err := l.log.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	l.commit()
	leader, addr, stop := onTCP(t, l, &ship.LeaderOptions{Secret: secret, Timeout: time.Hour})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p, err := prove(nc, ship.Dialer)
	if err != nil {
		t.Fatal(err)
	}
	p.send(&ship.Join{Node: id(0xf1), Role: ship.RoleVoter, Empty: true})
	for range 3 { // welcome, data, mark
		if _, _, err := p.next(); err != nil {
			t.Fatal(err)
		}
	}
	p.send(&ship.Ack{Received: l.log.Head(), Durable: l.log.Head()})
	until(t, "voter", func() bool { return l.isVoter(id(0xf1)) })
	sent := func() wal.LSN { return leader.Peers()[0].Sent }
	stuck := 0
	for last := sent(); stuck < 200; {
		l.write(t, 8000, rng)
		leader.Push()
		if now := sent(); now != last {
			last, stuck = now, 0
		} else {
			stuck++
		}
	}
	if n := testing.AllocsPerRun(100, leader.Push); n > 0.5 {
		t.Errorf("a push to a stuck follower allocates %.1f times", n)
	}
	_ = nc.Close()
	until(t, "session gone", func() bool { return len(leader.Peers()) == 0 })
	stop()
}
