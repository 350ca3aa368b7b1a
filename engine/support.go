package engine

import (
	"context"

	"shiplog/wal"
)

// Support says what the voters that answer a node are enough for, if they go on answering. They have promised nothing.
type Support struct {
	Answered int  // nodes besides this one that have answered
	Elects   bool // this node could be promoted: with its own promise theirs would be enough
	Commits  bool // and then commit: as many voters as the rule asks for would be there to confirm
}

// Support asks the voters besides one (zero: nobody is left out) how far they are. It returns as soon as those that have answered are enough for the caller, or
// all have answered or failed; ctx bounds the wait, and its end is no error. Nothing is promised, changed or stopped by it. ErrLoading: this node knows no rule yet.
func (db *DB) Support(ctx context.Context, besides wal.NodeID, enough func(Support) bool) (Support, error) {
	db.roleMu.Lock()
	el := db.electorate
	db.roleMu.Unlock()
	if el == nil {
		el = alone{}
	}
	b, err := db.ballot(el, true)
	if err != nil {
		return Support{}, err
	}
	if s := support(b.quora, db.log.NodeID(), nil); enough(s) {
		return s, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan wal.NodeID, len(b.others)) // zero: no answer
	asked := 0
	for _, v := range b.others {
		if v.ID == besides {
			continue
		}
		asked++
		go func() { // ends with ctx
			if _, err := b.el.Ask(ctx, v, 0); err != nil {
				v.ID = wal.NodeID{}
			}
			answers <- v.ID
		}()
	}
	var answered []wal.NodeID
	for {
		s := support(b.quora, db.log.NodeID(), answered)
		if asked == 0 || enough(s) {
			return s, nil
		}
		select {
		case id := <-answers:
			if asked--; !id.IsZero() {
				answered = append(answered, id)
			}
		case <-ctx.Done():
			return s, nil
		}
	}
}

// support is what a node and others that have answered it are enough for. An election ends the changes of the rule that are on their way: what comes after it has to
// meet the newest alone, which comes first.
func support(quora []quorum, self wal.NodeID, answered []wal.NodeID) Support {
	s := Support{Answered: len(answered), Elects: quora[0].has(self)}
	for i, q := range quora {
		confirming, own := 0, 0
		for _, id := range answered {
			if id != self && q.need > 0 && q.has(id) {
				confirming++
			}
		}
		if q.has(self) {
			own = 1
		}
		s.Elects = s.Elects && confirming+own >= q.need
		if i == 0 {
			s.Commits = confirming >= q.n
		}
	}
	return s
}

// Short reports whether this node leads and fewer voters are connected than a rule in force asks for, so that no write can be acknowledged. Voters that have
// yet to catch up are counted: they are on their way. In a degraded span, and under a rule that asks no followers, a leader is never short.
func (db *DB) Short() bool {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leader || m.degraded != 0 {
		return false
	}
	for r := range m.inForce {
		connected := 0
		for _, v := range r.Voters {
			if f := m.followers[v.ID]; f != nil && f.connected {
				connected++
			}
		}
		if level := Level(r.Level); level.synchronous() && connected < level.N() {
			return true
		}
	}
	return false
}
