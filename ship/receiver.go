package ship

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal"
)

const (
	// lazyAck is how long news of visibility alone may wait where no write does.
	lazyAck = 5 * time.Millisecond
	// behindAck is the least time between two acknowledgements while the upstream has more to send.
	behindAck = 2 * time.Millisecond
)

// receiver is one connection of a follower. Four goroutines: the one that receives, which appends by itself and,
// when the upstream says that someone waits, syncs by itself; one that checks and appends chunks during a catch-up,
// while the next are received; one that syncs what nobody waits for; one that tells the upstream what has changed, and
// that this node lives.
type receiver struct {
	f         *Follower
	c         *conn
	heartbeat time.Duration

	// receiving goroutine
	buf   []byte
	r, w  int      // buf[r:w] was received and not yet appended
	next  wal.LSN  // of the next byte to be received
	spare [][]byte // buffers that are not in use
	made  int      // buffers that there are
	away  int      // chunks that are with the appending goroutine
	epoch wal.Epoch
	first *Welcome // what the first bytes of an empty log must agree with; nil once the log has a header

	chunks   chan chunk // to the appending goroutine; room for all buffers
	appended chan chunk // and back; room for all buffers
	// rest is what is left of the chunks that were appended: the beginning of a frame. It belongs to the appending
	// goroutine while chunks are away.
	rest []byte

	done     chan struct{} // closed by fail
	failOnce sync.Once
	err      error

	unsynced atomic.Int64
	syncing  atomic.Bool // the receiving goroutine syncs, and acknowledges right after it
	behind   atomic.Bool // the upstream has more to send: nobody waits for acknowledgements
	echo     atomic.Uint64
	tell     chan struct{}     // one token: look for news
	syncSoon chan struct{}     // one token: sync within SyncDelay
	syncNow  chan struct{}     // one token: sync
	lender   ReadLender        // nil: the upstream wants no leases
	shows    VisibilityAwaiter // nil: no write waits for this node's readers

	sendMu   sync.Mutex // guards the sending half and the fields below
	out      []byte
	told     Positions
	ackedAt  time.Time
	promised wal.Epoch // what was acknowledged is not above it
	pend     []byte    // rest of a message whose write failed
}

func newReceiver(f *Follower, c *conn, w *Welcome) *receiver {
	r := &receiver{
		f: f, c: c, heartbeat: f.opts.Heartbeat, buf: make([]byte, receiveBuffer), r: receiveRoom, w: receiveRoom,
		made: 1, next: w.Start, epoch: w.Epoch, promised: w.Epoch, done: make(chan struct{}),
		chunks: make(chan chunk, receiveBuffers), appended: make(chan chunk, receiveBuffers),
		tell: make(chan struct{}, 1), syncSoon: make(chan struct{}, 1), syncNow: make(chan struct{}, 1),
	}
	if f.log.Empty() {
		r.first = w
	} else if left := f.log.Head() - f.log.Durable(); left > 0 { // from a connection before: the upstream may have nothing to add
		r.unsynced.Store(int64(left))
		signal(r.syncSoon)
	}
	if w.Features&FeatureReadLease != 0 {
		r.lender, _ = f.node.(ReadLender)
	}
	r.shows, _ = f.node.(VisibilityAwaiter)
	if r.heartbeat == 0 {
		r.heartbeat = time.Duration(w.HeartbeatMS) * time.Millisecond
	}
	// Whatever the upstream asks for: often enough for its patience, and not a flood.
	r.heartbeat = max(min(r.heartbeat, time.Duration(w.TimeoutMS)*time.Millisecond/3), time.Millisecond)
	return r
}

// run receives until the connection ends, and returns why it did.
func (r *receiver) run() error {
	sub := make(chan struct{}, 1)
	cancel := r.f.node.Subscribe(sub)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { r.fail(r.acks(sub)) }) // ended by fail
	wg.Go(func() { r.fail(r.syncs()) })   // ended by fail
	wg.Go(r.appends)                      // ended by the close of chunks
	r.fail(r.receive())
	close(r.chunks)
	wg.Wait()
	var e *Error
	if errors.As(r.err, &e) && !e.Remote {
		r.c.goodbye(r.pend, e, goodbyeTime)
	}
	return r.err
}

