package ship

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal"
)

// maxHops is how many upstreams may lie between a follower and the leader. Nodes that follow each other in a ring
// count up to it and let go.
const maxHops = 16

// errCut says that the log was cut back to the fork, and that the next attempt will go further.
var errCut = errors.New("ship: log cut back to the fork")

// Follower keeps a node's log equal to its upstream's. Its methods may be called at the same time.
type Follower struct {
	node    FollowerNode
	log     *wal.Log
	opts    FollowerOptions
	running atomic.Bool
	ahead   *ahead // nil: nothing is fetched from siblings but gaps

	mu    sync.Mutex // guards the fields below
	st    FollowerStatus
	fresh freshness
}

// FollowerStatus is what a follower knows of its upstream.
type FollowerStatus struct {
	Connected    bool // the handshake is done and the stream runs
	Upstream     string
	UpstreamID   wal.NodeID
	UpstreamName string
	UpstreamAddr string     // where clients reach the upstream, as it advertises
	Leader       wal.NodeID // of the epoch
	Epoch        wal.Epoch  // of the end of the upstream's log
	Hops         uint32     // upstreams between the upstream and the leader
	Since        time.Time  // connected since, or disconnected since
	LastContact  time.Time  // last message from the upstream
	Head         wal.LSN    // the upstream's, when it last told
	Stalled      bool       // the upstream's disk did not answer then
	Committed    wal.LSN
	LagBytes     uint64    // committed bytes that this node's readers do not see yet, or, where it keeps the log only, that are not on its disk; grows when cut off only by what is known
	LeaderClock  time.Time // the leader's clock in the last mark
	FreshAsOf    time.Time // the leader's clock when all that this node's readers see, or its disk has where it keeps the log only, was all that was committed; zero: never
	Received     uint64    // log bytes received since Run began
	Attempts     uint64    // connections tried since Run began
	Cuts         uint64    // cuts back to a fork since Run began
	Restarts     uint64    // times that the log was given up and copied anew since Run began
	LastError    error     // why the last connection ended or failed; nil while it has not
}

// NewFollower returns a Follower that feeds node's log. It starts nothing: [Follower.Run] does, and has returned before the node is
// promoted or closed.
func NewFollower(node FollowerNode, o *FollowerOptions) (*Follower, error) {
	opts, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if opts.Jitter == nil {
		opts.Jitter = rand.Float64
	}
	f := &Follower{node: node, log: node.Log(), opts: opts}
	f.st.Upstream, f.st.Since = opts.Upstream, time.Now()
	if opts.AheadDir != "" && opts.Siblings != nil && opts.Candidate == 0 {
		f.ahead = newAhead(f)
	}
	return f, nil
}

