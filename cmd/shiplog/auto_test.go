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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"shiplog/cmd/shiplog/internal/etcdtest"
)

// leased starts a group of nodes whose leader etcd chooses, and waits until the others count.
func leased(t testing.TB, e *etcdtest.Server, rule, ttl string, names ...string) []*process {
	t.Helper()
	dir := t.TempDir()
	var nodes []*process
	for _, name := range names {
		p := newNode(t, filepath.Join(dir, name), "--name", name, "--commit", rule, "--etcd", e.Endpoint, "--group", "g", "--lease-ttl", ttl, "--compression", "none")
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
			name := filepath.Base(p.dir)
			leader.until(name+" counts, and may lead next", func() bool {
				s := leader.status()
				return leaderHas(leader, name) && s.Lease != nil && slices.Contains(s.Lease.Eligible, name)
			})
		}
	}
	allCount(leader, slices.DeleteFunc(slices.Clone(nodes), func(p *process) bool { return p == leader })...)
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
	nodes := leased(t, etcdtest.Start(t), "replicated:1", "2s", "a", "b", "c")
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
		leader = leading(nodes) // on a busy machine the lead may have changed once more
		c := without(nodes, leader)[0].client()
		leader.until("a write to a follower is answered with the leader's address", func() bool {
			err := c.Set(context.Background(), "k", "v", 0).Err()
			return err != nil && strings.HasPrefix(err.Error(), "READONLY ") && strings.HasSuffix(err.Error(), " "+leader.resp)
		})
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
		sameUpTo(t, leader.dir, p.dir, head)
	}
}

// gate is a TCP proxy in front of an address that can be cut off: what is on its way then, and later, stays where it is.
type gate struct {
	ln   net.Listener
	mu   sync.Mutex
	open *sync.Cond
	shut bool
	over bool
	left int // bytes that still come back before it shuts by itself; 0: any number
	came int // bytes that have come back

	conns []net.Conn
	wg    sync.WaitGroup
}

func startGate(t testing.TB, to string) *gate {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{ln: ln}
	g.open = sync.NewCond(&g.mu)
	g.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			g.mu.Lock()
			g.conns = append(g.conns, c, far)
			g.mu.Unlock()
			g.wg.Go(func() { g.copy(far, c, false) })
			g.wg.Go(func() { g.copy(c, far, true) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		g.mu.Lock()
		g.over = true
		g.mu.Unlock()
		g.hangUp()
		g.wg.Wait()
	})
	return g
}

// hangUp ends all connections.
func (g *gate) hangUp() {
	g.mu.Lock()
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
	g.mu.Unlock()
	g.open.Broadcast()
}

func (g *gate) copy(to, from net.Conn, back bool) {
	defer to.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		g.mu.Lock()
		for g.shut && !g.over {
			g.open.Wait()
		}
		over := g.over
		if back {
			g.came += n
		}
		if back && g.left > 0 {
			g.left = max(0, g.left-n)
			g.shut = g.left == 0
		}
		g.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil || over {
			return
		}
	}
}

// leave lets so many bytes come back, and shuts the gate.
func (g *gate) leave(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = n
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	g.shut = shut
	g.mu.Unlock()
	g.open.Broadcast()
}

