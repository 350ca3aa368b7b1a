package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"shiplog/wal"
)

// Vote is what a node answers to who wants to lead: whether it has promised, and how far its log goes.
type Vote struct {
	Granted  bool
	Promised wal.Epoch // the highest epoch that it has promised
	Last     wal.Epoch // of the end of its log
	End      wal.LSN   // of the last whole batch in its log: what stands behind it, a seal or a part of a batch, is nobody's loss
}

// Electorate is how a candidate reaches the other nodes. Package ship's calls and follower make one.
type Electorate interface {
	// Leave stops following: nothing is appended to the log any more when it returns.
	Leave()
	// Leader names the node that was followed last, as far as that is known.
	Leader() (wal.Voter, bool)
	// Ask asks a node to promise an epoch. The vote was read after the promise was persisted.
	Ask(ctx context.Context, v wal.Voter, e wal.Epoch) (Vote, error)
	// Fetch copies from a node that has promised e what this log lacks up to the end in its vote.
	Fetch(ctx context.Context, v wal.Voter, e wal.Epoch, vote Vote) error
}

// Candidacy says what came of a promotion, or what would come of it.
type Candidacy struct {
	Epoch    wal.Epoch  // the epoch of this node, or that it would have
	Needed   int        // promises, this node's own included
	Promised []NodeVote // who has answered, this node included
	Missing  []string   // who has not, and why
	End      wal.LSN    // of the log that the epoch begins behind
	Forced   bool       // too few promised, and that was overruled: acknowledged writes may be missing
	// MayLack says that writes which were acknowledged may be missing because no follower was asked for them: by the rule, or in
	// a degraded span.
	MayLack bool
	// Unapplied is how many bytes a delayed follower has to apply before it can lead. A promotion has done that.
	Unapplied wal.LSN
}

// NodeVote is a node and its vote.
type NodeVote struct {
	Node wal.Voter
	Vote Vote
}

// SetElectorate says how Promote reaches the other nodes. It is called before the first Promote.
func (db *DB) SetElectorate(e Electorate) {
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	db.electorate = e
}

// Promote makes this node the leader of a new epoch, one term above all that it can learn of. With v voters, leader included, and a
// rule that n of them must confirm, v - n must first promise the epoch, this node included: then at least one of them has every
// acknowledged write. What the furthest of them has and this node lacks is copied. The epoch's record is durable on return; nothing is
// visible beyond what was committed before, and reads answer ErrLoading, until the rule holds for it. A delayed follower applies all that it has before it asks. ErrNoQuorum: too few have
// promised, or this node is no voter. Under a rule that asks no followers there is no such quorum: the furthest of those that answer counts. A leader that is not fenced stays what it is
// (but see PromoteOptions.Force).
//
// Without SetElectorate nobody is asked, which is enough where this node's own promise is; and whoever feeds this node stops that before.
func (db *DB) Promote(ctx context.Context) error {
	_, err := db.PromoteWith(ctx, PromoteOptions{})
	return err
}

// PromoteOptions configure PromoteWith.
type PromoteOptions struct {
	// Force leads with too few promises: acknowledged writes may be lost. A node that leads already begins another epoch by it, where no lease says who
	// leads: that is the way out when two nodes have begun the same one ([ErrSplitBrain]).
	Force  bool
	DryRun bool // ask nobody for a promise, and change nothing
}

