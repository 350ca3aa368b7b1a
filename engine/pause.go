package engine

import (
	"time"
)

// pause is the moment that a group gives followers under a synchronous rule. When this node's sync has ended, the followers
// of the group may be some ten microseconds from the end of theirs. Its writers come again only then; a group that is taken before
// they do has the others alone, the next one has them, and so on: with half of the writers in each, a follower that syncs
// group after group does half of the commits.
type pause struct {
	took  time.Duration // the last sync
	skip  int           // groups that do not wait: followers were too far away
	timer *time.Timer
}

// farFollowers is how many groups do not wait after one that has waited in vain.
const farFollowers = 8

// awaitVoters waits until the followers have confirmed what is synced here, if as many writers wait for that as are
// queued; for as long as a sync takes at the most. pipe.syncing is held.
func (db *DB) awaitVoters() {
	m, p := &db.marks, &db.pipe
	if !Level(m.ruleLevel.Load()).synchronous() || p.pause.took == 0 {
		return
	}
	if p.pause.skip > 0 {
		p.pause.skip--
		return
	}
	p.mu.Lock()
	queued := len(p.queue)
	p.mu.Unlock()
	waiting, confirmed := m.unconfirmed(queued)
	if !waiting {
		return
	}
	t := p.pause.timer
	if t == nil {
		t = time.NewTimer(p.pause.took)
		p.pause.timer = t
	} else {
		t.Reset(p.pause.took)
	}
	defer t.Stop()
	for waiting {
		select {
		case <-confirmed:
			waiting, confirmed = m.unconfirmed(queued)
		case <-t.C:
			p.pause.skip = farFollowers
			return
		}
	}
}

// unconfirmed reports whether n writers or more wait for what is in the log, and gives a channel that is closed at the
// next change.
func (m *marks) unconfirmed(n int) (bool, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting.size() < max(n, 1) {
		return false, nil
	}
	return true, m.changeLocked()
}