// TestStoppedLeaderOutlivesItsLease: a leader that was stopped beyond its lease, and goes on, acknowledges none of the writes that reached it
// meanwhile, under a rule that no promise protects, and follows.
func TestStoppedLeaderOutlivesItsLease(t *testing.T) {
	ctx := context.Background()
	nodes := leased(t, etcdtest.Start(t), "durable", "1s", "a", "b")
	var old *process
	nodes[0].until("a write", func() bool { // on a busy machine the lead may change in between
		old = whole(nodes)
		return old.client().Set(ctx, "k", "old", 0).Err() == nil
	})
	rest := without(nodes, old)
	rest[0].until("the follower has it", func() bool { return rest[0].client().Get(ctx, "k").Val() == "old" })
	const pending = 32
	var clients []*redis.Client
	for range pending {
		c := redisNoTimeout(old)
		if err := c.Ping(ctx).Err(); err != nil { // connected before the node is stopped
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	sendSignal(t, old, syscall.SIGSTOP)
	if _, err := syscall.Wait4(old.cmd.Process.Pid, nil, syscall.WUNTRACED, nil); err != nil { // until it has stopped
		t.Fatal(err)
	}
	answers := make(chan error, pending)
	for _, c := range clients {
		go func() { answers <- c.Set(ctx, "k", "late", 0).Err() }()
	}
	leader := leading(rest)
	leader.until("a write to the new leader", func() bool { return leader.client().Set(ctx, "k", "new", 0).Err() == nil })
	sendSignal(t, old, syscall.SIGCONT)
	for range pending {
		if err := <-answers; err == nil {
			t.Error("a write that came after the end of the lease was acknowledged")
		}
	}
	c := old.client()
	old.until("it follows", func() bool { return c.Get(ctx, "k").Val() == "new" })
	if got := leader.client().Get(ctx, "k").Val(); got != "new" {
		t.Errorf("the new leader shows %q", got)
	}
}

// TestEtcdIsAway: without etcd the leader leads until its lease ends, then nobody takes writes and nobody is promoted; when etcd is back
// writes go on, and nothing is lost.
func TestEtcdIsAway(t *testing.T) {
	e := etcdtest.Start(t)
	nodes := leased(t, e, "replicated:1", "1s", "a", "b", "c")
	w := startWriters(nodes, 8)
	old := whole(nodes)
	w.goesOn(old, "writes")
	epoch := old.status().Epoch
	e.Kill()
	for _, p := range nodes {
		p.until("nobody leads", func() bool { return p.status().Role == "follower" })
	}
	stopped := w.sum()
	floor := w.floor()
	for _, p := range nodes {
		if err := p.client().Set(context.Background(), "k", "v", 0).Err(); err == nil {
			t.Errorf("%s takes a write without etcd", p.dir)
		}
		if s := p.status(); s.Epoch != epoch {
			t.Errorf("%s has begun epoch %s without etcd", p.dir, s.Epoch)
		}
	}
	if w.sum() != stopped {
		t.Errorf("%d writes acknowledged without etcd", w.sum()-stopped)
	}
	e.Run()
	leader := leading(nodes)
	w.goesOn(leader, "writes with etcd")
	w.check(leader, floor)
	close(w.stop)
	w.wg.Wait()
	w.check(leading(nodes), w.floor())
}

// TestLeaderWithoutEtcd: a leader that reaches its followers and not etcd acknowledges its last write before another node acknowledges its first,
// under a rule that no promise protects.
func TestLeaderWithoutEtcd(t *testing.T) {
	ctx := context.Background()
	e := etcdtest.Start(t)
	dir := t.TempDir()
	var nodes []*process
	gates := map[*process]*gate{}
	for _, name := range []string{"a", "b"} {
		g := startGate(t, e.Endpoint)
		p := newNode(t, filepath.Join(dir, name), "--name", name, "--commit", "durable", "--etcd", g.ln.Addr().String(), "--group", "g", "--lease-ttl", "2s")
		p.relaunch()
		p.until("it has a role", func() bool { return p.status().DatabaseID != "" })
		nodes, gates[p] = append(nodes, p), g
	}
	old := whole(nodes)
	other := without(nodes, old)[0]
	var last, first atomic.Int64 // when old was asked last for what it acknowledged, and when other acknowledged first
	stop := make(chan struct{})
	var wg sync.WaitGroup
	t0 := time.Now()
	for _, p := range nodes {
		for i := range 4 {
			c := p.client()
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					asked := int64(time.Since(t0))
					if c.Set(ctx, fmt.Sprint("k", i), "v", 0).Err() != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					if p == old {
						last.Store(asked) // close enough to the greatest; an answer may wait for this process, however long
					} else {
						first.CompareAndSwap(0, int64(time.Since(t0)))
					}
				}
			})
		}
	}
	old.until("writes", func() bool { return last.Load() != 0 })
	gates[old].set(true)
	other.until("the other takes over", func() bool { return first.Load() != 0 })
	if last.Load() >= first.Load() {
		t.Errorf("the old leader acknowledged %v after the new one", time.Duration(last.Load()-first.Load()))
	}
	gates[old].set(false)
	old.until("the old leader follows", func() bool { s := old.status(); return s.Upstream != nil && s.Upstream.Connected })
	close(stop)
	wg.Wait()
	if last.Load() >= first.Load() {
		t.Errorf("the old leader acknowledged %v after the new one", time.Duration(last.Load()-first.Load()))
	}
}

