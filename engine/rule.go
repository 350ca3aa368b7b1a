package engine

import (
	"slices"

	"shiplog/wal"
)

// follower is what the leader knows of one follower.
type follower struct {
	id         wal.NodeID
	name, addr string
	connected  bool
	voter      bool
	admitted   bool // its durable position has reached the committed mark since it connected
	received   wal.LSN
	durable    wal.LSN
	applied    wal.LSN
	visible    wal.LSN
	late       bool  // its readers see later, or never, what it has: Applied does not count it
	namesake   bool  // a voter of its name was connected when it was last asked about: it does not count
	lease      int64 // until when it grants no promise, in nanoseconds since the database was opened
}

// reached is the end of what the follower has, in the sense of the level's kind.
func (f *follower) reached(kind Level) wal.LSN {
	switch kind {
	case levelReceived:
		return f.received
	case levelReplicated:
		return f.durable
	default:
		return min(f.durable, f.applied)
	}
}

// counting returns the followers that count for a level under a rule: voters that are admitted, whether connected or
// not (an acknowledgement counts whenever it came); with First, only the first n connected of the
// list. For Applied those whose readers are late do not count.
func counting(level Level, rule wal.Rule, followers map[wal.NodeID]*follower) []*follower {
	var out []*follower
	n := Level(rule.Level).N()
	for _, v := range rule.Voters {
		f := followers[v.ID]
		if f == nil || !f.admitted || rule.First && !f.connected || f.late && level.kind() == levelApplied {
			continue
		}
		out = append(out, f)
		if rule.First && len(out) == n {
			break
		}
	}
	return out
}

// connectedVoters counts those who could acknowledge a new write now.
func connectedVoters(rule wal.Rule, followers map[wal.NodeID]*follower) int {
	n := 0
	for _, f := range counting(Level(rule.Level), rule, followers) {
		if f.connected {
			n++
		}
	}
	return n
}

// levelEnd is the LSN up to which level holds, given what this node has indexed and synced and what
// its followers have acknowledged. It is a pure function: the whole of the commit rule.
func levelEnd(level Level, rule wal.Rule, indexed, durable wal.LSN, followers map[wal.NodeID]*follower) wal.LSN {
	switch {
	case !level.durable():
		return indexed
	case !level.synchronous():
		return min(indexed, durable)
	}
	ends := make([]wal.LSN, 0, 8)
	for _, f := range counting(level, rule, followers) {
		ends = append(ends, f.reached(level.kind()))
	}
	return min(indexed, durable, nthLargest(ends, level.N()))
}

// ruleChange is a change of the commit rule whose record is in the log and not yet committed.
type ruleChange struct {
	end wal.LSN  // of the record
	old wal.Rule // what was in force before it
}

// commitEnd is the LSN up to which the commit rule holds, through changes, oldest first, to the rule that is the newest.
// What was written before a record needs the rule before it; the record needs that one and the one behind it, and so does
// everything after it, until the record is committed under both: then the one behind it alone is in force. over is how many
// records that has been reached for. degraded: Durable is in force instead of whatever rule.
func commitEnd(changes []ruleChange, newest wal.Rule, degraded bool, indexed, durable wal.LSN, followers map[wal.NodeID]*follower) (end wal.LSN, over int) {
	holds := func(r wal.Rule) wal.LSN {
		level := Level(r.Level)
		if degraded {
			level = Durable
		}
		return levelEnd(level, r, indexed, durable, followers)
	}
	for i, c := range changes {
		next := newest
		if i+1 < len(changes) {
			next = changes[i+1].old
		}
		before := holds(c.old)
		if min(before, holds(next)) < c.end {
			return min(before, c.end-1), i
		}
	}
	return holds(newest), len(changes)
}

// changeOf says whether the step from one rule to another is one that must hold under both, and gives the older one as it is to
// be held. A voter that comes with another node ID or address under its name is the same voter: the disk that had the name is
// gone, and nobody waits for it. A rule without enough voters has never let anything commit, so nothing rests on it.
func changeOf(old, now wal.Rule) (wal.Rule, bool) {
	old.Voters = slices.Clone(old.Voters)
	same := old.Level == now.Level && old.First == now.First && len(old.Voters) == len(now.Voters)
	for i, v := range old.Voters {
		same = same && v.Name == now.Voters[i].Name && (v.Name != "" || v.ID == now.Voters[i].ID)
		for _, n := range now.Voters {
			if v.Name != "" && v.Name == n.Name {
				old.Voters[i] = n
			}
		}
	}
	return old, !same && satisfiable(old)
}

// satisfiable reports whether the rule's voters, were all of them there, would do for its level.
func satisfiable(r wal.Rule) bool {
	if r.Level == uint32(Default) {
		return false
	}
	known := 0
	for _, v := range r.Voters {
		if !v.ID.IsZero() {
			known++
		}
	}
	return known >= Level(r.Level).N()
}

// visibleEnd is the LSN up to which n voters show what they hold to their readers.
func visibleEnd(n int, rule wal.Rule, followers map[wal.NodeID]*follower) wal.LSN {
	ends := make([]wal.LSN, 0, 8)
	for _, f := range counting(Applied(n), rule, followers) {
		ends = append(ends, f.visible)
	}
	return nthLargest(ends, n)
}

// nthLargest returns the n-th largest of ends (n from 1), zero if there are fewer.
func nthLargest(ends []wal.LSN, n int) wal.LSN {
	if n < 1 || len(ends) < n {
		return 0
	}
	slices.Sort(ends)
	return ends[len(ends)-n]
}
