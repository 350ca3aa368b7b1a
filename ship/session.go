package ship

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal"
)

const (
	// smallData is up to how many bytes are copied into the session's buffer and sent by one call together with
	// their header. What is longer goes from the file to the socket.
	smallData = 32 << 10
	// minMessage is what messages shrink to when the peer takes them slowly.
	minMessage = 64 << 10
	// stalledAfter is for how long a disk must not have answered before followers are told.
	stalledAfter = time.Second
	// goodbyeTime is how long an ended connection lingers so that the peer reads why.
	goodbyeTime = time.Second
)

// session feeds one follower. Its memory is fixed: one buffer of little more than smallData, the connection's
// reading buffer, two goroutines. The sending half belongs to whoever holds sendMu: the sender's goroutine, or for
// a moment a committing one in [Leader.Push].
type session struct {
	l     *Leader
	c     *conn
	join  *Join
	start wal.LSN
	cuts  uint64 // of the log, before the follower's position was judged
	since time.Time

	kick chan struct{} // one token: look again
	done chan struct{} // closed by fail
	gone chan struct{} // closed by Leader.remove

	failOnce sync.Once
	err      error // why the session ended; set before done is closed

	leaser    ReadLeaser    // nil: the leader wants no leases, or the follower gives none
	leaseFrom atomic.Uint64 // probe of the first Mark with Lease behind the last without; 0: the last was without

	voter    atomic.Bool
	eager    atomic.Bool // may become a voter: have it sync at once
	draining atomic.Bool
	sent     atomic.Uint64 // end of what was handed to the connection; written under sendMu

	sendMu     sync.Mutex
	buf        []byte
	pend       []byte // rest of a message that the kernel took a part of; goes out before anything else
	broken     bool   // the sending half stands inside a message whose rest is not in pend
	message    int    // most bytes of the next Data message
	marked     wal.LSN
	digested   wal.LSN
	markedAt   time.Time
	lastSendAt time.Time

	mu       sync.Mutex // guards the fields below; never held over a call that waits
	acked    Positions
	seen     time.Time
	rtt      time.Duration
	askedAt  time.Time // when the node was last asked for admission
	admitAt  wal.LSN   // committed mark when everything below it had been sent for the first time
	caughtUp bool
}

func newSession(l *Leader, c *conn, j *Join, start wal.LSN, cuts uint64) *session {
	now := time.Now()
	s := &session{
		l: l, c: c, join: j, start: start, cuts: cuts, since: now, seen: now,
		kick: make(chan struct{}, 1), done: make(chan struct{}), gone: make(chan struct{}),
		message: MaxData, buf: make([]byte, 0, smallData+2*HeaderSize+markSize),
	}
	s.sent.Store(uint64(start))
	s.acked.Received = min(start, j.End)
	s.eager.Store(j.Role == RoleVoter)
	if limit := s.limit(); start >= limit {
		s.reaches(limit) // the first acknowledgement may come before the first step
	}
	return s
}

// run feeds the follower until the connection ends, and returns why it did.
func (s *session) run() error {
	slots, holds := s.l.node.(SlotHolder)
	if holds {
		slots.HoldSlot(s.join.Node, s.join.Name, s.start)
	}
	if judge, ok := s.l.node.(ReaderJudge); ok && s.join.Role == RoleVoter {
		judge.PeerReads(s.join.Node, s.join.Name, !s.join.LogOnly && !s.join.showsLate())
	}
	sub := make(chan struct{}, 1)
	cancel := s.l.node.Subscribe(sub)
	var wg sync.WaitGroup
	wg.Go(func() { s.fail(s.send(sub)) }) // ended by fail
	s.fail(s.receive())
	wg.Wait()
	cancel()
	if s.voter.Swap(false) {
		s.l.mu.Lock()
		s.l.listVoters()
		s.l.mu.Unlock()
	}
	s.sendMu.Lock() // a push may be under way still
	s.voter.Store(false)
	s.l.node.PeerGone(s.join.Node)
	if holds {
		slots.ReleaseSlot(s.join.Node)
	}
	var e *Error
	if d, ok := s.l.node.(DamageTaker); ok {
		var medium *wal.IOError
		switch {
		case errors.As(s.err, &medium):
			d.Damaged(medium.LSN)
		case errors.As(s.err, &e) && e.Remote && e.Code == CodeCorrupt:
			d.Damaged(e.LSN)
		}
	}
	if errors.As(s.err, &e) && !e.Remote && !s.broken {
		s.c.goodbye(s.pend, e, goodbyeTime)
	}
	s.broken = true
	s.sendMu.Unlock()
	return s.err
}

