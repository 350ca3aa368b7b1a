package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is how a node's role changes: it asks other nodes, answers them, and goes to whoever leads.

const (
	// askTimeout bounds how long another node's answer is waited for.
	askTimeout = 2 * time.Second
	// lookEvery is how often a node looks whether somebody else leads.
	lookEvery = time.Second
	// fetchStall is how long a candidate waits for more of what another node has: that one may have promised somebody else meanwhile.
	fetchStall = 10 * time.Second
	// handOverTimeout bounds how long a switchover waits for its target, while nothing is written.
	handOverTimeout = 10 * time.Second
	// maxCallers bounds how many callers' addresses are kept.
	maxCallers = engine.MaxVoters
)

// openNode opens the database as the flags say; a node whose last epoch has ended elsewhere, as a follower: it finds its
// leader by the voters that its log names.
func openNode(cfg *config.Node) (*engine.DB, error) {
	db, err := engine.Open(cfg.Dir, &cfg.Engine)
	if err == nil || cfg.Follow != "" || !errors.Is(err, engine.ErrNotLeader) && !errors.Is(err, engine.ErrFenced) {
		return db, err
	}
	opts := cfg.Engine
	opts.Follower = true
	db, again := engine.Open(cfg.Dir, &opts)
	if again != nil {
		return nil, again
	}
	if slices.ContainsFunc(db.Stats().Voters, func(v wal.Voter) bool { return v.Addr != "" && v.ID != db.Log().NodeID() }) {
		cfg.Logger.Warn("another node leads, or has led since; opened as a follower", "reason", err)
		return db, nil
	}
	return nil, errors.Join(fmt.Errorf("%w: give --follow", err), db.Close())
}

// electorate is how the engine reaches other nodes.
type electorate struct{ n *node }

func (e electorate) Leave() { e.n.unfollow() }

func (e electorate) Leader() (wal.Voter, bool) {
	e.n.mu.Lock()
	f, addr := e.n.follower, e.n.upstream
	e.n.mu.Unlock()
	if f == nil {
		return wal.Voter{}, false
	}
	s := f.Status()
	if s.Hops != 0 {
		return wal.Voter{}, false
	}
	return wal.Voter{ID: s.Leader, Name: s.UpstreamName, Addr: addr}, true
}

func (e electorate) Ask(ctx context.Context, v wal.Voter, epoch wal.Epoch) (engine.Vote, error) {
	op := ship.CallPromise
	if epoch == 0 {
		op = ship.CallReport
	}
	addr := v.Addr
	if addr == "" { // a leader before this one, that the rule knows by its ID alone
		e.n.mu.Lock()
		addr = e.n.callers[v.ID]
		e.n.mu.Unlock()
	}
	vote, err := e.n.ask(ctx, addr, op, epoch, askTimeout)
	if err != nil {
		return engine.Vote{}, err
	}
	if vote.Node != v.ID { // another disk under the address: it speaks for itself alone
		return engine.Vote{}, fmt.Errorf("at %s answers node %s", addr, vote.Node)
	}
	return engine.Vote{Granted: vote.Granted, Promised: vote.Promised, Last: vote.Last, End: vote.End}, nil
}

