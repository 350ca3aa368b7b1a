package ship

import "shiplog/wal"

// This file decides about acknowledgements: what a follower tells and when, and what a leader believes. It is pure.

// Positions are how far a follower is. Each is the end of a prefix of the log.
type Positions struct {
	Received wal.LSN // in its log
	Durable  wal.LSN // on its disk
	Applied  wal.LSN // in its index
	Visible  wal.LSN // to its readers
}

// ordered returns p with each position held to what it can mean: what is applied or durable has been received.
// The marks of a node move one after the other, so a reader may catch them out of order.
func (p Positions) ordered() Positions {
	p.Durable = min(p.Durable, p.Received)
	p.Applied = min(p.Applied, p.Received)
	p.Visible = min(p.Visible, p.Applied)
	return p
}

// urgency says how soon a follower's news are to be told.
type urgency uint8

const (
	nothing urgency = iota // no news
	lazily                 // only readers' visibility moved: nobody waits for it
	atOnce
)

// urgent compares what was told with what is.
func urgent(told, now Positions) urgency {
	switch {
	case told.Received != now.Received, told.Durable != now.Durable, told.Applied != now.Applied:
		return atOnce
	case told.Visible != now.Visible:
		return lazily
	}
	return nothing
}

// believe judges an acknowledgement. last is the one before, sent the end of what this follower was sent. Within
// a connection received and durable never fall, and nobody has what was not sent. Applied may fall, when a node
// rebuilds its index.
func believe(last, now Positions, sent wal.LSN) error {
	switch {
	case now != now.ordered():
		return refuse(CodeProtocol, "ack: positions out of order: %v", now)
	case now.Received > sent:
		return refuse(CodeProtocol, "ack: received %s, of which only %s was sent", now.Received, sent)
	case now.Received < last.Received || now.Durable < last.Durable:
		return refuse(CodeProtocol, "ack: fell from %v to %v", last, now)
	}
	return nil
}

// freshness remembers which marks a follower's readers have not caught up with, to answer "as of when is what I
// read": the leader's clock at the newest mark whose committed LSN is visible.
type freshness struct {
	ring  [32]struct{ committed, clock uint64 }
	first int
	n     int
	asOf  int64 // leader's clock, Unix milliseconds; 0: never
}

// mark takes up a mark. When the ring is full the newest mark replaces the last: what is remembered then becomes
// coarser, never wrong.
func (f *freshness) mark(committed wal.LSN, clock int64) {
	i := (f.first + f.n) % len(f.ring)
	if f.n == len(f.ring) {
		i = (f.first + f.n - 1) % len(f.ring)
	} else {
		f.n++
	}
	f.ring[i].committed, f.ring[i].clock = uint64(committed), uint64(clock)
}

// see drops the marks that visible has reached and returns the freshness.
func (f *freshness) see(visible wal.LSN) int64 {
	for f.n > 0 && f.ring[f.first].committed <= uint64(visible) {
		f.asOf = max(f.asOf, int64(f.ring[f.first].clock))
		f.first = (f.first + 1) % len(f.ring)
		f.n--
	}
	return f.asOf
}
