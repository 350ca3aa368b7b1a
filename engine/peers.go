package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"shiplog/wal"
)

// This file is what package ship needs of a database: its marks, and what peers report.

// Log is the database's log. Package ship reads and, on a follower, appends to it.
func (db *DB) Log() *wal.Log { return db.log }

// Committed is the committed mark: below it the commit rule holds and this node's disk has it.
func (db *DB) Committed() wal.LSN { return db.marks.committedLSN() }

// Applied is the end of the last batch in this node's index; 0 where it keeps the log only.
func (db *DB) Applied() wal.LSN {
	if db.opts.LogOnly {
		return 0
	}
	return db.marks.indexedLSN()
}

// Visible is the mark up to which this node's readers see; 0 where it keeps the log only.
func (db *DB) Visible() wal.LSN {
	if db.opts.LogOnly {
		return 0
	}
	return db.marks.visibleLSN()
}

// Subscribe has ch receive, without blocking, whenever a mark or the log's end moves.
func (db *DB) Subscribe(ch chan<- struct{}) (cancel func()) {
	a, b := db.log.Notify(ch), db.marks.subscribe(ch)
	return func() {
		a()
		b()
	}
}

// OnAppend has fn called right after each append, before its sync, in the committing goroutine: fn
// must not block. Nil removes it.
func (db *DB) OnAppend(fn func()) {
	if fn == nil {
		db.push.Store(nil)
		return
	}
	db.push.Store(&fn)
}

