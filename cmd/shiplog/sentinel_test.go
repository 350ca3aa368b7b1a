package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"shiplog/cmd/shiplog/internal/etcdtest"
)

// three starts a leader a and followers b and c under a rule, and waits until they count.
func three(t *testing.T, rule string) []*process {
	t.Helper()
	dir := t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", rule, "--name", "a")
	a.relaunch()
	nodes := []*process{a}
	for _, name := range []string{"b", "c"} {
		nodes = append(nodes, startNode(t, filepath.Join(dir, name), "--follow", a.ship, "--name", name))
		a.until(name+" counts", func() bool { return leaderHas(a, name) })
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	return nodes
}

// role is what ROLE answers first.
func role(c *redis.Client) string {
	r, err := c.Do(context.Background(), "ROLE").Slice()
	if err != nil || len(r) == 0 {
		return ""
	}
	return fmt.Sprint(r[0])
}

// TestFailoverCommand hands the lead over with Redis's command, to a named follower and to any, loses nothing and says what is not possible; a
// follower that does not come along in time leaves the leader where it is.
func TestFailoverCommand(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes func() []*process
	}{
		{"by hand", func() []*process { return three(t, "replicated:1") }},
		{"with etcd", func() []*process { return leased(t, etcdtest.Start(t), "replicated:1", "2s", "a", "b", "c") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := context.Background()
			nodes := c.nodes()
			w := startWriters(nodes, 4)
			a := leading(nodes)
			w.goesOn(a, "writes")
			rest := without(nodes, a)
			ac := a.client()
			for want, args := range map[string][]any{
				"ERR FAILOVER target HOST and PORT is not a replica.": {"FAILOVER", "TO", "127.0.0.1", "1"},
				"ERR No failover in progress.":                        {"FAILOVER", "ABORT"},
			} {
				if err := ac.Do(ctx, args...).Err(); err == nil || err.Error() != want {
					t.Errorf("%v: %v", args, err)
				}
			}
			if err := rest[0].client().Do(ctx, "FAILOVER").Err(); err == nil || err.Error() != "ERR FAILOVER is not valid when server is a replica." {
				t.Errorf("at a follower: %v", err)
			}
			floor := w.floor()
			host, port, _ := net.SplitHostPort(rest[1].resp)
			if err := ac.Do(ctx, "FAILOVER", "TO", host, port).Err(); err != nil {
				t.Fatal(err)
			}
			next := rest[1].client()
			a.until("the named one leads", func() bool { return role(next) == "master" && role(ac) == "slave" })
			w.goesOn(rest[1], "writes")
			w.check(rest[1], floor)
			rest[1].until("the others count", func() bool {
				return leaderHas(rest[1], filepath.Base(a.dir)) && leaderHas(rest[1], filepath.Base(rest[0].dir))
			})
			rest[1].until("it knows where they serve clients", func() bool { return strings.Contains(next.Info(ctx, "replication").Val(), "slave1:ip=127.0.0.1,port=") })
			sendSignal(t, a, syscall.SIGSTOP)
			host, port, _ = net.SplitHostPort(a.resp)
			if err := next.Do(ctx, "FAILOVER", "TO", host, port, "TIMEOUT", "1").Err(); err != nil {
				t.Fatal(err)
			}
			rest[1].until("the failover is over, and it leads again", func() bool {
				return strings.Contains(next.Info(ctx, "replication").Val(), "master_failover_state:no-failover") && role(next) == "master"
			})
			w.goesOn(rest[1], "writes after all")
			sendSignal(t, a, syscall.SIGCONT)
			floor = w.floor()
			leader := leading(nodes)
			leader.until("a failover to whoever has most", func() bool { return leader.client().Do(ctx, "FAILOVER").Err() == nil })
			leader.until("another leads", func() bool { return role(leader.client()) == "slave" })
			w.goesOn(leading(nodes), "writes")
			w.check(leading(nodes), floor)
			close(w.stop)
			w.wg.Wait()
		})
	}
}