// fail ends the connection; the first cause stays.
func (r *receiver) fail(err error) {
	r.failOnce.Do(func() {
		if err == nil {
			err = errors.New("ship: stream ended")
		}
		r.err = err
		close(r.done)
		r.c.interrupt()
	})
}

func (r *receiver) receive() error {
	for {
		h, m, err := r.c.next()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case nil:
			err = r.data(h)
		case *Mark:
			err = r.mark(m)
		case *Refusal:
			return m.err()
		default:
			return refuse(CodeProtocol, "an upstream sends data and marks")
		}
		if err != nil {
			return err
		}
	}
}

// data takes the body of a Data message: checks, appends, and syncs or has it synced.
func (r *receiver) data(h Header) error {
	if h.LSN != r.next {
		return refuse(CodeProtocol, "data for %s, wanted is %s", h.LSN, r.next)
	}
	hurry := h.Flags&DataSync != 0
	if hurry {
		r.syncing.Store(true)
	}
	for left := int(h.Length); left > 0; {
		n, err := r.c.readData(r.buf[r.w:min(len(r.buf), r.w+left)])
		if err != nil {
			// What came whole is kept: a line that breaks often still brings the log further.
			return errors.Join(err, r.settle())
		}
		r.w += n
		r.next += wal.LSN(n)
		left -= n
		if r.w == len(r.buf) {
			if err := r.hand(); err != nil {
				return err
			}
		}
	}
	r.f.receivedBytes(int(h.Length))
	behind := h.Flags&(DataHead|DataSync) == 0
	if r.behind.Load() != behind {
		r.behind.Store(behind)
	}
	if behind {
		if r.unsynced.Load() >= r.f.opts.SyncBytes {
			signal(r.syncNow)
		}
		signal(r.tell)
		return nil
	}
	if err := r.settle(); err != nil {
		return err
	}
	if !hurry || h.Flags&DataReceipt != 0 {
		if err := r.ack(false); err != nil {
			return err
		}
	}
	switch {
	case !hurry:
		signal(r.syncSoon)
		return nil
	case r.c.dataWaits(DataSync):
		return nil // one sync for both
	}
	// The hand-off to another goroutine would cost more than the rest of the way.
	if err := r.sync(); err != nil {
		return err
	}
	r.syncing.Store(false) // before the positions are read: what moves after that is the other goroutine's to tell
	return r.ack(false)
}

// sync makes what was appended durable.
func (r *receiver) sync() error {
	r.unsynced.Store(0)
	if _, err := r.f.log.Sync(); err != nil {
		return fmt.Errorf("ship: sync: %w", err)
	}
	return nil
}

// mark takes up a mark: epoch, digest, then what is committed.
func (r *receiver) mark(m *Mark) error {
	switch {
	case m.Epoch < r.epoch && m.Hops == 0:
		return refuse(CodeProtocol, "upstream's epoch fell from %s to %s", r.epoch, m.Epoch)
	case m.Hops >= maxHops:
		return refuse(CodeLoop, "%d upstreams to the leader", m.Hops)
	}
	if err := r.f.promise(m.Epoch); err != nil {
		return err
	}
	r.epoch = max(r.epoch, m.Epoch)
	if err := r.settle(); err != nil {
		return err
	}
	if m.HasDigest && r.first == nil {
		if r.r != r.w || m.DigestLSN != r.next {
			return refuse(CodeProtocol, "digest at %s, the stream is at %s", m.DigestLSN, r.next)
		}
		own, err := r.f.log.DigestAt(m.DigestLSN)
		if err != nil {
			return fmt.Errorf("ship: digest at %s: %w", m.DigestLSN, err)
		}
		if own != m.Digest {
			e := refuse(CodeDigest, "at %s upstream has digest %s, the follower %s", m.DigestLSN, m.Digest, own)
			e.LSN, e.Digest = m.DigestLSN, own
			return e
		}
	}
	if r.first == nil {
		if err := r.f.node.FollowMark(m.Committed, m.Clock); err != nil {
			return fmt.Errorf("ship: mark: %w", err)
		}
	}
	r.f.marked(m)
	return r.lend(m)
}

