package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

// This file is what happens to bytes that lie on a simulated disk.

// simSpoilt is what was spoilt and not mended yet: bytes that were committed, on one node at a time, while another node that ran had a sound copy.
type simSpoilt struct {
	rng *rand.Rand
	at  map[wal.LSN]*simNode // by the segment's base
	was map[wal.LSN][]byte   // what the segment held
}

// elsewhere reports whether another node than m has something to be mended, perhaps with m's copy.
func (d *simSpoilt) elsewhere(m *simNode) bool {
	if d != nil {
		for _, other := range d.at {
			if other != m {
				return true
			}
		}
	}
	return false
}

// damaged reports whether a machine's log has something to be mended.
func (s *sim) damaged(m *simNode) bool {
	if s.spoilt != nil {
		for _, other := range s.spoilt.at {
			if other == m {
				return true
			}
		}
	}
	return false
}

// spoil changes bytes of a node's log behind its back, now and then.
func (s *sim) spoil() {
	d := s.spoilt
	ps := s.processes()
	if d == nil || len(ps) < 2 || d.rng.IntN(4) > 0 {
		return
	}
	p := ps[d.rng.IntN(len(ps))]
	if d.elsewhere(p.node) {
		return
	}
	log := p.n.db.Log()
	size := wal.LSN(log.SegmentSize())
	var can []wal.LSN
	for _, base := range log.Segments() {
		if base+2*size <= min(p.n.db.Committed(), log.Durable()) && d.at[base] == nil && p.alive() && s.hasCopy(ps, p, base+size) {
			can = append(can, base)
		}
	}
	if len(can) == 0 {
		return
	}
	base := can[d.rng.IntN(len(can))]
	name := filepath.Join(simDir, "log", fmt.Sprintf("%016x.seg", uint64(base)))
	old, err := p.disk.ReadFile(name)
	if err != nil {
		return // it has just gone
	}
	const block = 4096
	p1, p2 := d.rng.IntN(len(old)/block)*block, d.rng.IntN(len(old)/block)*block
	changed := bytes.Clone(old)
	kind := []string{"bit flipped", "block of zeros", "block of another place", "blocks swapped", "block of garbage"}[d.rng.IntN(5)]
	switch kind {
	case "bit flipped":
		changed[d.rng.IntN(len(old))] ^= 1 << d.rng.IntN(8)
	case "block of zeros":
		clear(changed[p1 : p1+block])
	case "block of another place":
		copy(changed[p1:p1+block], old[p2:p2+block])
	case "blocks swapped":
		copy(changed[p1:p1+block], old[p2:p2+block])
		copy(changed[p2:p2+block], old[p1:p1+block])
	default:
		for i := range block {
			changed[p1+i] = byte(d.rng.Uint32())
		}
	}
	if bytes.Equal(changed, old) {
		return
	}
	if err := p.disk.Overwrite(name, 0, changed); err != nil {
		return
	}
	d.at[base], d.was[base] = p.node, old
	s.note("-- %s in segment %v (%s)", kind, base, p.node.name)
	s.count("damage: " + kind)
}

// hasCopy reports whether another node has the log of p up to end on its disk, and where it begins.
func (s *sim) hasCopy(ps []*simProcess, p *simProcess, end wal.LSN) bool {
	for _, q := range ps {
		log := q.n.db.Log()
		if q == p || !q.alive() || log.Empty() || log.Tail() > end-wal.LSN(log.SegmentSize()) || log.Durable() < end {
			continue
		}
		if same, ok := shared(p.n.db.Log(), log); ok && same >= end {
			return true
		}
	}
	return false
}

// mend is what an operator does with a machine whose log cannot be opened: it is mended from any node that answers.
func (s *sim) mend(m *simNode) bool {
	for _, q := range s.processes() {
		calls := &ship.CallOptions{Dial: func(ctx context.Context, addr string) (net.Conn, error) { return s.net.dial(ctx, m.name, addr) }}
		r := mend(context.Background(), simDir, q.node.addr(), &wal.Options{FS: m.disk}, calls)
		s.note("%s is mended from %s: %+v", m.name, q.node.name, r)
		if r.OK {
			if s.count("logs of stopped nodes mended"); r.Gone != nil {
				s.count("logs of stopped nodes whose front was given up")
			}
			return true
		}
	}
	return false
}

// scrubbed has every node verify its whole log and mend it, and says what is left.
func (s *sim) scrubbed() string {
	if s.spoilt == nil || len(s.spoilt.at) == 0 {
		return ""
	}
	for _, p := range s.processes() {
		before := p.n.repairs.status().Repaired
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err := p.n.repairs.scrub(ctx, 0)
		cancel()
		if err != nil && s.superfluous(p) {
			continue
		}
		if err != nil {
			return fmt.Sprintf("%s is damaged: %v", p.node.name, err)
		}
		s.counts["segments mended by a scrub"] += int(p.n.repairs.status().Repaired - before)
		for base, m := range s.spoilt.at {
			if m == p.node {
				delete(s.spoilt.at, base)
				delete(s.spoilt.was, base)
			}
		}
	}
	if len(s.spoilt.at) > 0 {
		return "a damaged node is off"
	}
	return ""
}

// superfluous makes good what is damaged on a node in segments that it still has for its slots, and all others have given up: nobody needs them, and nobody can
// mend them. It reports whether there were any.
func (s *sim) superfluous(p *simProcess) bool {
	d, found := s.spoilt, false
	for base, m := range d.at {
		needed := m != p.node
		for _, q := range s.processes() {
			needed = needed || q != p && q.n.db.Log().Tail() <= base
		}
		name := filepath.Join(simDir, "log", fmt.Sprintf("%016x.seg", uint64(base)))
		if needed || p.disk.Overwrite(name, 0, d.was[base]) != nil {
			continue
		}
		found = true
		delete(d.at, base)
		delete(d.was, base)
		s.count("damage in what only slots held")
	}
	return found
}
