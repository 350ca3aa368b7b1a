package ship

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal"
)

// Leader feeds followers. It serves any node that has a log: one that follows itself feeds a cascade. All methods
// may be called at the same time.
type Leader struct {
	node  LeaderNode
	log   *wal.Log
	opts  LeaderOptions
	began time.Time

	// pushed says that [Leader.Push] is called after appends, so that voters' sessions need not hurry by themselves.
	pushed atomic.Bool
	// voters is the list of sessions that Push serves; replaced as a whole under mu.
	voters atomic.Pointer[[]*session]

	refusals quiet // lines of the log about connections that come to nothing: anybody can make them

	mu        sync.Mutex // guards the fields below
	closing   bool
	listeners map[net.Listener]struct{}
	pending   []*pending // in the handshake, the oldest first; at most opts.MaxHandshakes
	sessions  map[wal.NodeID]*session
	wg        sync.WaitGroup // connections; Add only under mu while not closing
}

// pending is a connection that is no session yet.
type pending struct {
	nc     net.Conn
	proved bool // knows the secret; guarded by Leader.mu
}

// NewLeader returns a Leader that ships node's log; nil options are the defaults. It starts nothing: [Leader.Serve] does. [Leader.Shutdown]
// comes before the node is closed.
func NewLeader(node LeaderNode, o *LeaderOptions) (*Leader, error) {
	opts, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Leader{
		node: node, log: node.Log(), opts: opts, began: time.Now(),
		listeners: map[net.Listener]struct{}{},
		sessions:  map[wal.NodeID]*session{},
	}, nil
}

// Serve accepts followers on ln until [Leader.Shutdown], and then returns [ErrLeaderClosed]; any other error is
// the listener's. It closes ln. Without a secret only loopback TCP listeners, and listeners that are no network's,
// are served.
func (l *Leader) Serve(ln net.Listener) error {
	defer func() { _ = ln.Close() }()
	if a, ok := ln.Addr().(*net.TCPAddr); ok && len(l.opts.Secret) == 0 && !l.opts.Insecure && !a.IP.IsLoopback() {
		return fmt.Errorf("serve %v: %w", a, ErrNoSecret)
	}
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return ErrLeaderClosed
	}
	l.listeners[ln] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.listeners, ln)
		l.mu.Unlock()
	}()
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			l.accept(nc)
		case l.isClosing():
			return ErrLeaderClosed
		case isTemporary(err):
			// Out of descriptors, most likely: let some go.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.opts.Logger.Warn("accept failed", "error", err, "retry_in", pause)
			time.Sleep(pause)
		default:
			return fmt.Errorf("accept: %w", err)
		}
	}
}

func isTemporary(err error) bool {
	var ne net.Error
	//nolint:staticcheck // Accept's errors are where Temporary still has a meaning: net/http asks it as well.
	return errors.As(err, &ne) && ne.Temporary()
}

func (l *Leader) isClosing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// accept starts the goroutine of one connection. Where too many are in the handshake, the oldest that has not proved anything is hung up
// on: whoever knows the secret is done in a moment, and strangers who say nothing do not keep it out.
func (l *Leader) accept(nc net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		_ = nc.Close()
		return
	}
	if len(l.pending) >= l.opts.MaxHandshakes {
		loser := nc
		if i := slices.IndexFunc(l.pending, func(p *pending) bool { return !p.proved }); i >= 0 {
			loser = l.pending[i].nc
			l.pending = slices.Delete(l.pending, i, i+1)
		}
		l.refused("hung up in the handshake", loser, errCrowd)
		_ = loser.Close() // its goroutine, if it has one, ends
		if loser == nc {
			return
		}
	}
	p := &pending{nc: nc}
	l.pending = append(l.pending, p)
	l.wg.Add(1)
	go l.handle(p) // ends with the connection; Shutdown closes it and waits
}

// errCrowd is why a connection is hung up on that may have done nothing wrong.
var errCrowd = errors.New("ship: too many handshakes under way")

