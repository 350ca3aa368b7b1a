package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"shiplog/ship/nettest"
)

// TestPartitions has groups of three nodes, each in a network namespace of its own, and clients go through faults of processes and links: kills, stops,
// full and one-way partitions, slow, narrow, lossy and flapping links, failovers in a row, the leader and a follower lost together; once with a lease in
// etcd, once with an operator who promotes. For each fault the clients' history on fresh keys must be linearizable where it was read at a leader; in the end all logs are the same,
// what was acknowledged is in them once, what was refused is not, and what any node showed was the state of a prefix that it had visible, never an earlier one
// than the same client had seen of that process.
//
// SHIPLOG_PARTITIONS sets how many faults each kind of group goes through, SHIPLOG_SEED reruns a schedule, SHIPLOG_FAULT takes only the faults whose names contain it.
func TestPartitions(t *testing.T) {
	t.Parallel()
	faults, seed := 1, uint64(time.Now().UnixNano())%1e9
	for name, to := range map[string]func(n uint64){"SHIPLOG_PARTITIONS": func(n uint64) { faults = int(n) }, "SHIPLOG_SEED": func(n uint64) { seed = n }} {
		if s := os.Getenv(name); s != "" {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			to(n)
		}
	}
	t.Log("seed", seed)
	for _, leased := range []bool{true, false} {
		if testing.Short() && leased != (seed%2 == 0) {
			continue
		}
		t.Run(fmt.Sprintf("leased=%v", leased), func(t *testing.T) {
			t.Parallel() // mostly it waits
			menu := slices.DeleteFunc(netFaults(), func(f netFault) bool {
				return f.leased && !leased || !strings.Contains(f.name, os.Getenv("SHIPLOG_FAULT"))
			})
			sub := 2 * seed // another schedule for each kind
			if leased {
				sub++
			}
			rand.New(rand.NewPCG(sub, 19)).Shuffle(len(menu), func(i, j int) { menu[i], menu[j] = menu[j], menu[i] })
			const most = 12 // faults of one group: its log is kept, and its histories, until the end
			total := map[string]int{}
			for done := 0; done < faults; done += most {
				var next []netFault
				for i := done; i < min(done+most, faults); i++ {
					next = append(next, menu[i%len(menu)])
				}
				runPartitions(t, sub+uint64(done), leased, next, total)
			}
			var lines []string
			for _, k := range slices.Sorted(maps.Keys(total)) {
				lines = append(lines, fmt.Sprintf("%8d %s", total[k], k))
			}
			t.Logf("%s", strings.Join(lines, "\n"))
		})
	}
}

// runPartitions takes one group through faults.
func runPartitions(t *testing.T, seed uint64, leased bool, faults []netFault, total map[string]int) {
	t.Helper()
	g := newNetGroup(t, seed, leased)
	var histories []*history
	for round, f := range faults {
		h := g.round(round, f)
		total["fault: "+f.name]++
		total["histories of a key"] += len(h.keys)
		total["operations"] += len(h.ops)
		total["acknowledged writes"] += len(h.acked)
		total["refused or unknown writes"] += h.failed
		total["looks at all keys"] += len(h.samples)
		histories = append(histories, h)
	}
	log := g.finish()
	for _, h := range histories {
		for _, wrong := range h.inLog(log) {
			t.Error(wrong)
		}
	}
	counts := g.net.Counts()
	total["packets delivered"] += int(counts.Delivered)
	total["packets cut off"] += int(counts.Cut)
	total["packets lost"] += int(counts.Lost + counts.Overflowed)
}

// round is one fault, from a whole group to a whole group.
func (g *netGroup) round(round int, f netFault) *history {
	g.t.Helper()
	leader := g.whole()
	g.t.Logf("%d: %s, leader %s", round, f.name, leader.name())
	c := g.startClients(fmt.Sprintf("r%d", round))
	g.goesOn(c, "writes before the fault")
	heal := f.begin(g, leader, c)
	switch f.then {
	case othersLead:
		if g.etcd == nil {
			g.promote(g.others(leader))
		}
		g.goesOn(c, "writes at another leader")
	case goesOn:
		g.goesOn(c, "writes during the fault")
	case stands:
		g.stands(c)
	}
	heal()
	g.net.Heal()
	g.whole()
	g.goesOn(c, "writes after the fault")
	c.end()
	for _, wrong := range c.h.linearizable(time.Minute) {
		g.t.Error(wrong)
	}
	if g.t.Failed() {
		g.t.FailNow()
	}
	return c.h
}

