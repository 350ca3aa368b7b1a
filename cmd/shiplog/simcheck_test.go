package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is what the simulation checks while nothing moves: after each step, between all nodes.

// simLedger is what the group has shown to be true: it must stay so.
type simLedger struct {
	shown  []shownAt                      // the end of what readers have seen, on whatever node; newest last
	epochs map[wal.Epoch]wal.HistoryEntry // who led, and where it began
	top    wal.Epoch
}

// shownAt is an LSN that was visible somewhere, and the digest of everything below it.
type shownAt struct {
	lsn    wal.LSN
	digest wal.Digest
	epoch  wal.Epoch
	by     string
}

const maxShown = 256

func newSimLedger() *simLedger { return &simLedger{epochs: map[wal.Epoch]wal.HistoryEntry{}} }

// check looks at all running nodes while nothing moves.
func (s *sim) check() {
	s.count("checks")
	var logs []*simProcess
	for _, p := range s.processes() {
		if p.alive() && !p.n.db.Log().Empty() {
			logs = append(logs, p)
		}
	}
	for i, p := range logs {
		s.checkEpochs(p)
		s.checkShown(p)
		for _, q := range logs[:i] {
			s.checkPrefix(p, q)
		}
		if err := p.why(); operatorsCase(err) && (s.cfg.single || !errors.Is(err, ship.ErrSplitBrain)) && !errors.Is(err, ship.ErrTrimmed) {
			s.failf("%s needs an operator: %v", p.node.name, err)
		}
	}
}

// checkEpochs expects that an epoch has one leader, one beginning and one history, wherever it is heard of. Where v - n promises of v voters under a rule of n are
// no more than half of them, two nodes may begin a term; none can commit in it without the other.
func (s *sim) checkEpochs(p *simProcess) {
	for i, e := range p.n.db.Log().History() {
		known, ok := s.ledger.epochs[e.Epoch]
		if !ok {
			s.ledger.epochs[e.Epoch] = e
			s.ledger.top = max(s.ledger.top, e.Epoch)
			if len(s.ledger.epochs) > 4096 {
				for old := range s.ledger.epochs {
					if old+1<<22 < s.ledger.top { // four terms and more ago
						delete(s.ledger.epochs, old)
					}
				}
			}
			continue
		}
		if i == 0 { // of the oldest, a log that begins behind its beginning knows only that it was there
			known.Start, s.ledger.epochs[e.Epoch] = e.Start, wal.HistoryEntry{Epoch: e.Epoch, Start: min(e.Start, known.Start), ID: known.ID, Leader: known.Leader}
		}
		if known != e && !s.cfg.single {
			s.count("epochs begun by two nodes, of which neither committed anything in it")
			continue
		}
		if known != e {
			s.failf("epoch %v at %s: %+v, elsewhere it was %+v", e.Epoch, p.node.name, e, known)
		}
	}
}

// checkShown expects that what a node shows is what others have shown, as far as both go, and that a leader that has something to say shows all of it.
func (s *sim) checkShown(p *simProcess) {
	db := p.n.db
	log, visible := db.Log(), db.Visible()
	l := s.ledger
	for i := len(l.shown) - 1; i >= 0; i-- {
		if e := l.shown[i]; e.lsn <= visible && e.lsn > log.Tail() {
			if d, ok := s.digestAt(p, e.lsn); ok && d != e.digest {
				s.failf("%s shows %v, with digest %v at %v; %s has shown digest %v there", p.node.name, visible, d, e.lsn, e.by, e.digest)
			}
			break
		}
	}
	if p.ready.Load() && p.n.leads() && !db.Stats().Loading && log.Epoch() >= l.top && len(l.shown) > 0 && visible < l.shown[len(l.shown)-1].lsn {
		s.failf("%s leads epoch %v and shows %v; %+v was shown before", p.node.name, log.Epoch(), visible, l.shown[len(l.shown)-1])
	}
	if visible > log.Tail() && (len(l.shown) == 0 || visible > l.shown[len(l.shown)-1].lsn) {
		d, ok := s.digestAt(p, visible)
		if !ok {
			return
		}
		if len(l.shown) == maxShown {
			l.shown = slices.Delete(l.shown, 0, maxShown/2)
		}
		l.shown = append(l.shown, shownAt{visible, d, log.Epoch(), p.node.name})
	}
}

// digestAt is the digest of a node's log, unless its disk is damaged there.
func (s *sim) digestAt(p *simProcess, lsn wal.LSN) (wal.Digest, bool) {
	d, err := p.n.db.Log().DigestAt(lsn)
	if err != nil && !s.damaged(p.node) {
		s.failf("%s: digest at %v: %v", p.node.name, lsn, err)
	}
	return d, err == nil
}

// shared is the end of what two logs hold in common by their histories.
func shared(a, b *wal.Log) (end wal.LSN, ok bool) {
	ha, hb := a.History(), b.History()
	limit := func(h []wal.HistoryEntry, i int, log *wal.Log) wal.LSN {
		if i+1 == len(h) {
			return log.Head()
		}
		start := h[i+1].Start
		if base := start &^ wal.LSN(log.SegmentSize()-1); start == base+wal.HeaderSize { // the header is of the new epoch too
			return base
		}
		return start
	}
	for i := len(ha) - 1; i >= 0; i-- {
		j := slices.IndexFunc(hb, func(e wal.HistoryEntry) bool { return e.Epoch == ha[i].Epoch })
		if j >= 0 && hb[j].ID == ha[i].ID {
			return min(limit(ha, i, a), limit(hb, j, b)), true
		}
	}
	return 0, false
}

