package engine

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"shiplog/wal"
)

// This file is how a leader knows, without asking at each read, that nobody else leads. Under a rule that n voters must confirm, a promotion needs
// the promises of v - n of v. So while n voters besides the leader grant nobody a promise, nobody is promoted: every set of v - n
// others has one of them, or the leader.

// ReadLease is how long a voter grants no promise after it has heard from its leader. It is part of the shipping protocol.
const ReadLease = time.Second

// readMargin is the part of a lease that the leader does not rely on: the voter's clock may run faster by a tenth.
const readMargin = ReadLease / 10

// lending is what a follower has let its leader rely on.
type lending struct {
	mu       sync.Mutex // guards all below
	until    time.Time
	stopped  int           // promises that wait for the end: nothing more is lent
	released chan struct{} // closed when until falls; nil: nobody waits
}

// WantsReadLease reports whether this node's reads rest on its voters' leases: it leads under a rule that asks followers.
func (db *DB) WantsReadLease() bool { return db.marks.readUntil.Load() != 0 }

// PeerLease takes up that a follower grants no promise within ReadLease of a moment, this one or an earlier one: when it was asked for that.
func (db *DB) PeerLease(id wal.NodeID, asked time.Time) {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.followers[id]
	until := int64(asked.Sub(db.opened) + ReadLease - readMargin)
	if f == nil || asked.Before(m.leasesFrom) || m.readUntil.Load() == 0 || until-f.lease < int64(ReadLease/16) {
		return
	}
	f.lease = until
	m.readMoved()
	if m.changed != nil {
		m.signal()
	}
}

// readMoved computes until when reads may be answered. m.mu is held.
func (m *marks) readMoved() {
	if !m.readLeases || !m.leader || m.degraded != 0 || !Level(m.ruleLevel.Load()).synchronous() {
		m.readUntil.Store(0)
		m.leasesFrom = time.Time{}
		return
	}
	if m.leasesFrom.IsZero() { // what was lent before may have been released since
		m.leasesFrom = time.Now()
		for _, f := range m.followers {
			f.lease = 0
		}
	}
	until := int64(math.MaxInt64)
	for r := range m.inForce {
		until = min(until, leaseEnd(r, m.followers))
	}
	if m.fenced != nil {
		until = noLease
	}
	m.readUntil.Store(until)
}

// noLease stands for a time that has passed; 0 says that no leases are needed.
const noLease = -1

// leaseEnd is until when as many voters as the rule asks for grant no promise, in nanoseconds.
func leaseEnd(rule wal.Rule, followers map[wal.NodeID]*follower) int64 {
	n := Level(rule.Level).N()
	if n == 0 {
		return math.MaxInt64
	}
	var ends []int64
	for _, v := range rule.Voters {
		if f := followers[v.ID]; f != nil {
			ends = append(ends, f.lease)
		}
	}
	if len(ends) < n {
		return noLease
	}
	slices.Sort(ends)
	if end := ends[len(ends)-n]; end > 0 {
		return end
	}
	return noLease
}

// readLeased is nil if the leases run, or if none are needed.
func (db *DB) readLeased() error {
	until := db.marks.readUntil.Load()
	if until == 0 || int64(time.Since(db.opened)) < until {
		return nil
	}
	return db.awaitReadLease()
}

// awaitReadLease waits for leases that have just run out, or were not there yet, for as long as they run. A read that meets the end of this
// node's lead is not answered: what a follower shows may be older.
func (db *DB) awaitReadLease() error {
	m := &db.marks
	var t *time.Timer
	for {
		m.mu.Lock()
		until, changed := m.readUntil.Load(), m.changeLocked()
		left := time.Until(m.leasesFrom) + ReadLease
		m.mu.Unlock()
		now := time.Since(db.opened)
		left = max(left, time.Duration(until)-now+ReadLease)
		switch {
		case db.follower.Load() || db.fenced.Load() != 0 || db.closed.Load():
			return ErrLeaseLost
		case until == 0 || int64(now) < until:
			return nil
		case left <= 0:
			return ErrLeaseLost
		}
		if t == nil {
			t = time.NewTimer(left)
			defer t.Stop()
		} else {
			t.Reset(left)
		}
		select {
		case <-changed:
		case <-t.C:
		}
	}
}

// LendRead lets the leader of an epoch rely on it for ReadLease from now on that this node grants no promise. It answers false if a promise
// was granted, or is about to be.
func (db *DB) LendRead(e wal.Epoch) bool {
	l := &db.lending
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped > 0 || db.log.Promised() > e {
		return false
	}
	l.until = time.Now().Add(ReadLease)
	return true
}

// ReleaseRead says that the leader relies on nothing any more.
func (db *DB) ReleaseRead() {
	l := &db.lending
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Time{}
	if l.released != nil {
		close(l.released)
		l.released = nil
	}
}

// assumeLent takes it that a lease was granted just before this process began.
func (db *DB) assumeLent() {
	if Level(db.marks.ruleLevel.Load()).synchronous() && !db.log.Empty() {
		db.lending.until = db.opened.Add(ReadLease)
	}
}

// stopLending waits until nobody relies on this node any more, and lends nothing until again is called.
func (db *DB) stopLending(ctx context.Context) (again func(), err error) {
	l := &db.lending
	l.mu.Lock()
	l.stopped++
	l.mu.Unlock()
	again = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stopped--
	}
	for {
		l.mu.Lock()
		left := time.Until(l.until)
		if l.released == nil {
			l.released = make(chan struct{})
		}
		released := l.released
		l.mu.Unlock()
		if left <= 0 {
			return again, nil
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-released:
		case <-ctx.Done():
			again()
			err = ctx.Err()
		}
		t.Stop()
		if err != nil {
			return func() {}, err
		}
	}
}