// goesOn waits until writes that are called from now on are acknowledged.
func (g *netGroup) goesOn(c *netClients, what string) {
	g.t.Helper()
	now := c.now()
	g.until(what, func() bool { acked, _ := c.h.since(now); return acked >= 20 })
}

// stands waits until writes were tried again and again, and expects that none was acknowledged that was called from now on.
func (g *netGroup) stands(c *netClients) {
	g.t.Helper()
	now := c.now()
	_, before := c.h.since(now)
	g.until("writes are tried", func() bool { _, failed := c.h.since(now); return failed >= before+40 })
	if acked, _ := c.h.since(now); acked != 0 {
		g.t.Errorf("%d writes were acknowledged by nobody but one node", acked)
	}
}

// afterwards is what a group does under a fault.
type afterwards int

const (
	goesOn     afterwards = iota // writes are acknowledged, whoever leads
	othersLead                   // by another leader than before
	stands                       // no write is acknowledged
	anything
)

// netFault is something that happens to a group. begin has it happen, and returns what ends it; links heal by themselves.
type netFault struct {
	name   string
	then   afterwards
	leased bool // there must be an etcd
	begin  func(g *netGroup, leader *process, c *netClients) (heal func())
}

func noHeal() {}

// cut cuts a node off from all hosts but the clients': what it sends, what it is sent, or both.
func (g *netGroup) cut(p *process, out, in bool) {
	far := []*nettest.Host{g.keeper}
	for _, q := range g.others(p) {
		far = append(far, q.host)
	}
	for _, h := range far {
		if h == nil {
			continue
		}
		g.net.Set(p.host, h, nettest.Link{Cut: out})
		g.net.Set(h, p.host, nettest.Link{Cut: in})
	}
}

// between sets the links of a node to all others of the group.
func (g *netGroup) between(p *process, l nettest.Link) {
	for _, q := range g.others(p) {
		g.net.SetBoth(p.host, q.host, l)
	}
}

// halt stops a process with SIGSTOP and returns what has it go on.
func (g *netGroup) halt(p *process) (resume func()) {
	g.t.Helper()
	send(g.t, p, syscall.SIGSTOP)
	if _, err := syscall.Wait4(p.cmd.Process.Pid, nil, syscall.WUNTRACED, nil); err != nil { // until it has stopped
		g.t.Fatal(err)
	}
	return func() { send(g.t, p, syscall.SIGCONT) }
}

func netFaults() []netFault {
	return slices.Concat(processFaults(), linkFaults(), doubleFaults())
}

// processFaults are those of processes.
func processFaults() []netFault {
	return []netFault{
		{"kill the leader", othersLead, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.kill(leader)
			return func() { g.start(leader) }
		}},
		{"stop the leader", othersLead, false, func(g *netGroup, leader *process, _ *netClients) func() { return g.halt(leader) }},
		{"kill a follower", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			p := g.others(leader)[0]
			g.kill(p)
			return func() { g.start(p) }
		}},
		{"stop a follower", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() { return g.halt(g.others(leader)[0]) }},
		{"stop both followers", stands, false, func(g *netGroup, leader *process, _ *netClients) func() {
			rest := g.others(leader)
			one, two := g.halt(rest[0]), g.halt(rest[1])
			return func() { one(); two() }
		}},
		{"kill everybody", stands, false, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.kill(p)
			}
			return func() {
				for _, p := range g.others() {
					g.start(p)
				}
			}
		}},
		{"kill etcd", anything, true, func(g *netGroup, _ *process, c *netClients) func() {
			g.etcd.Kill()
			g.until("nobody leads", func() bool { return g.leading() == nil })
			g.stands(c)
			return g.etcd.Run
		}},
	}
}

