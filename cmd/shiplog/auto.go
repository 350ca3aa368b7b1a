package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/cmd/shiplog/internal/lease"
	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is failover without an operator: a lease in etcd says who may lead, and every node does by itself what follows from it.

const (
	// surveyTimeout is how long a candidate waits to hear how far the others are; who does not answer has promised nothing yet either.
	surveyTimeout = 150 * time.Millisecond
	// modesty is how long a candidate leaves the lease to one that is further.
	modesty = 500 * time.Millisecond
	// leaseTick is how often a node looks at its lease, at least.
	leaseTick = 50 * time.Millisecond
)

// membership is a node's part in a group whose leader a lease in etcd chooses.
type membership struct {
	*lease.Client
	stop   context.CancelFunc
	keeper sync.WaitGroup
}

// Close gives the lease up and ends what keeps it.
func (g *membership) Close() error {
	g.stop()
	g.keeper.Wait()
	return g.Client.Close()
}

// openInGroup opens the database of a node whose group has its leader chosen by a lease: as a follower, because no epoch is begun without the
// lease. Where neither the node nor the group has a database yet, and this node is the first to say so, it creates one.
func openInGroup(ctx context.Context, cfg *config.Node, at *listeners) (*engine.DB, *membership, error) {
	client, err := lease.Open(lease.Options{Endpoints: cfg.Etcd, Group: cfg.Group, TTL: cfg.LeaseTTL, TLS: cfg.EtcdTLS, Logger: cfg.Logger})
	if err != nil {
		return nil, nil, err
	}
	cfg.Engine.Lease = client
	opts := cfg.Engine
	opts.Follower = true
	db, err := engine.Open(cfg.Dir, &opts)
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	client.Identify(lease.Leader{Node: db.Log().NodeID().String(), Name: cfg.Name, RESP: advertised(at.resp.Addr(), cfg.Etcd[0]), Ship: advertised(at.ship.Addr(), cfg.Etcd[0])})
	g := &membership{Client: client}
	keeping, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.keeper.Go(func() { client.Run(keeping) }) // ends by stop, in Close
	if db.Log().Empty() {
		if db, err = joinOrFound(ctx, cfg, client, db); err != nil {
			return nil, nil, errors.Join(err, g.Close())
		}
	}
	if flags := fixedOtherwise(&cfg.Engine, db); len(flags) > 0 {
		cfg.Logger.Warn("the group's database was created, or its rule changed, with other values than these flags have: they are ignored", "flags", strings.Join(flags, " "))
	}
	return db, g, nil
}

// fixedOtherwise returns the flags that ask for something else than the database has. All nodes of a group may have them: who creates the database needs them.
// A database that is empty, and is to be copied, has nothing yet.
func fixedOtherwise(asked *engine.Options, db *engine.DB) (flags []string) {
	if db.Log().Empty() {
		return nil
	}
	rule := db.Rule()
	if asked.Commit != engine.Default && asked.Commit != rule.Level {
		flags = append(flags, "--commit")
	}
	if asked.FirstVoters && !rule.First {
		flags = append(flags, "--first-voters")
	}
	if asked.SegmentSize != 0 && asked.SegmentSize != db.Log().SegmentSize() {
		flags = append(flags, "--segment-size")
	}
	return flags
}

// joinOrFound waits until the group has a database, which this node is to copy, or creates it. The empty database is closed on an error.
func joinOrFound(ctx context.Context, cfg *config.Node, l *lease.Client, empty *engine.DB) (*engine.DB, error) {
	for {
		err := lease.ErrTaken
		if !cfg.LogOnly { // who cannot lead creates no database to lead
			err = l.Found(ctx)
		}
		switch {
		case err == nil:
			if err := empty.Close(); err != nil {
				return nil, err
			}
			return found(ctx, cfg, l)
		case errors.Is(err, lease.ErrTaken) && l.State().Database != "":
			return empty, nil
		}
		select {
		case <-l.Changed():
		case <-time.After(leaseTick):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("the group has no database yet: %w", ctx.Err()), empty.Close())
		}
	}
}

// found creates the group's database and takes the lease for its first epoch. Nothing is acknowledged before that.
func found(ctx context.Context, cfg *config.Node, l *lease.Client) (*engine.DB, error) {
	opts := cfg.Engine
	opts.Follower = false
	db, err := engine.Open(cfg.Dir, &opts)
	if err != nil {
		return nil, err
	}
	claim := lease.Claim{Database: db.Log().DatabaseID().String(), Least: db.Log().Epoch().Term(), Led: true}
	if err := errors.Join(l.Acquire(ctx, claim), l.Announce(ctx)); err != nil {
		return nil, errors.Join(fmt.Errorf("the new database is not the group's: %w", err), db.Close())
	}
	cfg.Logger.Info("created the group's database", "group", cfg.Group, "database", claim.Database)
	return db, nil
}