func (e electorate) Fetch(ctx context.Context, v wal.Voter, epoch wal.Epoch, vote engine.Vote) error {
	n := e.n
	f, err := n.newFollower(v.Addr, epoch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }() // ended by cancel, and waited for
	defer func() {
		cancel()
		<-ended //nolint:errcheck // how far the log has got says all
	}()
	log := n.db.Log()
	moved := make(chan struct{}, 1)
	defer log.Notify(moved)()
	stalled := time.NewTimer(fetchStall)
	defer stalled.Stop()
	for log.Head() < vote.End || log.Epoch() < vote.Last {
		select {
		case <-moved:
			stalled.Reset(fetchStall)
		case <-stalled.C:
			return fmt.Errorf("nothing comes: this log ends at %v, the other one at %v", log.Head(), vote.End)
		case err := <-ended:
			ended <- nil
			if errors.Is(err, ship.ErrTrimmed) {
				err = fmt.Errorf("%w: let that node lead, or this one follow it first", err)
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ask calls another node.
func (n *node) ask(ctx context.Context, addr string, op ship.CallOp, e wal.Epoch, timeout time.Duration) (*ship.Vote, error) {
	if addr == "" {
		return nil, errors.New("its address is not known")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	log := n.db.Log()
	return ship.Ask(ctx, addr, n.callOptions(), &ship.Call{
		Op: op, Epoch: e, Database: log.DatabaseID(), Node: log.NodeID(), Name: n.cfg.Name, Addr: n.shipAddr,
	})
}

// callOptions are how other nodes are called.
func (n *node) callOptions() *ship.CallOptions {
	return &ship.CallOptions{Secret: n.cfg.Secret, TLS: n.cfg.ClientTLS, Dial: n.dial}
}

// answer answers another node's call.
func (n *node) answer(ctx context.Context, c *ship.Call) (*ship.Vote, error) {
	n.noteCaller(c)
	granted := false
	switch c.Op {
	case ship.CallPromise:
		n.changing.Lock()
		defer n.changing.Unlock()
		var err error
		if granted, err = n.db.GrantPromise(c.Epoch); err != nil {
			return nil, err
		}
		if granted {
			n.setResumes(false)
			n.log.Warn("promised an epoch", "epoch", c.Epoch.String(), "candidate", c.Name)
			// Nothing more comes from an older leader, and nothing more is written by this one, before the end is told.
			n.unfollow()
			if err := n.stepDown(ctx); err != nil {
				return nil, err
			}
		}
		v := n.vote(granted)
		if granted && c.Addr != "" {
			if err := n.follow(c.Addr, ""); err != nil {
				n.log.Error("the candidate is not followed", "addr", c.Addr, "error", err)
			}
		}
		return v, nil
	case ship.CallClients:
		v := n.vote(false)
		v.Addr = n.respAddr
		return v, nil
	case ship.CallTakeOver:
		_, err := n.promote(ctx, engine.PromoteOptions{})
		if err != nil {
			return nil, err
		}
		granted = true
	}
	return n.vote(granted), nil
}

// noteCaller remembers where a caller is: a leader calls the voters that have lost it, and they cannot know its address by their
// logs, because a leader is not in its own list.
func (n *node) noteCaller(c *ship.Call) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.callers[c.Node]; c.Addr == "" || !known && len(n.callers) == maxCallers {
		return
	}
	if n.callers == nil {
		n.callers = map[wal.NodeID]string{}
	}
	n.callers[c.Node] = c.Addr
}

// vote says how far this node is.
func (n *node) vote(granted bool) *ship.Vote {
	log := n.db.Log()
	v := &ship.Vote{
		Granted: granted, Leads: n.leads(), Promised: log.Promised(), Last: log.Epoch(), Node: log.NodeID(),
		End: n.db.BatchEnd(), Durable: log.Durable(), Committed: n.db.Committed(), Tail: log.Tail(), Name: n.cfg.Name, Addr: n.shipAddr,
	}
	if !v.Leads {
		n.mu.Lock()
		v.Addr = n.upstream
		n.mu.Unlock()
	}
	return v
}

// leads reports whether this node may write.
func (n *node) leads() bool { return n.db.Role() == engine.Leader && n.db.Stats().Fenced == 0 }

// stepDown makes a leader a follower that follows nobody yet.
func (n *node) stepDown(ctx context.Context) error {
	if n.db.Role() == engine.Follower {
		return nil
	}
	if err := n.db.Follow(ctx); err != nil {
		return err
	}
	n.log.Warn("stepped down")
	n.renew()
	return nil
}

// promote makes this node the leader.
func (n *node) promote(ctx context.Context, o engine.PromoteOptions) (*engine.Candidacy, error) {
	if n.db.KeepsLogOnly() { // it goes on following meanwhile
		return nil, fmt.Errorf("promote: %w: restart it without --log-only", engine.ErrLogOnly)
	}
	if n.lease != nil && !o.DryRun {
		n.standing.Lock()
		defer n.standing.Unlock()
		if !o.Force && !n.leads() {
			if err := n.couldBeElected(ctx); err != nil {
				return nil, err
			}
		}
		if err := n.acquire(ctx, o.Force); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	addr, asked, following := n.upstream, n.askedAt, n.stop != nil
	n.mu.Unlock()
	c, err := n.db.PromoteWith(ctx, o)
	switch {
	case o.DryRun:
	case err != nil:
		n.giveUpLease(ctx)
		n.changing.Lock()
		defer n.changing.Unlock()
		if following && n.db.Role() == engine.Follower {
			if again := n.follow(addr, asked); again != nil {
				err = errors.Join(err, again)
			}
		}
	default:
		n.mu.Lock()
		n.follower, n.upstream, n.askedAt, n.final, n.resumes = nil, "", "", nil, false
		n.mu.Unlock()
		n.renew()
	}
	return c, err
}

// renew has this node's followers come back, because its role has changed.
func (n *node) renew() {
	if n.leader != nil {
		n.leader.Renew()
	}
}

// ledLast reports whether this node led the last epoch that it knows of, and has not made way for another.
func (n *node) ledLast() bool {
	log := n.db.Log()
	return n.led() && log.Promised() <= log.Epoch()
}

// setResumes says whether this node is to lead again.
func (n *node) setResumes(is bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resumes = is
}

func (n *node) willResume() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.resumes
}

// watch looks for another leader from time to time, until ctx ends.
func (n *node) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// look asks the nodes that this one does not hear of. A leader that learns of a higher epoch steps down; a follower whose upstream is
// gone goes to whoever leads; and if nobody does, a node that was promoted before it was restarted with the flags of a follower leads
// again, like one that was started as the leader: with the promises that any promotion needs.
func (n *node) look(ctx context.Context) {
	log := n.db.Log()
	if log.Empty() || n.leader == nil || ctx.Err() != nil {
		return
	}
	leads := n.leads()
	if !leads && n.hears() && !n.willResume() {
		return
	}
	votes := n.survey(ctx, leads)
	if len(votes) == 0 && leads {
		return
	}
	highest, last, leader := wal.Epoch(0), wal.Epoch(0), (*ship.Vote)(nil)
	for _, v := range votes {
		highest, last = max(highest, v.Promised, v.Last), max(last, v.Last)
		// One that leads an epoch below what this node has promised does not know of that, and hears it from who comes to follow it.
		if v.Leads && v.Last >= log.Epoch() && (leader == nil || v.Last > leader.Last) {
			leader = v
		}
	}
	if !leads && leader == nil && highest <= log.Promised() && n.willResume() {
		n.log.Warn("nobody leads this database; this node did, and does so again", "database", log.DatabaseID().String(), "not_following", n.cfg.Follow)
		if _, err := n.promote(ctx, engine.PromoteOptions{}); err != nil {
			n.log.Warn("not yet the leader again", "error", err)
		}
		return
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	if leader != nil {
		n.setResumes(false)
	}
	if highest > max(log.Epoch(), log.Promised()) {
		if err := n.db.Fence(highest); err != nil {
			n.log.Error("a higher epoch is not persisted", "epoch", highest.String(), "error", err)
			return
		}
	}
	if n.leads() {
		return
	}
	if n.db.Role() == engine.Leader && leader == nil && last <= log.Epoch() && n.lease == nil {
		// Fenced by a promise that nobody has made an epoch of: a candidate has failed, or is not there yet. Then it asks for this node's promise.
		n.setResumes(!n.cfg.LogOnly)
	}
	if err := n.stepDown(ctx); err != nil {
		n.log.Error("not stepped down", "error", err)
		return
	}
	if leader == nil || n.hears() || log.Err() != nil { // a log that has failed takes nothing before a restart
		return
	}
	n.mu.Lock()
	same := n.upstream == leader.Addr && n.final == nil && n.stop != nil
	n.mu.Unlock()
	if same {
		return
	}
	n.log.Info("going to the leader", "name", leader.Name, "addr", leader.Addr, "epoch", leader.Last.String())
	if err := n.follow(leader.Addr, ""); err != nil {
		n.log.Error("the leader is not followed", "addr", leader.Addr, "error", err)
	}
}

// hears reports whether this node follows somebody who answers. A voter follows the leader itself: behind another follower it does not count.
func (n *node) hears() bool {
	n.mu.Lock()
	f, final := n.follower, n.final
	n.mu.Unlock()
	if f == nil || final != nil {
		return false
	}
	s := f.Status()
	if s.Connected && s.Hops > 0 {
		self := n.db.Log().NodeID()
		return !slices.ContainsFunc(n.db.Stats().Voters, func(v wal.Voter) bool { return v.ID == self })
	}
	return s.Connected || time.Since(s.Since) < lookEvery
}

// survey asks all other nodes that are known, a leader only those that are not connected; and where nobody of them leads, those
// that they take for the leader: it may have become a voter, or come to the group, while this node was away.
func (n *node) survey(ctx context.Context, leads bool) []*ship.Vote {
	var addrs []string
	add := func(addr string) {
		if addr != "" && addr != n.shipAddr && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	connected := map[wal.NodeID]bool{}
	for _, p := range n.peers() {
		connected[p.ID] = true
	}
	for _, v := range n.db.Stats().Voters {
		if v.ID != n.db.Log().NodeID() && !(leads && connected[v.ID]) {
			add(v.Addr)
		}
	}
	n.mu.Lock()
	for id, addr := range n.callers {
		if !(leads && connected[id]) {
			add(addr)
		}
	}
	if !leads {
		add(n.upstream)
		add(n.cfg.Follow)
	}
	n.mu.Unlock()
	votes := n.report(ctx, addrs)
	if leads { // of who has called and is no voter, only a later leader counts
		voters := n.db.Stats().Voters
		return slices.DeleteFunc(votes, func(v *ship.Vote) bool {
			addressed := slices.ContainsFunc(voters, func(w wal.Voter) bool { return w.ID == v.Node && w.Addr != "" })
			return !addressed && (!v.Leads || v.Last <= n.db.Log().Epoch())
		})
	}
	if slices.ContainsFunc(votes, func(v *ship.Vote) bool { return v.Leads }) {
		return votes
	}
	asked := len(addrs)
	for _, v := range votes {
		add(v.Addr)
	}
	return append(votes, n.report(ctx, addrs[asked:])...)
}

// report asks nodes how far they are, and who leads; those that do not answer are left out.
func (n *node) report(ctx context.Context, addrs []string) (votes []*ship.Vote) {
	var mu sync.Mutex // guards votes
	var asks sync.WaitGroup
	for _, addr := range addrs {
		asks.Go(func() {
			v, err := n.ask(ctx, addr, ship.CallReport, 0, askTimeout)
			if err != nil {
				return // it is down, or busy: asked again soon
			}
			if v.Leads {
				v.Addr = addr // as this node reaches it
			}
			mu.Lock()
			defer mu.Unlock()
			votes = append(votes, v)
		})
	}
	asks.Wait()
	return votes
}