// Run follows until ctx ends, reconnecting with back-off after every error that may pass. It returns ctx's error,
// or an error that an operator must resolve: an [*Error] whose Final is true, or one of this node's own log. All
// goroutines have ended on return; bytes that were received but not synced are synced by the log's Close.
func (f *Follower) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer f.running.Store(false)
	if f.ahead != nil {
		if err := f.ahead.load(); err != nil {
			return fmt.Errorf("ship: %w", err)
		}
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { f.ahead.run(ctx) }) // ended by cancel
		defer wg.Wait()
		defer cancel()
	}
	pause := f.opts.BackoffMin
	var said complaint
	for {
		err := f.ahead.take(ctx)
		streamed := false
		if err == nil {
			streamed, err = f.follow(ctx)
		}
		if errors.Is(err, errAhead) && ctx.Err() == nil {
			_ = f.disconnected(nil)
			pause = f.opts.BackoffMin
			continue
		}
		lost := f.disconnected(err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final(err) {
			return err
		}
		// Two nodes with one ID take each other's place: they do so more and more seldom.
		if streamed && !errors.Is(err, ErrReplaced) || errors.Is(err, errCut) || errors.Is(err, errGapFilled) {
			pause = f.opts.BackoffMin
		}
		// Half of the pause is random, so that followers that lost one leader do not come back as one.
		wait := pause/2 + time.Duration(f.opts.Jitter()*float64(pause/2))
		switch news := said.news(err, time.Now()); {
		case lost:
			f.opts.Logger.Warn("upstream lost", "upstream", f.opts.Upstream, "error", err, "retry_in", wait)
		case news:
			f.opts.Logger.Warn("upstream not reached", "upstream", f.opts.Upstream, "error", err, "retry_in", wait)
		default:
			f.opts.Logger.Debug("upstream not reached", "upstream", f.opts.Upstream, "error", err, "retry_in", wait)
		}
		pause = min(2*pause, f.opts.BackoffMax)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// follow makes one connection and stays with it. streamed says that it brought the log further, or ran for at least
// a heartbeat, so that the back-off starts again.
func (f *Follower) follow(ctx context.Context) (streamed bool, err error) {
	nc, err := f.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("ship: dial: %w", err)
	}
	defer func() { _ = nc.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	c := newConn(nc, f.opts.Timeout)
	w, err := f.join(ctx, c)
	if err != nil {
		return false, err
	}
	r := newReceiver(f, c, w)
	f.connected(w)
	f.ahead.welcomed()
	if l, ok := f.node.(LateShower); ok && l.ShowsLate() && w.Features&FeatureShowsLate == 0 {
		f.opts.Logger.Warn("the upstream does not know of followers that show what they have later: under a rule that asks for readers it waits for them", "upstream", f.opts.Upstream)
	}
	f.opts.Logger.Info("following", "upstream", f.opts.Upstream, "node", w.Node.String(), "epoch", w.Epoch.String(),
		"start_lsn", w.Start.String())
	began, head := time.Now(), f.log.Head()
	err = r.run()
	return f.log.Head() > head || time.Since(began) >= r.heartbeat, err
}

func (f *Follower) dial(ctx context.Context) (net.Conn, error) {
	f.mu.Lock()
	f.st.Attempts++
	f.mu.Unlock()
	return dialUpstream(ctx, &f.opts)
}

func dialUpstream(ctx context.Context, o *FollowerOptions) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.HandshakeTimeout)
	defer cancel()
	switch {
	case o.Dial != nil:
		return o.Dial(ctx)
	case o.TLS != nil:
		d := tls.Dialer{Config: o.TLS}
		nc, err := d.DialContext(ctx, "tcp", o.Upstream)
		if hungUp(err) || errors.As(err, new(tls.RecordHeaderError)) {
			err = fmt.Errorf("TLS handshake: %w: the peer may speak no TLS", err)
		}
		return nc, err
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", o.Upstream)
}

// join takes a connection through the handshake to a Welcome that this side has checked.
func (f *Follower) join(ctx context.Context, c *conn) (*Welcome, error) {
	if err := c.present(&f.opts); err != nil {
		return nil, err
	}
	j, err := f.position()
	if err != nil {
		return nil, err
	}
	m, err := c.exchange(j)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *Welcome:
		if err := f.check(j, m); err != nil {
			var e *Error
			if errors.As(err, &e) {
				c.goodbye(nil, e, min(goodbyeTime, f.opts.HandshakeTimeout))
			}
			return nil, err
		}
		f.confirmed(j)
		return m, c.start(f.opts.Timeout)
	case *Refusal:
		e := m.err()
		switch e.Code {
		case CodeDiverged:
			return nil, f.cut(j, e)
		case CodeTrimmed:
			if f.fillGap(ctx, e) {
				return nil, errGapFilled
			}
			return nil, f.startOver(j, e)
		}
		return nil, e
	}
	return nil, refuse(CodeProtocol, "want a welcome or a refusal")
}

// confirmed lets a log whose mark file was lost be written again: nobody knew how far it was durable and committed, and the upstream holds, or has
// held, the same bytes up to its end.
func (f *Follower) confirmed(j *Join) {
	if !j.Empty && f.log.Recovery().MarkLost {
		f.opts.Logger.Warn("mark file lost, end confirmed by upstream", "end_lsn", j.End.String())
		f.log.AcceptMark()
	}
}

