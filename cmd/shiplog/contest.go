package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"shiplog/cmd/shiplog/internal/lease"
	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is how a leader that reaches etcd, and not its followers, makes way for a node that reaches them. The lease alone would keep it the leader for ever, and
// under a rule that asks followers nobody could write.
//
// A follower that may lead, and that has not been connected to the leader for as long as the lease runs, asks the other voters. If the leader does not answer it, and so
// many others do that it could be elected without the leader and then meet the rule, it says so in etcd: a challenge, which names the leader's term. A leader
// that sees one makes way if for as long as the lease runs fewer voters have been connected to it than its rule asks for: it stops writing, and then gives the lease up. Who takes it
// is decided as after any leader's end. A leader that has made way stands, and challenges, only once it has been connected to a leader again, or reaches enough voters to commit: so
// the lead does not come back to where it is of no use, and each node makes way once at the most while nobody's connections come back.
//
// Chosen over: a leader that gives the lease up whenever it is alone (where all links are cut, as between two nodes, the lead would go round without end);
// and the lease handed to the challenger (it may be gone by then, and another may be further).
//
// It weakens nothing. The challenge gives no right: who leads next needs the lease, its place in the eligible set and the voters' promises, and makes an epoch of
// what the furthest of them has. A leader's writes end before it gives the lease up.

// errFewAnswer is why a node does not even ask for the lease: with it, it could not be promoted, and nobody else could meanwhile.
var errFewAnswer = errors.New("too few voters answer this node")

// canvassTimeout is how long a node waits to hear who answers it, before it challenges.
const canvassTimeout = 500 * time.Millisecond

// move is what follows from what a node sees.
type move int

const (
	stay      move = iota // nothing; a challenge of this node is withdrawn
	canvass               // ask the voters, and look again
	challenge             // say in etcd that the leader is cut off
	yield                 // make way
)

// sight is what a node sees at a moment.
type sight struct {
	now      time.Time
	patience time.Duration // how long it has to be cut off
	handing  bool          // a switchover is under way, which says who leads
	leads    bool          // this node leads, and has the lease

	// Of a leader.
	short      bool // fewer voters are connected than its rule asks for, and the rule is in force
	degrades   bool // it goes on alone when it is short
	challenged bool // another node challenges the term that this one has

	// Of a follower.
	led  bool // another node has the lease, and leads
	sees bool // this node is connected to it
	fit  bool // this node may lead, under a rule that asks followers

	canvassed       bool // the voters were asked
	answers         bool // the leader has answered
	elects, commits bool // other voters have answered: enough to be elected without the leader; enough to confirm writes
}

// contest is what a node remembers from one look to the next.
type contest struct {
	since   time.Time // from when on a leader was short, or a follower did not see the leader, without a break; zero: it is not so
	leads   bool      // the side that since is of
	yielded bool      // this node has made way, and neither led nor been connected to a leader since
}

// step decides what to do. It is a pure function of the memory and the sight.
func (c *contest) step(s *sight) move {
	if s.handing {
		c.since = time.Time{}
		return stay
	}
	if s.leads != c.leads {
		c.since, c.leads = time.Time{}, s.leads
	}
	if s.leads || s.sees {
		c.yielded = false
	}
	alone := s.led && !s.sees && s.fit && !c.yielded
	if s.leads {
		alone = s.short && !s.degrades
	}
	switch {
	case !alone:
		c.since = time.Time{}
		return stay
	case c.since.IsZero():
		c.since = s.now
	}
	switch {
	case s.now.Sub(c.since) < s.patience:
		return stay
	case s.leads && s.challenged:
		c.since, c.yielded = time.Time{}, true
		return yield
	case s.leads:
		return stay
	case !s.canvassed:
		return canvass
	case s.answers || !s.elects || !s.commits:
		return stay
	}
	return challenge
}

