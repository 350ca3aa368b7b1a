package resp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tidwall/redcon"
)

const (
	baseBuffer  = 16 << 10 // bytes of a connection's input buffer at rest
	burstBuffer = 64 << 10 // what it grows to while whole reads come in
	flushBytes  = 64 << 10 // replies are offered to the kernel from here on
	holdBytes   = 8 << 20  // and wait for the client from here on
	writeChunk  = 1 << 20  // bytes that must get out within one WriteTimeout
	partialRate = 64 << 10 // bytes a second that a long command must come in with
	manyArgs    = 1024     // arguments of a command from which on their slices are accounted for
	argBytes    = 48       // what an argument takes of them, in argv and in a run
)

// conn is a client's connection. Its goroutine owns all but what is said to be shared.
type conn struct {
	srv     *Server
	nc      net.Conn
	raw     syscall.RawConn // nil where there is none, as with TLS
	id      int64
	addr    string
	laddr   string
	created time.Time

	in       []byte // in[r:w] came and was not parsed; what lies before r may be aliased by the run
	r, w     int
	need     int // bytes that the command at r takes at least
	scan     scanner
	lastFull bool  // the last read filled the buffer: more may be there already
	held     int64 // bytes accounted for with the server

	out       writer
	sent      int   // bytes of out that are with the kernel
	outHeld   int64 // bytes accounted for with the server, for out
	relieveAt int   // bytes of out at which relieve is tried next
	argv      [][]byte
	argsHeld  int64 // bytes accounted for with the server, for argv and run
	run       run
	batch     Batch
	work      work
	lastWrite Position
	multi     *multi // what MULTI has begun; nil: nothing
	watch     Watch  // of WATCH; nil: none
	watchHeld int64  // bytes accounted for with the server, for watch
	executing bool   // within EXEC: nothing waits

	authed    bool
	closing   bool
	mute      bool  // CLIENT REPLY OFF
	skip      int64 // the command that CLIENT REPLY SKIP named
	seq       int64 // the command in hand, from 1
	failures  int   // of AUTH
	commands  int64
	partialAt time.Time // when the command at r was begun; zero: not at all
	deadline  bool      // a read deadline is set
	writeBy   time.Time // the write deadline that is set; guarded by sub.writing where there is one

	// Shared with other connections, for CLIENT LIST and CLIENT KILL.
	lastActive atomic.Int64 // unix ns
	lastCmd    atomic.Pointer[command]
	protocol   atomic.Int32
	queueLen   atomic.Int32 // commands queued by MULTI; -1: no MULTI
	watchLen   atomic.Int32
	sub        atomic.Pointer[subscriber] // nil until the first subscription
	killed     atomic.Bool
	bufBytes   atomic.Int64
	mu         sync.Mutex // guards name, libName, libVersion
	name       string
	libName    string
	libVersion string
}

// silent reports whether the command in hand has no reply, by CLIENT REPLY.
func (c *conn) silent() bool { return c.mute || c.skip == c.seq }

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		srv: s, nc: nc, id: s.nextID.Add(1), created: time.Now(),
		addr: nc.RemoteAddr().String(), laddr: nc.LocalAddr().String(),
		in: make([]byte, baseBuffer), authed: !s.needsPassword(), relieveAt: flushBytes,
	}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
	c.protocol.Store(2)
	c.lastActive.Store(c.created.UnixNano())
	c.queueLen.Store(-1)
	c.out.srv = s
	c.out.value = func(value []byte) error {
		if len(value) > flushBytes && !c.holdReplies(len(c.out.buf)+len(value)) {
			return errNoRoom
		}
		c.out.bulk(value)
		return nil
	}
	c.out.relieve = func() error {
		if len(c.out.buf) < c.relieveAt || c.silent() || c.relieve() {
			return nil
		}
		return errCutShort
	}
	return c
}

// wake makes a read that waits return, so that the connection notices that the server drains.
func (c *conn) wake() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) }

// kill closes the connection from another goroutine.
func (c *conn) kill() {
	c.killed.Store(true)
	_ = c.nc.Close()
}

func (c *conn) serve() {
	defer func() {
		_ = c.nc.Close()
		c.closeSubscriber()
		c.dropTransaction()
		c.release()
		c.srv.forget(c)
	}()
	if !c.handshake() {
		return
	}
	for {
		if !c.burst() || c.srv.draining.Load() {
			return
		}
		if err := c.fill(); err != nil {
			c.refuse(err)
			return
		}
	}
}

