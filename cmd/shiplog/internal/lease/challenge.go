package lease

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Challenge records that this node, which reaches so many voters, does not reach the leader of a term. One challenge of a term is enough: where another node's
// stands, nothing is written, and nothing where the leader is another by now. It ends with this node's session, or by Withdraw.
func (c *Client) Challenge(ctx context.Context, term uint32, reaches int) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	s, session, err := c.now()
	if err != nil {
		return err
	}
	self := c.opts.Self
	if s.Leader == nil || s.Leader.Node == self.Node || s.Leader.Term != term || s.Rival != nil && s.Rival.Term == term {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	value := encode(Challenge{Node: self.Node, Name: self.Name, Term: term, Reaches: reaches})
	return c.change(ctx, &s, session, map[string]string{rivalKey: value}, clientv3.Compare(clientv3.ModRevision(c.prefix+rivalKey), "=", s.rival))
}

// Withdraw takes this node's challenge back, if it stands. Another node's is not touched.
func (c *Client) Withdraw(ctx context.Context) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	revision, own := c.state.rival, c.state.Rival != nil && c.state.Rival.Node == c.opts.Self.Node
	c.mu.Unlock()
	if !own {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	key := c.prefix + rivalKey
	if _, err := c.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(clientv3.OpDelete(key)).Commit(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil
}
