package main

import (
	"context"
	"slices"
	"time"

	"shiplog/engine"
	"shiplog/wal/waltest"
)

// This file is what goes wrong in the simulation, and what operators do meanwhile.

// simFaultNames are the kinds of faults and orders, by the frequency with which a run picks them.
var simFaultNames = []string{
	"power loss", "kill", "stop", "restart", "restart", "power loss of all", "partition", "one-way partition", "isolated node", "clog", "slow link", "lossy links",
	"reset connections", "garbled link", "clock jump", "sync error", "full disk", "network mended", "promote", "promote behind", "switchover", "new node",
	"derived state deleted", "two failovers in a row",
}

// fault does one thing.
func (s *sim) fault() {
	kind := s.cfg.faults[s.rng.IntN(len(s.cfg.faults))]
	m := s.nodes[s.rng.IntN(len(s.nodes))]
	if kind == "power loss" || kind == "kill" || kind == "stop" {
		if p := s.leading(); p != nil && s.rng.IntN(2) == 0 {
			m = p.node
		}
	}
	s.note("-- %s (%s)", kind, m.name)
	if s.do(kind, m) {
		s.count("fault: " + kind)
	}
	s.revive()
}

// do does one thing to a node or to the network, and reports whether it could.
func (s *sim) do(kind string, m *simNode) bool {
	switch kind {
	case "power loss", "kill":
		up := m.proc != nil
		m.crash(kind == "kill")
		return up
	case "power loss of all":
		for _, m := range s.nodes {
			m.crash(false)
		}
	case "stop":
		up := m.proc != nil
		m.stop()
		return up
	case "restart":
		if m.proc != nil {
			return false
		}
		m.start()
	case "sync error":
		m.faults = append(m.faults, m.disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Skip: s.rng.IntN(3), Times: 1 + s.rng.IntN(2)}))
	case "full disk":
		m.disk.SetCapacity(m.disk.Used() + s.rng.Int64N(256<<10))
	case "clock jump":
		m.skew.Add(int64(time.Duration(s.rng.NormFloat64() * float64(time.Hour))))
	case "derived state deleted":
		return s.deleteDerived(m)
	case "new node":
		if len(s.nodes) >= s.cfg.most {
			return false
		}
		s.add(s.nodes[s.rng.IntN(len(s.nodes))].addr())
	case "promote", "promote behind", "switchover", "rule change", "two failovers in a row":
		return s.cfg.failover && s.order(kind, m)
	default:
		return s.disturb(kind, m)
	}
	return true
}

// disturb does something to the network.
func (s *sim) disturb(kind string, m *simNode) bool {
	other := s.nodes[s.rng.IntN(len(s.nodes))]
	switch kind {
	case "partition":
		side := map[string]bool{}
		for _, m := range s.nodes {
			side[m.name] = s.rng.IntN(2) == 0
		}
		s.links(func(from, to string, l *simLink) { l.cut = side[from] != side[to] })
	case "one-way partition":
		s.links(func(from, to string, l *simLink) {
			if from == m.name && s.rng.IntN(2) == 0 {
				l.cut = true
			}
		})
	case "isolated node":
		s.links(func(from, to string, l *simLink) { l.cut = from == m.name || to == m.name })
	case "clog":
		s.links(func(from, to string, l *simLink) { l.cut = l.cut || s.rng.IntN(2) == 0 })
		s.sleep(time.Duration(s.rng.Int64N(int64(5 * time.Second))))
		s.links(func(_, _ string, l *simLink) { l.cut = false })
	case "slow link":
		delay, rate := time.Duration(s.rng.IntN(400))*time.Millisecond, float64(int(4<<10)<<s.rng.IntN(8))
		s.net.alter(m.name, other.name, func(l *simLink) { l.delay, l.jitter, l.rate = delay, delay/4+1, rate })
	case "lossy links":
		loss := s.rng.Float64() * 0.3
		s.links(func(_, _ string, l *simLink) { l.loss = loss })
	case "garbled link":
		garble := s.rng.Float64() * 0.02
		s.net.alter(m.name, other.name, func(l *simLink) { l.garble = garble })
	case "reset connections":
		s.net.reset(m.name, other.name)
	case "network mended":
		s.net.heal()
	default:
		s.failf("no such fault: %s", kind)
	}
	return true
}