// PromoteWith is Promote with options, and says what came of it.
func (db *DB) PromoteWith(ctx context.Context, o PromoteOptions) (*Candidacy, error) {
	select {
	case db.promoting <- struct{}{}:
		defer func() { <-db.promoting }()
	case <-ctx.Done():
		return nil, fmt.Errorf("promote: another candidacy of this node is under way: %w", ctx.Err())
	}
	db.roleMu.Lock()
	el, leads := db.electorate, !db.follower.Load() && db.fenced.Load() == 0
	db.roleMu.Unlock()
	switch {
	case db.closed.Load():
		return nil, ErrClosed
	case db.opts.LogOnly:
		return nil, fmt.Errorf("promote: %w: open it without LogOnly first", ErrLogOnly)
	case leads && (!o.Force || o.DryRun || db.opts.Lease != nil):
		return &Candidacy{Epoch: db.log.Epoch(), End: db.log.BatchEnd()}, nil
	case db.log.Empty():
		return nil, fmt.Errorf("promote: %w", ErrLoading)
	case el == nil:
		el = alone{}
	}
	if !db.follower.Load() && !o.DryRun { // fenced: what it has is a follower's
		if err := db.Follow(ctx); err != nil {
			return nil, err
		}
	}
	if o.DryRun {
		b, err := db.ballot(el, false) // a delayed follower has applied no rule yet
		if err != nil {
			return nil, err
		}
		return b.ask(ctx, 0)
	}
	el.Leave()
	defer db.applyAll()()
	if err := db.waitIndexed(ctx); err != nil { // the rule is that of the log's end
		return nil, fmt.Errorf("promote: %w", err)
	}
	for range electAttempts {
		b, err := db.ballot(el, true)
		if err != nil {
			return nil, err
		}
		c, err := b.elect(ctx, o.Force)
		if err != nil {
			return c, err
		}
		if err := b.fetch(ctx, c); err != nil && !o.Force {
			return c, fmt.Errorf("promote: %w", err)
		}
		now, err := db.ballot(el, true)
		switch {
		case err != nil:
			return c, err
		case c.Forced:
			return c, db.takeLead(c)
		case !now.quora[0].has(db.log.NodeID()):
			return c, fmt.Errorf("%w: this node is no voter of the commit rule", ErrNoQuorum)
		case now.met(c.Promised):
			return c, db.takeLead(c)
		}
		// What was copied has changed the rule: whoever counts under that one may alone have what was acknowledged since.
	}
	return nil, fmt.Errorf("%w: the rule is another each time", ErrNoQuorum)
}

// alone is the electorate of a node that knows how to reach nobody.
type alone struct{}

func (alone) Leave()                    {}
func (alone) Leader() (wal.Voter, bool) { return wal.Voter{}, false }
func (alone) Ask(context.Context, wal.Voter, wal.Epoch) (Vote, error) {
	return Vote{}, errors.New("this node does not know how to reach others")
}

func (alone) Fetch(context.Context, wal.Voter, wal.Epoch, Vote) error {
	return errors.New("this node does not know how to reach others")
}

// ballot is one election: who is asked, and how many of whom must promise.
type ballot struct {
	db     *DB
	el     Electorate
	others []wal.Voter
	quora  []quorum // under the rule, and then under those that are on their way to it
	// degraded: the log ends in a span in which the leader asked no followers, as far as this node knows.
	degraded bool
}

// quorum is a set of voters, leader included, of whom so many must promise: one at least of them then has every write that the leader
// and n others have confirmed.
type quorum struct {
	voters []wal.NodeID
	need   int
	n      int // voters besides the leader that must confirm a write
}

// newQuorum is what a rule asks for in an epoch that last led. Without a rule that asks followers it is anybody. Voters that have
// only a name yet count, and cannot promise: under that name somebody may have confirmed writes that this node has not heard of.
func newQuorum(rule wal.Rule, last wal.NodeID) quorum {
	q := quorum{voters: []wal.NodeID{last}}
	for _, v := range rule.Voters {
		if v.ID.IsZero() || !slices.Contains(q.voters, v.ID) {
			q.voters = append(q.voters, v.ID)
		}
	}
	if level := Level(rule.Level); level.synchronous() {
		q.need = max(1, len(q.voters)-level.N())
		q.n = level.N()
	}
	return q
}

// has reports whether a node is one of the voters, where there are any. Another one as the leader would take a voter's place: what it commits would not
// need those whose promises are enough to lead by the rule as they know it.
func (q quorum) has(id wal.NodeID) bool { return q.need == 0 || slices.Contains(q.voters, id) }

