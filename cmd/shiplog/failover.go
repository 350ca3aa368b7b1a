package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"shiplog/cmd/shiplog/internal/resp"
	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is how a leader hands over, and what it tells Redis tools of its followers.

// handedOver is what Switchover shows.
type handedOver struct {
	To      string  `json:"to"`
	Epoch   string  `json:"epoch"`
	PauseMs float64 `json:"pause_ms"` // from the last write that this node took to the answer of the new leader
}

// States of a hand-over, in Redis's words.
const (
	noFailover     = "no-failover"
	waitingForSync = "waiting-for-sync"
	inProgress     = "failover-in-progress"
)

// failovers is the hand-over that this node is in, if any.
type failovers struct {
	mu     sync.Mutex // guards all below
	state  string     // empty: none
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// begin takes note of a hand-over that is to end with ctx; false: there is one already.
func (f *failovers) begin(cancel context.CancelFunc) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != "" {
		return false
	}
	f.state, f.cancel = waitingForSync, cancel
	return true
}

func (f *failovers) set(state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = state
}

func (f *failovers) current() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(f.state, noFailover)
}

// Switchover implements httpd.Control.
func (n *node) Switchover(ctx context.Context, to string) (any, error) {
	if !n.leads() {
		return nil, errors.New("this node does not lead: ask the leader to hand over")
	}
	peers := n.peers()
	i := slices.IndexFunc(peers, func(p ship.PeerStatus) bool { return p.Name == to })
	if i < 0 {
		return nil, fmt.Errorf("no follower of the name %q is connected", to)
	}
	target := peers[i]
	if err := cannotLead(&target); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	if !n.failovers.begin(cancel) {
		return nil, errors.New("a hand-over is under way already")
	}
	return n.switchTo(ctx, target, false)
}

// cannotLead says why a follower is not handed the lead.
func cannotLead(p *ship.PeerStatus) error {
	switch {
	case p.LogOnly:
		return fmt.Errorf("the follower %q keeps the log only and cannot lead", p.Name)
	case p.Delayed:
		return fmt.Errorf("the follower %q applies with a delay: it would have to apply everything first, while nothing is written; promote can do that once there is no leader", p.Name)
	}
	return nil
}

// switchTo stops writes, waits until the target has on its disk all that readers have seen, and has it take over. When that fails, this node leads
// again. With force the wait ends with ctx, and the target takes over all the same.
func (n *node) switchTo(ctx context.Context, target ship.PeerStatus, force bool) (*handedOver, error) {
	retrying := false
	defer func() {
		if !retrying {
			n.failovers.set("")
		}
	}()
	began := time.Now()
	n.handing.Store(true)
	defer n.handing.Store(false)
	n.changing.Lock()
	err := n.db.Follow(ctx) // writes end here; the follower goes on being fed
	n.changing.Unlock()
	if n.db.Role() == engine.Leader {
		return nil, err
	}
	vote, err := n.handOver(ctx, target, force)
	if err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverTimeout)
		defer cancel()
		if _, again := n.promote(back, engine.PromoteOptions{}); again != nil {
			retrying = true
			n.leadAgain()
			return nil, errors.Join(fmt.Errorf("switchover: %w", err), fmt.Errorf("lead again, which is tried on: %w", again))
		}
		return nil, fmt.Errorf("switchover: %w; this node leads again", err)
	}
	n.log.Warn("handed over", "to", target.Name, "epoch", vote.Last.String(), "pause", time.Since(began))
	return &handedOver{To: target.Name, Epoch: vote.Last.String(), PauseMs: float64(time.Since(began).Microseconds()) / 1e3}, nil
}