func (s *sim) links(fn func(from, to string, l *simLink)) {
	for _, a := range s.nodes {
		for _, b := range s.nodes {
			if a != b {
				s.net.alter(a.name, b.name, func(l *simLink) { fn(a.name, b.name, l) })
			}
		}
	}
}

// revive starts what has been off for a while, and restarts what has failed for good.
func (s *sim) revive() {
	for _, m := range s.nodes {
		if m.proc.failed() && s.rng.IntN(3) == 0 {
			m.crash(true)
		}
		if m.proc == nil && time.Since(m.downAt) > time.Duration(s.rng.IntN(90))*time.Second {
			m.start()
		}
	}
}

// leading is who leads the highest epoch.
func (s *sim) leading() *simProcess {
	var found *simProcess
	for _, p := range s.processes() {
		if p.leads() && (found == nil || p.n.db.Log().Epoch() > found.n.db.Log().Epoch()) {
			found = p
		}
	}
	return found
}

// order is what an operator does.
func (s *sim) order(kind string, m *simNode) bool {
	leader := s.leading()
	switch kind {
	case "promote":
		if m.proc == nil {
			return false
		}
		s.promote(m.proc, "promotions ordered")
	case "promote behind":
		var worst *simProcess
		for _, p := range s.processes() {
			if worst == nil || p.n.db.Log().Head() < worst.n.db.Log().Head() {
				worst = p
			}
		}
		s.promote(worst, "promotions ordered")
	case "two failovers in a row":
		if leader == nil {
			return false
		}
		leader.node.crash(s.rng.IntN(2) == 0)
		for range 2 {
			if ps := s.processes(); len(ps) > 0 {
				s.promote(ps[s.rng.IntN(len(ps))], "promotions ordered")
			}
			s.sleep(time.Duration(s.rng.IntN(500)) * time.Millisecond)
			if p := s.leading(); p != nil && s.rng.IntN(2) == 0 {
				p.node.crash(false)
			}
		}
	case "switchover":
		if leader == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := leader.n.Switchover(ctx, m.name)
		s.note("switch over from %s to %s: %v", leader.node.name, m.name, err)
		if s.count("switchovers ordered"); err != nil {
			s.count("switchovers ordered, refused")
		}
	case "rule change":
		return leader != nil && s.changeRule(leader)
	}
	return true
}

// changeRule asks for another level, and perhaps leaves a voter out.
func (s *sim) changeRule(leader *simProcess) bool {
	r := engine.Rule{Level: engine.Replicated(1)}
	for _, f := range leader.n.db.Stats().Followers { // names of nodes that have never come count for elections, and cannot promise
		if f.Connected && f.Voter && (len(s.nodes) < 4 || s.rng.IntN(4) > 0) {
			r.Voters = append(r.Voters, f.Name)
		}
	}
	slices.Sort(r.Voters)
	switch s.rng.IntN(4) {
	case 0:
		r.Level = engine.Replicated(2)
	case 1:
		r.Level = engine.Applied(1)
	case 2:
		r.First = true
	}
	if v := len(r.Voters) + 1; 2*(v-r.Level.N()) <= v { // elections without a voter in common can make two leaders of one epoch, which wait for an operator
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	err := leader.n.db.SetRule(ctx, r, false)
	s.note("rule at %s to %v of %q: %v", leader.node.name, r.Level, r.Voters, err)
	if err != nil {
		s.count("rule changes refused or of unknown outcome")
	}
	return true
}

// deleteDerived restarts a node without what is derived from its log.
func (s *sim) deleteDerived(m *simNode) bool {
	if m.proc == nil {
		return false
	}
	m.stop()
	if err := m.forget(); err != nil && !m.disk.Crashed() {
		s.failf("%s: delete derived state: %v", m.name, err)
	}
	m.start()
	return true
}

// replaceDisk gives a follower of a group that is whole an empty disk, now and then: one copy is lost, others are there.
func (s *sim) replaceDisk() {
	leader := s.leading()
	if leader == nil || s.rng.IntN(4) > 0 {
		return
	}
	i := slices.IndexFunc(s.nodes, func(m *simNode) bool { return m.proc != nil && m != leader.node && m.follow != "" })
	if i < 0 {
		return
	}
	m := s.nodes[i]
	s.note("-- %s gets a new disk", m.name)
	m.crash(false)
	m.wipe()
	m.follow = leader.node.addr()
	m.start()
	s.heal()
}