// met reports whether enough of the voters have promised.
func (q quorum) met(votes []NodeVote) bool {
	n := 0
	for _, v := range votes {
		if v.Vote.Granted && !v.Node.ID.IsZero() && slices.Contains(q.voters, v.Node.ID) {
			n++
		}
	}
	return n >= q.need
}

// ballot makes an election by the history and the rule at the log's end; binding: there must be a rule, because by none anybody might lead.
// ErrLoading: the log was given up, to be copied anew, and the copy has not come so far yet.
func (db *DB) ballot(el Electorate, binding bool) (*ballot, error) {
	m := &db.marks
	m.mu.Lock()
	rules, degraded := []wal.Rule{m.rule}, m.degraded != 0 // a span that has ended since would leave the whole rule in force
	for _, c := range m.changes {
		rules = append(rules, c.old)
	}
	m.mu.Unlock()
	history := db.log.History()
	if len(history) == 0 || binding && rules[0].Level == 0 {
		return nil, fmt.Errorf("promote: %w: the copy has only begun", ErrLoading)
	}
	last := history[len(history)-1].Leader
	b := &ballot{db: db, el: el, degraded: degraded}
	known := map[wal.NodeID]bool{db.log.NodeID(): true}
	for _, rule := range rules {
		b.quora = append(b.quora, newQuorum(rule, last))
		for _, v := range rule.Voters {
			if !v.ID.IsZero() && !known[v.ID] {
				known[v.ID] = true
				b.others = append(b.others, v)
			}
		}
	}
	if !known[last] { // the leader is a voter too, and is not in its own list
		v, ok := el.Leader()
		if !ok || v.ID != last {
			v = wal.Voter{ID: last}
		}
		b.others = append(b.others, v)
	}
	return b, nil
}

// need is how many must promise at least.
func (b *ballot) need() (n int) {
	for _, q := range b.quora {
		n = max(n, q.need)
	}
	return n
}

func (b *ballot) met(votes []NodeVote) bool {
	return !slices.ContainsFunc(b.quora, func(q quorum) bool { return !q.met(votes) })
}

// ask collects votes for an epoch; 0 asks for none, only how far everybody is.
func (b *ballot) ask(ctx context.Context, e wal.Epoch) (*Candidacy, error) {
	c := &Candidacy{Epoch: e, Needed: b.need(), MayLack: b.need() == 0 || b.degraded, Unapplied: b.db.unapplied()}
	log := b.db.log
	own := Vote{Granted: true, Promised: log.Promised(), Last: log.Epoch(), End: b.db.BatchEnd()}
	c.Promised = append(c.Promised, NodeVote{wal.Voter{ID: log.NodeID()}, own})
	type answer struct {
		vote NodeVote
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(b.others))
	for _, v := range b.others {
		go func() { // ends with ctx
			vote, err := b.el.Ask(ctx, v, e)
			answers <- answer{NodeVote{v, vote}, err}
		}()
	}
	var enough <-chan time.Time
	for range b.others {
		if e != 0 && enough == nil && b.met(c.Promised) {
			enough = time.After(lateVotes)
		}
		select {
		case a := <-answers:
			if a.err != nil {
				c.Missing = append(c.Missing, fmt.Sprintf("%s: %v", voterName(a.vote.Node), a.err))
			} else {
				c.Promised = append(c.Promised, a.vote)
			}
		case <-enough:
			c.Missing = append(c.Missing, "others: not waited for")
			c.End = log.Head()
			return c, nil
		}
	}
	c.End = log.Head()
	return c, nil
}

// lateVotes is how long others are waited for once enough have promised: they then follow at once, and need not be found later.
const lateVotes = 100 * time.Millisecond

func voterName(v wal.Voter) string {
	if v.Name != "" {
		return v.Name
	}
	return v.ID.String()
}