// leadAgain has this node lead again as soon as enough others can be asked, unless one of them leads by then; in the background, until the node ends.
func (n *node) leadAgain() {
	ctx, cancel := context.WithCancel(context.Background())
	n.failovers.mu.Lock()
	n.failovers.state, n.failovers.cancel = inProgress, cancel
	n.failovers.mu.Unlock()
	n.failovers.done.Go(func() { // ends by AbortFailover
		defer n.failovers.set("")
		defer cancel()
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for n.db.Role() == engine.Follower && !n.hears() {
			if _, err := n.promote(ctx, engine.PromoteOptions{}); err == nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

func (n *node) handOver(ctx context.Context, target ship.PeerStatus, force bool) (*ship.Vote, error) {
	if err := n.awaitDurable(ctx, target.ID); err != nil {
		if !force || !errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		forced, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverTimeout)
		defer cancel()
		ctx = forced
	}
	n.failovers.set(inProgress)
	if n.lease != nil {
		if err := n.lease.HandOver(ctx, target.ID.String()); err != nil {
			return nil, err
		}
	}
	vote, err := n.ask(ctx, net.JoinHostPort(splitAddr(target.Addr, target.Remote)), ship.CallTakeOver, 0, handOverTimeout)
	if err != nil {
		return nil, err
	}
	if !vote.Granted {
		return nil, errors.New("the target did not take over")
	}
	return vote, nil
}

// awaitDurable waits until a follower has on its disk all that readers of this node have seen. The rest was never acknowledged; it is copied with
// this node's promise.
func (n *node) awaitDurable(ctx context.Context, id wal.NodeID) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		peers := n.peers()
		i := slices.IndexFunc(peers, func(p ship.PeerStatus) bool { return p.ID == id })
		switch {
		case ctx.Err() != nil && i >= 0:
			return fmt.Errorf("the target is durable up to %v of %v: %w", peers[i].Durable, n.db.Visible(), ctx.Err())
		case i < 0:
			return errors.New("the target has gone")
		case peers[i].Durable >= n.db.Visible():
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// Failover implements resp.Node.
func (n *node) Failover(_ context.Context, f resp.Failover) error {
	peers := n.peers()
	if len(peers) == 0 {
		return errors.New("FAILOVER requires connected replicas.") //nolint:staticcheck // Redis's text
	}
	able := slices.DeleteFunc(slices.Clone(peers), func(p ship.PeerStatus) bool { return cannotLead(&p) != nil })
	if len(able) == 0 && f.To == "" {
		return cannotLead(&peers[0])
	}
	var target ship.PeerStatus
	if f.To == "" {
		target = slices.MaxFunc(able, func(a, b ship.PeerStatus) int { return cmp.Compare(a.Durable, b.Durable) })
	} else {
		i := slices.IndexFunc(peers, func(p ship.PeerStatus) bool {
			host, port, ok := n.clientAddr(&p, true)
			return ok && sameAddr(net.JoinHostPort(host, port), f.To)
		})
		if i < 0 {
			return errors.New("FAILOVER target HOST and PORT is not a replica.") //nolint:staticcheck // Redis's text
		}
		target = peers[i]
		if err := cannotLead(&target); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(f.Timeout, handOverTimeout))
	if !n.failovers.begin(cancel) {
		cancel()
		return errors.New("FAILOVER already in progress.") //nolint:staticcheck // Redis's text
	}
	n.failovers.done.Go(func() { // ends with its timeout, or AbortFailover; waited for when the node ends
		defer cancel()
		if _, err := n.switchTo(ctx, target, f.Force); err != nil {
			n.log.Error("failover", "error", err)
		}
	})
	return nil
}

// sameAddr reports whether two addresses of hosts are one, by name or by what the name stands for.
func sameAddr(a, b string) bool {
	if a == b {
		return true
	}
	x, err1 := net.ResolveTCPAddr("tcp", a)
	y, err2 := net.ResolveTCPAddr("tcp", b)
	return err1 == nil && err2 == nil && x.Port == y.Port && x.IP.Equal(y.IP)
}

// AbortFailover implements resp.Node.
func (n *node) AbortFailover() error {
	n.failovers.mu.Lock()
	defer n.failovers.mu.Unlock()
	if n.failovers.state == "" {
		return errors.New("No failover in progress.") //nolint:staticcheck // Redis's text
	}
	n.failovers.cancel()
	return nil
}

// clientAddrs remembers where followers serve clients, which they tell when they are asked.
type clientAddrs struct {
	mu    sync.Mutex // guards known
	known map[wal.NodeID]clientAddr
}

type clientAddr struct {
	ship, resp string    // resp empty: it has not answered
	again      time.Time // when it is asked once more
}

const (
	// clientAddrTimeout bounds how long INFO waits for a follower that it does not know yet.
	clientAddrTimeout = 300 * time.Millisecond
	// clientAddrRetry is when one that has not answered is asked again, at least; and ten times as long as it took to find out.
	clientAddrRetry = 50 * time.Millisecond
)

// clientAddr is where a follower serves clients. One that has not told is asked, if it is time to do that again, or now.
func (n *node) clientAddr(p *ship.PeerStatus, now bool) (host, port string, ok bool) {
	c := &n.clientAddrs
	shipHost, shipPort := splitAddr(p.Addr, p.Remote)
	addr := net.JoinHostPort(shipHost, shipPort)
	c.mu.Lock()
	known, have := c.known[p.ID]
	c.mu.Unlock()
	if !have || known.ship != addr || known.resp == "" && (now || time.Now().After(known.again)) {
		known = clientAddr{ship: addr}
		began := time.Now()
		if v, err := n.ask(context.Background(), addr, ship.CallClients, 0, clientAddrTimeout); err == nil && v.Node == p.ID {
			known.resp = v.Addr
		}
		known.again = time.Now().Add(max(clientAddrRetry, 10*time.Since(began)))
		c.mu.Lock()
		if c.known == nil {
			c.known = map[wal.NodeID]clientAddr{}
		}
		c.known[p.ID] = known
		c.mu.Unlock()
	}
	host, port, err := net.SplitHostPort(known.resp)
	if err != nil {
		return "", "", false
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = shipHost
	}
	return host, port, true
}
