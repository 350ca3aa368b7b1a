package ship_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

var secret = []byte("correct horse battery staple")

// hello returns a dialer's first message with a nonce of one byte value.
func hello(nonce byte) []byte {
	h := ship.Hello{MinProtocol: 1, MaxProtocol: 1, MinFormat: 1, MaxFormat: 1, Side: ship.Dialer, Kind: ship.KindStream}
	for i := range h.Nonce {
		h.Nonce[i] = nonce
	}
	return ship.AppendHello(nil, h)
}

// hangsUp waits until the other end closes and returns what it said before, and how long that took.
func hangsUp(t *testing.T, c net.Conn) (said []byte, after time.Duration) {
	t.Helper()
	began := time.Now()
	said, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	_ = c.Close()
	return said, time.Since(began)
}

// Whoever cannot prove the secret is gone within the handshake's bound, whatever it sends and however slowly.
func TestHostilePeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := smallLog(t, seeded(t, 1))
		c := startLeader(t, l, &ship.LeaderOptions{Secret: secret})
		defer c.stop()
		for _, h := range []struct {
			name string
			send func(net.Conn)
			said int // bytes that the leader may answer with at most
		}{
			{"says nothing", func(net.Conn) {}, 0},
			{"garbage", func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{0xa5}, 4096)) }, 0},
			{"a web browser", func(c net.Conn) {
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"+strings.Repeat(" ", 99))
			}, 0},
			{"a slow hello", func(c net.Conn) {
				for _, b := range hello(1) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}, 0},
			{"a hello and no more", func(c net.Conn) { _, _ = c.Write(hello(1)) }, ship.HelloSize},
			{"a proof that is garbage", func(c net.Conn) {
				_, _ = c.Write(append(hello(1), bytes.Repeat([]byte{7}, ship.ProofSize)...))
			}, ship.HelloSize},
			{"a proof of another secret", func(c net.Conn) {
				_, _ = c.Write(ship.AppendProof(hello(1), ship.Proof{MAC: [32]byte{1}}))
			}, ship.HelloSize + ship.ProofSize},
			{"the hello of an acceptor", func(c net.Conn) {
				h, _ := ship.DecodeHello(hello(1))
				h.Side = ship.Acceptor
				_, _ = c.Write(ship.AppendHello(nil, h))
			}, ship.HelloSize},
			{"another kind of connection", func(c net.Conn) {
				h, _ := ship.DecodeHello(hello(1))
				h.Kind = 9
				_, _ = c.Write(ship.AppendHello(nil, h))
			}, ship.HelloSize},
			{"a protocol of the future", func(c net.Conn) {
				h, _ := ship.DecodeHello(hello(1))
				h.MinProtocol, h.MaxProtocol = 7, 9
				_, _ = c.Write(ship.AppendHello(nil, h))
			}, ship.HelloSize},
		} {
			nc, err := c.ln.dial(nil)
			if err != nil {
				t.Fatal(err)
			}
			go h.send(nc)
			said, after := hangsUp(t, nc)
			if after > ship.DefaultHandshakeTimeout {
				t.Errorf("%s: dropped after %v", h.name, after)
			}
			if len(said) > h.said {
				t.Errorf("%s: was answered with %d bytes, want at most %d", h.name, len(said), h.said)
			}
		}
		if p := c.leader.Peers(); len(p) != 0 {
			t.Errorf("peers: %v", p)
		}
	})
}

// A crowd of silent connections costs a bounded number of goroutines and bytes, and ends.
func TestHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := smallLog(t, seeded(t, 1))
		c := startLeader(t, l, &ship.LeaderOptions{Secret: secret, MaxHandshakes: 8})
		defer c.stop()
		before := runtime.NumGoroutine()
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		var conns []net.Conn
		for range 1000 {
			nc, err := c.ln.dial(func(up, down *stream) { up.limit, down.limit = 256, 256 })
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, nc)
			synctest.Wait()
		}
		runtime.ReadMemStats(&m1)
		if n := runtime.NumGoroutine() - before; n > 20 {
			t.Errorf("%d goroutines for 1000 silent connections", n)
		}
		if d := int64(m1.TotalAlloc-m0.TotalAlloc) / 1000; d > 16<<10 {
			t.Errorf("%d bytes allocated for each connection, test's own included", d)
		}
		time.Sleep(ship.DefaultHandshakeTimeout + time.Second)
		for _, nc := range conns {
			_, _ = hangsUp(t, nc)
		}
		// And there is room again.
		_, f := c.joined(ship.FollowerOptions{Secret: secret})
		f.stop()
	})
}