// automate keeps this node's role at what the lease says, until ctx ends.
func (n *node) automate(ctx context.Context) {
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	var c candidate
	for {
		n.obey(ctx, &c)
		select {
		case <-n.lease.Changed():
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// candidate is what a node remembers between two attempts to lead.
type candidate struct {
	vacantSince time.Time // nobody has had the lease since; zero: somebody has it
	notBefore   time.Time // an attempt has failed: others first
	told        string    // what was logged last
	contest     contest   // who is cut off from whom
	askAgain    time.Time // when voters are asked again who answers
}

// obey does what follows from the lease.
func (n *node) obey(ctx context.Context, c *candidate) {
	if n.handing.Load() {
		c.contest.step(&sight{handing: true})
		return // a switchover says who does what
	}
	if err := n.db.Log().Err(); err != nil {
		n.resign(ctx, c, err)
		return
	}
	if n.db.Role() == engine.Leader {
		if n.leads() && n.lease.Held() {
			if !n.contend(ctx, c) {
				n.reign(ctx)
			}
			return
		}
		n.changing.Lock()
		err := n.stepDown(ctx)
		n.changing.Unlock()
		if err != nil {
			n.log.Error("not stepped down", "error", err)
			return
		}
	}
	s := n.lease.State()
	self := n.db.Log().NodeID().String()
	switch {
	case !s.Known:
	case s.Leader != nil && s.Leader.Node != self:
		c.vacantSince = time.Time{}
		if s.Leader.Leads {
			n.goTo(s.Leader)
		}
		n.contend(ctx, c)
	default:
		n.contend(ctx, c)
		n.stand(ctx, c, &s)
	}
}

// resign gives the lease up, for good: this node's log takes no more writes.
func (n *node) resign(ctx context.Context, c *candidate, cause error) {
	if err := n.lease.Release(ctx); err != nil {
		n.log.Warn("the lease is not given up, it runs out", "error", err)
	}
	if c.told != cause.Error() {
		n.log.Error("this node does not lead any more", "reason", cause)
		c.told = cause.Error()
	}
}

// reign does a leader's duties towards the group.
func (n *node) reign(ctx context.Context) {
	err := n.lease.SetEligible(ctx, func() []string {
		var ids []string
		for _, id := range n.db.Eligible() {
			ids = append(ids, id.String())
		}
		return ids
	})
	if s := n.lease.State(); err == nil && s.Leader != nil && !s.Leader.Leads {
		err = n.lease.Announce(ctx)
	}
	if err != nil {
		n.log.Debug("the group is not told", "error", err)
	}
}

// goTo follows the leader, if this node does not already.
func (n *node) goTo(l *lease.Leader) {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	same := n.upstream == l.Ship && n.final == nil && n.stop != nil
	final := n.upstream == l.Ship && n.final != nil
	n.mu.Unlock()
	if same || final || n.db.Role() != engine.Follower {
		return
	}
	n.log.Info("going to the leader", "name", l.Name, "addr", l.Ship, "term", l.Term)
	if err := n.follow(l.Ship, l.RESP); err != nil {
		n.log.Error("the leader is not followed", "addr", l.Ship, "error", err)
	}
}

// stand has this node lead, if nobody does and it is the one to.
func (n *node) stand(ctx context.Context, c *candidate, s *lease.State) {
	now := time.Now()
	if c.vacantSince.IsZero() {
		c.vacantSince = now
	}
	if now.Before(c.notBefore) || n.db.Log().Empty() {
		return
	}
	if reason := n.unfit(s); reason != "" {
		if c.told != reason {
			n.log.Warn("nobody leads; this node does not stand", "reason", reason)
			c.told = reason
		}
		n.standAside(ctx, s)
		return
	}
	if c.contest.yielded && !n.couldCommit(ctx) {
		c.notBefore = time.Now().Add(c.pause())
		n.standAside(ctx, s)
		return
	}
	if now.Sub(c.vacantSince) < modesty && n.behind(ctx, s) {
		return
	}
	began := time.Now()
	cand, err := n.promote(ctx, engine.PromoteOptions{})
	if err != nil {
		c.notBefore = time.Now().Add(c.pause())
		switch {
		case errors.Is(err, lease.ErrTaken):
		case errors.Is(err, errFewAnswer):
			if c.told != err.Error() {
				n.log.Warn("nobody leads; this node does not stand", "reason", err)
				c.told = err.Error()
			}
			n.standAside(ctx, s)
		default:
			n.log.Warn("not promoted", "error", err)
		}
		return
	}
	n.log.Warn("took over", "epoch", cand.Epoch.String(), "vacant", began.Sub(c.vacantSince), "promotion", time.Since(began))
	c.told, c.vacantSince = "", time.Time{}
}

// standAside gives the lease up where a node that does not stand has it, from when it led.
func (n *node) standAside(ctx context.Context, s *lease.State) {
	if s.Leader == nil {
		return
	}
	if err := n.lease.Release(ctx); err != nil {
		n.log.Debug("the lease is not given up yet", "error", err)
	}
}

// pause is how long others go first after an attempt that has failed.
func (c *candidate) pause() time.Duration { return 100*time.Millisecond + rand.N(400*time.Millisecond) }

// unfit says why this node is not to lead, as far as it knows; empty: it may.
func (n *node) unfit(s *lease.State) string {
	n.mu.Lock()
	final := n.final
	n.mu.Unlock()
	switch {
	case s.Database != "" && s.Database != n.db.Log().DatabaseID().String():
		return "the group has database " + s.Database
	case final != nil:
		return final.Error()
	case n.cfg.LogOnly:
		return engine.ErrLogOnly.Error()
	case n.cfg.ApplyDelay > 0:
		return "it applies with a delay: promote it by hand"
	case s.Listed && !s.MayLead(n.db.Log().NodeID().String()):
		return "it may lack acknowledged writes: it is not in the eligible set"
	case !s.Listed && !n.led():
		return "the group has no eligible set yet, and another node has led"
	}
	return ""
}

// led reports whether this node led the last epoch of its log.
func (n *node) led() bool {
	h := n.db.Log().History()
	return len(h) > 0 && h[len(h)-1].Leader == n.db.Log().NodeID()
}

// behind reports whether another node that may lead has more than this one.
func (n *node) behind(ctx context.Context, s *lease.State) bool {
	log := n.db.Log()
	var mu sync.Mutex // guards ahead
	ahead := false
	var asks sync.WaitGroup
	for _, v := range n.db.Stats().Voters {
		if v.Addr == "" || v.ID == log.NodeID() || !s.MayLead(v.ID.String()) {
			continue
		}
		asks.Go(func() {
			vote, err := n.ask(ctx, v.Addr, ship.CallReport, 0, surveyTimeout)
			if err == nil && vote.Node == v.ID && (vote.Last > log.Epoch() || vote.Last == log.Epoch() && vote.End > log.Head()) {
				mu.Lock()
				defer mu.Unlock()
				ahead = true
			}
		})
	}
	asks.Wait()
	return ahead
}

// acquire takes the lease for a promotion of this node.
func (n *node) acquire(ctx context.Context, force bool) error {
	log := n.db.Log()
	if n.leads() && n.lease.Held() {
		return nil
	}
	if log.Empty() {
		return engine.ErrLoading
	}
	rule := n.db.Rule().Level
	return n.lease.Acquire(ctx, lease.Claim{
		Database: log.DatabaseID().String(), Least: max(log.Epoch(), log.Promised()).Term() + 1, Led: n.led(), Force: force,
		Alone: force || rule.N() == 0, // nobody else has to have what this node is about to acknowledge
	})
}

// giveUpLease lets another node have the lease after a promotion that failed.
func (n *node) giveUpLease(ctx context.Context) {
	if n.lease == nil || n.leads() {
		return
	}
	if err := n.lease.Release(context.WithoutCancel(ctx)); err != nil {
		n.log.Warn("the lease is not given up, it runs out", "error", err)
	}
}

// LeaderAddr implements resp.Node.
func (n *node) LeaderAddr() string {
	if n.lease != nil {
		if s := n.lease.State(); s.Leader != nil && s.Leader.Leads && s.Leader.Node != n.db.Log().NodeID().String() {
			return s.Leader.RESP
		}
		return ""
	}
	n.mu.Lock()
	f := n.follower
	n.mu.Unlock()
	if f == nil {
		return ""
	}
	s := f.Status()
	if !s.Connected || s.Hops != 0 {
		return ""
	}
	return s.UpstreamAddr
}

// leaseStatus is what is shown of the lease; voters have the names of those who may lead.
func (n *node) leaseStatus(voters []wal.Voter) *httpd.Lease {
	if n.lease == nil {
		return nil
	}
	s := n.lease.State()
	l := &httpd.Lease{Group: n.cfg.Group, Term: s.Term, LeftMs: n.lease.Left().Milliseconds(), Eligible: []string{}}
	if s.Leader != nil {
		l.Holder = s.Leader.Name
	}
	names := map[string]string{n.db.Log().NodeID().String(): n.cfg.Name}
	for _, v := range voters {
		names[v.ID.String()] = v.Name
	}
	for _, id := range s.Eligible {
		l.Eligible = append(l.Eligible, cmp.Or(names[id], id))
	}
	return l
}

// advertised is where others reach a port of this node: an address of all interfaces is replaced by the one that etcd is reached from.
func advertised(addr net.Addr, etcd string) string {
	host, port, err := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); err != nil || ip != nil && !ip.IsUnspecified() {
		return addr.String()
	}
	if u, err := url.Parse(etcd); err == nil && u.Host != "" {
		etcd = u.Host
	}
	c, err := net.Dial("udp", etcd) // sends nothing
	if err != nil {
		return addr.String()
	}
	defer func() { _ = c.Close() }() // nothing was sent
	own, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return addr.String()
	}
	return net.JoinHostPort(own, port)
}