// handshake completes TLS, where there is any, within the time that a half-sent command has.
func (c *conn) handshake() bool {
	t, ok := c.nc.(interface{ HandshakeContext(context.Context) error })
	if !ok {
		return true
	}
	ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.opts.PartialTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		c.srv.log.Debug("TLS handshake", "client", c.addr, "error", err)
		return false
	}
	return true
}

// burst executes the commands that have arrived, commits what they wrote and sends the replies. It reports whether
// the connection goes on.
func (c *conn) burst() bool {
	for {
		argv, err := c.next()
		if err != nil {
			c.commitRun()
			c.srv.stats.protocolErrors.Add(1)
			c.out.failure(err)
			c.closing = true
		}
		if argv != nil {
			c.dispatch(argv)
		}
		if c.closing {
			break
		}
		if len(c.out.buf) >= c.relieveAt && !c.relieve() {
			return false
		}
		if argv == nil && !c.more() {
			break
		}
	}
	c.commitRun()
	if c.argsHeld != 0 { // of commands that were no writes
		c.free(c.argsHeld)
		c.argsHeld = 0
	}
	if cap(c.argv) > manyArgs {
		c.argv = nil
	}
	c.account()
	return c.flush() == nil && !c.closing
}

// next returns the arguments of the next complete command, or nil. They are valid until the buffer is read into
// again, and longer while a run holds them.
func (c *conn) next() ([][]byte, error) {
	for c.r < c.w {
		lim := c.srv.limits
		lim.authed = c.authed
		p := c.in[c.r:c.w]
		n, need, err := c.scan.scan(p, lim)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			c.need = need
			return nil, nil
		}
		c.r += n
		c.partialAt = time.Time{}
		if p[0] != '*' {
			args, ok := splitInline(p[:n], c.argv[:0])
			if !ok {
				return nil, protocolError("unbalanced quotes in request")
			}
			if len(args) == 0 {
				continue
			}
			return args, nil
		}
		if c.scan.total > manyArgs {
			// A short argument takes more memory than bytes of input.
			more := int64(c.scan.total) * argBytes
			if err := c.hold(more); err != nil {
				return nil, err
			}
			c.argsHeld += more
		}
		if c.scan.total == 0 {
			continue // *0 and *-1 have no reply
		}
		complete, args, _, _, err := redcon.ReadNextCommand(p[:n], c.argv[:0])
		if err != nil {
			return nil, err
		}
		if !complete {
			return nil, protocolError("incomplete command") // the scanner and the parser disagree
		}
		c.argv = args
		return args, nil
	}
	c.need = 1
	return nil, nil
}

// more reads what the kernel has without waiting, if the last read filled the buffer, so that a long pipeline
// becomes one commit.
func (c *conn) more() bool {
	if !c.lastFull || c.raw == nil || c.run.full() {
		return false
	}
	if c.room() != nil {
		return false
	}
	n := tryRead(c.raw, c.in[c.w:])
	c.took(n)
	return n > 0
}

func (c *conn) took(n int) {
	c.w += n
	c.lastFull = n > 0 && c.w == len(c.in)
	c.srv.stats.inBytes.Add(int64(n))
}

