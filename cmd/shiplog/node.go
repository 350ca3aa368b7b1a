package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/cmd/shiplog/internal/resp"
	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// node is a running node: the database, what ships it, and what is told about both.
type node struct {
	cfg      *config.Node
	db       *engine.DB
	log      *slog.Logger
	leader   *ship.Leader // serves followers; nil: none are served
	started  time.Time
	respAddr string
	shipAddr string // as followers reach it; empty: none are served
	httpAddr string
	clients  func() resp.Stats
	dial     func(ctx context.Context, addr string) (net.Conn, error) // how other nodes are reached; nil: TCP, with TLS where configured

	joined  chan struct{} // closed once the node knows its role; nil: it does
	repairs repairer

	lease    *membership // nil: roles change by hand
	standing sync.Mutex  // one attempt to lead at a time; before changing
	handing  atomic.Bool // a switchover is under way

	failovers   failovers
	clientAddrs clientAddrs

	changing turn // one change of role or upstream at a time; before mu

	mu       sync.Mutex // guards all below
	follower *ship.Follower
	upstream string // shipping address that is followed
	askedAt  string // RESP address that REPLICAOF named; empty: --follow
	final    error  // why the follower has given up
	stop     context.CancelFunc
	stopped  chan struct{}         // closed when the follower has ended
	ended    bool                  // nobody is followed any more
	resumes  bool                  // this node led last, and will again unless somebody else leads or is to
	callers  map[wal.NodeID]string // shipping addresses of nodes that have called; at most maxCallers
}

var (
	_ resp.Node    = (*node)(nil)
	_ httpd.Source = (*node)(nil)
)

// makeNode makes a node of a database that is open: other nodes may call it as soon as it serves them, so all that their calls need is there.
func makeNode(cfg *config.Node, db *engine.DB) *node {
	n := &node{cfg: cfg, db: db, log: cfg.Logger, started: time.Now()}
	n.repairs.n, n.repairs.mending = n, make(chan struct{}, 1)
	db.SetHealer(n.repairs.heal)
	return n
}

