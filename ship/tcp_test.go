package ship_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

// onTCP starts a leader on a loopback port.
func onTCP(t testing.TB, n *node, o *ship.LeaderOptions) (l *ship.Leader, addr string, stop func()) {
	t.Helper()
	l, err := ship.NewLeader(n, o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Serve(ln) }()
	return l, ln.Addr().String(), func() {
		if err := l.Shutdown(t.Context()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; !errors.Is(err, ship.ErrLeaderClosed) {
			t.Errorf("serve: %v", err)
		}
	}
}

// diskNode opens a node in a directory of the host's file system, with segments of the given size.
func diskNode(t testing.TB, segment int64) *node {
	t.Helper()
	l, err := wal.Open(t.TempDir(), &wal.Options{SegmentSize: segment})
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(l)
	t.Cleanup(n.close)
	return n
}

// certificate returns a self-signed certificate for 127.0.0.1, for both sides.
func certificate(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "shiplog test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}

func TestOverTCP(t *testing.T) {
	server, client := certificate(t)
	for name, c := range map[string]struct{ server, client *tls.Config }{"plain": {}, "tls": {server, client}} {
		t.Run(name, func(t *testing.T) {
			rng := seeded(t, 1)
			l := diskNode(t, 1<<20)
			if err := l.log.Create(wal.Rule{}); err != nil {
				t.Fatal(err)
			}
			l.fill(t, 3<<20, rng)
			leader, addr, stop := onTCP(t, l, &ship.LeaderOptions{Secret: secret, TLS: c.server})
			defer stop()
			o := ship.FollowerOptions{Secret: secret, Upstream: addr, TLS: c.client}
			n := diskNode(t, 1<<20)
			f := startFollower(t, n, o)
			f.reaches(l.log.Head())
			samePrefix(t, l.log, n.log)
			if st := f.f.Status(); st.Attempts != 1 {
				t.Errorf("%d connections, the last ended with %v", st.Attempts, st.LastError)
			}
			until(t, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
			for range 200 {
				end := l.write(t, 1+rng.IntN(9000), rng)
				leader.Push()
				until(t, "acknowledged", func() bool { return l.acked(n.log.NodeID()).Durable >= end })
				l.moveCommitted(l.commit())
			}
			f.reaches(l.log.Head())
			samePrefix(t, l.log, n.log)
			f.stop()
			// In the middle of writes, from the start, with a restart between.
			late := diskNode(t, 1<<20)
			f = startFollower(t, late, o)
			l.fill(t, 1<<20, rng)
			f.stop()
			l.fill(t, 1<<20, rng)
			f = startFollower(t, late, o)
			f.reaches(l.log.Head())
			samePrefix(t, l.log, late.log)
			f.stop()
		})
	}
}

// TestOneSideSpeaksTLS: where only one of two nodes speaks TLS, both say so.
func TestOneSideSpeaksTLS(t *testing.T) {
	server, client := certificate(t)
	for _, c := range []struct {
		name             string
		server, client   *tls.Config
		follower, leader string
	}{
		{"plain follower", server, nil, "it may want TLS", "first record does not look like a TLS handshake"},
		{"plain leader", nil, client, "the peer may speak no TLS", "it speaks TLS, and this node does not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var logged syncBuffer
			_, addr, stop := onTCP(t, newLeaderNode(t), &ship.LeaderOptions{Secret: secret, TLS: c.server, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			defer stop()
			f := startFollower(t, newFollowerNode(t), ship.FollowerOptions{Secret: secret, Upstream: addr, TLS: c.client})
			defer f.stop()
			var err error
			until(t, "an error that is not for lack of time", func() bool {
				err = f.f.Status().LastError
				return err != nil && !errors.Is(err, ship.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded)
			})
			if !strings.Contains(err.Error(), c.follower) {
				t.Errorf("the follower says: %v", err)
			}
			until(t, "the leader's line", func() bool { return strings.Contains(logged.String(), c.leader) })
		})
	}
}

// TLS that ends at a man in the middle with a certificate that the follower takes does not carry the proof on: it is
// bound to the connection.
func TestProofIsBoundToTLS(t *testing.T) {
	server, _ := certificate(t)
	l := newLeaderNode(t)
	_, addr, stop := onTCP(t, l, &ship.LeaderOptions{Secret: secret, TLS: server})
	defer stop()
	trusting := &tls.Config{InsecureSkipVerify: true}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := tls.Dial("tcp", addr, trusting)
			if err != nil {
				a.Close()
				continue
			}
			go relay(a, b)
			go relay(b, a)
		}
	}()
	n := newFollowerNode(t)
	f := startFollower(t, n, ship.FollowerOptions{Secret: secret, Upstream: ln.Addr().String(), TLS: trusting})
	until(t, "refused", func() bool { return errors.Is(f.f.Status().LastError, ship.ErrAuth) })
	f.stop()
	if !n.log.Empty() {
		t.Error("something was written")
	}
}

func relay(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
