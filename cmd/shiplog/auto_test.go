package main

import (
	"context"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// etcdServer is a real etcd of one member.
type etcdServer struct {
	t        testing.TB
	cmd      *exec.Cmd
	endpoint string
	args     []string
}

// startEtcd runs Debian's etcd, or skips the test. Its heartbeats are short, so that leases of a second are possible.
func startEtcd(t testing.TB) *etcdServer {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("etcd is not installed (Debian: etcd-server)")
	}
	addrs := ports(t, 2)
	client, peer := "http://"+addrs[0], "http://"+addrs[1]
	e := &etcdServer{t: t, endpoint: addrs[0], args: []string{
		"--data-dir", t.TempDir(), "--name", "e", "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "e=" + peer,
		"--heartbeat-interval", "50", "--election-timeout", "250", "--log-level", "error",
	}}
	e.start()
	return e
}

func (e *etcdServer) start() {
	e.t.Helper()
	e.cmd = exec.Command("etcd", e.args...)
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	cmd := e.cmd
	e.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	for end := time.Now().Add(30 * time.Second); ; {
		res, err := http.Get("http://" + e.endpoint + "/health")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				http.DefaultClient.CloseIdleConnections()
				return
			}
		}
		if time.Now().After(end) {
			e.t.Fatal("etcd does not answer: ", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (e *etcdServer) kill() {
	e.t.Helper()
	if err := e.cmd.Process.Kill(); err != nil {
		e.t.Fatal(err)
	}
	e.cmd.Wait()
}

// leased starts a group of nodes whose leader etcd chooses, and waits until the others count.
func leased(t testing.TB, e *etcdServer, rule, ttl string, names ...string) []*process {
	t.Helper()
	dir := t.TempDir()
	var nodes []*process
	for _, name := range names {
		p := newNode(t, filepath.Join(dir, name), "--name", name, "--commit", rule, "--etcd", e.endpoint, "--group", "g", "--lease-ttl", ttl)
		p.relaunch()
		nodes = append(nodes, p)
		p.until("it has a role", func() bool { return p.status().DatabaseID != "" })
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	whole(nodes)
	return nodes
}

// leading waits until one of the nodes leads, and returns it. A node that is stopped or dead does not.
func leading(nodes []*process) *process {
	var leader *process
	nodes[0].until("somebody leads", func() bool {
		for _, p := range nodes {
			if p.cmd.ProcessState != nil {
				continue
			}
			c := redis.NewClient(&redis.Options{Addr: p.resp, MaxRetries: -1, DialTimeout: 100 * time.Millisecond, ReadTimeout: 100 * time.Millisecond})
			role, err := c.Do(context.Background(), "ROLE").Slice()
			c.Close()
			if err == nil && role[0] == "master" {
				leader = p
				return true
			}
		}
		return false
	})
	return leader
}

// whole waits until the leader counts all others.
func whole(nodes []*process) *process {
	leader := leading(nodes)
	for _, p := range nodes {
		if p != leader {
			leader.until(filepath.Base(p.dir)+" counts", func() bool { return leaderHas(leader, filepath.Base(p.dir)) })
		}
	}
	return leader
}

func sendSignal(t testing.TB, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func without(nodes []*process, p *process) (rest []*process) {
	for _, q := range nodes {
		if q != p {
			rest = append(rest, q)
		}
	}
	return rest
}

// TestAutomaticFailover kills the leader of three under load, twice: a follower takes over by itself, nothing that was acknowledged is lost,
// who was killed comes back as a follower, and clients are told where the leader is.
func TestAutomaticFailover(t *testing.T) {
	nodes := leased(t, startEtcd(t), "replicated:1", "1s", "a", "b", "c")
	w := startWriters(nodes, 64)
	for range 2 {
		old := whole(nodes)
		w.goesOn(old, "writes")
		old.kill()
		floor := w.floor()
		rest := without(nodes, old)
		leader := leading(rest)
		w.goesOn(leader, "writes to the new leader")
		w.check(leader, floor)
		old.relaunch()
		old.until("the old leader follows", func() bool {
			s := old.status()
			return s.Role == "follower" && s.Upstream != nil && s.Upstream.Connected
		})
		err := old.client().Set(context.Background(), "k", "v", 0).Err()
		if err == nil || !strings.HasPrefix(err.Error(), "READONLY ") || !strings.Contains(err.Error(), leader.resp) {
			t.Errorf("a write to a follower: %v, want READONLY and %s", err, leader.resp)
		}
	}
	close(w.stop)
	w.wg.Wait()
	leader := whole(nodes)
	head := leader.status().Head
	for _, p := range nodes {
		p.until("it has all", func() bool { s := p.status(); return s.Visible >= head && s.Head >= head })
		w.check(p, w.floor())
	}
	for _, p := range without(nodes, leader) {
		p.stop()
	}
	leader.stop()
	for _, p := range without(nodes, leader) {
		sameLogs(t, leader.dir, p.dir)
	}
}
