package ship_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
)

// Strangers who come all the time and say nothing keep no follower out, and do not fill the log.
func TestSilentCrowdKeepsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		l := smallLog(t, seeded(t, 1))
		c := startLeader(t, l, &ship.LeaderOptions{Secret: secret, MaxHandshakes: 8, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		crowd := make(chan []net.Conn)
		go func() { // ended by cancel
			var conns []net.Conn
			for ctx.Err() == nil {
				nc, err := c.ln.dial(func(up, down *stream) { up.limit, down.limit = 256, 256 })
				if err != nil {
					break
				}
				conns = append(conns, nc)
				time.Sleep(10 * time.Millisecond)
			}
			crowd <- conns
		}()
		time.Sleep(time.Second)
		began := time.Now()
		n := newFollowerNode(t)
		f := c.follow(n, ship.FollowerOptions{Secret: secret}, nil)
		f.reaches(l.log.Head())
		if d := time.Since(began); d > time.Second {
			t.Errorf("a follower was kept out for %v", d)
		}
		time.Sleep(time.Minute)
		cancel()
		conns := <-crowd
		f.stop()
		for _, nc := range conns {
			_, _ = hangsUp(t, nc)
		}
		c.stop()
		if lines := strings.Count(logs.String(), "hung up in the handshake"); len(conns) < 5000 || lines > 100 || lines == 0 {
			t.Errorf("%d lines in the log about %d strangers", lines, len(conns))
		}
		if !strings.Contains(logs.String(), "lines_left_out=9") {
			t.Error("the log does not say how much it leaves out")
		}
	})
}

// Two nodes with one node ID, as two machines have that run the image of one disk, take each other's place: ever more seldom, also while
// each of them brings its log further, and the reason says what to look at.
func TestTwoNodesOfOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 8)
		l := smallLog(t, rng)
		c := startLeader(t, l, nil)
		defer c.stop()
		n, f1 := c.joined(ship.FollowerOptions{})
		f2 := c.follow(n, ship.FollowerOptions{}, nil)
		var replaced error
		for range 600 {
			l.write(t, 100, rng)
			time.Sleep(100 * time.Millisecond)
			if err := f1.f.Status().LastError; errors.Is(err, ship.ErrReplaced) {
				replaced = err
			}
		}
		f1.stop()
		f2.stop()
		if n := f1.f.Status().Attempts + f2.f.Status().Attempts; n > 100 || n < 4 {
			t.Errorf("%d connections in a minute", n)
		}
		if replaced == nil || !strings.Contains(replaced.Error(), "one disk is a copy of the other") {
			t.Errorf("the reason is %v", replaced)
		}
	})
}

// A follower whose upstream is not there says so, and not again and again.
func TestUnreachableUpstreamIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		gone := io.ErrClosedPipe
		f := startFollower(t, newFollowerNode(t), ship.FollowerOptions{
			Logger: slog.New(slog.NewTextHandler(&logs, nil)), Dial: func(context.Context) (net.Conn, error) { return nil, gone },
		})
		time.Sleep(10*time.Minute + time.Second)
		f.stop()
		if n := strings.Count(logs.String(), "upstream not reached"); n < 5 || n > 11 {
			t.Errorf("%d lines in ten minutes, %d attempts:\n%.600s", n, f.f.Status().Attempts, logs.String())
		}
	})
}