// fail ends the session; the first cause stays. Both goroutines return soon after.
func (s *session) fail(err error) {
	s.failOnce.Do(func() {
		if err == nil {
			err = errors.New("ship: session ended")
		}
		s.err = err
		close(s.done)
		s.c.interrupt()
	})
}

// drain has the session end once the follower has been sent everything it is due.
func (s *session) drain() {
	s.draining.Store(true)
	s.wake()
}

func (s *session) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// limit returns up to where this follower may be sent: the head for voters, and for who is about to lead; for all others what is
// committed and on this node's disk.
func (s *session) limit() wal.LSN {
	head := s.l.log.Head()
	if s.votes() || s.join.Role == RoleCandidate {
		return head
	}
	limit := min(s.l.node.Committed(), s.l.log.Durable(), head)
	if s.join.Piece {
		limit = min(limit, s.join.Until)
	}
	return limit
}

// uncut ends the session once the log was cut back: what the follower has may not be this log's any more, and it must be judged anew
// before it is told anything that was read since.
func (s *session) uncut() error {
	if s.l.log.Cuts() != s.cuts {
		return refuse(CodeNotReady, "the upstream's log was cut back")
	}
	return nil
}

// votes reports whether the follower is a voter. One that the node does not list any more stops being one here.
func (s *session) votes() bool {
	if !s.voter.Load() {
		return false
	}
	if s.l.lists(s.join.Node) {
		return true
	}
	s.eager.Store(false)
	if s.voter.Swap(false) {
		s.l.mu.Lock()
		s.l.listVoters()
		s.l.mu.Unlock()
		s.l.opts.Logger.Info("voter taken out", "name", s.join.Name, "node", s.join.Node.String())
	}
	return false
}