// refused logs that a connection came to nothing, unless many have.
func (l *Leader) refused(what string, nc net.Conn, err error) {
	if left, ok := l.refusals.next(time.Now()); ok {
		l.opts.Logger.Warn(what, "remote", nc.RemoteAddr().String(), "error", err, "lines_left_out", left)
	}
}

// handle runs one connection from its first byte to its last.
func (l *Leader) handle(p *pending) {
	nc := p.nc
	defer l.wg.Done()
	defer func() { _ = nc.Close() }()
	s, err := l.welcome(p)
	l.mu.Lock()
	i := slices.Index(l.pending, p)
	if i >= 0 {
		l.pending = slices.Delete(l.pending, i, i+1)
	}
	l.mu.Unlock()
	if errors.Is(err, errAnswered) {
		return
	}
	if err != nil {
		if i >= 0 { // else it has been said why
			l.refused("follower refused", nc, err)
		}
		return
	}
	l.opts.Logger.Info("follower connected", "name", s.join.Name, "node", s.join.Node.String(),
		"remote", nc.RemoteAddr().String(), "start_lsn", s.start.String())
	err = s.run()
	l.remove(s)
	l.opts.Logger.Info("follower gone", "name", s.join.Name, "node", s.join.Node.String(), "error", err)
}

// welcome takes a connection through handshake and Join to a session, or refuses it.
func (l *Leader) welcome(p *pending) (*session, error) {
	nc := p.nc
	if err := nc.SetDeadline(time.Now().Add(l.opts.HandshakeTimeout)); err != nil {
		return nil, err
	}
	if l.opts.TLS != nil {
		t := tls.Server(nc, l.opts.TLS)
		if err := t.Handshake(); err != nil {
			return nil, ioError("TLS handshake", err)
		}
		nc = t
	}
	c := newConn(nc, l.opts.Timeout)
	if err := c.handshake(Acceptor, l.opts.Secret, l.opts.Random); err != nil {
		return nil, err
	}
	l.mu.Lock()
	p.proved = true
	l.mu.Unlock()
	s, err := l.join(c)
	if err == nil || errors.Is(err, errAnswered) {
		return s, err
	}
	var e *Error
	if !errors.As(err, &e) {
		if errors.Is(err, ErrTimeout) {
			return nil, err
		}
		e = &Error{Code: CodeInternal, Err: err}
	}
	if !e.Remote {
		c.goodbye(nil, e, min(time.Second, l.opts.HandshakeTimeout))
	}
	return nil, err
}

// join reads the follower's Join, decides, and sends the Welcome.
func (l *Leader) join(c *conn) (*session, error) {
	_, m, err := c.next()
	if err != nil {
		return nil, err
	}
	if call, ok := m.(*Call); ok {
		return nil, l.answer(c, call)
	}
	j, ok := m.(*Join)
	if !ok {
		return nil, refuse(CodeProtocol, "want a join or a call")
	}
	cuts := l.log.Cuts() // before what is decided on is read
	start, w, err := l.decide(j)
	if err != nil {
		return nil, err
	}
	s := newSession(l, c, j, start, cuts)
	if leaser, ok := l.node.(ReadLeaser); ok && j.Features&FeatureReadLease != 0 && l.upstream() == nil {
		s.leaser = leaser
		w.Features |= FeatureReadLease
	}
	w.Features |= j.Features & FeatureShowsLate
	if err := l.add(s); err != nil {
		return nil, err
	}
	w.HeartbeatMS, w.TimeoutMS = uint32(l.opts.Heartbeat.Milliseconds()), uint32(l.opts.Timeout.Milliseconds())
	w.Name, w.Addr = l.opts.Name, l.opts.Addr
	if _, err := c.nc.Write(c.appendMessage(nil, w)); err != nil {
		l.remove(s)
		return nil, ioError("send welcome", err)
	}
	if err := c.start(l.opts.Timeout); err != nil {
		l.remove(s)
		return nil, err
	}
	return s, nil
}