// checkPrefix expects two logs to be the same as far as their histories are.
func (s *sim) checkPrefix(p, q *simProcess) {
	a, b := p.n.db.Log(), q.n.db.Log()
	if a.DatabaseID() != b.DatabaseID() {
		s.failf("%s and %s hold different databases", p.node.name, q.node.name)
	}
	end, ok := shared(a, b)
	if !ok || end < a.Tail() || end < b.Tail() {
		return
	}
	x, ok1 := s.digestAt(p, end)
	y, ok2 := s.digestAt(q, end)
	if ok1 && ok2 && x != y {
		s.failf("%s and %s differ below %v: digests %v and %v", p.node.name, q.node.name, end, x, y)
	}
}

// sameBytes compares the files of two logs where both have something, and what two nodes that show the same answer to any question.
func (s *sim) sameBytes(p, q *simProcess) {
	a, b := p.n.db.Log(), q.n.db.Log()
	from, to := max(a.Tail(), b.Tail()), min(a.Head(), b.Head())
	one, two := make([]byte, 32<<10), make([]byte, 32<<10)
	for at := from; at < to; {
		n := min(len(one), int(to-at))
		_, err := a.ReadAt(one[:n], at)
		if err == nil {
			_, err = b.ReadAt(two[:n], at)
		}
		if err != nil {
			s.failf("%s and %s: read at %v: %v", p.node.name, q.node.name, at, err)
		}
		if !bytes.Equal(one[:n], two[:n]) {
			s.failf("%s and %s hold different bytes in [%v, %v)", p.node.name, q.node.name, at, at+wal.LSN(n))
		}
		at += wal.LSN(n)
	}
	s.counts["bytes compared"] += int(to - from)
}

// state is all that a node shows.
func (s *sim) state(p *simProcess) map[string]string {
	m := map[string]string{}
	it := p.n.db.NewIter(nil)
	for ok := it.First(); ok; ok = it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	if err := it.Close(); err != nil {
		s.failf("%s: scan: %v", p.node.name, err)
	}
	return m
}

// checkWhole looks at a group that has healed and in which nothing is written: all nodes hold and show the same, and all that was acknowledged.
func (s *sim) checkWhole() {
	ps := s.processes()
	leader := ps[slices.IndexFunc(ps, (*simProcess).leads)]
	want := s.state(leader)
	for _, p := range ps {
		s.clients.check(p)
		if p != leader {
			s.sameBytes(leader, p)
			if got := s.state(p); !maps.Equal(got, want) {
				s.failf("%s and %s show the same mark and different states: %d and %d keys", leader.node.name, p.node.name, len(want), len(got))
			}
		}
		if st := p.n.db.Stats(); st.Failed != nil {
			s.failf("%s has failed: %v", p.node.name, st.Failed)
		}
		s.checkBounds(p)
	}
}

// checkBounds expects that an index takes no more than its memory. A log may be long: slots of nodes that were away hold it.
func (s *sim) checkBounds(p *simProcess) {
	if n := p.n.db.Stats().Index.MemoryBytes; n > 4<<20 {
		s.failf("%s: the index takes %d bytes of memory", p.node.name, n)
	}
}

// converged reports what is missing for the group to be whole: one leader, and everybody else with it.
func (s *sim) converged() string {
	ps := s.processes()
	var leader *simProcess
	for _, p := range ps {
		if !p.ready.Load() {
			return p.node.name + " is starting"
		}
		if p.leads() {
			if leader != nil {
				return fmt.Sprintf("%s and %s lead", leader.node.name, p.node.name)
			}
			leader = p
		}
	}
	if leader == nil {
		return "nobody leads"
	}
	st := leader.n.db.Stats()
	switch {
	case st.Loading:
		return leader.node.name + " is loading"
	case !readable(leader):
		return leader.node.name + " has no leases to read"
	case st.RuleChanging:
		return "the rule is changing"
	case st.Visible != st.Head || st.Durable != st.Head:
		return fmt.Sprintf("%s shows %v of %v", leader.node.name, st.Visible, st.Head)
	}
	for _, p := range ps {
		if p == leader {
			continue
		}
		if f := p.n.db.Stats(); f.Visible != st.Head || f.Head != st.Head || f.Epoch != st.Epoch || f.Digest != st.Digest || f.Loading {
			return fmt.Sprintf("%s shows %v of %v in epoch %v, the leader %s has %v in %v (%v)", p.node.name, f.Visible, f.Head, f.Epoch, leader.node.name, st.Head, st.Epoch, p.upstreamError())
		}
	}
	if have := connectedVoters(&st); have < st.Rule.N() {
		return fmt.Sprintf("%d voters are connected", have)
	}
	return s.scrubbed()
}

// readable reports whether reads are answered.
func readable(p *simProcess) bool {
	_, err := p.n.db.Get([]byte(simCounter))
	return err == nil || errors.Is(err, engine.ErrNotFound)
}

func connectedVoters(st *engine.Stats) int {
	n := 0
	for _, f := range st.Followers {
		if f.Connected && f.Voter && f.Admitted {
			n++
		}
	}
	return n
}

func (p *simProcess) upstreamError() error {
	f := p.n.currentFollower()
	if f == nil {
		return nil
	}
	return f.Status().LastError
}

// cutFiles are what a machine has kept of what was cut from its log.
func (m *simNode) cutFiles() []string {
	names, err := m.disk.ReadDir(filepath.Join(simDir, "diverged"))
	if err != nil {
		return nil
	}
	return names
}