// follow begins to follow the node that ships at addr, instead of the one before.
func (n *node) follow(addr, askedAt string) error {
	f, err := n.newFollower(addr, 0)
	if err != nil {
		return err
	}
	n.unfollow()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return errors.New("the node is stopping")
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	n.follower, n.upstream, n.askedAt, n.final, n.stop, n.stopped = f, addr, askedAt, nil, cancel, stopped
	go func() { // ends by stop, in unfollow
		defer close(stopped)
		err := f.Run(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		n.log.Error("following ended, the node serves what it has", "upstream", addr, "error", err)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.follower == f {
			n.final = err
		}
	}()
	return nil
}

// endFollowing stops following for good: a promise that is being answered follows nobody any more.
func (n *node) endFollowing() {
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	n.unfollow()
}

// aheadDir is where segments wait, in the directory of a node, that were fetched before what is before them.
const aheadDir = "ahead"

// newFollower makes a follower of the node that ships at addr; candidate is the epoch that this node is about to lead, or 0.
func (n *node) newFollower(addr string, candidate wal.Epoch) (*ship.Follower, error) {
	o := ship.FollowerOptions{
		Upstream: addr, Secret: n.cfg.Secret, TLS: n.cfg.ClientTLS, Name: n.cfg.Name, Addr: n.shipAddr, Logger: n.log, Candidate: candidate,
		Siblings: func() ([]string, *ship.CallOptions) {
			return append(n.repairs.peers(), n.cfg.CopyFrom...), n.callOptions()
		},
	}
	if n.cfg.CopyAhead > 0 {
		o.AheadDir, o.AheadBytes = filepath.Join(n.cfg.Dir, aheadDir), n.cfg.CopyAhead
	}
	if n.dial != nil {
		o.TLS, o.Dial = nil, func(ctx context.Context) (net.Conn, error) { return n.dial(ctx, addr) }
	}
	return ship.NewFollower(n.db, &o)
}

// unfollow stops following and waits until nothing more is appended.
func (n *node) unfollow() {
	n.mu.Lock()
	stop, stopped := n.stop, n.stopped
	n.stop = nil
	n.mu.Unlock()
	if stop != nil {
		stop()
		<-stopped
	}
}

// currentFollower is the follower of this node, or nil; for cascaded followers' clocks.
func (n *node) currentFollower() *ship.Follower {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.follower
}

// ReplicaOf implements resp.Node.
func (n *node) ReplicaOf(ctx context.Context, host, port string) error {
	if host == "" {
		_, err := n.promote(ctx, engine.PromoteOptions{})
		return mapError(err)
	}
	if n.lease != nil {
		return errors.New("a lease says who leads this group: use FAILOVER, or shiplog switchover")
	}
	asked := net.JoinHostPort(host, port)
	s, err := askShipper(ctx, asked, n.cfg.Password, n.cfg.ClientTLS)
	if err != nil {
		return fmt.Errorf("ask %s for its shipping address: %w", asked, err)
	}
	if err := n.mayFollow(asked, s); err != nil {
		return err
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	if err := n.stepDown(ctx); err != nil {
		return err
	}
	n.setResumes(false)
	return n.follow(s.addr, asked)
}

// mayFollow refuses what could only leave this node without a leader, before it gives up what it has.
func (n *node) mayFollow(asked string, s *shipper) error {
	log := n.db.Log()
	switch {
	case s.node == log.NodeID().String():
		return fmt.Errorf("%s is this node", asked)
	case !log.Empty() && s.database != log.DatabaseID().String() && s.database != (wal.DatabaseID{}).String():
		return fmt.Errorf("%s holds another database, %s, this node has %s", asked, s.database, log.DatabaseID())
	case n.leads() && slices.ContainsFunc(n.peers(), func(p ship.PeerStatus) bool { return p.ID.String() == s.node }):
		return fmt.Errorf("%s follows this node: FAILOVER TO has it lead, or REPLICAOF NO ONE there", asked)
	}
	return nil
}

// WaitReplicas implements resp.Node.
func (n *node) WaitReplicas(ctx context.Context, pos resp.Position, want int, durable bool) int {
	p := wal.Position{Epoch: wal.Epoch(pos.Epoch), LSN: wal.LSN(pos.LSN)}
	level := engine.Received
	if durable {
		level = engine.Replicated
	}
	count := func() int { return n.db.CountReached(p, level(1)) }
	if want <= 0 {
		return count()
	}
	moved := make(chan struct{}, 1)
	cancel := n.db.Subscribe(moved)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond) // for followers that do not count, whose progress moves no mark
	defer tick.Stop()
	for {
		if c := count(); c >= want {
			return c
		}
		select {
		case <-moved:
		case <-tick.C:
		case <-ctx.Done():
			return count()
		}
	}
}

// LocalDurable implements resp.Node.
func (n *node) LocalDurable(ctx context.Context, pos resp.Position, wait bool) bool {
	p := wal.LSN(pos.LSN)
	log := n.db.Log()
	if log.Durable() >= p || !wait {
		return log.Durable() >= p
	}
	moved := make(chan struct{}, 1)
	stop := log.Notify(moved)
	defer stop()
	for log.Durable() < p {
		select {
		case <-moved:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// historyID is that of the present epoch.
func (n *node) historyID() string {
	if h := n.db.Log().History(); len(h) > 0 {
		return fmt.Sprintf("%016x", uint64(h[len(h)-1].ID))
	}
	return ""
}

func digestString(d wal.Digest) string { return fmt.Sprintf("%016x", uint64(d)) }

// Info implements resp.Node.
func (n *node) Info() resp.NodeInfo {
	s := n.db.Stats()
	info := resp.NodeInfo{
		Version: version(), NodeID: s.Node.String(), Name: n.cfg.Name, Dir: n.cfg.Dir, Rule: s.Rule.String(), TooFew: n.cfg.TooFew,
		ShipAddr: n.shipAddr, HTTPAddr: n.httpAddr, DatabaseID: s.Database.String(), HistoryID: n.historyID(), Epoch: s.Epoch.String(),
		Leader: s.Role == engine.Leader, Loading: s.Loading, LogOnly: s.LogOnly, ApplyDelay: s.ApplyDelay, FormatLevel: s.FormatLevel,
		Tail: uint64(s.Tail), Head: uint64(s.Head), Durable: uint64(s.Durable), Committed: uint64(s.Committed),
		Applied: uint64(s.Applied), Visible: uint64(s.Visible), DegradedFrom: uint64(s.Degraded), Failed: failedText(&s),
		Digest: digestString(s.Digest), DigestLSN: uint64(s.DigestLSN), Keys: int64(s.Keys), FailoverState: n.failovers.current(),
	}
	for _, p := range n.peers() {
		host, port, ok := n.clientAddr(&p, false)
		if !ok {
			continue // tools would take what is not there for a replica that is down
		}
		info.Replicas = append(info.Replicas, resp.Replica{
			NodeID: p.ID.String(), Name: p.Name, Host: host, Port: port, State: "online", Voter: p.Voter, LogOnly: p.LogOnly, Delayed: p.Delayed,
			Sent: uint64(p.Sent), Received: uint64(p.Received), Durable: uint64(p.Durable), Applied: uint64(p.Applied),
			LastAck: p.LastSeen, Lag: max(0, time.Since(p.LastSeen)),
		})
	}
	for _, o := range n.db.Slots() {
		info.Slots = append(info.Slots, fmt.Sprintf("name=%s,node_id=%s,connected=%t,from=%d,lag_bytes=%d,lag_ms=%d,pinned_bytes=%d,gone_ms=%d,left_ms=%d,given_up=%t",
			o.Name, o.ID, o.Connected, o.From, o.Bytes, o.Lag.Milliseconds(), o.Pinned, o.Gone.Milliseconds(), o.Left.Milliseconds(), o.GivenUp != ""))
	}
	r := n.repairs.status()
	info.Repairs = resp.Repairs{Scrubs: r.Scrubs, LastScrub: r.LastScrub, Damaged: r.Damaged, Repaired: r.Repaired, Failed: r.Failed, Bytes: r.Bytes}
	for _, s := range n.degradedSpans() {
		info.DegradedSpans = append(info.DegradedSpans, fmt.Sprintf("from=%d,to=%d,began_ms=%d,ended_ms=%d,reason=%s,missing=%s",
			s.From, s.To, s.Began, s.Ended, s.Reason, strings.Join(s.Missing, "+")))
	}
	info.Upstream = n.upstreamInfo()
	return info
}

// degradedSpans is the ledger of degraded spans, as it is shown.
func (n *node) degradedSpans() []httpd.DegradedSpan {
	out := []httpd.DegradedSpan{}
	for _, s := range n.db.DegradedSpans() {
		d := httpd.DegradedSpan{From: uint64(s.From), To: uint64(s.To), Reason: s.Reason.String(), Missing: append([]string{}, s.Missing...)}
		if !s.Began.IsZero() {
			d.Began = s.Began.UnixMilli()
		}
		if !s.Ended.IsZero() {
			d.Ended = s.Ended.UnixMilli()
		}
		out = append(out, d)
	}
	return out
}

func failedText(s *engine.Stats) string {
	switch {
	case s.Failed != nil:
		return s.Failed.Error()
	case s.Fenced != 0:
		return "fenced by epoch " + s.Fenced.String()
	}
	return ""
}

func (n *node) peers() []ship.PeerStatus {
	if n.leader == nil {
		return nil
	}
	return n.leader.Peers()
}

// splitAddr is where a peer says that it is, or where it connects from.
func splitAddr(addr, remote string) (host, port string) {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
			return host, port
		}
		if from, _, err := net.SplitHostPort(remote); err == nil {
			return from, port
		}
	}
	host, _, _ = net.SplitHostPort(remote)
	return host, "0"
}

func (n *node) upstreamInfo() *resp.Upstream {
	n.mu.Lock()
	f, addr, asked, final := n.follower, n.upstream, n.askedAt, n.final
	n.mu.Unlock()
	if f == nil {
		return nil
	}
	s := f.Status()
	shown := asked
	if shown == "" {
		shown = s.UpstreamAddr
	}
	if shown == "" {
		shown = addr
	}
	host, port := splitAddr(shown, addr)
	up := &resp.Upstream{Host: host, Port: port, Connected: s.Connected && final == nil, LastIO: s.LastContact, LagBytes: -1, LagMs: -1}
	if st := n.upstreamStatus(); st != nil {
		up.LagBytes, up.LagMs = st.LagBytes, st.FreshMs
	}
	if !up.Connected {
		up.DownSince = s.Since
	}
	switch {
	case final != nil:
		up.Reason = final.Error()
	case s.LastError != nil && !s.Connected:
		up.Reason = s.LastError.Error()
	}
	return up
}

// Status implements httpd.Source.
func (n *node) Status() httpd.Status {
	s := n.db.Stats()
	st := httpd.Status{
		Version: version(), NodeID: s.Node.String(), Name: n.cfg.Name, Role: s.Role.String(), DatabaseID: s.Database.String(),
		Epoch: s.Epoch.String(), HistoryID: n.historyID(), Rule: s.Rule.String(), TooFew: n.cfg.TooFew, Loading: s.Loading,
		Failed: failedText(&s), LogOnly: s.LogOnly, ApplyDelayMs: s.ApplyDelay.Milliseconds(), FormatLevel: s.FormatLevel,
		Tail: uint64(s.Tail), Head: uint64(s.Head), Durable: uint64(s.Durable), Committed: uint64(s.Committed),
		Applied: uint64(s.Applied), Visible: uint64(s.Visible), DegradedFrom: uint64(s.Degraded),
		Digest: digestString(s.Digest), DigestLSN: uint64(s.DigestLSN),
		Keys: int64(s.Keys), IndexBytes: s.Index.MemoryBytes, IndexRuns: s.Index.Runs, IndexRunBytes: s.Index.RunBytes, UptimeMs: time.Since(n.started).Milliseconds(),
		RESPAddr: n.respAddr, ShipAddr: n.shipAddr,
		Voters: []string{}, History: []httpd.Epoch{}, Followers: []httpd.Follower{}, Slots: []httpd.Slot{},
	}
	if s.Fenced != 0 {
		st.FencedBy = s.Fenced.String()
	}
	for _, v := range s.Voters {
		st.Voters = append(st.Voters, v.Name)
	}
	if !n.db.Log().Empty() {
		for _, h := range n.db.Log().History() {
			st.History = append(st.History, httpd.Epoch{
				Epoch: h.Epoch.String(), Start: uint64(h.Start), HistoryID: fmt.Sprintf("%016x", uint64(h.ID)), Leader: h.Leader.String(),
			})
		}
	}
	for _, p := range n.peers() {
		shown := p.Visible
		if p.LogOnly {
			shown = p.Durable
		}
		st.Followers = append(st.Followers, httpd.Follower{
			NodeID: p.ID.String(), Name: p.Name, Addr: net.JoinHostPort(splitAddr(p.Addr, p.Remote)), Voter: p.Voter, LogOnly: p.LogOnly, Delayed: p.Delayed,
			Sent: uint64(p.Sent), Received: uint64(p.Received), Durable: uint64(p.Durable), Applied: uint64(p.Applied), Visible: uint64(p.Visible),
			LagBytes: uint64(max(s.Committed, shown) - shown), LastAckMs: time.Since(p.LastSeen).Milliseconds(), RTTMicros: p.RTT.Microseconds(),
		})
	}
	for _, o := range n.db.Slots() {
		st.Slots = append(st.Slots, httpd.Slot{
			Name: o.Name, NodeID: o.ID.String(), Connected: o.Connected, From: uint64(o.From), LagBytes: o.Bytes, LagMs: o.Lag.Milliseconds(),
			PinnedBytes: o.Pinned, GoneMs: o.Gone.Milliseconds(), LeftMs: o.Left.Milliseconds(), GivenUp: o.GivenUp,
		})
	}
	st.DegradedSpans = n.degradedSpans()
	st.Repairs = n.repairs.status()
	st.Upstream = n.upstreamStatus()
	st.Lease = n.leaseStatus(s.Voters)
	if n.clients != nil {
		c := n.clients()
		st.Clients = httpd.Clients{
			Connected: c.Clients, BufferBytes: c.ClientMemory, Commands: c.Commands, Connections: c.Connections, Rejected: c.Rejected,
			InBytes: c.InBytes, OutBytes: c.OutBytes, KeyspaceHits: c.KeyspaceHits, KeyspaceMisses: c.KeyspaceMisses,
			Commits: c.Commits + c.CombinedCommits, ProtocolErrors: c.ProtocolErrors, Timeouts: c.Timeouts,
		}
	}
	return st
}

func (n *node) upstreamStatus() *httpd.Upstream {
	n.mu.Lock()
	f, addr, final := n.follower, n.upstream, n.final
	n.mu.Unlock()
	if f == nil {
		return nil
	}
	s := f.Status()
	up := &httpd.Upstream{Addr: addr, NodeID: s.UpstreamID.String(), Name: s.UpstreamName, Connected: s.Connected && final == nil, LagBytes: -1, FreshMs: -1, Stalled: s.Stalled}
	if up.Connected {
		up.LagBytes = int64(s.LagBytes)
	}
	asOf := n.db.ShownUntil()
	if !s.FreshAsOf.IsZero() {
		asOf = max(asOf, s.FreshAsOf.UnixMilli())
	}
	if asOf != 0 {
		up.FreshMs = max(0, n.db.LogTime()-asOf)
	}
	switch {
	case final != nil:
		up.Error, up.Final = final.Error(), true
	case s.LastError != nil && !s.Connected:
		up.Error = s.LastError.Error()
	}
	return up
}

// Healthy implements httpd.Source: a node is healthy while it answers reads and, as a leader, takes writes.
func (n *node) Healthy() error {
	s := n.db.Stats()
	n.mu.Lock()
	final := n.final
	n.mu.Unlock()
	switch {
	case s.Failed != nil:
		return s.Failed
	case s.Fenced != 0:
		return errors.New(failedText(&s))
	case s.Loading:
		return errors.New("loading")
	case final != nil:
		return final
	}
	return nil
}

// DigestAt implements httpd.Source.
func (n *node) DigestAt(lsn uint64) (httpd.Digest, error) {
	return digestBelow(n.db.Log(), wal.LSN(lsn))
}