// fill waits for input.
func (c *conn) fill() error {
	if err := c.room(); err != nil {
		return err
	}
	if err := c.setReadDeadline(); err != nil {
		return err
	}
	n, err := c.nc.Read(c.in[c.w:])
	if n > 0 {
		c.took(n)
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (c *conn) setReadDeadline() error {
	var at time.Time
	idle := time.Duration(c.srv.idleTimeout.Load())
	switch {
	case c.r < c.w:
		now := time.Now()
		if c.partialAt.IsZero() {
			c.partialAt = now
		}
		at = c.partialAt.Add(c.srv.opts.PartialTimeout + time.Duration(c.w-c.r)*time.Second/partialRate)
	case !c.authed:
		at = c.created.Add(c.srv.opts.AuthTimeout)
	case idle > 0 && !c.subscribed():
		at = time.Now().Add(idle)
	}
	if at.IsZero() && !c.deadline {
		return nil
	}
	c.deadline = !at.IsZero()
	if err := c.nc.SetReadDeadline(at); err != nil {
		return err
	}
	if c.srv.draining.Load() {
		// Shutdown may have set its own deadline before ours.
		return ErrServerClosed
	}
	return nil
}

// refuse ends a connection whose input stopped, with a word to the client where Redis has one.
func (c *conn) refuse(err error) {
	switch {
	case errors.Is(err, errNoRoom):
		c.out.error(errNoClientSpace)
		_ = c.flush() // the connection ends anyway
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.srv.draining.Load():
		c.srv.stats.timeouts.Add(1)
		c.srv.log.Debug("client timed out", "client", c.addr, "pending_bytes", c.w-c.r)
	}
}

var errNoRoom = errors.New("resp: client buffers are full")

// room makes space behind in[w]. While a run holds arguments in the buffer it is replaced, not moved.
func (c *conn) room() error {
	aliased := c.run.pending()
	rest := c.w - c.r
	if rest == 0 && !aliased {
		c.r, c.w = 0, 0
		if len(c.in) > burstBuffer || (len(c.in) > baseBuffer && !c.lastFull) {
			return c.resize(baseBuffer)
		}
		if c.lastFull && len(c.in) < burstBuffer {
			return c.resize(2 * len(c.in))
		}
		return nil
	}
	if c.w < len(c.in) {
		return nil
	}
	if !aliased && rest <= len(c.in)/2 {
		copy(c.in, c.in[c.r:c.w])
		c.r, c.w = 0, rest
		return nil
	}
	size := min(2*len(c.in), burstBuffer)
	if c.need > size-rest {
		// Grow as the bytes come, to what the command is known to take at most.
		size = max(size, min(2*len(c.in), c.need))
	}
	return c.resize(max(size, 2*rest, baseBuffer))
}

// resize replaces the input buffer and takes the unparsed bytes along.
func (c *conn) resize(size int) error {
	if err := c.hold(int64(size - len(c.in))); err != nil {
		return err
	}
	fresh := make([]byte, size)
	c.w = copy(fresh, c.in[c.r:c.w])
	c.r = 0
	c.in = fresh
	return nil
}

func (c *conn) hold(n int64) error {
	if !c.srv.reserve(n) {
		return errNoRoom
	}
	c.held += n
	c.bufBytes.Store(c.held)
	return nil
}

// free gives back n bytes of what hold took.
func (c *conn) free(n int64) {
	c.srv.reserve(-n)
	c.held -= n
	c.bufBytes.Store(c.held)
}

func (c *conn) release() {
	c.srv.reserve(-c.held)
	c.held = 0
}

// account adds the burst's counts to the server's.
func (c *conn) account() {
	if c.commands == 0 {
		return
	}
	c.srv.stats.commands.Add(c.commands)
	c.commands = 0
	if c.out.hits != 0 {
		c.srv.stats.hits.Add(c.out.hits)
		c.out.hits = 0
	}
	if c.out.misses != 0 {
		c.srv.stats.misses.Add(c.out.misses)
		c.out.misses = 0
	}
	c.lastActive.Store(time.Now().UnixNano())
}

// relieve gets rid of replies in the midst of a burst: as many as the kernel takes at once, or all of them when there
// are too many. A client that writes a long pipeline before it reads is thus not waited for too early.
func (c *conn) relieve() bool {
	if c.raw == nil || c.sub.Load() != nil || len(c.out.buf)-c.sent >= holdBytes || !c.holdReplies(cap(c.out.buf)) {
		return c.flush() == nil
	}
	n := tryWrite(c.raw, c.out.buf[c.sent:])
	c.srv.stats.outBytes.Add(int64(n))
	c.sent += n
	if c.sent == len(c.out.buf) {
		c.out.buf, c.sent = c.out.buf[:0], 0
	}
	c.relieveAt = len(c.out.buf) + flushBytes
	return true
}

// holdReplies accounts for a reply buffer of n bytes; false when the connections hold too much together.
func (c *conn) holdReplies(n int) bool {
	more := int64(n) - c.outHeld
	if more <= 0 {
		return true
	}
	if c.hold(more) != nil {
		return false
	}
	c.outHeld += more
	return true
}

// flush sends the replies and waits until they are out.
func (c *conn) flush() error {
	if s := c.sub.Load(); s != nil {
		s.lock()
		defer s.unlock()
	}
	if err := c.transmit(c.out.buf[c.sent:]); err != nil {
		return err
	}
	if cap(c.out.buf) > flushBytes {
		c.out.buf = nil
	}
	c.out.buf, c.sent, c.relieveAt = c.out.buf[:0], 0, flushBytes
	c.free(c.outHeld)
	c.outHeld = 0
	return nil
}

// transmit sends p and waits until it is out.
func (c *conn) transmit(p []byte) error {
	for len(p) > 0 {
		now := time.Now()
		if c.writeBy.Sub(now) < c.srv.opts.WriteTimeout/2 {
			c.writeBy = now.Add(c.srv.opts.WriteTimeout)
			if err := c.nc.SetWriteDeadline(c.writeBy); err != nil {
				return err
			}
		}
		n, err := c.nc.Write(p[:min(len(p), writeChunk)])
		c.srv.stats.outBytes.Add(int64(n))
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.srv.stats.timeouts.Add(1)
			}
			return err
		}
		p = p[n:]
	}
	return nil
}