// AdmitPeer takes up a follower that has connected and proved its identity. A follower with a name
// becomes a voter, by a control record, unless the options name the voters and it is not among them, or SetRule
// has taken it out, or the rule asks for readers and PeerReads has said that it has none in time, or a voter of the same name is connected. It counts once its durable position has reached the committed mark.
func (db *DB) AdmitPeer(id wal.NodeID, name, addr string) (voter bool, err error) {
	if db.follower.Load() {
		return false, nil // cascaded followers never count
	}
	db.ruleMu.Lock()
	defer db.ruleMu.Unlock()
	m := &db.marks
	m.mu.Lock()
	rule, change, err := withVoter(m.rule, m.named, wal.Voter{ID: id, Name: name, Addr: addr})
	_, late := m.lateReaders[id]
	other, namesake := m.namesake(id, name)
	if _, out := m.removed[name]; out || namesake || late && m.asksReaders() {
		rule, change = m.rule, false
	}
	f := m.followers[id]
	if namesake && (f == nil || !f.namesake) {
		db.opts.Logger.Warn("two followers of one name are connected: the second does not count, give it another name", "name", name,
			"node", id.String(), "addr", addr, "voter", other.ID.String(), "voter_addr", other.Addr)
	}
	m.mu.Unlock()
	if err != nil {
		return false, err
	}
	if change {
		if _, err := db.appendRecord(&wal.RuleRecord{Rule: rule}); err != nil {
			return false, fmt.Errorf("admit voter %q: %w", name, err)
		}
	}
	voter = db.IsVoter(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if f = m.followers[id]; f == nil {
		f = &follower{id: id}
		m.followers[id] = f
	}
	f.name, f.addr, f.connected, f.voter, f.late, f.namesake = name, addr, true, voter, late, namesake
	f.admitted = false
	m.signal()
	return voter, nil
}

// namesake returns the voter that has a follower's name and is connected: two nodes that live do not take each other's place. mu is held.
func (m *marks) namesake(id wal.NodeID, name string) (wal.Voter, bool) {
	for _, v := range m.rule.Voters {
		if f := m.followers[v.ID]; v.Name == name && v.ID != id && f != nil && f.connected {
			return v, true
		}
	}
	return wal.Voter{}, false
}

// IsVoter reports whether the follower counts for the commit rule, or for one that a change which is not committed yet
// starts from. It takes no lock.
func (db *DB) IsVoter(id wal.NodeID) bool {
	voters := db.marks.voters.Load()
	if voters == nil || db.follower.Load() {
		return false
	}
	_, ok := (*voters)[id]
	return ok
}

// withVoter gives the rule in which v has its place among the voters, and whether that differs. A
// name that comes with another node ID is a new disk under an old name: it takes the name's place, see [marks.namesake].
func withVoter(rule wal.Rule, named []string, v wal.Voter) (wal.Rule, bool, error) {
	if v.Name == "" || len(named) > 0 && !slices.Contains(named, v.Name) {
		return rule, false, nil
	}
	voters := slices.Clone(rule.Voters)
	for i, old := range voters {
		if old.ID == v.ID || old.Name == v.Name {
			if old == v {
				return rule, false, nil
			}
			rest := slices.DeleteFunc(voters[i+1:], func(o wal.Voter) bool { return o.ID == v.ID || o.Name == v.Name })
			rule.Voters = append(append(voters[:i:i], v), rest...)
			return rule, true, nil
		}
	}
	if len(voters) == MaxVoters {
		return rule, false, fmt.Errorf("%w: the database has %d voters already", ErrInvalidOption, MaxVoters)
	}
	rule.Voters = append(voters, v)
	return rule, true, nil
}

// appendRecord takes a control record through the pipeline. It returns once the record is durable
// in this node's log, without waiting for followers: until a new voter has the record that makes it
// one, nobody could confirm it.
func (db *DB) appendRecord(r wal.Control) (Position, error) {
	c := newCommit()
	c.control = r
	end, err := db.commit(context.Background(), c)
	c.release()
	return db.unsure(end), err
}

// PeerAck takes over what a follower reports. Marks of one follower never fall within a connection.
func (db *DB) PeerAck(id wal.NodeID, received, durable, applied, visible wal.LSN) {
	db.slots.advance(id, durable)
	m := &db.marks
	m.mu.Lock()
	f := m.followers[id]
	if f == nil {
		m.mu.Unlock()
		return
	}
	f.received, f.durable = max(f.received, received), max(f.durable, durable)
	f.applied, f.visible = max(f.applied, applied), max(f.visible, visible)
	if f.voter && !f.admitted && f.connected && f.durable >= m.committedLSN() {
		f.admitted = true
		db.opts.Logger.Info("voter has caught up", "name", f.name, "durable_lsn", f.durable.String())
	}
	m.advance()
	if m.changed != nil {
		m.signal()
	}
	end := false
	if m.degraded != 0 && m.leader {
		_, _, short := m.shortfall()
		end = !short
	}
	m.mu.Unlock()
	if end {
		db.endDegraded()
	}
}

// PeerGone says that a follower's connection has ended. What it has acknowledged goes on counting.
func (db *DB) PeerGone(id wal.NodeID) {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.followers[id]; f != nil {
		f.connected = false
	}
	delete(m.lateReaders, id)
	m.signal()
}

// FollowMark takes over what the upstream says: its committed mark, and its log time in unix
// milliseconds. Readers see what is applied up to that mark.
func (db *DB) FollowMark(committed wal.LSN, leaderTime int64) error {
	db.clock.observe(leaderTime)
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leader {
		return errors.New("engine: a leader was told a committed mark")
	}
	m.told = max(m.told, committed)
	m.advance()
	if db.ShowsLate() {
		db.kickApplier() // by the leader's clock more may be old enough
	}
	return nil
}

// Fence stops writes at once because a higher epoch exists, and persists that before it returns. Nothing is committed any
// more in the epoch that this node leads: whoever waits gets ErrUnknownOutcome.
func (db *DB) Fence(e wal.Epoch) error {
	if e <= db.log.Epoch() {
		return nil
	}
	db.stopWrites(e)
	if err := db.log.Promise(e); err != nil {
		return err
	}
	db.stopWrites(e) // who has begun to lead meanwhile has not seen the promise, or sees it now
	return nil
}

// stopWrites fences a leader of an epoch below e.
func (db *DB) stopWrites(e wal.Epoch) {
	if db.follower.Load() || e <= db.log.Epoch() || wal.Epoch(db.fenced.Load()) >= e {
		return
	}
	db.fenced.Store(uint32(e))
	db.opts.Logger.Warn("fenced", "by_epoch", e.String(), "own_epoch", db.log.Epoch().String())
	db.marks.fence(&OutcomeError{Cause: fmt.Errorf("%w: epoch %v", ErrFenced, e)})
}

// AwaitsSync reports whether anybody waits for followers' disks now: the rule, or a call that asked for more than the rule.
func (db *DB) AwaitsSync() bool {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	return Level(m.ruleLevel.Load()).kind() >= levelReplicated || len(m.late) > 0
}

// AwaitsReceipt reports whether anybody may wait for what followers have received, and not for their disks.
func (db *DB) AwaitsReceipt() bool {
	return Level(db.marks.ruleLevel.Load()).kind() < levelReplicated
}

// AwaitsVisibility reports whether the commit rule asks for what followers' readers see.
func (db *DB) AwaitsVisibility() bool {
	return Level(db.marks.ruleLevel.Load()).kind() == levelApplied
}

// admit holds a write back while its rule cannot be met or too much is unconfirmed. Nothing has
// been written when it returns an error.
func (db *DB) admit(ctx context.Context, c *commit) error {
	if err := db.refuse(c); err != nil {
		return err
	}
	m := &db.marks
	if c.control != nil || !Level(m.ruleLevel.Load()).synchronous() {
		return nil
	}
	var degradeAt time.Time
	for {
		m.mu.Lock()
		level, have, short := m.shortfall()
		short = short && m.degraded == 0
		full := m.indexed.Load()-m.visible.Load() > uint64(db.opts.MaxPending)
		var changed <-chan struct{}
		if short || full {
			changed = m.changeLocked()
		}
		m.mu.Unlock()
		if !short && !full {
			return nil
		}
		tooFew := tooFewError(level, have)
		switch {
		case short && db.opts.TooFew == Refuse:
			return tooFew
		case short && db.opts.TooFew == Degrade && degradeAt.IsZero():
			degradeAt = time.Now().Add(db.opts.DegradeAfter)
		}
		cause := ErrPendingFull
		if short {
			cause = tooFew
		}
		if err := db.waitChange(ctx, changed, db.deadline(c), degradeAt, cause); err != nil {
			return err
		}
		if err := db.refuse(c); err != nil {
			return err
		}
	}
}

func tooFewError(level Level, have int) error {
	return fmt.Errorf("%w: %v has %d of %d", ErrTooFewFollowers, level, have, level.N())
}

// waitChange waits for a change of the marks, degrading when its time has come.
func (db *DB) waitChange(ctx context.Context, changed <-chan struct{}, deadline, degradeAt time.Time, cause error) error {
	next := deadline
	if !degradeAt.IsZero() && (next.IsZero() || degradeAt.Before(next)) {
		next = degradeAt
	}
	var alarm <-chan time.Time
	if !next.IsZero() {
		t := time.NewTimer(time.Until(next))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", cause, ctx.Err())
	case <-alarm:
	}
	if next.Equal(degradeAt) {
		return db.narrowed(ctx, db.beginDegraded)
	}
	return fmt.Errorf("%w: %w", cause, context.DeadlineExceeded)
}

// beginDegraded opens a span in which the rule is Durable, by a control record in the log.
func (db *DB) beginDegraded() error {
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	if db.closed.Load() {
		return ErrClosed
	}
	if db.marks.degradedAt() != 0 {
		return nil
	}
	m := &db.marks
	m.mu.Lock()
	missing, from := m.missing(), m.indexedLSN()
	record := m.why(&wal.DegradedRecord{Begin: true, From: from}, wal.DegradedTooFew)
	m.mu.Unlock()
	db.opts.Logger.Warn("commit rule degraded to durable", "rule", Level(db.marks.ruleLevel.Load()).String(), "lsn", from.String(), "missing", missing)
	_, err := db.appendRecord(record)
	return err
}

// endDegraded closes the span: enough voters have caught up.
func (db *DB) endDegraded() {
	if !db.ending.CompareAndSwap(false, true) {
		return
	}
	defer db.ending.Store(false)
	from := db.marks.degradedAt()
	if from == 0 {
		return
	}
	if _, err := db.appendRecord(&wal.DegradedRecord{From: from}); err != nil {
		db.opts.Logger.Error("end of the degraded span was not recorded", "error", err)
		return
	}
	db.opts.Logger.Info("commit rule holds again", "rule", Level(db.marks.ruleLevel.Load()).String())
}
