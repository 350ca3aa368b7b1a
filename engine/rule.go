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

// counting returns the followers that count for rule: voters that are admitted, whether connected or
// not (an acknowledgement counts whenever it came); with First, only the first n connected of the
// list.
func counting(rule wal.Rule, followers map[wal.NodeID]*follower) []*follower {
	var out []*follower
	n := Level(rule.Level).N()
	for _, v := range rule.Voters {
		f := followers[v.ID]
		if f == nil || !f.admitted || rule.First && !f.connected {
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
	for _, f := range counting(rule, followers) {
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
	for _, f := range counting(rule, followers) {
		ends = append(ends, f.reached(level.kind()))
	}
	return min(indexed, durable, nthLargest(ends, level.N()))
}

// visibleEnd is the LSN up to which n voters show what they hold to their readers.
func visibleEnd(n int, rule wal.Rule, followers map[wal.NodeID]*follower) wal.LSN {
	ends := make([]wal.LSN, 0, 8)
	for _, f := range counting(rule, followers) {
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