// position says who and where this node is.
func (f *Follower) position() (*Join, error) {
	j := &Join{
		Database: f.opts.Database, Node: f.log.NodeID(), Promised: f.log.Promised(), Role: RoleVoter,
		Name: f.opts.Name, Addr: f.opts.Addr, Empty: f.log.Empty(),
	}
	j.LogOnly = f.keepsLogOnly()
	if l, ok := f.node.(LateShower); ok && l.ShowsLate() {
		j.Features |= FeatureShowsLate
	}
	if _, ok := f.node.(ReadLender); ok {
		j.Features |= FeatureReadLease
	}
	switch {
	case f.opts.Candidate != 0:
		j.Role, j.Promised = RoleCandidate, f.opts.Candidate
	case f.opts.Observer:
		j.Role = RoleObserver
	}
	if j.Empty {
		return j, nil
	}
	j.Database = f.log.DatabaseID()
	if !f.opts.Database.IsZero() && f.opts.Database != j.Database {
		e := refuse(CodeDatabase, "the log holds %s, wanted is %s", j.Database, f.opts.Database)
		e.DB = j.Database
		return nil, e
	}
	d, err := f.log.DigestAt(f.log.Head())
	if err != nil {
		return nil, fmt.Errorf("ship: digest at the head: %w", err)
	}
	j.End, j.Digest, j.History = f.log.Head(), d, newest(f.log.History())
	j.Durable, j.Committed = min(f.log.Durable(), j.End), min(f.node.Committed(), j.End)
	return j, nil
}

// keepsLogOnly reports whether this node has no readers.
func (f *Follower) keepsLogOnly() bool {
	k, ok := f.node.(LogKeeper)
	return ok && k.KeepsLogOnly()
}

// check judges a Welcome by this node's own knowledge, and persists its epoch before anything is acknowledged.
func (f *Follower) check(j *Join, w *Welcome) error {
	last := w.History[len(w.History)-1]
	switch {
	case w.Node == j.Node:
		return refuse(CodeSelf, "node %s", w.Node)
	case !j.Database.IsZero() && w.Database != j.Database:
		e := refuse(CodeDatabase, "upstream has %s, wanted is %s", w.Database, j.Database)
		e.DB = j.Database
		return e
	case w.Hops >= maxHops:
		return refuse(CodeLoop, "%d upstreams to the leader", w.Hops)
	case w.Epoch != last.Epoch || w.Leader != last.Leader || w.SegmentSize&(w.SegmentSize-1) != 0 || w.SegmentSize == 0:
		return refuse(CodeProtocol, "welcome: fields disagree")
	}
	up, down := view{history: w.History, tail: w.Tail, end: w.Head}, view{history: j.History, end: j.End}
	promised := f.log.Promised() // what was promised since the Join counts too
	if f.opts.Candidate != 0 {
		promised = 0 // it is this node that is to lead it
	}
	start, e := place(up, down, j.Empty, promised, j.Committed, w.SegmentSize)
	switch {
	case e != nil:
		return e
	case start != w.Start:
		return refuse(CodeProtocol, "upstream starts at %s, wanted is %s", w.Start, start)
	case !j.Empty && w.Digest != j.Digest:
		e := refuse(CodeDigest, "at %s upstream has digest %s, the follower %s", start, w.Digest, j.Digest)
		e.LSN, e.Digest = start, j.Digest
		return e
	}
	return f.promise(w.Epoch)
}

// promise persists an epoch that is higher than every one seen so far.
func (f *Follower) promise(e wal.Epoch) error {
	if e <= f.log.Promised() {
		return nil
	}
	if err := f.node.Fence(e); err != nil {
		return fmt.Errorf("ship: promise epoch %s: %w", e, err)
	}
	return nil
}

// cut cuts the log back to the fork that the upstream named, when this node may do that by itself.
func (f *Follower) cut(j *Join, r *Error) error {
	down := view{history: j.History, tail: f.log.Tail(), end: j.End}
	trimmed := r.Digest == 0 && r.Epoch != 0 // the fork is below the upstream's tail, where it has no digest any more
	var digest wal.Digest
	if r.LSN < down.end && r.LSN >= down.tail && !trimmed {
		var err error
		if digest, err = f.log.DigestAt(r.LSN); err != nil {
			return fmt.Errorf("ship: digest at the fork %s: %w", r.LSN, err)
		}
	}
	loose := false
	if judge, ok := f.node.(CommitJudge); ok && r.LSN < j.Committed {
		loose = judge.CommittedAlone(r.LSN)
	}
	if e := mayCut(down, j.Committed, r, digest, loose); e != nil {
		return e
	}
	cutter, ok := f.node.(Cutter)
	if applied := f.node.Applied(); !ok && applied > r.LSN {
		r.Text += fmt.Sprintf("; this node has applied up to %s and cannot take that back", applied)
		return r
	}
	if err := f.promise(r.Epoch); err != nil {
		return err
	}
	to := r.LSN
	if trimmed {
		// Nothing proves the bytes below the fork either. What is committed is proved, and the next attempt will find that the upstream
		// can no longer continue it.
		if to = min(to, j.Committed); to <= down.tail {
			return refuse(CodeDiverged, "fork at %s, below the upstream's tail; nothing that this node holds is known to be committed", r.LSN)
		}
	}
	f.opts.Logger.Warn("cutting the log back to the fork", "fork_lsn", r.LSN.String(), "cut_lsn", to.String(), "end_lsn", j.End.String(),
		"epoch", r.Epoch.String())
	truncate := f.log.Truncate
	if ok {
		truncate = cutter.CutLog
	}
	if err := truncate(to); err != nil {
		return fmt.Errorf("ship: cut to %s: %w", to, err)
	}
	f.mu.Lock()
	f.st.Cuts++
	f.mu.Unlock()
	return fmt.Errorf("%w %s", errCut, to)
}

