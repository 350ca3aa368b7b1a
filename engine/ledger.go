package engine

import (
	"cmp"
	"slices"
	"time"

	"shiplog/wal"
)

// DegradedSpan is a stretch of the log in which writes were acknowledged with this node's disk alone, although the rule asks for followers: what was
// written there may be lost with one machine, until the span has ended.
type DegradedSpan struct {
	From, To     wal.LSN   // To is 0 while the span is open; the rule holds from there on
	Began, Ended time.Time // log time; Ended is zero while the span is open, Began where only its end is in the log
	Reason       wal.DegradedReason
	Missing      []string // names of the voters that were not there when it began
}

// DegradedSpans lists the degraded spans of this history, oldest first: the newest that take up to 4 KiB in a tail record, which is some ninety. They come from the
// log, so that every node has the same list as far as it has applied, and keep it over restarts and when the tail has passed them. Safe for
// concurrent use.
func (db *DB) DegradedSpans() []DegradedSpan {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]DegradedSpan, 0, len(m.ledger))
	for _, s := range m.ledger {
		d := DegradedSpan{From: s.From, To: s.To, Reason: s.Reason, Missing: slices.Clone(s.Missing)}
		if s.Began != 0 {
			d.Began = time.UnixMilli(s.Began)
		}
		if s.Ended != 0 {
			d.Ended = time.UnixMilli(s.Ended)
		}
		out = append(out, d)
	}
	return out
}

// spanAt is a span and the end of the record that opened it; 0 where that is not known, because it lies below what can be cut.
type spanAt struct {
	wal.DegradedSpan
	record wal.LSN
}

// openSpan takes up the record, ending at end, that opens a span. m.mu is held.
func (m *marks) openSpan(r *wal.DegradedRecord, end wal.LSN, at int64) {
	m.endSpan(end, at)
	m.addSpan(spanAt{wal.DegradedSpan{From: r.From, Began: at, Reason: r.Reason, Missing: r.Missing}, end})
}

// endSpan ends the open span with the record that ends at end, if there is one. m.mu is held.
func (m *marks) endSpan(end wal.LSN, at int64) {
	if n := len(m.ledger); n > 0 && m.ledger[n-1].To == 0 {
		m.ledger[n-1].To, m.ledger[n-1].Ended = end, at
	}
}

// addSpan keeps a span at its place, or completes what is known of it; and drops the oldest where there is no room for more. m.mu is held.
func (m *marks) addSpan(s spanAt) {
	i, found := slices.BinarySearchFunc(m.ledger, s.From, func(o spanAt, from wal.LSN) int { return cmp.Compare(o.From, from) })
	switch {
	case !found:
		m.ledger = slices.Insert(m.ledger, i, s)
	case m.ledger[i].Began == 0:
		m.ledger[i].Began, m.ledger[i].Reason, m.ledger[i].Missing = s.Began, s.Reason, s.Missing
	}
	m.ledger = m.ledger[len(m.ledger)-len(wal.NewestSpans(m.spans())):]
}

// spans is the ledger as the log has it. m.mu is held.
func (m *marks) spans() []wal.DegradedSpan {
	var out []wal.DegradedSpan
	for _, s := range m.ledger {
		out = append(out, s.DegradedSpan)
	}
	return out
}

// learnSpans takes up what a tail record, or the index's mark, says of spans whose own records may lie below the tail. m.mu is held.
func (m *marks) learnSpans(spans []wal.DegradedSpan) {
	for _, s := range spans {
		m.addSpan(spanAt{DegradedSpan: s})
	}
}

// cutSpans forgets what records behind an LSN have said. m.mu is held.
func (m *marks) cutSpans(at wal.LSN) {
	m.ledger = slices.DeleteFunc(m.ledger, func(s spanAt) bool { return s.record > at })
	m.degraded = 0
	if n := len(m.ledger); n > 0 && (m.ledger[n-1].To == 0 || m.ledger[n-1].To > at) {
		m.ledger[n-1].To, m.ledger[n-1].Ended = 0, 0
		m.degraded = m.ledger[n-1].From
	}
}

// why completes a record that is to open a span with its reason, where the format level allows it. m.mu is held.
func (m *marks) why(r *wal.DegradedRecord, reason wal.DegradedReason) *wal.DegradedRecord {
	if m.formatLevel() >= 2 {
		r.Reason, r.Missing = reason, m.missing()
	}
	return r
}

// missing names the voters of the rules in force that are not there. m.mu is held.
func (m *marks) missing() (names []string) {
	for r := range m.inForce {
		for _, v := range r.Voters {
			if f := m.followers[v.ID]; (f == nil || !f.admitted || !f.connected) && !slices.Contains(names, voterName(v)) && len(names) < MaxVoters {
				names = append(names, voterName(v))
			}
		}
	}
	return names
}

// degraded opens or ends a span as its record, ending at end, says.
func (m *marks) degradedRecord(r *wal.DegradedRecord, end wal.LSN, at int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.Begin:
		m.openSpan(r, end, at)
	case len(m.ledger) > 0 && m.ledger[len(m.ledger)-1].To == 0:
		m.endSpan(end, at)
	default: // its beginning lies below the tail; a tail record says more of it
		m.addSpan(spanAt{DegradedSpan: wal.DegradedSpan{From: r.From, To: end, Ended: at}})
	}
}

// epochEnds ends the open span with an epoch's record.
func (m *marks) epochEnds(end wal.LSN, at int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endSpan(end, at)
}
