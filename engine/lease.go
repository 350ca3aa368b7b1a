package engine

import (
	"context"
	"fmt"

	"shiplog/wal"
)

// Lease is a right to lead that somebody outside of the database grants for a time, to one node at once. With Options.Lease set a leader
// acknowledges nothing, shows nothing new and answers no read unless the lease runs, and no epoch is begun without it. All methods may be
// called concurrently.
type Lease interface {
	// Held reports whether this node has the lease and it still runs, by a clock that counts while the process is stopped. It is asked after
	// the sync, before each acknowledgement and at each read: it must not block.
	Held() bool
	// Term is asked before an epoch is begun. It returns the term that the grantor has recorded for this node, never twice the same and
	// least at the lowest. An error: this node may begin none.
	Term(ctx context.Context, least uint32) (uint32, error)
	// Narrow is called before what changes who must confirm a write: a degraded span, and a change of the rule. It returns nil once the grantor
	// has recorded that no other node may have the lease until [DB.Eligible] names it again.
	Narrow(ctx context.Context) error
}

// held reports whether this node may lead, as far as leases say.
func (db *DB) held() bool {
	l := db.opts.Lease
	return l == nil || l.Held()
}

// leased is the error of a read at a leader whose lease has run out: another may lead by now.
func (db *DB) leased() error {
	if l := db.opts.Lease; l != nil && !db.follower.Load() && !l.Held() {
		return ErrLeaseLost
	}
	return db.readLeased()
}

// grantedTerm is the epoch that this node may begin, no lower than e.
func (db *DB) grantedTerm(ctx context.Context, e wal.Epoch) (wal.Epoch, error) {
	l := db.opts.Lease
	if l == nil {
		return e, nil
	}
	term, err := l.Term(ctx, e.Term())
	if err != nil {
		return 0, fmt.Errorf("promote: %w", err)
	}
	if term < e.Term() || term > wal.MaxTerm {
		return 0, fmt.Errorf("promote: %w: term %d was granted, %d asked for", ErrLeaseLost, term, e.Term())
	}
	return wal.MakeEpoch(term, 0), nil
}

// narrowed has everybody else leave the eligible set, and then calls change, after which the marks say who may come back.
func (db *DB) narrowed(ctx context.Context, change func() error) error {
	l, m := db.opts.Lease, &db.marks
	if l == nil {
		return change()
	}
	count := func(n int) {
		m.mu.Lock()
		m.narrowing += n
		m.mu.Unlock()
	}
	count(1)
	defer count(-1)
	if err := l.Narrow(ctx); err != nil {
		return fmt.Errorf("others leave the eligible set: %w", err)
	}
	return change()
}

// Eligible names the nodes that may lead next, this one included, as far as this leader knows: under a synchronous rule the voters whose disks
// have the record that the rule in force rests on, so that the promises they ask for meet every acknowledged write; in a degraded span, and
// while a change is on its way, nobody else. Under any other rule the voters that are connected and have caught up.
func (db *DB) Eligible() []wal.NodeID {
	out := []wal.NodeID{db.log.NodeID()}
	if db.follower.Load() || db.fenced.Load() != 0 {
		return nil
	}
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.degraded != 0 || len(m.changes) != 0 || m.narrowing != 0 {
		return out
	}
	synchronous := Level(m.rule.Level).synchronous()
	for _, v := range m.rule.Voters {
		f := m.followers[v.ID]
		if f == nil || !f.admitted {
			continue
		}
		if synchronous && f.durable >= max(m.ruleEnd, m.epochEnd) || !synchronous && f.connected {
			out = append(out, v.ID)
		}
	}
	return out
}