// sentinel runs a real Redis Sentinel that watches the group of a leader, and returns a client of it.
func sentinel(t *testing.T, leader *process) *redis.Client {
	t.Helper()
	if _, err := exec.LookPath("redis-sentinel"); err != nil {
		t.Skip("redis-sentinel is not installed (Debian: redis-sentinel)")
	}
	addr := etcdtest.Addrs(t, 1)[0]
	_, port, _ := net.SplitHostPort(addr)
	dir := t.TempDir()
	host, leads, _ := net.SplitHostPort(leader.resp)
	conf := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("bind 127.0.0.1\nport %s\ndir %s\nlogfile %s\nsentinel monitor g %s %s 1\nsentinel down-after-milliseconds g 2000\n"+
		"sentinel failover-timeout g 5000\nsentinel parallel-syncs g 2\n", port, dir, filepath.Join(dir, "log"), host, leads)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-sentinel", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("sentinel:\n%s", log)
		}
	})
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { c.Close() })
	return c
}

// sentinelSees waits until the sentinel names a node as the master and knows so many replicas that are up.
func sentinelSees(t *testing.T, c *redis.Client, nodes []*process, master *process, replicas int) {
	t.Helper()
	ctx := context.Background()
	nodes[0].until("the sentinel sees "+filepath.Base(master.dir)+" lead", func() bool {
		at, err := c.Do(ctx, "SENTINEL", "get-master-addr-by-name", "g").StringSlice()
		if err != nil || net.JoinHostPort(at[0], at[1]) != master.resp {
			return false
		}
		list, err := c.Do(ctx, "SENTINEL", "replicas", "g").Slice()
		up := 0
		for _, r := range list {
			var text []string
			switch r := r.(type) {
			case []any:
				for _, f := range r {
					text = append(text, fmt.Sprint(f))
				}
			case map[any]any:
				for k, v := range r {
					text = append(text, fmt.Sprint(k), fmt.Sprint(v))
				}
			}
			if i := slices.Index(text, "flags"); i >= 0 && text[i+1] == "slave" && slices.Contains(text, "ok") { // master-link-status
				up++
			}
		}
		return err == nil && up == replicas
	})
}

// TestSentinel has a real Redis Sentinel watch three nodes. It finds the followers, fails over when the leader is killed, and again when the next
// one is stopped; who comes back is a follower, and takes no write in the seconds in which Sentinel has not noticed it yet. Nothing
// that was acknowledged is lost.
func TestSentinel(t *testing.T) {
	if testing.Short() {
		t.Skip("a dozen seconds of Sentinel's patience")
	}
	nodes := three(t, "replicated:1")
	s := sentinel(t, nodes[0])
	w := startWriters(nodes, 8)
	w.goesOn(nodes[0], "writes")
	sentinelSees(t, s, nodes, nodes[0], 2)

	nodes[0].kill()
	floor := w.floor()
	leader := leading(nodes[1:])
	w.goesOn(leader, "writes to the node that Sentinel promoted")
	w.check(leader, floor)
	sentinelSees(t, s, nodes, leader, 1)
	nodes[0].relaunch()
	sentinelSees(t, s, nodes, leader, 2)
	for _, p := range without(nodes, leader) {
		leader.until("all count", func() bool { return leaderHas(leader, filepath.Base(p.dir)) })
	}

	sendSignal(t, leader, syscall.SIGSTOP)
	rest := without(nodes, leader)
	old, next := leader, leading(rest)
	w.goesOn(next, "writes to the second one that Sentinel promoted")
	floor = w.floor()
	sendSignal(t, old, syscall.SIGCONT)
	c := old.client()
	until := time.Now().Add(300 * time.Millisecond)
	for time.Now().Before(until) {
		if err := c.Set(context.Background(), "late", "1", 0).Err(); err == nil {
			t.Fatal("the old leader acknowledged a write after another was promoted")
		}
	}
	w.check(next, floor)
	sentinelSees(t, s, nodes, next, 2)
	close(w.stop)
	w.wg.Wait()
	w.check(next, w.floor())
}
