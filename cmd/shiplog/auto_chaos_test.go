package main

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"shiplog/cmd/shiplog/internal/etcdtest"
)

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