// lend returns the probe of a mark, unless that would promise what this node cannot keep, and soon enough for the leader's reads.
func (r *receiver) lend(m *Mark) error {
	if r.lender == nil || !m.Lease {
		if r.lender != nil {
			r.lender.ReleaseRead()
		}
		r.echo.Store(m.Probe)
		return nil
	}
	if !r.lender.LendRead(m.Epoch) {
		return nil
	}
	r.echo.Store(m.Probe)
	r.sendMu.Lock()
	late := time.Since(r.ackedAt) > ReadLease/8
	r.sendMu.Unlock()
	if !late {
		return nil // acknowledgements go out all the time
	}
	return r.ack(true)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// syncs is the goroutine that syncs in the background.
func (r *receiver) syncs() error {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-r.done:
			return nil
		case <-r.syncNow:
		case <-r.syncSoon:
			t.Reset(r.f.opts.SyncDelay)
			select {
			case <-r.done:
				return nil
			case <-r.syncNow:
			case <-t.C:
			}
		}
		if r.unsynced.Load() == 0 {
			continue
		}
		if err := r.sync(); err != nil {
			return err
		}
		signal(r.tell)
	}
}

// acks is the goroutine that tells the upstream what has changed, and that this node lives.
func (r *receiver) acks(sub <-chan struct{}) error {
	tick := time.NewTicker(r.heartbeat)
	defer tick.Stop()
	lazy := time.NewTimer(time.Hour)
	defer lazy.Stop()
	if err := r.ack(true); err != nil {
		return err
	}
	pace := time.NewTimer(time.Hour)
	defer pace.Stop()
	for {
		force := false
		select {
		case <-r.done:
			return nil
		case <-tick.C:
			force = true
		case <-lazy.C:
			force = true
		case <-sub:
		case <-r.tell:
		}
		if !force && r.syncing.Load() {
			continue // an acknowledgement of more is on its way
		}
		if !force && r.behind.Load() {
			// The receiving goroutine acknowledges what ends at the upstream's head by itself.
			pace.Reset(behindAck)
			select {
			case <-r.done:
				return nil
			case <-pace.C:
			}
		}
		if err := r.ack(force); err != nil {
			return err
		}
		if r.news() == lazily {
			lazy.Reset(lazyAck)
		}
	}
}

// positions returns how far this node is.
func (r *receiver) positions() Positions {
	// In this order each is at most as far as the next, also while all of them move.
	p := Positions{Visible: r.f.node.Visible(), Applied: r.f.node.Applied(), Durable: r.f.log.Durable()}
	p.Received = r.f.log.Head()
	return p.ordered()
}

// news says how soon the upstream must be told what has changed.
func (r *receiver) news() urgency {
	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	return r.urgency(r.positions())
}

// urgency says how soon the upstream must be told of positions. sendMu is held.
func (r *receiver) urgency(p Positions) urgency {
	u := urgent(r.told, p)
	if u == lazily && r.shows != nil && r.shows.AwaitsVisibility() {
		return atOnce
	}
	return u
}

// ack tells the upstream where this node is, if that has changed or force is set.
func (r *receiver) ack(force bool) error {
	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	if len(r.pend) > 0 {
		return net.ErrClosed // a write before has failed
	}
	p := r.positions()
	switch r.urgency(p) {
	case atOnce:
	default:
		if !force {
			return nil
		}
	}
	// An epoch that came down the stream is persisted before anything in it is acknowledged.
	epoch := r.f.log.Epoch()
	if epoch > r.promised {
		if err := r.f.promise(epoch); err != nil {
			return err
		}
		r.promised = epoch
	}
	r.told, r.ackedAt = p, time.Now()
	r.out = r.c.appendMessage(r.out[:0], &Ack{
		Received: p.Received, Durable: p.Durable, Applied: p.Applied, Visible: p.Visible, Echo: r.echo.Load(), Epoch: epoch,
	})
	n, err := r.c.try(r.out, false)
	r.pend = r.out[n:]
	if err == nil && len(r.pend) > 0 {
		r.pend, err = r.c.write(r.pend, stallFactor*r.f.opts.Timeout)
	}
	return err
}