// decide compares the follower's position with this node's log. It returns where to start and the Welcome.
func (l *Leader) decide(j *Join) (wal.LSN, *Welcome, error) {
	switch {
	case l.isClosing():
		return 0, nil, refuse(CodeShutdown, "")
	case j.Node == l.log.NodeID():
		return 0, nil, refuse(CodeSelf, "node %s", j.Node)
	case l.log.Empty():
		return 0, nil, refuse(CodeNotReady, "no database yet")
	case !j.Database.IsZero() && j.Database != l.log.DatabaseID():
		e := refuse(CodeDatabase, "upstream has %s, the follower %s", l.log.DatabaseID(), j.Database)
		e.DB = l.log.DatabaseID()
		return 0, nil, e
	}
	if j.Piece {
		return l.piece(j)
	}
	up := view{history: l.log.History(), tail: l.log.Tail(), end: l.log.Head()}
	relay := l.upstream() != nil
	candidate := j.Role == RoleCandidate
	if candidate && j.Promised != l.log.Promised() {
		e := refuse(CodeFenced, "candidate for epoch %s, this node has promised %s", j.Promised, l.log.Promised())
		e.Epoch = l.log.Promised()
		return 0, nil, e
	}
	if p := l.log.Promised(); !relay && !candidate && p > up.epoch() {
		e := refuse(CodeFenced, "upstream is at epoch %s and knows of %s", up.epoch(), p)
		e.Epoch = p
		return 0, nil, e
	}
	down := view{history: j.History, end: j.End}
	size := uint64(l.log.SegmentSize())
	promised := j.Promised
	if candidate {
		promised = 0 // it leads that epoch itself, and wants what is before it
	}
	start, e := place(up, down, j.Empty, promised, j.Committed, size)
	if e != nil {
		return 0, nil, l.refusePlace(e)
	}
	digest, err := l.log.DigestAt(start)
	switch {
	case errors.Is(err, wal.ErrNotBoundary):
		e := refuse(CodeDigest, "the follower's end %s is not the end of a frame here", start)
		e.LSN = start
		return 0, nil, e
	case err != nil && !j.Empty:
		return 0, nil, fmt.Errorf("digest at %s: %w", start, err)
	case !j.Empty && digest != j.Digest:
		e := refuse(CodeDigest, "at %s upstream has digest %s, the follower %s", start, digest, j.Digest)
		e.LSN, e.Digest = start, digest
		return 0, nil, e
	}
	return start, &Welcome{
		Database: l.log.DatabaseID(), Node: l.log.NodeID(), Leader: up.leader(), Epoch: up.epoch(), Hops: l.hops(),
		Start: start, Digest: digest, Tail: up.tail, Head: max(up.end, start), Committed: min(l.node.Committed(), up.end),
		SegmentSize: size, History: newest(up.history),
	}, nil
}

// refusePlace adds to a refusal what only this node knows, and acts on a higher epoch before it answers.
func (l *Leader) refusePlace(e *Error) error {
	switch e.Code {
	case CodeFenced:
		if err := l.node.Fence(e.Epoch); err != nil && !errors.Is(err, wal.ErrEpoch) { // it has promised a higher one
			return fmt.Errorf("fence at epoch %s: %w", e.Epoch, err)
		}
	case CodeDiverged:
		d, err := l.log.DigestAt(e.LSN)
		if errors.Is(err, wal.ErrTrimmed) {
			e.Text += "; below the tail " + l.log.Tail().String()
			break // named, without a digest
		}
		if err != nil {
			e.Text += "; no digest there: " + err.Error()
			e.Epoch, e.Node, e.Mine = 0, wal.NodeID{}, 0
			break
		}
		e.Digest = d
	}
	return e
}

// add takes up a session; an older one of the same node is ended first, and waited for, so that the node hears
// PeerGone before anything of the new one.
func (l *Leader) add(s *session) error {
	for {
		l.mu.Lock()
		old := l.sessions[s.join.Node]
		switch {
		case l.closing:
			l.mu.Unlock()
			return refuse(CodeShutdown, "")
		case old == nil && len(l.sessions) >= l.opts.MaxPeers:
			l.mu.Unlock()
			return refuse(CodeBusy, "%d followers", l.opts.MaxPeers)
		case old == nil:
			l.sessions[s.join.Node] = s
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		old.fail(refuse(CodeReplaced, "it comes from %s; if that is another machine, one disk is a copy of the other", s.c.nc.RemoteAddr()))
		<-old.gone
	}
}

// remove forgets a session that has ended or never began.
func (l *Leader) remove(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.join.Node] == s {
		delete(l.sessions, s.join.Node)
	}
	l.listVoters()
	close(s.gone)
}

