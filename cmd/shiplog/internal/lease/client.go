// Package lease keeps the right to lead a group of nodes in etcd. Each node has a session, an etcd lease that it renews; who leads is a key
// that is attached to the leader's session and taken by compare-and-swap together with the next term. So etcd gives the key to nobody else
// before the session has run out there, and the leader counts its own time from before each renewal was sent, less a margin: it stops
// first. Beside it stand the group's database, so that no two are founded, and the eligible set, which only the leader changes.
//
// Nothing here decides what is committed: the promises of the voters do. The lease says who may ask for them.
package lease

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Errors of a Client. They arrive wrapped.
var (
	// ErrUnreachable is returned while etcd has not answered, or this node has no session.
	ErrUnreachable = errors.New("lease: etcd does not answer")
	// ErrTaken is returned when another node has the lease, or was faster.
	ErrTaken = errors.New("lease: another node has it")
	// ErrNotEligible is returned to a node that may lack acknowledged writes.
	ErrNotEligible = errors.New("lease: this node may lack acknowledged writes")
	// ErrNotHeld is returned for what only the holder may do.
	ErrNotHeld = errors.New("lease: this node does not have it")
	// ErrDatabase is returned to a node of another database than the group's.
	ErrDatabase = errors.New("lease: the group has another database")
)

// Options configure Open. All but TLS are needed; Self may come later, by Identify.
type Options struct {
	Endpoints []string // HOST:PORT or URL
	Group     string
	TTL       time.Duration // of the session; whole seconds, and etcd may give more
	TLS       *tls.Config   // nil: plain
	Self      Leader        // Node, Name, RESP and Ship of this node
	Logger    *slog.Logger
}

// Client is a node's part in a group. Run keeps it up to date; Close ends it. Safe for concurrent use.
type Client struct {
	opts    Options
	etcd    *clientv3.Client
	prefix  string
	changed chan struct{}
	held    atomic.Int64 // until when the leader's key may be relied on, by now(); 0: it is not this node's

	writing sync.Mutex // one change of keys at a time; before mu

	mu      sync.Mutex // guards all below
	state   State
	seen    map[string]int64 // revision at which each key was last heard of
	session clientv3.LeaseID // 0: none
	until   time.Duration    // the session may be relied on until then
	granted uint32           // the term that came with it
	used    uint32           // the term that an epoch was begun with
}

// Open makes a client. It does not wait for etcd.
func Open(o Options) (*Client, error) {
	if len(o.Endpoints) == 0 || o.Group == "" || o.TTL < time.Second {
		return nil, errors.New("lease: endpoints, a group and a TTL of at least a second are needed")
	}
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: o.TLS, DialTimeout: o.TTL, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: o.TTL, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return &Client{
		opts: o, etcd: etcd, prefix: "/shiplog/" + o.Group + "/", changed: make(chan struct{}, 1), seen: map[string]int64{},
	}, nil
}

// Identify says who this node is. It is called before Run.
func (c *Client) Identify(self Leader) { c.opts.Self = self }

// Run keeps the session and the state up to date until ctx ends.
func (c *Client) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.keep(ctx) }) // both end with ctx
	wg.Go(func() { c.watch(ctx) })
	wg.Wait()
}

// Close gives up the session, and with it the lease, so that another node need not wait for its end; for a second at the most.
func (c *Client) Close() error {
	c.mu.Lock()
	id := c.session
	c.session = 0
	c.hold()
	c.mu.Unlock()
	if id != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := c.etcd.Revoke(ctx, id); err != nil {
			c.opts.Logger.Warn("the lease is not given up, it runs out", "error", err)
		}
	}
	return c.etcd.Close()
}

// Held implements engine.Lease.
func (c *Client) Held() bool { return int64(now()) < c.held.Load() }

// Changed receives, after a change of the state.
func (c *Client) Changed() <-chan struct{} { return c.changed }

// State is what was last heard.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	s.Eligible = slices.Clone(s.Eligible)
	return s
}

// Left is how long the lease may be relied on yet; 0: not at all.
func (c *Client) Left() time.Duration { return max(0, time.Duration(c.held.Load())-now()) }

func (c *Client) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// holding reports whether the leader's key is attached to this process's session. mu is held.
func (c *Client) holding() bool { return c.session != 0 && c.state.lease == c.session }

// hold brings what Held says up to date. mu is held.
func (c *Client) hold() {
	if c.holding() {
		c.held.Store(int64(c.until))
	} else {
		c.held.Store(0)
	}
}