// recorder keeps what passed in one direction.
type recorder struct {
	mu sync.Mutex
	b  []byte
}

func (r *recorder) tap(p []byte) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b = append(r.b, p...)
	return p, true
}

// What a follower said once is worth nothing in another connection, and what a leader says cannot be sent back.
func TestReplayedAndReflectedHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := smallLog(t, seeded(t, 1))
		c := startLeader(t, l, &ship.LeaderOptions{Secret: secret})
		defer c.stop()
		n := newFollowerNode(t)
		var up recorder
		f := c.follow(n, ship.FollowerOptions{Secret: secret}, func(u, _ *stream) { u.mangle = up.tap })
		f.reaches(l.log.Head())
		f.stop()
		nc, err := c.ln.dial(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(up.b); err != nil {
			t.Fatal(err)
		}
		said, _ := hangsUp(t, nc)
		if len(said) != ship.HelloSize+ship.ProofSize {
			t.Fatalf("a replay was answered with %d bytes", len(said))
		}
		if p, err := ship.DecodeProof(said[ship.HelloSize:]); err != nil || p.Code != ship.CodeAuth {
			t.Errorf("a replay was answered with %+v, %v", p, err)
		}
		// A mirror: everything that the follower says comes back to it, but for the side in the hello.
		mirror := startFollower(t, newFollowerNode(t), ship.FollowerOptions{Secret: secret, Dial: func(context.Context) (net.Conn, error) {
			a, b := memPipe()
			go func() {
				defer b.Close()
				buf := make([]byte, ship.HelloSize)
				if _, err := io.ReadFull(b, buf); err != nil {
					return
				}
				h, _ := ship.DecodeHello(buf)
				h.Side = ship.Acceptor
				_, _ = b.Write(ship.AppendHello(nil, h))
				_, _ = io.Copy(b, b)
			}()
			return a, nil
		}})
		until(t, "mirror is recognised", func() bool { return errors.Is(mirror.f.Status().LastError, ship.ErrAuth) })
		mirror.stop()
	})
}

// fakeUpstream proves the secret and welcomes whoever comes, and then says whatever the test wants.
func fakeUpstream(t *testing.T, said func(w net.Conn)) func(context.Context) (net.Conn, error) {
	t.Helper()
	return func(context.Context) (net.Conn, error) {
		a, b := memPipe()
		go func() {
			defer b.Close()
			said(b)
		}()
		return a, nil
	}
}

// An upstream that floods, lies about lengths, or says nothing costs a follower bounded memory and time.
func TestHostileUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, said := range map[string]func(net.Conn){
			"says nothing": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
			"garbage":      func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{0xff}, 1<<20)) },
			"endless zeros": func(c net.Conn) {
				for {
					if _, err := c.Write(make([]byte, 4096)); err != nil {
						return
					}
				}
			},
			"hangs up": func(net.Conn) {},
		} {
			n := newFollowerNode(t)
			f := startFollower(t, n, ship.FollowerOptions{Secret: secret, Dial: fakeUpstream(t, said)})
			began := time.Now()
			until(t, name+": an error", func() bool { return f.f.Status().LastError != nil })
			if d := time.Since(began); d > ship.DefaultHandshakeTimeout+time.Second {
				t.Errorf("%s: error after %v", name, d)
			}
			if !n.log.Empty() {
				t.Errorf("%s: something was written", name)
			}
			f.stop()
			n.close()
		}
	})
}

