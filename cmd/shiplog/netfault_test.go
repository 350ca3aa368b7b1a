package main

import (
	"context"
	"net/http"
	"slices"
	"syscall"
	"time"

	"shiplog/ship/nettest"
)

// afterwards is what a group does under a fault.
type afterwards int

const (
	goesOn     afterwards = iota // writes are acknowledged, whoever leads
	othersLead                   // by another leader than before
	stands                       // no write is acknowledged
	anything
)

// needs is what sort of group a fault is for.
type needs int

const (
	forAny   needs = iota // any group
	forLease              // one with etcd
	forHands              // one whose roles change by hand
)

// netFault is something that happens to a group. begin has it happen, and returns what ends it; links heal by themselves.
type netFault struct {
	name  string
	then  afterwards
	needs needs
	begin func(g *netGroup, leader *process, c *netClients) (heal func())
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
	return slices.Concat(processFaults(), linkFaults(), doubleFaults(), roleFaults())
}

// processFaults are those of processes.
func processFaults() []netFault {
	return []netFault{
		{"kill the leader", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.kill(leader)
			return func() { g.start(leader) }
		}},
		{"stop the leader", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() { return g.halt(leader) }},
		{"kill a follower", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			p := g.others(leader)[0]
			g.kill(p)
			return func() { g.start(p) }
		}},
		{"stop a follower", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() { return g.halt(g.others(leader)[0]) }},
		{"stop both followers", stands, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			rest := g.others(leader)
			one, two := g.halt(rest[0]), g.halt(rest[1])
			return func() { one(); two() }
		}},
		{"kill everybody", stands, forAny, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.kill(p)
			}
			return func() {
				for _, p := range g.others() {
					g.start(p)
				}
			}
		}},
		{"kill etcd", anything, forLease, func(g *netGroup, _ *process, c *netClients) func() {
			g.etcd.Kill()
			g.until("nobody leads", g.nobodyLeads)
			g.stands(c)
			return g.etcd.Run
		}},
	}
}

// linkFaults are those of links.
func linkFaults() []netFault {
	return []netFault{
		{"cut the leader off", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() { g.cut(leader, true, true); return noHeal }},
		{"the leader is not heard", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() { g.cut(leader, true, false); return noHeal }},
		{"the leader hears nothing", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() { g.cut(leader, false, true); return noHeal }},
		{"cut the leader off from etcd", othersLead, forLease, func(g *netGroup, leader *process, _ *netClients) func() {
			g.net.SetBoth(leader.host, g.keeper, nettest.Link{Cut: true})
			return noHeal
		}},
		{"the leader does not hear etcd", othersLead, forLease, func(g *netGroup, leader *process, _ *netClients) func() {
			g.net.Set(g.keeper, leader.host, nettest.Link{Cut: true})
			return noHeal
		}},
		{"cut the leader off from its followers", stands, forHands, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Cut: true})
			return noHeal
		}},
		{"cut the leader off from its followers, not from etcd", othersLead, forLease, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Cut: true})
			return noHeal
		}},
		{"cut a follower off", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(g.others(leader)[0], true, true)
			return noHeal
		}},
		{"a follower is not heard", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(g.others(leader)[0], true, false)
			return noHeal
		}},
		{"a follower hears nothing", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(g.others(leader)[0], false, true)
			return noHeal
		}},
		{"cut the followers off from each other", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			rest := g.others(leader)
			g.net.SetBoth(rest[0].host, rest[1].host, nettest.Link{Cut: true})
			return noHeal
		}},
		{"slow links", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Delay: 20*time.Millisecond + time.Duration(g.rng.Int64N(int64(60*time.Millisecond)))})
			return noHeal
		}},
		{"slow and lossy links", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Delay: 5 * time.Millisecond, Loss: 0.1})
			return noHeal
		}},
		{"lossy links", goesOn, forAny, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.between(p, nettest.Link{Loss: 0.2})
			}
			return noHeal
		}},
		{"narrow links", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, nettest.Link{Rate: 64 << 10})
			return noHeal
		}},
		{"flapping links of the leader", anything, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.flap(func(cut bool) { g.cut(leader, cut, cut) })
			return noHeal
		}},
		{"all links flap", anything, forAny, func(g *netGroup, _ *process, _ *netClients) func() {
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
		faults = append(faults, netFault{f.name + "leader, and the next one", anything, forAny, func(g *netGroup, leader *process, c *netClients) func() {
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
		}}, netFault{f.name + "leader and a follower", stands, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			one, two := f.lose(g, leader), f.lose(g, g.others(leader)[0])
			return func() { one(); two() }
		}})
	}
	return append(
		faults, netFault{"cut everybody off from each other", stands, forAny, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.between(p, nettest.Link{Cut: true})
			}
			return noHeal
		}}, netFault{"cut a ring of links in one direction", anything, forAny, func(g *netGroup, _ *process, c *netClients) func() {
			for i, p := range g.nodes {
				g.net.Set(p.host, g.nodes[(i+1)%3].host, nettest.Link{Cut: true})
			}
			g.tries(c)
			return noHeal
		}}, netFault{"kill the leader, cut a follower off", stands, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			back := kill(g, leader)
			isolate(g, g.others(leader)[0])
			return back
		}}, netFault{"kill a follower, stop the other one", stands, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			rest := g.others(leader)
			back, resume := kill(g, rest[0]), g.halt(rest[1])
			return func() { back(); resume() }
		}}, netFault{"stop the leader, cut it off, have it go on", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			resume := g.halt(leader)
			isolate(g, leader)
			resume()
			return noHeal
		}}, netFault{"kill the leader while a follower is behind", goesOn, forAny, func(g *netGroup, leader *process, c *netClients) func() {
			p := g.others(leader)[0]
			g.net.SetBoth(leader.host, p.host, nettest.Link{Cut: true})
			g.goesOn(c, "writes that it lacks")
			g.goesOn(c, "more of them")
			g.kill(leader)
			if g.etcd == nil {
				g.promote([]*process{p})
			}
			return func() { g.start(leader) }
		}}, netFault{"kill everybody, start them cut off from each other", stands, forAny, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.kill(p)
				g.between(p, nettest.Link{Cut: true})
			}
			for _, p := range g.others() {
				g.start(p)
			}
			return noHeal
		}})
}