// elect asks for promises until enough have promised one epoch.
func (b *ballot) elect(ctx context.Context, force bool) (*Candidacy, error) {
	log := b.db.log
	again, err := b.db.stopLending(ctx) // this node too has been relied on; it follows nobody any more
	if err != nil {
		return nil, fmt.Errorf("promote: %w", err)
	}
	again()
	for range electAttempts {
		e := max(log.Epoch(), log.Promised())
		if e.Term() == wal.MaxTerm {
			return nil, fmt.Errorf("promote: %w: no term is above that of %v", wal.ErrEpoch, e)
		}
		e, err := b.db.grantedTerm(ctx, e.NextTerm())
		if err != nil {
			return nil, err
		}
		if err := log.Promise(e); err != nil { // its own promise comes first
			return nil, fmt.Errorf("promote: %w", err)
		}
		c, err := b.ask(ctx, e)
		if err != nil {
			return nil, err
		}
		taken := wal.Epoch(0) // the highest epoch that somebody has promised to another
		for _, v := range c.Promised {
			if !v.Vote.Granted {
				taken = max(taken, v.Vote.Promised)
			}
		}
		switch {
		case taken >= e:
			if err := log.Promise(taken); err != nil {
				return nil, fmt.Errorf("promote: %w", err)
			}
			continue // one term above that
		case b.met(c.Promised):
			return c, nil
		case force:
			c.Forced = true
			return c, nil
		}
		return c, fmt.Errorf("%w: %d are needed for epoch %v; no answer from %q", ErrNoQuorum, b.need(), e, c.Missing)
	}
	return nil, fmt.Errorf("%w: others keep promising higher epochs", ErrNoQuorum)
}

// electAttempts bounds how often a candidate goes one term higher.
const electAttempts = 4

// furthest finds the vote with the greatest end among those that were granted: the last epoch counts before the LSN.
func furthest(votes []NodeVote) NodeVote {
	best := votes[0]
	for _, v := range votes[1:] {
		a, b := v.Vote, best.Vote
		if a.Granted && (a.Last > b.Last || a.Last == b.Last && a.End > b.End) {
			best = v
		}
	}
	return best
}

// fetch copies what the furthest of those who have promised has and this node lacks.
func (b *ballot) fetch(ctx context.Context, c *Candidacy) error {
	best := furthest(c.Promised)
	if best.Node.ID == b.db.log.NodeID() {
		return nil
	}
	b.db.opts.Logger.Info("copying what another voter has", "voter", voterName(best.Node), "end_lsn", best.Vote.End.String())
	if err := b.el.Fetch(ctx, best.Node, c.Epoch, best.Vote); err != nil {
		return fmt.Errorf("copy from %s: %w", voterName(best.Node), err)
	}
	return b.db.waitIndexed(ctx)
}

// BatchEnd is the end of the last whole batch in the log. A seal behind it, with which a follower's log may end for a while, does not count: it is
// in no index, and is written anew by whoever goes on there.
func (db *DB) BatchEnd() wal.LSN {
	end, indexed := db.log.BatchEnd(), db.marks.indexedLSN()
	if size := wal.LSN(db.log.SegmentSize()); indexed < end && end&(size-1) == 0 && end-indexed < size &&
		errors.Is(db.log.ViewFrame(indexed, func(wal.Frame, []byte) error { return nil }), wal.ErrNotBoundary) {
		return indexed
	}
	return end
}

// waitIndexed waits until everything in the log that is complete is in the index.
func (db *DB) waitIndexed(ctx context.Context) error {
	return db.waitMarks(ctx, func() (bool, error) {
		if err := db.applyErr.Load(); err != nil {
			return false, *err
		}
		return db.marks.indexedLSN() >= db.BatchEnd(), nil
	})
}