// TestWhoMissedTheDegradedSpanDoesNotLead: a follower that was away while its leader went on alone is not promoted when the leader has gone; the
// leader is, when it is back, and has what it acknowledged alone.
func TestWhoMissedTheDegradedSpanDoesNotLead(t *testing.T) {
	ctx := context.Background()
	nodes := leased(t, etcdtest.Start(t), "replicated:1", "1s", "a", "b")
	for _, p := range nodes {
		p.args = append(p.args, "--too-few", "degrade", "--degrade-after", "1ms")
		p.stop()
	}
	for _, p := range nodes {
		p.relaunch()
	}
	old := whole(nodes)
	other := without(nodes, old)[0]
	c := old.client()
	old.until("a write", func() bool { return c.Set(ctx, "k", "1", 0).Err() == nil })
	other.until("the follower has it", func() bool { return other.client().Get(ctx, "k").Val() == "1" })
	other.kill()
	old.until("a write alone", func() bool { return c.Set(ctx, "k", "2", 0).Err() == nil })
	old.kill()
	other.relaunch()
	other.until("it knows that it may not lead", func() bool { return strings.Contains(other.stderr.String(), "it is not in the eligible set") })
	if s := other.status(); s.Role != "follower" {
		t.Fatalf("it is the %s", s.Role)
	}
	old.relaunch()
	old.until("the old leader leads", func() bool { return old.status().Role == "leader" })
	old.until("nothing is lost", func() bool { return c.Get(ctx, "k").Val() == "2" })
}

// TestNoLeaseWithoutVoters: a node that too few voters answer does not take the lease, although it is eligible and nobody has it; when enough do, somebody leads, and nothing
// is lost.
func TestNoLeaseWithoutVoters(t *testing.T) {
	ctx := context.Background()
	nodes := leased(t, etcdtest.Start(t), "replicated:1", "1s", "a", "b", "c")
	nodes[0].until("a write", func() bool { // on a busy machine the lead may change in between
		return whole(nodes).client().Set(ctx, "k", "v", 0).Err() == nil
	})
	for _, p := range nodes {
		p.kill()
	}
	alone, other := nodes[0], nodes[1]
	before, said := len(alone.stderr.String()), ""
	alone.relaunch()
	alone.until("it does not stand", func() bool {
		said = alone.stderr.String()[before:]
		return strings.Contains(said, errFewAnswer.Error()) || strings.Contains(said, "not promoted")
	})
	if strings.Contains(said, "not promoted") {
		t.Error("a node alone took the lease")
	}
	other.relaunch()
	two := []*process{alone, other}
	alone.until("nothing is lost", func() bool { return leading(two).client().Get(ctx, "k").Val() == "v" })
}

// TestFailedDiskGivesTheLeaseUp: a leader whose disk fails, or does not answer any more, lets another lead, although it lives and reaches etcd.
func TestFailedDiskGivesTheLeaseUp(t *testing.T) {
	for name, inject := range map[string]string{"fails": "inject=fdatasync:error=EIO:when=100+", "is silent": "inject=fdatasync:delay_enter=100000000:when=100+"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failedDisk(t, inject)
		})
	}
}

func failedDisk(t *testing.T, inject string) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if out, err := exec.Command(strace, "-qq", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("strace cannot trace here: %v %s", err, out)
	}
	e := etcdtest.Start(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*process
	for _, name := range []string{"a", "b", "c"} {
		p := newNode(t, filepath.Join(dir, name), "--name", name, "--commit", "replicated:1", "--etcd", e.Endpoint, "--group", "g", "--lease-ttl", "2s")
		if name == "a" {
			p.args = append(p.args, "--stall-timeout", "2s")
			p.under = []string{
				strace, "-f", "-qq", "-o", os.DevNull, "-P", filepath.Join(dir, name, "log", "0000000000000000.seg"),
				"-e", "trace=fdatasync", "-e", inject,
			}
		}
		p.relaunch()
		p.until("it has a role", func() bool { return p.status().DatabaseID != "" })
		nodes = append(nodes, p)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	whole(nodes)
	w := startWriters(nodes, 4)
	nodes[0].until("its disk has failed", func() bool { return nodes[0].status().Failed != "" })
	floor := w.floor()
	leader := leading(nodes[1:])
	w.goesOn(leader, "writes to the new leader")
	w.check(leader, floor)
	close(w.stop)
	w.wg.Wait()
}
