package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
		sameLogs(t, leader.dir, p.dir)
	}
}

// gate is a TCP proxy in front of an address that can be cut off: what is on its way then, and later, stays where it is.
type gate struct {
	ln   net.Listener
	mu   sync.Mutex
	open *sync.Cond
	shut bool
	over bool
	wg   sync.WaitGroup
}

func startGate(t testing.TB, to string) *gate {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{ln: ln}
	g.open = sync.NewCond(&g.mu)
	var conns []net.Conn // guarded by g.mu
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
			conns = append(conns, c, far)
			g.mu.Unlock()
			g.wg.Go(func() { g.copy(far, c) })
			g.wg.Go(func() { g.copy(c, far) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		g.mu.Lock()
		g.over = true
		for _, c := range conns {
			c.Close()
		}
		g.mu.Unlock()
		g.open.Broadcast()
		g.wg.Wait()
	})
	return g
}

func (g *gate) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		g.mu.Lock()
		for g.shut && !g.over {
			g.open.Wait()
		}
		over := g.over
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
	old := whole(nodes)
	rest := without(nodes, old)
	if err := old.client().Set(ctx, "k", "old", 0).Err(); err != nil {
		t.Fatal(err)
	}
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
	var last, first atomic.Int64 // when old has acknowledged last, and other first
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
					if c.Set(ctx, fmt.Sprint("k", i), "v", 0).Err() != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					now := int64(time.Since(t0))
					if p == old {
						last.Store(now) // close enough to the greatest
					} else {
						first.CompareAndSwap(0, now)
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

// TestFailedDiskGivesTheLeaseUp: a leader whose disk fails lets another lead, although it lives and reaches etcd.
func TestFailedDiskGivesTheLeaseUp(t *testing.T) {
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
			p.under = []string{
				strace, "-f", "-qq", "-o", os.DevNull, "-P", filepath.Join(dir, name, "log", "0000000000000000.seg"),
				"-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=100+",
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

// TestLeasedChaos has three nodes with a lease and load go through random faults: the leader killed, stopped beyond its lease or cut off from etcd, etcd
// killed, a follower killed, the lead handed over. After each somebody leads, what was acknowledged is there, and writes go on; at the end the three logs
// hold the same bytes. SHIPLOG_SEED reruns a schedule, SHIPLOG_CHAOS sets the number of faults.
func TestLeasedChaos(t *testing.T) {
	rounds, seed := 3, uint64(time.Now().UnixNano())%1e9
	if testing.Short() {
		rounds = 1
	}
	for name, to := range map[string]func(n uint64){"SHIPLOG_CHAOS": func(n uint64) { rounds = int(n) }, "SHIPLOG_SEED": func(n uint64) { seed = n }} {
		if s := os.Getenv(name); s != "" {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			to(n)
		}
	}
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 11))
	e := etcdtest.Start(t)
	dir := t.TempDir()
	var nodes []*process
	gates := map[*process]*gate{}
	for _, name := range []string{"a", "b", "c"} {
		g := startGate(t, e.Endpoint)
		p := newNode(t, filepath.Join(dir, name), "--name", name, "--commit", "replicated:1", "--etcd", g.ln.Addr().String(), "--group", "g", "--lease-ttl", "1s")
		p.relaunch()
		p.until("it has a role", func() bool { return p.status().DatabaseID != "" })
		nodes, gates[p] = append(nodes, p), g
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	whole(nodes)
	w := startWriters(nodes, 6)
	counts := map[string]int{}
	for range rounds {
		old := whole(nodes)
		rest := without(nodes, old)
		w.goesOn(old, "writes")
		var heal func()
		fault := []string{"kill the leader", "stop the leader", "cut the leader off from etcd", "kill etcd", "kill a follower", "hand over"}[rng.IntN(6)]
		t.Logf("%s, leader %s", fault, filepath.Base(old.dir))
		counts[fault]++
		floor := w.floor()
		switch fault {
		case "kill the leader":
			old.kill()
			heal = old.relaunch
		case "stop the leader":
			sendSignal(t, old, syscall.SIGSTOP)
			heal = func() { sendSignal(t, old, syscall.SIGCONT) }
		case "cut the leader off from etcd":
			gates[old].set(true)
			heal = func() { gates[old].set(false) }
		case "kill etcd":
			e.Kill()
			for _, p := range nodes {
				p.until("nobody leads", func() bool { return p.status().Role == "follower" })
			}
			e.Run()
			rest, heal = nodes, func() {}
		case "kill a follower":
			victim := rest[rng.IntN(2)]
			victim.kill()
			rest, heal = without(nodes, victim), victim.relaunch
		case "hand over":
			host, port, _ := net.SplitHostPort(rest[0].resp)
			old.until("the failover begins", func() bool { return old.client().Do(context.Background(), "FAILOVER", "TO", host, port).Err() == nil })
			old.until("it has handed over", func() bool { return old.status().Role == "follower" })
			rest, heal = nodes, func() {}
		}
		leader := leading(rest)
		w.goesOn(leader, "writes after the fault")
		w.check(leading(rest), floor)
		heal()
	}
	leader := whole(nodes)
	w.goesOn(leader, "last writes")
	close(w.stop)
	w.wg.Wait()
	leader = whole(nodes)
	floor, head := w.floor(), leader.status().Head
	for _, p := range nodes {
		p.until("it has all", func() bool { s := p.status(); return s.Head >= head && s.Visible >= head })
		w.check(p, floor)
	}
	for _, p := range without(nodes, leader) {
		p.stop()
	}
	leader.stop()
	for _, p := range without(nodes, leader) {
		sameUpTo(t, leader.dir, p.dir, head)
	}
	t.Logf("%d writes acknowledged; faults: %v", w.sum(), counts)
}

// TestFailoverTimes kills the leader under 64 writers again and again, under replicated:1 and durable. It prints how long it takes until the next
// write is accepted, and what was lost: nothing under replicated:1; under durable what the new leader lacks, each write of which is
// in diverged/ of the old leader when that is back. Every other time under durable the followers are stopped shortly before. SHIPLOG_FAILOVERS sets how many kills (default 1 a rule), SHIPLOG_LEASE_TTL the lease.
func TestFailoverTimes(t *testing.T) {
	kills, ttl := 1, "1s"
	if s := os.Getenv("SHIPLOG_FAILOVERS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SHIPLOG_LEASE_TTL"); s != "" {
		ttl = s
	}
	for _, rule := range []string{"replicated:1", "durable"} {
		t.Run(rule, func(t *testing.T) {
			nodes := leased(t, etcdtest.Start(t), rule, ttl, "a", "b", "c")
			var took, promotions []time.Duration
			acked, lost := make([]int64, 64), 0
			total := int64(0)
			for i := range kills {
				old := whole(nodes)
				var lagging []*process
				if rule == "durable" && i%2 == 0 {
					lagging = without(nodes, old)
				}
				before, base := sumOf(acked), slices.Clone(acked)
				writeUntilKilled(t, old, lagging, acked, before+2000)
				d, leader := firstWrite(t, without(nodes, old))
				took = append(took, d)
				promotions = append(promotions, promotionOf(leader))
				missing := missingAt(t, leader, base, acked)
				if rule != "durable" && len(missing) > 0 {
					t.Fatalf("lost under %s: %q", rule, missing)
				}
				total += sumOf(acked) - before
				lost += len(missing)
				old.relaunch()
				old.until("the old leader follows", func() bool {
					s := old.status()
					return s.Role == "follower" && s.Upstream != nil && s.Upstream.Connected
				})
				for _, m := range missing {
					if !inDiverged(t, old, m) {
						t.Errorf("a lost write is not in diverged/: %q", m)
					}
				}
			}
			slices.Sort(took)
			slices.Sort(promotions)
			t.Logf("%s, lease %s, %d kills under 64 writers: first accepted write after %v (median), %v (worst); of that the promotion %v (median), %v (worst); %d writes acknowledged, %d lost, all in diverged/",
				rule, ttl, kills, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond),
				promotions[len(promotions)/2], promotions[len(promotions)-1], total, lost)
		})
	}
}

func sumOf(acked []int64) (n int64) {
	for _, a := range acked {
		n += a
	}
	return n
}

// writeUntilKilled has a writer for each key count it up at the leader, and kills the leader once enough is acknowledged, the last quarter of it
// while the lagging nodes are stopped. Values go on from acked.
func writeUntilKilled(t *testing.T, p *process, lagging []*process, acked []int64, enough int64) {
	t.Helper()
	var sum atomic.Int64
	sum.Store(sumOf(acked))
	quarter := (enough - sum.Load()) / 4
	var wg sync.WaitGroup
	for i := range acked {
		c := p.client()
		wg.Go(func() {
			for v := acked[i] + 2; ; v++ { // one more than what was tried: a value is written once
				if c.Set(context.Background(), fmt.Sprint("writer", i), v, 0).Err() != nil {
					return
				}
				sum.Add(v - acked[i])
				acked[i] = v // the gap before the first is one that was never written
			}
		})
	}
	p.until("writes", func() bool { return sum.Load() >= enough-quarter })
	for _, q := range lagging {
		sendSignal(t, q, syscall.SIGSTOP)
	}
	p.until("writes", func() bool { return sum.Load() >= enough })
	p.kill()
	for _, q := range lagging {
		sendSignal(t, q, syscall.SIGCONT)
	}
	wg.Wait()
}

// firstWrite waits for the first write that one of the nodes accepts.
func firstWrite(t *testing.T, nodes []*process) (time.Duration, *process) {
	t.Helper()
	began := time.Now()
	var by atomic.Pointer[process]
	var wg sync.WaitGroup
	for _, p := range nodes {
		c := p.client()
		wg.Go(func() {
			for by.Load() == nil && time.Since(began) < time.Minute {
				if c.Set(context.Background(), "probe", "x", 0).Err() == nil {
					by.CompareAndSwap(nil, p)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	nodes[0].until("a write is accepted", func() bool { return by.Load() != nil })
	d := time.Since(began)
	wg.Wait()
	return d, by.Load()
}

var promotion = regexp.MustCompile(`msg="took over".* promotion=(\S+)`)

// promotionOf is how long the last promotion of a node took, as its log says.
func promotionOf(p *process) time.Duration {
	all := promotion.FindAllStringSubmatch(p.stderr.String(), -1)
	if len(all) == 0 {
		return 0
	}
	d, _ := time.ParseDuration(all[len(all)-1][1])
	return d
}

// missingAt lists the records of acknowledged writes of this round that a node lacks, as they stand in a log that is not compressed.
func missingAt(t *testing.T, p *process, base, acked []int64) (missing []string) {
	t.Helper()
	c := p.client()
	for i, last := range acked {
		key := fmt.Sprint("writer", i)
		var got int64
		p.until("reads", func() bool {
			var err error
			got, err = c.Get(context.Background(), key).Int64()
			return err == nil || err == redis.Nil
		})
		for v := max(got+1, base[i]+2); v <= last; v++ {
			value := fmt.Sprint(v)
			missing = append(missing, key+string(rune(len(value)))+value)
		}
	}
	return missing
}

// inDiverged looks for a record in what a node has cut.
func inDiverged(t *testing.T, p *process, record string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "diverged", "*.cut"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(data, []byte(record))
	})
}
