package ship_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"shiplog/ship"
)

// TestVersionSkew: a follower and a leader of builds that have no version of the protocol, or of the log's format, in common part at the Hello, with an error that names both
// ranges, whichever of the two is newer, and nothing of the log is touched; where the ranges meet they go on.
func TestVersionSkew(t *testing.T) {
	for _, test := range []struct {
		name  string
		other ship.Hello
		want  string // in the error; empty: they go on
	}{
		{"a newer protocol", ship.Hello{MinProtocol: 2, MaxProtocol: 3, MinFormat: 1, MaxFormat: 1}, "protocol: this side speaks 1 to 1, the peer 2 to 3"},
		{"a newer format", ship.Hello{MinProtocol: 1, MaxProtocol: 1, MinFormat: 2, MaxFormat: 4}, "log format: this side ships 1 to 1, the peer 2 to 4"},
		{"newer, and knows this one too", ship.Hello{MinProtocol: 1, MaxProtocol: 3, MinFormat: 1, MaxFormat: 4}, ""},
	} {
		t.Run("the upstream has "+test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newerUpstream(t, test.other, test.want) })
		})
		t.Run("the follower has "+test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newerFollower(t, test.other, test.want) })
		})
	}
}

// newerUpstream has a follower of this build meet an upstream of another one.
func newerUpstream(t *testing.T, other ship.Hello, want string) {
	other.Side, other.Kind = ship.Acceptor, ship.KindStream
	proved := make(chan error, 1)
	n := newFollowerNode(t)
	f := startFollower(t, n, ship.FollowerOptions{Secret: secret, Dial: fakeUpstream(t, func(c net.Conn) {
		_, err := proveAs(c, other)
		select {
		case proved <- err:
		default:
		}
	})})
	if want == "" {
		if err := <-proved; err != nil {
			t.Errorf("the follower does not go on: %v", err)
		}
		f.stop()
		return
	}
	err := <-f.done
	var e *ship.Error
	if !errors.Is(err, ship.ErrVersion) || !errors.As(err, &e) || !e.Final() || !strings.Contains(err.Error(), want) {
		t.Errorf("the follower ended with %v, want a final version error with %q", err, want)
	}
	if !n.Log().Empty() {
		t.Error("something was written")
	}
}

// newerFollower has a leader of this build meet a follower of another one.
func newerFollower(t *testing.T, other ship.Hello, want string) {
	other.Side, other.Kind = ship.Dialer, ship.KindStream
	c := startLeader(t, smallLog(t, seeded(t, 1)), &ship.LeaderOptions{Secret: secret})
	defer c.stop()
	nc, err := c.ln.dial(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if want == "" {
		if _, err := proveAs(nc, other); err != nil {
			t.Errorf("the leader does not go on: %v", err)
		}
		return
	}
	if _, err := nc.Write(ship.AppendHello(nil, other)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(nc)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Logf("the leader hangs up: %v", err)
	}
	if len(said) != ship.HelloSize {
		t.Fatalf("the leader answers with %d bytes, want its Hello and no more", len(said))
	}
	h, err := ship.DecodeHello(said)
	if err != nil || h.MinProtocol != ship.MinProtocol || h.MaxProtocol != ship.MaxProtocol || h.MinFormat != ship.MinFormat || h.MaxFormat != ship.MaxFormat {
		t.Errorf("its Hello does not say what it speaks: %+v, %v", h, err)
	}
	if len(c.leader.Peers()) != 0 {
		t.Error("it is a follower of the leader")
	}
}