// contend does what follows from who is cut off from whom, and reports whether this node has made way.
func (n *node) contend(ctx context.Context, c *candidate) bool {
	st := n.lease.State()
	s := n.see(&st)
	m := c.contest.step(s)
	reaches := 0
	if m == canvass {
		if s.now.Before(c.askAgain) {
			return false // what was found last stands
		}
		reaches = n.canvass(ctx, st.Leader, s)
		c.askAgain = time.Now().Add(lookEvery)
		m = c.contest.step(s)
	}
	var err error
	switch m {
	case yield:
		return n.makeWay(ctx, st.Rival)
	case challenge:
		if err = n.lease.Challenge(ctx, st.Leader.Term, reaches); err == nil && (st.Rival == nil || st.Rival.Term != st.Leader.Term) {
			n.log.Warn("the leader is cut off; this node would lead", "leader", st.Leader.Name, "term", st.Leader.Term, "reaches", reaches)
		}
	default:
		err = n.lease.Withdraw(ctx)
	}
	if err != nil {
		n.log.Debug("the group is not told", "error", err)
	}
	return false
}

// see is what this node sees without asking anybody.
func (n *node) see(st *lease.State) *sight {
	s := &sight{now: time.Now(), patience: n.cfg.LeaseTTL, handing: n.handing.Load(), leads: n.db.Role() == engine.Leader}
	own := st.Leader != nil && st.Leader.Node == n.db.Log().NodeID().String()
	if s.leads {
		s.short, s.degrades = n.db.Short(), n.cfg.Engine.TooFew == engine.Degrade
		s.challenged = own && st.Rival != nil && st.Rival.Node != st.Leader.Node && st.Rival.Term == st.Leader.Term
		return s
	}
	s.led = st.Leader != nil && !own && st.Leader.Leads
	s.sees = s.led && n.connectedTo(st.Leader)
	s.fit = n.db.Rule().Level.N() > 0 && !n.db.Log().Empty() && n.unfit(st) == ""
	return s
}

// connectedTo reports whether this node follows the leader, and is connected.
func (n *node) connectedTo(l *lease.Leader) bool {
	n.mu.Lock()
	f, upstream, final := n.follower, n.upstream, n.final
	n.mu.Unlock()
	return f != nil && final == nil && upstream == l.Ship && f.Status().Connected
}

// canvass asks the leader and the other voters whether they answer, and returns how many others do.
func (n *node) canvass(ctx context.Context, leader *lease.Leader, s *sight) (reaches int) {
	s.canvassed = true
	id, err := wal.ParseNodeID(leader.Node)
	if err != nil {
		s.answers = true // etcd holds what is not understood: nothing follows from it
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, canvassTimeout)
	defer cancel()
	var asks sync.WaitGroup
	asks.Go(func() {
		_, err := n.ask(ctx, leader.Ship, ship.CallReport, 0, canvassTimeout)
		s.answers = err == nil
	})
	support, err := n.db.Support(ctx, id, enoughToCommit)
	asks.Wait()
	s.elects, s.commits = support.Elects, support.Commits
	if err != nil {
		n.log.Debug("nobody is asked", "error", err)
	}
	return support.Answered
}

func enoughToCommit(s engine.Support) bool { return s.Elects && s.Commits }

// couldCommit reports whether enough voters answer this node for it to lead, and to commit.
func (n *node) couldCommit(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, canvassTimeout)
	defer cancel()
	s, err := n.db.Support(ctx, wal.NodeID{}, enoughToCommit)
	return err == nil && enoughToCommit(s)
}

// couldBeElected is nil if enough voters answer this node for a promotion.
func (n *node) couldBeElected(ctx context.Context) error {
	s, err := n.db.Support(ctx, wal.NodeID{}, func(s engine.Support) bool { return s.Elects })
	switch {
	case err != nil:
		return err
	case !s.Elects:
		return fmt.Errorf("promote: %w: %w", engine.ErrNoQuorum, errFewAnswer)
	}
	return nil
}

// makeWay stops writes, and then gives the lease up, because another node reaches the voters that this one does not. It reports whether this node has stepped down.
func (n *node) makeWay(ctx context.Context, rival *lease.Challenge) bool {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.handing.Load() {
		return false // a switchover has just begun
	}
	n.log.Warn("making way: too few voters are connected here, and another node reaches enough", "rival", rival.Name, "term", rival.Term, "reaches", rival.Reaches)
	if err := n.stepDown(ctx); err != nil {
		n.log.Error("not stepped down", "error", err)
		return false
	}
	if err := n.lease.Release(ctx); err != nil {
		n.log.Warn("the lease is not given up yet", "error", err) // stand does it
	}
	return true
}