// linkFaults are those of links.
func linkFaults() []netFault {
	return []netFault{
		{"cut the leader off", othersLead, false, func(g *netGroup, leader *process, _ *netClients) func() { g.cut(leader, true, true); return noHeal }},
		{"the leader is not heard", othersLead, false, func(g *netGroup, leader *process, _ *netClients) func() { g.cut(leader, true, false); return noHeal }},
		{"the leader hears nothing", othersLead, false, func(g *netGroup, leader *process, _ *netClients) func() { g.cut(leader, false, true); return noHeal }},
		{"cut the leader off from etcd", othersLead, true, func(g *netGroup, leader *process, _ *netClients) func() {
			g.net.SetBoth(leader.host, g.keeper, nettest.Link{Cut: true})
			return noHeal
		}},
		{"the leader does not hear etcd", othersLead, true, func(g *netGroup, leader *process, _ *netClients) func() {
			g.net.Set(g.keeper, leader.host, nettest.Link{Cut: true})
			return noHeal
		}},
		{"cut the leader off from its followers", stands, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Cut: true})
			return noHeal
		}},
		{"cut a follower off", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(g.others(leader)[0], true, true)
			return noHeal
		}},
		{"a follower is not heard", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(g.others(leader)[0], true, false)
			return noHeal
		}},
		{"a follower hears nothing", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(g.others(leader)[0], false, true)
			return noHeal
		}},
		{"cut the followers off from each other", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			rest := g.others(leader)
			g.net.SetBoth(rest[0].host, rest[1].host, nettest.Link{Cut: true})
			return noHeal
		}},
		{"slow links", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Delay: 20*time.Millisecond + time.Duration(g.rng.Int64N(int64(60*time.Millisecond)))})
			return noHeal
		}},
		{"slow and lossy links", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Delay: 5 * time.Millisecond, Loss: 0.1})
			return noHeal
		}},
		{"lossy links", goesOn, false, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.between(p, nettest.Link{Loss: 0.2})
			}
			return noHeal
		}},
		{"narrow links", goesOn, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Rate: 64 << 10})
			return noHeal
		}},
		{"flapping links of the leader", anything, false, func(g *netGroup, leader *process, _ *netClients) func() {
			g.flap(func(cut bool) { g.cut(leader, cut, cut) })
			return noHeal
		}},
		{"all links flap", anything, false, func(g *netGroup, _ *process, _ *netClients) func() {
			g.flap(func(bool) {
				for _, p := range g.nodes {
					for _, q := range g.nodes {
						if p != q {
							g.net.Set(p.host, q.host, nettest.Link{Cut: g.rng.IntN(3) == 0})
						}
					}
				}
			})
			return noHeal
		}},
	}
}

// flap cuts and mends, for longer or shorter than what notices it takes.
func (g *netGroup) flap(set func(cut bool)) {
	for i := range 12 {
		set(i%2 == 0)
		time.Sleep(time.Duration(g.rng.Int64N(int64(300 * time.Millisecond))))
	}
}

// doubleFaults are two at a time, or in a row.
func doubleFaults() []netFault {
	kill := func(g *netGroup, p *process) func() {
		g.kill(p)
		return func() { g.start(p) }
	}
	isolate := func(g *netGroup, p *process) func() {
		g.cut(p, true, true)
		return g.net.Heal
	}
	var faults []netFault
	for _, f := range []struct {
		name string
		lose func(g *netGroup, p *process) func()
	}{{"kill the ", kill}, {"cut off the ", isolate}} {
		faults = append(faults, netFault{f.name + "leader, and the next one", anything, false, func(g *netGroup, leader *process, c *netClients) func() {
			back := f.lose(g, leader)
			if g.etcd == nil {
				g.promote(g.others(leader))
			}
			g.goesOn(c, "writes at the second leader")
			second := g.leader()
			back()
			back = f.lose(g, second)
			if g.etcd == nil {
				g.promote(g.others(second))
			}
			g.goesOn(c, "writes at the third leader")
			return back
		}}, netFault{f.name + "leader and a follower", stands, false, func(g *netGroup, leader *process, _ *netClients) func() {
			one, two := f.lose(g, leader), f.lose(g, g.others(leader)[0])
			return func() { one(); two() }
		}})
	}
	return append(faults, netFault{"cut everybody off from each other", stands, false, func(g *netGroup, _ *process, _ *netClients) func() {
		for _, p := range g.nodes {
			g.between(p, nettest.Link{Cut: true})
		}
		return noHeal
	}})
}

// TestStaleReadIsFound: with read leases turned off, a leader that is cut off from the others, but not from its clients, goes on to answer reads after another was promoted, and the
// clients' history is found not to be linearizable: TestPartitions, where they are on, does find what it looks for.
func TestStaleReadIsFound(t *testing.T) {
	t.Parallel() // mostly it waits
	g := newNetGroup(t, 1, false, "--read-leases=false")
	old := g.whole()
	c := g.startClients("stale")
	g.goesOn(c, "writes before the fault")
	g.cut(old, true, true)
	g.promote(g.others(old))
	g.goesOn(c, "writes at another leader")
	looks := func() (n int) {
		c.h.mu.Lock()
		defer c.h.mu.Unlock()
		for _, s := range c.h.samples {
			if g.nodes[s.node] == old {
				n++
			}
		}
		return n
	}
	before := looks()
	g.until("the old leader has answered reads", func() bool { return looks() > before+20 })
	c.end()
	wrong := c.h.linearizable(time.Minute)
	if len(wrong) == 0 {
		t.Fatal("stale reads were not found")
	}
	t.Log("found, as it should be: ", wrong[0])
}
