package engine

import (
	"context"
	"fmt"
	"slices"

	"shiplog/wal"
)

// Rule is a commit rule: what must hold before a write becomes visible, and whose confirmations count for it.
type Rule struct {
	Level  Level
	First  bool     // the first N connected of Voters count, in their order, instead of any N
	Voters []string // names of the followers that count
}

// Rule returns the newest commit rule of the database. A change that has led to it may not be committed yet:
// Stats.RuleChanging.
func (db *DB) Rule() Rule {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	return ruleOf(m.rule)
}

func ruleOf(w wal.Rule) Rule {
	r := Rule{Level: Level(w.Level), First: w.First}
	for _, v := range w.Voters {
		r.Voters = append(r.Voters, v.Name)
	}
	return r
}

// validate reports what cannot be a rule.
func (r Rule) validate() error {
	if err := r.Level.Validate(); err != nil {
		return err
	}
	switch {
	case r.Level == Default:
		return fmt.Errorf("%w: a rule needs a level", ErrInvalidOption)
	case len(r.Voters) > MaxVoters:
		return fmt.Errorf("%w: %d voters, at most %d", ErrInvalidOption, len(r.Voters), MaxVoters)
	case len(r.Voters) < r.Level.N():
		return fmt.Errorf("%w: the rule %v asks for more followers than count, %d", ErrInvalidOption, r.Level, len(r.Voters))
	}
	for i, name := range r.Voters {
		if name == "" || len(name) > maxVoterName || slices.Contains(r.Voters[:i], name) {
			return fmt.Errorf("%w: voter %q is empty, longer than %d bytes or named twice", ErrInvalidOption, name, maxVoterName)
		}
	}
	return nil
}

const maxVoterName = 255 // bytes

// SetRule changes the commit rule: level and voters, by a control record. r.Voters is the whole list; a name that is not in it
// any more, such as that of a node that will not return, no longer counts, and is not admitted again before it is named
// again or this database reopened. A name that is new counts once its follower has connected and caught up.
//
// The record must hold under the rule before it and under r; until then so must every write behind it. SetRule returns nil once
// the record is committed. With too few followers for either rule it answers ErrTooFewFollowers, and nothing is written. force
// takes the present rule out of the way: the change is then committed as Durable, in a degraded span of its own that the
// log records. What a voter of the present rule holds and this node does not may be lost by that, as with any forced change.
//
// After ErrUnknownOutcome, when ctx ends early, the change is in the log and may be committed yet. The options given to the next
// Open must agree with r. Safe for concurrent use; changes are made one after the other.
func (db *DB) SetRule(ctx context.Context, r Rule, force bool) error {
	if err := r.validate(); err != nil {
		return err
	}
	if db.opts.CommitTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, db.opts.CommitTimeout)
		defer cancel()
	}
	pos, err := db.changeRule(ctx, r, force)
	if err != nil {
		return fmt.Errorf("set rule %v: %w", r.Level, err)
	}
	if err := db.WaitApplied(ctx, pos); err != nil {
		return &OutcomeError{Position: pos, Cause: err}
	}
	return nil
}

// changeRule appends the record of a change and returns where it ends.
func (db *DB) changeRule(ctx context.Context, r Rule, force bool) (Position, error) {
	db.ruleMu.Lock()
	defer db.ruleMu.Unlock()
	m := &db.marks
	m.mu.Lock()
	old, rule, from := m.rule, m.wanted(r), m.indexedLSN()
	level, have, short := m.shortfall()
	if n := connectedVoters(rule, m.followers); !short && n < r.Level.N() {
		level, have, short = r.Level, n, true
	}
	short = short && m.degraded == 0
	m.mu.Unlock()
	switch {
	case short && !force:
		return Position{}, tooFewError(level, have)
	case old.Level == rule.Level && old.First == rule.First && slices.Equal(old.Voters, rule.Voters):
		db.noteNames(old.Voters, r.Voters)
		return db.position(from), nil
	}
	var pos Position
	err := db.narrowed(ctx, func() (err error) {
		pos, err = db.appendRule(ctx, old, rule, from, short)
		return err
	})
	return pos, err
}

// appendRule appends the record of a change; with short in a degraded span of its own, from an LSN on.
func (db *DB) appendRule(ctx context.Context, old, rule wal.Rule, from wal.LSN, short bool) (Position, error) {
	pos, err := db.appendRecord(&wal.RuleRecord{Rule: rule})
	if err != nil {
		return pos, err
	}
	r := ruleOf(rule)
	db.opts.Logger.Info("commit rule changed", "rule", r.Level.String(), "voters", r.Voters, "forced", short, "lsn", pos.LSN.String())
	db.noteNames(old.Voters, r.Voters)
	if !short {
		return pos, nil
	}
	m := &db.marks
	m.mu.Lock()
	record := m.why(&wal.DegradedRecord{Begin: true, From: from}, wal.DegradedForced)
	m.mu.Unlock()
	if _, err := db.appendRecord(record); err != nil {
		return pos, &OutcomeError{Position: pos, Cause: err}
	}
	if err := db.WaitApplied(ctx, pos); err != nil { // for this node's disk alone
		return pos, &OutcomeError{Position: pos, Cause: err}
	}
	db.endDegraded()
	return pos, nil
}

// wanted is r with the IDs and addresses of followers that are known by their names. m.mu is held.
func (m *marks) wanted(r Rule) wal.Rule {
	rule := wal.Rule{Level: uint32(r.Level), First: r.First}
	for _, name := range r.Voters {
		v := wal.Voter{Name: name}
		for _, f := range m.followers {
			if f.name == name && f.connected {
				v.ID, v.Addr = f.id, f.addr
			}
		}
		for _, old := range m.rule.Voters {
			if old.Name == name {
				v = old
			}
		}
		rule.Voters = append(rule.Voters, v)
	}
	return rule
}

// noteNames keeps those whom SetRule has left out from being admitted as soon as they are heard of.
func (db *DB) noteNames(old []wal.Voter, voters []string) {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.named) > 0 {
		m.named = slices.Clone(voters)
	}
	if m.removed == nil {
		m.removed = map[string]struct{}{}
	}
	for _, v := range old {
		m.removed[v.Name] = struct{}{}
	}
	for _, f := range m.followers {
		m.removed[f.name] = struct{}{}
	}
	for _, name := range voters {
		delete(m.removed, name)
	}
}
