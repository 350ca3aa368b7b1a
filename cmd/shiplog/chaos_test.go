package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestChaos has three nodes under replicated:1 and load go through random faults: kills of the leader and of followers, stopped leaders that
// wake up after another was promoted, switchovers, everybody killed at once. After each, what was acknowledged is there, and
// writes go on; at the end the three logs hold the same bytes. SHIPLOG_SEED reruns a schedule, SHIPLOG_CHAOS sets the number of faults.
func TestChaos(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	if s := os.Getenv("SHIPLOG_CHAOS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano()) % 1e9
	if s := os.Getenv("SHIPLOG_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("seed", seed)
	g := newGroup(t, rand.New(rand.NewPCG(seed, 9)))
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range g.nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	w := startWriters(g.nodes, 6)
	w.goesOn(g.leader(), "first writes")
	counts := map[string]int{}
	for round := range rounds {
		fault := g.faults()[g.rng.IntN(len(g.faults()))]
		t.Logf("%d: %s, leader %s", round, fault.name, filepath.Base(g.leader().dir))
		counts[fault.name]++
		fault.run(w)
		g.whole()
		leader := g.leader()
		floor := w.floor()
		w.goesOn(leader, "writes after "+fault.name)
		w.check(leader, floor)
	}
	close(w.stop)
	w.wg.Wait()
	floor, leader := w.floor(), g.leader()
	head := leader.status().Head
	for _, p := range g.nodes {
		p.until("it has all", func() bool { s := p.status(); return s.Head >= head && s.Visible >= head })
		w.check(p, floor)
	}
	for _, p := range g.nodes {
		if p != leader {
			p.stop()
		}
	}
	leader.stop()
	for _, p := range g.nodes {
		if p != leader {
			sameUpTo(t, leader.dir, p.dir, head)
		}
	}
	t.Logf("%d writes acknowledged; faults: %v", w.sum(), counts)
}

// group is three nodes, one of which leads.
type group struct {
	t     *testing.T
	rng   *rand.Rand
	nodes []*process
}

func newGroup(t *testing.T, rng *rand.Rand) *group {
	dir := t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:1", "--name", "a")
	a.relaunch()
	g := &group{t: t, rng: rng, nodes: []*process{a}}
	for _, name := range []string{"b", "c"} {
		g.nodes = append(g.nodes, startNode(t, filepath.Join(dir, name), "--follow", a.ship, "--name", name))
	}
	g.whole()
	return g
}

// leader waits until exactly one node leads the highest epoch, and returns it.
func (g *group) leader() *process {
	g.t.Helper()
	var leader *process
	g.nodes[0].until("somebody leads", func() bool {
		leader = nil
		for _, p := range g.nodes {
			if s := p.status(); s.Role == "leader" && s.FencedBy == "" {
				if leader != nil {
					return false
				}
				leader = p
			}
		}
		return leader != nil
	})
	return leader
}

// whole waits until the leader counts both others.
func (g *group) whole() {
	g.t.Helper()
	leader := g.leader()
	allCount(leader, g.others(leader)...)
}

// others are the nodes besides one, in random order.
func (g *group) others(p *process) []*process {
	rest := slices.DeleteFunc(slices.Clone(g.nodes), func(q *process) bool { return q == p })
	g.rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return rest
}

type fault struct {
	name string
	run  func(w *writers)
}

func (g *group) faults() []fault {
	return []fault{
		{"kill the leader", func(w *writers) {
			old := g.leader()
			old.kill()
			next := g.others(old)[0]
			promote(next)
			w.goesOn(next, "writes to the promoted node")
			old.relaunch()
		}},
		{"kill the leader, and the next one", func(w *writers) {
			first := g.leader()
			first.kill()
			rest := g.others(first)
			promote(rest[0])
			w.goesOn(rest[0], "writes to the promoted node")
			first.relaunch()
			g.whole()
			rest[0].kill()
			promote(rest[1])
			w.goesOn(rest[1], "writes to the second promoted node")
			rest[0].relaunch()
		}},
		{"kill a follower", func(w *writers) {
			leader := g.leader()
			p := g.others(leader)[0]
			p.kill()
			w.goesOn(leader, "writes without a follower")
			p.relaunch()
		}},
		{"stop the leader, promote, let it go on", func(w *writers) {
			old := g.leader()
			send(g.t, old, syscall.SIGSTOP)
			next := g.others(old)[0]
			promote(next)
			send(g.t, old, syscall.SIGCONT)
			w.goesOn(next, "writes to the promoted node")
		}},
		{"switch over", func(w *writers) {
			old := g.leader()
			to := g.others(old)[0]
			code, out, errs := command("switchover", "--http", old.http, "--to", filepath.Base(to.dir))
			if code != exitOK {
				g.t.Fatalf("switchover: %d %s%s", code, out, errs)
			}
			w.goesOn(to, "writes after the switchover")
		}},
		{"kill everybody", func(w *writers) {
			old := g.leader()
			for _, p := range g.nodes {
				p.kill()
			}
			for _, p := range g.others(nil) {
				p.relaunch()
			}
			w.goesOn(old, "writes after everybody came back")
		}},
	}
}

func send(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(p.cmd.Process.Pid, s); err != nil {
		t.Fatal(err)
	}
}

// sameUpTo expects two directories to hold the same bytes at least up to an LSN.
func sameUpTo(t *testing.T, a, b string, least uint64) {
	t.Helper()
	code, out, errs := command("compare", a, b)
	_, upTo, _ := strings.Cut(out, "up to LSN ")
	var lsn uint64
	if _, err := fmt.Sscan(upTo, &lsn); code != exitOK || err != nil || lsn < least {
		t.Errorf("compare %s %s: %d %s%s, want the same up to %d", a, b, code, out, errs, least)
	}
}