// takeLead begins the epoch and the leader's work.
func (db *DB) takeLead(c *Candidacy) error {
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	if db.closed.Load() {
		return ErrClosed
	}
	if db.loadedAt.Load() == loadingUntilConsistent && db.consistentAt.Load() == 0 {
		return fmt.Errorf("promote: %w: the copy is not complete", ErrLoading)
	}
	db.applier.stop()
	lead := false
	defer func() {
		if !lead {
			db.applier = db.startApplier(db.marks.indexedLSN())
		}
	}()
	if db.log.BatchEnd() < db.log.Head() { // a batch that its leader will not finish
		from, err := db.cutIndex(db.log.BatchEnd())
		if err == nil && from < db.log.BatchEnd() {
			db.marks.cut(from, from, db.log.Durable())
			err = fmt.Errorf("%w: the index is filled again from %v", ErrLoading, from)
		}
		if err != nil {
			return fmt.Errorf("promote: %w", err)
		}
	}
	m := &db.marks
	m.mu.Lock()
	rule := m.rule
	m.mu.Unlock()
	rule = db.ruleAsLeader(rule)
	end, err := db.log.StartEpoch(c.Epoch, rule)
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	lead = true
	c.End = end
	history := db.log.History()
	began := db.timeAt(history[len(history)-1].Start)
	m.mu.Lock()
	m.followers = map[wal.NodeID]*follower{}
	m.ends, m.waiting = lsnQueue{}, waiterQueue{}
	m.endSpan(end, began)
	m.rule, m.degraded, m.failed, m.told = rule, 0, nil, 0
	m.changes = nil // who has promised has done so under the old and the new; the epoch's record begins with the new alone
	m.ruleMoved()
	m.indexed.Store(uint64(end))
	m.mu.Unlock()
	db.clock.observe(db.clock.now().UnixMilli())
	db.fenced.Store(0)
	db.loadedAt.Store(0)
	db.beginLead(end, false)
	db.follower.Store(false)
	if p := db.log.Promised(); p > c.Epoch { // since the record was written
		db.stopWrites(p)
	}
	db.opts.Logger.Warn("leading", "epoch", c.Epoch.String(), "epoch_end_lsn", end.String(), "forced", c.Forced, "promises", len(c.Promised))
	return nil
}

// ruleAsLeader is a rule as this node leads by it: the leader is not in its own list, where its predecessor takes its place. So the set
// of voters stays what it was.
func (db *DB) ruleAsLeader(rule wal.Rule) wal.Rule {
	self := db.log.NodeID()
	voters := slices.DeleteFunc(slices.Clone(rule.Voters), func(v wal.Voter) bool { return v.ID == self })
	history := db.log.History()
	last := wal.Voter{ID: history[len(history)-1].Leader}
	if len(voters) < len(rule.Voters) && len(voters) < MaxVoters && last.ID != self &&
		!slices.ContainsFunc(voters, func(v wal.Voter) bool { return v.ID == last.ID }) {
		if el := db.electorate; el != nil {
			if v, ok := el.Leader(); ok && v.ID == last.ID {
				last = v
			}
		}
		voters = append(voters, last)
	}
	rule.Voters = voters
	return rule
}

// GrantPromise promises a candidate to take part in no epoch below e: persisted on return. It refuses what it has promised already.
// It waits until the last leader does not rely on this node any more, for ReadLease at the most.
// The caller has made sure that nothing more is appended from an older leader. A leader is fenced by its promise.
func (db *DB) GrantPromise(e wal.Epoch) (bool, error) {
	if !db.mayPromise(e) {
		return false, nil
	}
	again, err := db.stopLending(context.Background())
	if err != nil {
		return false, err
	}
	defer again()
	db.roleMu.Lock() // a promotion of this node comes wholly before it, or fails
	defer db.roleMu.Unlock()
	if db.closed.Load() {
		return false, ErrClosed
	}
	if !db.mayPromise(e) {
		return false, nil
	}
	return true, db.Fence(e)
}

// mayPromise reports whether an epoch is above all that this node has promised or has in its log.
func (db *DB) mayPromise(e wal.Epoch) bool { return e > max(db.log.Promised(), db.log.Epoch()) }