// keep renews the session, or gets a new one.
func (c *Client) keep(ctx context.Context) {
	failing := false
	for ctx.Err() == nil {
		ttl, err := c.renew(ctx)
		wait := ttl / 4
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			c.opts.Logger.Warn("etcd does not renew the lease; tried again and again", "error", err)
		case err == nil && failing:
			c.opts.Logger.Info("etcd renews the lease again")
		}
		if failing = err != nil; failing {
			wait = c.opts.TTL / 10
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// renew renews the session once, or gets one.
func (c *Client) renew(ctx context.Context) (ttl time.Duration, err error) {
	c.mu.Lock()
	id := c.session
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL/2)
	defer cancel()
	sent := now()
	if id == 0 {
		var r *clientv3.LeaseGrantResponse
		if r, err = c.etcd.Grant(ctx, int64((c.opts.TTL+time.Second-1)/time.Second)); err == nil {
			id, ttl = r.ID, time.Duration(r.TTL)*time.Second
		}
	} else {
		var r *clientv3.LeaseKeepAliveResponse
		if r, err = c.etcd.KeepAliveOnce(ctx, id); err == nil {
			ttl = time.Duration(r.TTL) * time.Second
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) && c.session == id {
		c.session = 0
		c.hold()
		c.signal()
	}
	if err != nil {
		return 0, err
	}
	c.session, c.until = id, deadline(sent, ttl)
	c.hold()
	return ttl, nil
}

// watch follows the group's keys.
func (c *Client) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.watchOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		c.opts.Logger.Debug("etcd is not heard", "error", err)
		select {
		case <-time.After(c.opts.TTL / 10):
		case <-ctx.Done():
		}
	}
}

func (c *Client) watchOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	revision, err := c.load(ctx)
	if err != nil {
		return err
	}
	for r := range c.etcd.Watch(clientv3.WithRequireLeader(ctx), c.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		if err := r.Err(); err != nil {
			return err
		}
		c.mu.Lock()
		for _, e := range r.Events {
			name := strings.TrimPrefix(string(e.Kv.Key), c.prefix)
			if e.Kv.ModRevision <= c.seen[name] {
				continue // known already
			}
			c.seen[name] = e.Kv.ModRevision
			kv := e.Kv
			if e.Type == clientv3.EventTypeDelete {
				kv = nil
			}
			if err := c.state.put(name, kv); err != nil {
				c.opts.Logger.Error("etcd holds what is not understood", "error", err)
			}
		}
		c.hold()
		c.mu.Unlock()
		c.signal()
	}
	return ErrUnreachable
}

// Load asks etcd for the state as it is now.
func (c *Client) Load(ctx context.Context) (State, error) {
	if _, err := c.load(ctx); err != nil {
		return State{}, err
	}
	return c.State(), nil
}

// load reads the group's keys and returns the revision that they were read at.
func (c *Client) load(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.TTL)
	defer cancel()
	r, err := c.etcd.Get(ctx, c.prefix, clientv3.WithPrefix())
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	revision := r.Header.Revision
	for _, name := range []string{leaderKey, termKey, databaseKey, eligibleKey, rivalKey} {
		if revision < c.seen[name] {
			continue
		}
		i := slices.IndexFunc(r.Kvs, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == c.prefix+name })
		var kv *mvccpb.KeyValue
		if i >= 0 {
			kv = r.Kvs[i]
		}
		if err := c.state.put(name, kv); err != nil {
			return 0, err
		}
		c.seen[name] = revision
	}
	c.state.Known = true
	c.hold()
	c.signal()
	return revision, nil
}

// change writes keys if none of those that it rests on has changed since the state was heard, and takes the result into the state. mu
// is not held, writing is.
func (c *Client) change(ctx context.Context, s *State, session clientv3.LeaseID, values map[string]string, also ...clientv3.Cmp) error {
	cmps := also
	for name, revision := range map[string]int64{leaderKey: s.leader, termKey: s.term, databaseKey: s.database, eligibleKey: s.eligible} {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(c.prefix+name), "=", revision))
	}
	var ops []clientv3.Op
	for name, value := range values {
		var o []clientv3.OpOption
		if name == leaderKey || name == founderKey || name == rivalKey {
			o = append(o, clientv3.WithLease(session))
		}
		ops = append(ops, clientv3.OpPut(c.prefix+name, value, o...))
	}
	r, err := c.etcd.Txn(ctx).If(cmps...).Then(ops...).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		c.mu.Lock()
		if c.session == session {
			c.session = 0
			c.hold()
		}
		c.mu.Unlock()
		fallthrough
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	case !r.Succeeded:
		if _, err := c.load(ctx); err != nil {
			return err
		}
		return ErrTaken
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	revision := r.Header.Revision
	for name, value := range values {
		if revision < c.seen[name] {
			continue
		}
		c.seen[name] = revision
		if err := c.state.put(name, &mvccpb.KeyValue{Value: []byte(value), ModRevision: revision, Lease: int64(session)}); err != nil {
			return err
		}
	}
	c.hold()
	c.signal()
	return nil
}

func encode(v any) string {
	p, err := json.Marshal(v)
	if err != nil {
		panic("lease: " + err.Error()) // strings and numbers
	}
	return string(p)
}

func formatTerm(t uint32) string { return strconv.FormatUint(uint64(t), 10) }