// Each mismatch has one clear error on each side, and is final or not as documented.
func TestRefusals(t *testing.T) {
	other := wal.DatabaseID(id(9))
	for _, c := range []struct {
		name   string
		leader ship.LeaderOptions
		follow ship.FollowerOptions
		alter  func(l, n *node) // before either starts
		want   error
		final  bool
	}{
		{name: "wrong secret", follow: ship.FollowerOptions{Secret: []byte("guess")}, want: ship.ErrAuth},
		{name: "no secret", follow: ship.FollowerOptions{Secret: []byte{}}, want: ship.ErrAuth},
		{name: "another database wanted", follow: ship.FollowerOptions{Database: other}, want: ship.ErrDatabase, final: true},
		{name: "another database held", alter: func(_, n *node) { _ = n.log.Create(wal.Rule{}) }, want: ship.ErrDatabase, final: true},
		{name: "promised a higher epoch", alter: func(_, n *node) { _ = n.log.Promise(wal.MakeEpoch(5, 0)) }, want: ship.ErrFenced},
		{name: "both have promised higher epochs", leader: ship.LeaderOptions{Upstream: func() *ship.Follower { return new(ship.Follower) }}, alter: func(l, n *node) {
			_, _ = l.log.Promise(wal.MakeEpoch(9, 0)), n.log.Promise(wal.MakeEpoch(5, 0))
		}, want: ship.ErrFenced},
		{name: "leader knows of a higher epoch", alter: func(l, _ *node) { _ = l.log.Promise(wal.MakeEpoch(5, 0)) }, want: ship.ErrFenced},
		{name: "too many followers", leader: ship.LeaderOptions{MaxPeers: 1}, want: ship.ErrBusy, alter: func(l, _ *node) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, n := smallLog(t, seeded(t, 1)), newFollowerNode(t)
				if c.alter != nil {
					c.alter(l, n)
				}
				c.leader.Secret = secret
				cl := startLeader(t, l, &c.leader)
				defer cl.stop()
				if c.want == ship.ErrBusy {
					first := cl.follow(newFollowerNode(t), ship.FollowerOptions{Secret: secret}, nil)
					first.reaches(l.log.Head())
					defer first.stop()
				}
				if c.follow.Secret == nil {
					c.follow.Secret = secret
				}
				f := cl.follow(n, c.follow, nil)
				var got error
				if c.final {
					got = <-f.done
				} else {
					until(t, "an error", func() bool { got = f.f.Status().LastError; return got != nil })
					f.stop()
				}
				if !errors.Is(got, c.want) || ship.Final(got) != c.final {
					t.Errorf("got %v (final %v), want %v (final %v)", got, ship.Final(got), c.want, c.final)
				}
				if c.want == ship.ErrFenced && c.name == "promised a higher epoch" && l.fencedAt() != wal.MakeEpoch(5, 0) {
					t.Errorf("the leader was not fenced: %s", l.fencedAt())
				}
			})
		})
	}
}

func TestFollowsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := smallLog(t, seeded(t, 1))
		c := startLeader(t, l, nil)
		defer c.stop()
		f := c.follow(l, ship.FollowerOptions{}, nil)
		if err := <-f.done; !errors.Is(err, ship.ErrSelf) {
			t.Errorf("run returned %v, want ErrSelf", err)
		}
	})
}

// Without a secret nothing is offered to, or taken from, other machines.
func TestNoSecretMeansLoopback(t *testing.T) {
	l := smallLog(t, seeded(t, 1))
	leader, err := ship.NewLeader(l, nil)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Skip(err)
	}
	if err := leader.Serve(ln); !errors.Is(err, ship.ErrNoSecret) {
		t.Errorf("serve: %v, want ErrNoSecret", err)
	}
	if _, err := ship.NewFollower(l, &ship.FollowerOptions{Upstream: "192.0.2.1:7380"}); !errors.Is(err, ship.ErrNoSecret) {
		t.Errorf("new follower: %v, want ErrNoSecret", err)
	}
}

func TestOptionsReportEverything(t *testing.T) {
	l := smallLog(t, seeded(t, 1))
	_, err := ship.NewFollower(l, &ship.FollowerOptions{Name: "a\nb", Timeout: time.Microsecond, BackoffMin: time.Hour})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"name", "heartbeat", "pause", "upstream"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention the %s: %v", want, err)
		}
	}
}