// startOver gives up a log that the upstream, which has the same history, can no longer continue. The next attempt copies from the
// upstream's tail. Without a history in common that is for the operator to decide. A candidate keeps what it has: with the leader lost it may be
// one of few copies, and the upstream can lead itself.
func (f *Follower) startOver(j *Join, r *Error) error {
	node, ok := f.node.(Restarter)
	if !ok || f.opts.Candidate != 0 || r.Epoch == 0 || r.LSN <= j.End {
		return r
	}
	f.opts.Logger.Warn("starting over: the upstream's log begins behind the end of this one", "end_lsn", j.End.String(),
		"upstream_tail_lsn", r.LSN.String())
	f.confirmed(j)
	if err := node.StartOver(); err != nil {
		return fmt.Errorf("ship: start over: %w", err)
	}
	f.mu.Lock()
	f.st.Restarts++
	f.mu.Unlock()
	return fmt.Errorf("%w 0: the upstream's log begins at %s", errCut, r.LSN)
}

func (f *Follower) connected(w *Welcome) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	st := &f.st
	st.Connected, st.Since, st.LastContact = true, now, now
	st.UpstreamID, st.UpstreamName, st.UpstreamAddr = w.Node, w.Name, w.Addr
	st.Leader, st.Epoch, st.Hops = w.Leader, w.Epoch, w.Hops
	st.Head, st.Committed = w.Head, max(st.Committed, w.Committed)
}

// disconnected takes up why there is no stream, and reports whether there was one.
func (f *Follower) disconnected(err error) (lost bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost = f.st.Connected
	if lost {
		f.st.Since = time.Now()
	}
	f.st.Connected, f.st.LastError = false, err
	return lost
}

// marked takes up a mark that was checked.
func (f *Follower) marked(m *Mark) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	st := &f.st
	st.LastContact, st.Head, st.Epoch, st.Hops = now, m.Head, m.Epoch, m.Hops
	st.Committed = max(st.Committed, m.Committed)
	st.LeaderClock, st.Stalled = time.UnixMilli(m.Clock), m.Stalled
	f.fresh.mark(m.Committed, m.Clock)
	f.fresh.see(f.shown())
}

func (f *Follower) receivedBytes(n int) {
	now := time.Now()
	f.mu.Lock()
	f.st.Received += uint64(n)
	f.st.LastContact = now
	f.mu.Unlock()
}

func (f *Follower) hops() uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st.Hops
}

// leaderClock returns the leader's clock in the last mark, in Unix milliseconds; 0 before the first.
func (f *Follower) leaderClock() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.st.LeaderClock.IsZero() {
		return 0
	}
	return f.st.LeaderClock.UnixMilli()
}

// shown is up to where this node serves what it is for: readers, or the log alone.
func (f *Follower) shown() wal.LSN {
	if f.keepsLogOnly() {
		return f.log.Durable()
	}
	return f.node.Visible()
}

// Status returns what this follower knows of its upstream. It does not wait.
func (f *Follower) Status() FollowerStatus {
	visible := f.shown()
	f.mu.Lock()
	defer f.mu.Unlock()
	if asOf := f.fresh.see(visible); asOf != 0 {
		f.st.FreshAsOf = time.UnixMilli(asOf)
	}
	st := f.st
	if st.Committed > visible {
		st.LagBytes = uint64(st.Committed - visible)
	}
	return st
}
