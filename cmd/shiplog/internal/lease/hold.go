package lease

import (
	"context"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Claim says what a node that wants the lease brings.
type Claim struct {
	Database string
	Least    uint32 // lowest term that is of use
	Led      bool   // it led the last epoch of its log: in a group that has no eligible set yet it may lead
	Alone    bool   // with the lease all others leave the eligible set: they may lack what this node has
	Force    bool   // the eligible set does not count: acknowledged writes may be lost
}

// Acquire takes the lease, and a term with it, unless another node has it. A node that has it gets a new term.
func (c *Client) Acquire(ctx context.Context, claim Claim) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	s, session, err := c.now()
	if err != nil {
		return err
	}
	if c.refuse(&s, &claim) != nil { // what was last heard may be old: a node is told to take over before it hears of that from etcd
		if _, err := c.load(ctx); err != nil {
			return err
		}
		if s, session, err = c.now(); err != nil {
			return err
		}
		if err := c.refuse(&s, &claim); err != nil {
			return err
		}
	}
	self := c.opts.Self
	self.Term = max(s.Term+1, claim.Least)
	values := map[string]string{leaderKey: encode(self), termKey: formatTerm(self.Term)}
	if s.Database == "" {
		values[databaseKey] = claim.Database
	}
	if claim.Alone || !s.Listed {
		values[eligibleKey] = encode([]string{self.Node})
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	if err := c.change(ctx, &s, session, values); err != nil {
		return err
	}
	c.mu.Lock()
	c.granted, c.used = self.Term, 0
	c.mu.Unlock()
	return nil
}

// refuse says why a claim cannot be met; nil: it can.
func (c *Client) refuse(s *State, claim *Claim) error {
	self := c.opts.Self.Node
	switch {
	case s.Database != "" && s.Database != claim.Database:
		return fmt.Errorf("%w: %s, this node has %s", ErrDatabase, s.Database, claim.Database)
	case s.Leader != nil && s.Leader.Node != self && s.Leader.Next != self:
		return fmt.Errorf("%w: %s, at %s", ErrTaken, s.Leader.Name, s.Leader.RESP)
	case !claim.Force && !s.MayLead(self) && (s.Listed || !claim.Led):
		return ErrNotEligible
	}
	return nil
}

// now is the state and the session.
func (c *Client) now() (State, clientv3.LeaseID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.Known || c.session == 0 {
		return State{}, 0, ErrUnreachable
	}
	return c.state, c.session, nil
}

// amend changes keys as the holder of the lease. writing is held.
func (c *Client) amend(ctx context.Context, make func(s *State) (map[string]string, error)) error {
	s, session, err := c.now()
	if err != nil {
		return err
	}
	c.mu.Lock()
	holding := c.holding()
	c.mu.Unlock()
	if !holding {
		return ErrNotHeld
	}
	values, err := make(&s)
	if err != nil || len(values) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	return c.change(ctx, &s, session, values)
}

// Term implements engine.Lease.
func (c *Client) Term(ctx context.Context, least uint32) (uint32, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	term, fresh := c.granted, c.holding() && c.used < c.granted && c.granted >= least
	if fresh {
		c.used = term
	}
	c.mu.Unlock()
	if fresh {
		return term, nil
	}
	err := c.amend(ctx, func(s *State) (map[string]string, error) {
		term = max(s.Term+1, least)
		leader := *s.Leader
		leader.Term = term
		return map[string]string{leaderKey: encode(leader), termKey: formatTerm(term)}, nil
	})
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	c.granted, c.used = term, term
	c.mu.Unlock()
	return term, nil
}

// Announce tells the group that this node leads.
func (c *Client) Announce(ctx context.Context) error {
	return c.update(ctx, func(l *Leader) { l.Leads, l.Next = true, "" })
}

// HandOver lets another node take the lease while it runs. Acquire takes that back.
func (c *Client) HandOver(ctx context.Context, to string) error {
	return c.update(ctx, func(l *Leader) { l.Leads, l.Next = false, to })
}

func (c *Client) update(ctx context.Context, fn func(l *Leader)) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.amend(ctx, func(s *State) (map[string]string, error) {
		l := *s.Leader
		if fn(&l); l == *s.Leader {
			return nil, nil
		}
		return map[string]string{leaderKey: encode(l)}, nil
	})
}

// Release gives up the lease, so that another node may have it at once. This node stops to rely on it before etcd is asked. After an error it may be called
// again: what another node has by then it does not touch.
func (c *Client) Release(ctx context.Context) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	revision, own := c.state.leader, c.state.Leader != nil && c.state.Leader.Node == c.opts.Self.Node
	c.state.lease = 0
	c.hold()
	c.mu.Unlock()
	if !own {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	key := c.prefix + leaderKey
	_, err := c.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(clientv3.OpDelete(key)).Commit()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil
}

// Narrow implements engine.Lease. It tries again until it succeeds, the lease is lost or ctx ends.
func (c *Client) Narrow(ctx context.Context) error {
	only := []string{c.opts.Self.Node}
	for {
		err := c.SetEligible(ctx, func() []string { return only })
		if err == nil {
			return nil
		}
		if !c.Held() {
			return fmt.Errorf("%w: %w", ErrNotHeld, err)
		}
		select {
		case <-time.After(c.opts.TTL / 20):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// SetEligible records who may have the lease next: what list returns, which is called when no other change is under way.
func (c *Client) SetEligible(ctx context.Context, list func() []string) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.amend(ctx, func(s *State) (map[string]string, error) {
		nodes := list()
		if len(nodes) == 0 {
			return nil, ErrNotHeld // this node does not lead any more
		}
		slices.Sort(nodes)
		if slices.Equal(nodes, s.Eligible) {
			return nil, nil
		}
		return map[string]string{eligibleKey: encode(nodes)}, nil
	})
}

// Found takes the right to create the group's database: nobody else has it until this node's session ends, or Acquire has named the
// database. ErrTaken: there is one, or another node is about to.
func (c *Client) Found(ctx context.Context) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	s, session, err := c.now()
	if err != nil {
		return err
	}
	if s.Database != "" || s.Leader != nil {
		return ErrTaken
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	return c.change(ctx, &s, session, map[string]string{founderKey: c.opts.Self.Node},
		clientv3.Compare(clientv3.CreateRevision(c.prefix+founderKey), "=", 0))
}