// listVoters rebuilds the list for Push. l.mu is held.
func (l *Leader) listVoters() {
	var v []*session
	for _, s := range l.sessions {
		if s.voter.Load() {
			v = append(v, s)
		}
	}
	l.voters.Store(&v)
}

// Push sends what was appended since the last call to voters that are waiting for it, in the caller's goroutine
// and without ever waiting: a voter whose socket is full, or whose session is busy, is left to its session. The
// node calls it after each append and before it syncs, which saves the wake-up of a goroutine, so that both disks
// work at the same time.
func (l *Leader) Push() {
	if !l.pushed.Load() {
		l.pushed.Store(true)
	}
	v := l.voters.Load()
	if v == nil {
		return
	}
	for _, s := range *v {
		s.push()
	}
}

func (l *Leader) upstream() *Follower {
	if l.opts.Upstream == nil {
		return nil
	}
	return l.opts.Upstream()
}

// hops returns how many upstreams lie between this node and the leader, itself not counted at the leader.
func (l *Leader) hops() uint32 {
	if u := l.upstream(); u != nil {
		return u.hops() + 1
	}
	return 0
}

// clock returns the leader's clock: this node's, or what its upstream last told.
func (l *Leader) clock() int64 {
	if u := l.upstream(); u != nil {
		return u.leaderClock()
	}
	if c, ok := l.node.(LogClock); ok {
		return c.LogTime()
	}
	return l.opts.Now().UnixMilli()
}

// lists reports whether a follower that was admitted is a voter still.
func (l *Leader) lists(id wal.NodeID) bool {
	v, ok := l.node.(VoterLister)
	return !ok || v.IsVoter(id)
}

// listed reports whether the node says of itself that the follower is a voter.
func (l *Leader) listed(id wal.NodeID) bool {
	v, ok := l.node.(VoterLister)
	return ok && v.IsVoter(id)
}

// awaitsSync reports whether voters are to sync at once.
func (l *Leader) awaitsSync() bool {
	h, ok := l.node.(SyncHinter)
	return !ok || h.AwaitsSync()
}

// Renew ends all sessions, because the node's role has changed: followers come back and are judged anew.
func (l *Leader) Renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sessions {
		s.fail(refuse(CodeNotReady, "the upstream's role has changed"))
	}
}

// awaitsVisibility reports whether voters are to hear at once what is committed, because writes wait until they show it.
func (l *Leader) awaitsVisibility() bool {
	h, ok := l.node.(VisibilityAwaiter)
	return ok && h.AwaitsVisibility()
}

// awaitsReceipt reports whether voters are to acknowledge what they have received before they sync it.
func (l *Leader) awaitsReceipt() bool {
	h, ok := l.node.(SyncHinter)
	return !ok || h.AwaitsReceipt()
}

// Shutdown stops accepting, gives each follower until ctx ends to receive what it is due, tells it that this side
// is shutting down, and waits for all goroutines. It returns ctx's error when it had to cut someone off. It may be
// called again.
func (l *Leader) Shutdown(ctx context.Context) error {
	l.mu.Lock()
	l.closing = true
	for ln := range l.listeners {
		_ = ln.Close() // Serve reports
	}
	for _, p := range l.pending {
		_ = p.nc.Close()
	}
	for _, s := range l.sessions {
		s.drain()
	}
	l.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends when the last connection has
		l.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	cut := len(l.sessions)
	for _, s := range l.sessions {
		s.fail(refuse(CodeShutdown, ""))
		_ = s.c.nc.Close()
	}
	l.mu.Unlock()
	<-done
	if cut == 0 {
		return nil
	}
	return ctx.Err()
}

// Peers returns the state of all connected followers, by name.
func (l *Leader) Peers() []PeerStatus {
	l.mu.Lock()
	var all []PeerStatus
	for _, s := range l.sessions {
		all = append(all, s.status())
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return all
}