// tries waits until clients have tried writes again and again, whatever came of them.
func (g *netGroup) tries(c *netClients) {
	g.t.Helper()
	now := c.now()
	_, before := c.h.since(now)
	g.until("writes are tried", func() bool {
		acked, failed := c.h.since(now)
		return acked+failed-before >= 100
	})
}

// switchOver has the leader hand over to a follower, and reports whether it did; it may refuse.
func (g *netGroup) switchOver(leader, to *process) bool {
	g.t.Helper()
	c := g.control()
	c.http = http.Client{Timeout: time.Minute, Transport: leader.web.Transport}
	var got handedOver
	err := c.post(context.Background(), leader.http, "/switchover?to="+to.name(), &got)
	if err != nil {
		g.t.Logf("switchover to %s: %v", to.name(), err)
	}
	return err == nil
}

// roleFaults are changes of roles under faults, faults that are over at once, and those of devices and of clients.
func roleFaults() []netFault {
	slow := nettest.Link{Delay: 30 * time.Millisecond, Loss: 0.05}
	return []netFault{
		{"hand over", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.switchOver(leader, g.others(leader)[0])
			return noHeal
		}},
		{"hand over through slow and lossy links", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, slow)
			g.switchOver(leader, g.others(leader)[0])
			return noHeal
		}},
		{"hand over, kill the old leader", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			done := g.switchOver(leader, g.others(leader)[0])
			g.kill(leader)
			if !done && g.etcd == nil { // it still led, and nobody else does by itself
				g.promote(g.others(leader))
			}
			return func() { g.start(leader) }
		}},
		{"hand over while the target is cut off", anything, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			to := g.others(leader)[0]
			g.cut(to, true, true)
			g.switchOver(leader, to)
			return noHeal
		}},
		{"promote both followers while the leader lives", goesOn, forHands, func(g *netGroup, leader *process, _ *netClients) func() {
			for _, p := range g.others(leader) {
				g.promote([]*process{p})
			}
			return noHeal
		}},
		{"promote both followers through slow and lossy links", goesOn, forHands, func(g *netGroup, leader *process, _ *netClients) func() {
			g.between(leader, slow)
			for _, p := range g.others(leader) {
				g.promote([]*process{p})
			}
			return noHeal
		}},
		{"unplug the leader", othersLead, forAny, func(g *netGroup, leader *process, _ *netClients) func() { return g.unplug(leader) }},
		{"unplug a follower", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() { return g.unplug(g.others(leader)[0]) }},
		{"unplug etcd", anything, forLease, func(g *netGroup, _ *process, c *netClients) func() {
			if err := g.keeper.Plug(false); err != nil {
				g.t.Fatal(err)
			}
			g.until("nobody leads", g.nobodyLeads)
			g.stands(c)
			return func() {
				if err := g.keeper.Plug(true); err != nil {
					g.t.Fatal(err)
				}
			}
		}},
		{"etcd's links flap", anything, forLease, func(g *netGroup, _ *process, _ *netClients) func() {
			g.flap(func(bool) {
				for _, p := range g.nodes {
					g.net.Set(p.host, g.keeper, nettest.Link{Cut: g.rng.IntN(2) == 0})
					g.net.Set(g.keeper, p.host, nettest.Link{Cut: g.rng.IntN(2) == 0})
				}
			})
			return noHeal
		}},
		{"cut the leader off for a moment", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.cut(leader, true, true)
			time.Sleep(time.Duration(g.rng.Int64N(int64(400 * time.Millisecond))))
			g.net.Heal()
			return noHeal
		}},
		{"stop the leader for a moment", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			resume := g.halt(leader)
			time.Sleep(time.Duration(g.rng.Int64N(int64(800 * time.Millisecond))))
			resume()
			return noHeal
		}},
		{"kill the leader, start it at once", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.kill(leader)
			g.start(leader)
			return noHeal
		}},
		{"slow and lossy links of clients", goesOn, forAny, func(g *netGroup, _ *process, _ *netClients) func() {
			for _, p := range g.nodes {
				g.net.SetBoth(g.clients, p.host, slow)
			}
			return noHeal
		}},
		{"cut clients off from the leader", goesOn, forAny, func(g *netGroup, leader *process, _ *netClients) func() {
			g.net.Set(leader.host, g.clients, nettest.Link{Cut: true})
			return noHeal
		}},
	}
}

// unplug turns a node's device off.
func (g *netGroup) unplug(p *process) (heal func()) {
	g.t.Helper()
	if err := p.host.Plug(false); err != nil {
		g.t.Fatal(err)
	}
	return func() {
		if err := p.host.Plug(true); err != nil {
			g.t.Fatal(err)
		}
	}
}
