package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestFewDescriptors gives a leader, whose log has more segments than that, few descriptors (ulimit -n), and has more clients come than there are: those who are
// one too many are told so, the others write on over many segments and read all that there is, a follower copies it, and the status is shown.
func TestFewDescriptors(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash, whose ulimit sets the limit")
	}
	const limit, segment, value = 128, 64 << 10, 40 << 10
	ctx, dir := context.Background(), t.TempDir()
	leader := newNode(t, filepath.Join(dir, "leader"), "--segment-size", fmt.Sprint(segment), "--space-factor", "-1", "--compression", "none", "--cache", "-1", "--name", "l")
	leader.under = []string{bash, "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, limit)}
	leader.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(leader.stderr.String())
		}
	})
	client, n := leader.client(), 0
	write := func(segments int) {
		t.Helper()
		for range segments {
			pipe := client.Pipeline()
			for range segment / value {
				pipe.Set(ctx, fmt.Sprint("key", n), strings.Repeat(fmt.Sprint(n%10), value), 0)
				n++
			}
			if _, err := pipe.Exec(ctx); err != nil {
				t.Fatalf("write of key %d: %v", n, err)
			}
		}
	}
	readAll := func(who string, c *redis.Client) {
		t.Helper()
		for i := range n {
			if v, err := c.Get(ctx, fmt.Sprint("key", i)).Result(); err != nil || v != strings.Repeat(fmt.Sprint(i%10), value) {
				t.Fatalf("%s: key %d of %d: %d bytes, %v", who, i, n, len(v), err)
			}
		}
	}
	write(2 * limit)
	readAll("a first client", client)
	readAll("a new client", leader.client())
	if s := leader.status(); s.Role != "leader" {
		t.Fatalf("%+v", s)
	}

	told := 0
	for range 2 * limit {
		c, err := net.Dial("tcp", leader.resp)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("PING\r\n")); err != nil {
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 64)
		got, err := c.Read(answer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a client is not answered at all")
		}
		if s := string(answer[:got]); strings.HasPrefix(s, "-ERR max number of clients") {
			told++
		} else if s != "+PONG\r\n" && s != "" {
			t.Fatalf("PING is answered %q", s)
		}
	}
	if told == 0 {
		t.Error("no client was told that there are too many")
	}
	write(10)
	readAll("among many clients", client)
	follower := startNode(t, filepath.Join(dir, "follower"), "--follow", leader.ship, "--name", "f")
	head := leader.status().Committed
	follower.until("the follower has all", func() bool { return follower.status().Visible >= head })
	readAll("the follower", follower.client())
	if s := leader.status(); s.Failed != "" || len(s.Followers) != 1 {
		t.Errorf("%+v", s)
	}
	if err := client.ConfigSet(ctx, "maxclients", fmt.Sprint(limit)).Err(); err == nil || !strings.Contains(err.Error(), "not able to handle") {
		t.Errorf("more clients than there are descriptors: %v", err)
	}
	follower.stop()
	leader.stop()
}