// send is the sender's goroutine.
func (s *session) send(sub <-chan struct{}) error {
	every := s.l.opts.Heartbeat
	if s.leaser != nil {
		every = min(every, ReadLease/4)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	pace := time.NewTimer(time.Hour)
	defer pace.Stop()
	beat := true // the first mark tells the follower where its upstream is
	for {
		more, err := s.step(beat)
		if err != nil {
			return err
		}
		beat = false
		if more {
			select {
			case <-s.done:
				return nil
			case <-tick.C:
				beat = true
			default:
			}
			continue
		}
		select {
		case <-s.done:
			return nil
		case <-s.kick:
		case <-tick.C:
			beat = true
		case <-sub:
			if !s.paced(pace) {
				return nil
			}
		}
	}
}

// paced holds the sender back after a notification when nobody waits for what it would send: marks, unless writes wait until they are visible on followers, bytes for
// followers that do not count, and voters' bytes where [Leader.Push] sends them. Under load that makes one message
// of many. It returns false when the session has ended.
func (s *session) paced(t *time.Timer) bool {
	if s.voter.Load() && (!s.l.pushed.Load() || s.l.awaitsVisibility()) {
		return true
	}
	s.sendMu.Lock()
	wait := s.l.opts.Pace - time.Since(s.lastSendAt)
	s.sendMu.Unlock()
	if wait <= 0 {
		return true
	}
	t.Reset(wait)
	select {
	case <-s.done:
		return false
	case <-s.kick:
	case <-t.C:
	}
	return true
}

// step sends one message's worth of data, or a mark where one is due. more says that there is more to send.
func (s *session) step(beat bool) (more bool, err error) {
	draining := s.draining.Load() // before the limit is read
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if err := s.flush(); err != nil {
		return false, err
	}
	limit := s.limit()
	sent := wal.LSN(s.sent.Load())
	if err := s.uncut(); err != nil {
		return false, err
	}
	if limit <= sent+wal.LSN(s.message) {
		s.reaches(limit)
	}
	if sent < limit {
		if limit-sent <= smallData {
			err = s.sendSmall(sent, limit, beat)
		} else {
			err = s.sendBulk(sent, limit, beat)
		}
		return true, err
	}
	if s.markDue(beat) {
		return false, s.sendMark(sent, limit, beat)
	}
	if draining {
		return false, refuse(CodeShutdown, "")
	}
	return false, nil
}

// reaches notes that the follower is being sent, for the first time, everything that it may be sent. It is noted
// before the last of it goes out, so that the acknowledgement finds it.
func (s *session) reaches(limit wal.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.caughtUp {
		s.caughtUp, s.admitAt = true, limit
	}
}

// markDue reports whether the follower is to be told a mark. sendMu is held.
func (s *session) markDue(beat bool) bool {
	return beat || s.l.node.Committed() > s.marked || s.leaser != nil && s.leaser.WantsReadLease() != (s.leaseFrom.Load() != 0)
}

// sendMark sends a Mark. sendMu is held.
func (s *session) sendMark(sent, limit wal.LSN, beat bool) error {
	m := s.mark(sent, limit, beat)
	if err := s.uncut(); err != nil {
		return err
	}
	s.buf = s.c.appendMessage(s.buf[:0], m)
	return s.sendBuf(false)
}

// mark makes a Mark. With sent at the end of a batch, the head's or the committed mark's, it carries a digest.
// sendMu is held.
func (s *session) mark(sent, limit wal.LSN, beat bool) *Mark {
	log := s.l.log
	m := &Mark{
		Committed: s.l.node.Committed(), Tail: log.Tail(), Clock: s.l.clock(),
		Probe: uint64(time.Since(s.l.began)), Epoch: log.Epoch(), Hops: s.l.hops(), Stalled: log.Stalled() >= stalledAfter,
	}
	s.askLease(m)
	m.Head = max(log.Head(), sent)
	m.Committed = min(m.Committed, m.Head)
	// At the head the digest is at hand; elsewhere frames must be walked for it, which is not done each time.
	if sent == limit && sent > s.digested && (sent == m.Head || beat || sent-s.digested >= MaxData) {
		if d, err := log.DigestAt(sent); err == nil {
			m.HasDigest, m.DigestLSN, m.Digest = true, sent, d
			s.digested = sent
		}
	}
	s.marked, s.markedAt = m.Committed, time.Now()
	return m
}

// askLease asks for a lease with a mark, or says that none is relied on any more. sendMu is held.
func (s *session) askLease(m *Mark) {
	switch {
	case s.leaser == nil:
	case !s.leaser.WantsReadLease():
		s.leaseFrom.Store(0)
	default:
		m.Lease = true
		s.leaseFrom.CompareAndSwap(0, max(m.Probe, 1))
	}
}

// appendSmall puts the bytes [from, to) into the buffer as a Data message, behind it a Mark where one is due. The
// buffer is empty on an error. sendMu is held.
func (s *session) appendSmall(from, to wal.LSN, beat bool) error {
	h := s.header(from, int(to-from), to)
	s.buf = s.buf[:HeaderSize+h.Length]
	n, err := s.l.log.ReadAt(s.buf[HeaderSize:], from)
	if err == nil && n != int(h.Length) {
		err = fmt.Errorf("%d bytes of %d", n, h.Length)
	}
	var m *Mark
	if err == nil && s.markDue(beat) {
		m = s.mark(to, to, beat)
	}
	if cut := s.uncut(); cut != nil {
		s.buf = s.buf[:0]
		return cut
	}
	if err != nil {
		s.buf = s.buf[:0]
		return &Error{Code: CodeInternal, Text: fmt.Sprintf("read at %s", from), Err: err}
	}
	s.c.appendData(s.buf[:0], h)
	s.sent.Store(uint64(to))
	if m != nil {
		s.buf = s.c.appendMessage(s.buf, m)
	}
	return nil
}

// header makes the header of a Data message; limit is the end of what may be sent.
func (s *session) header(from wal.LSN, n int, limit wal.LSN) Header {
	h := Header{Type: TypeData, LSN: from, Length: uint32(n)}
	if from+wal.LSN(n) == limit {
		h.Flags = DataHead
		if !s.voter.Load() && s.eager.Load() || s.voter.Load() && s.l.awaitsSync() {
			h.Flags |= DataSync
		}
		if s.voter.Load() && s.l.awaitsReceipt() {
			h.Flags |= DataReceipt
		}
	}
	return h
}

func (s *session) sendSmall(from, to wal.LSN, beat bool) error {
	if err := s.appendSmall(from, to, beat); err != nil {
		return err
	}
	return s.sendBuf(false)
}

// sendBuf sends the buffer: what the kernel takes at once, the rest waiting. more: the body follows.
func (s *session) sendBuf(more bool) error {
	n, err := s.c.try(s.buf, more)
	s.pend = s.buf[n:]
	if err != nil {
		return err
	}
	return s.flush()
}

// flush sends what is left of a message. sendMu is held.
func (s *session) flush() error {
	s.lastSendAt = time.Now()
	if len(s.pend) == 0 {
		return nil
	}
	var err error
	s.pend, err = s.c.write(s.pend, stallFactor*s.l.opts.Timeout)
	return err
}

// sendBulk sends a large message from the file, and now and then a Mark behind it. sendMu is held, so that pushes
// leave this follower alone meanwhile.
func (s *session) sendBulk(from, limit wal.LSN, beat bool) error {
	n := int(min(limit-from, wal.LSN(s.message)))
	began := time.Now()
	s.buf = s.c.appendData(s.buf[:0], s.header(from, n, limit))
	if err := s.sendBuf(true); err != nil {
		return err
	}
	s.broken = true // until all of it is out
	if err := s.c.extendWrite(stallFactor * s.l.opts.Timeout); err != nil {
		return ioError("send", err)
	}
	s.sent.Store(uint64(from) + uint64(n)) // before: what arrives may be acknowledged before the call returns
	sent, err := s.l.log.SendTo(s.c.nc, from, from+wal.LSN(n))
	if err != nil || sent != int64(n) {
		return fmt.Errorf("ship: sent %d of %d bytes from %s: %w", sent, n, from, errors.Join(err, io.ErrShortWrite))
	}
	s.broken = false
	if err := s.uncut(); err != nil {
		return err
	}
	now := time.Now()
	s.lastSendAt = now
	// A peer on a slow line gets smaller messages, so that marks and deadlines keep their meaning.
	switch d := now.Sub(began); {
	case d > s.l.opts.Timeout/5:
		s.message = max(s.message/2, minMessage)
	case d < s.l.opts.Timeout/50:
		s.message = min(s.message*2, MaxData)
	}
	if beat || now.Sub(s.markedAt) > s.l.opts.Heartbeat/10 {
		return s.sendMark(from+wal.LSN(n), limit, beat)
	}
	return nil
}

// push sends what was appended, if that can be done at once; see [Leader.Push].
func (s *session) push() {
	if !s.sendMu.TryLock() {
		s.wake() // whoever holds it may have read the head before
		return
	}
	defer s.sendMu.Unlock()
	from, to := wal.LSN(s.sent.Load()), s.l.log.Head()
	if to == from && len(s.pend) == 0 || s.broken || !s.votes() {
		return
	}
	if len(s.pend) != 0 || s.c.raw == nil || to < from || to-from > smallData {
		s.wake()
		return
	}
	if err := s.appendSmall(from, to, false); err != nil {
		s.fail(err)
		return
	}
	n, err := s.c.try(s.buf, false)
	s.pend = s.buf[n:]
	s.lastSendAt = time.Now()
	switch {
	case err != nil:
		s.fail(err)
	case len(s.pend) != 0:
		s.wake()
	}
}
