package ship

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	readBuffer = 16 << 10
	// deadlineSlack is how long a deadline that was set may be used again: setting one costs more than a small read.
	deadlineSlack = 50 * time.Millisecond
	// stallFactor times the timeout is how long a peer that still sends heartbeats may take nothing of what it is
	// sent: its disk may stall. Whoever is silent is dropped after the timeout itself.
	stallFactor = 6
)

// conn is a connection whose messages are numbered and checked. One goroutine at a time may use the receiving
// half, one the sending half; close may be called by any.
type conn struct {
	nc      net.Conn
	timeout time.Duration // of silence, when reading; zero: the deadline of the handshake stands
	stopped atomic.Bool   // interrupted: nothing waits any more

	// receiving half
	br           *bufio.Reader
	rkey, rseq   uint64
	rbuf         []byte // header and body of one message other than Data
	readDeadline time.Time

	// sending half
	wkey, wseq    uint64
	writeDeadline time.Time
	raw           syscall.RawConn // nil unless plain TCP
	tryBuf        []byte          // argument and results of tryFn, which is made once so that a try does not allocate
	tryMore       bool
	tryN          int
	tryErr        error
	tryFn         func(fd uintptr) bool
}

// newConn wraps nc, still without buffers that an unknown peer could make us hold. Until start is called the
// caller's deadline on nc stands.
func newConn(nc net.Conn, timeout time.Duration) *conn {
	c := &conn{nc: nc}
	switch t := nc.(type) {
	case *net.TCPConn:
		tuneTCP(t, timeout)
		if raw, err := t.SyscallConn(); err == nil {
			c.raw = raw
			c.tryFn = func(fd uintptr) bool {
				c.tryN, c.tryErr = tryWrite(fd, c.tryBuf, c.tryMore)
				return true // whatever happened: never wait
			}
		}
	case *tls.Conn:
		if inner, ok := t.NetConn().(*net.TCPConn); ok {
			tuneTCP(inner, timeout)
		}
	}
	return c
}

// tuneTCP makes the kernel send at once, and notice a peer that has vanished.
func tuneTCP(t *net.TCPConn, timeout time.Duration) {
	// Best effort: the heartbeats find out as well.
	_ = t.SetNoDelay(true)
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: timeout, Interval: max(time.Second, timeout/5), Count: 3,
	})
	setUserTimeout(t, stallFactor*timeout)
}

// handshake exchanges Hellos and proofs. It reads two messages of fixed size and allocates nothing on behalf of
// the peer. On success both directions have their keys. The caller has set a deadline on nc.
func (c *conn) handshake(side Side, secret []byte, random io.Reader) error {
	mine := Hello{
		MinProtocol: MinProtocol, MaxProtocol: MaxProtocol, MinFormat: MinFormat, MaxFormat: MaxFormat,
		Side: side, Kind: KindStream,
	}
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, mine.Nonce[:]); err != nil {
		return fmt.Errorf("nonce: %w", err)
	}
	var t transcript
	var buf [HelloSize]byte
	if side == Dialer {
		copy(t.hellos[:HelloSize], AppendHello(buf[:0], mine))
		if _, err := c.nc.Write(t.hellos[:HelloSize]); err != nil {
			return ioError("send hello", err)
		}
	}
	if _, err := io.ReadFull(c.nc, buf[:]); err != nil {
		if _, overTLS := c.nc.(*tls.Conn); side == Dialer && !overTLS && hungUp(err) {
			return fmt.Errorf("%w: the peer hung up before it said who it is; it may want TLS, and this node speaks none to it", ioError("read hello", err))
		}
		return ioError("read hello", err)
	}
	theirs, err := DecodeHello(buf[:])
	if err != nil {
		if buf[0] == tlsHandshake && buf[1] == tlsMajor {
			return refuse(CodeProtocol, "not a shipping peer: it speaks TLS, and this node does not")
		}
		return err
	}
	if side == Dialer {
		copy(t.hellos[HelloSize:], buf[:])
	} else {
		copy(t.hellos[:], buf[:])
		copy(t.hellos[HelloSize:], AppendHello(buf[:0], mine))
		// The answer goes out whatever the versions are: the peer sees our ranges and can name them.
		if _, err := c.nc.Write(t.hellos[HelloSize:]); err != nil {
			return ioError("send hello", err)
		}
	}
	if theirs.Side == side {
		return refuse(CodeProtocol, "hello of the wrong side")
	}
	if _, err := negotiate(mine, theirs); err != nil {
		return err
	}
	if theirs.Kind != KindStream {
		return refuse(CodeUnsupported, "connection kind %d", theirs.Kind)
	}
	if t.binding, err = channelBinding(c.nc); err != nil {
		return fmt.Errorf("channel binding: %w", err)
	}
	if err := c.exchangeProofs(side, &t, secret); err != nil {
		return err
	}
	dialer, acceptor := t.keys(secret)
	c.wkey, c.rkey = dialer, acceptor
	if side == Acceptor {
		c.wkey, c.rkey = acceptor, dialer
	}
	c.br = bufio.NewReaderSize(timedReader{c}, readBuffer)
	c.rbuf = make([]byte, 512)
	return nil
}

// present takes a connection that was just dialled through the handshake, whose deadline stands on return.
func (c *conn) present(o *FollowerOptions) error {
	if err := c.nc.SetDeadline(time.Now().Add(o.HandshakeTimeout)); err != nil {
		return ioError("handshake", err)
	}
	err := c.handshake(Dialer, o.Secret, o.Random)
	if errors.Is(err, ErrTimeout) {
		return fmt.Errorf("%w: is that the address at which it ships?", err)
	}
	return err
}

// exchange sends the first message after the handshake, and returns the answer.
func (c *conn) exchange(m Message) (Message, error) {
	if _, err := c.nc.Write(c.appendMessage(nil, m)); err != nil {
		return nil, ioError("send the first message", err)
	}
	_, answer, err := c.next()
	return answer, err
}

// exchangeProofs lets the dialer go first, so that an acceptor hands nothing made with the secret to strangers.
func (c *conn) exchangeProofs(side Side, t *transcript, secret []byte) error {
	var buf [ProofSize]byte
	if side == Dialer {
		if _, err := c.nc.Write(AppendProof(buf[:0], Proof{MAC: t.prove(secret, labelDialer)})); err != nil {
			return ioError("send proof", err)
		}
	}
	if _, err := io.ReadFull(c.nc, buf[:]); err != nil {
		return ioError("read proof", err)
	}
	p, err := DecodeProof(buf[:])
	if err != nil {
		return err
	}
	if side == Dialer {
		switch {
		case p.Code != 0:
			e := refuse(p.Code, "")
			e.Remote = true
			return e
		case !t.verify(secret, labelAcceptor, p.MAC):
			return refuse(CodeAuth, "the upstream does not know the secret")
		}
		return nil
	}
	if !t.verify(secret, labelDialer, p.MAC) {
		_, _ = c.nc.Write(AppendProof(buf[:0], Proof{Code: CodeAuth})) // the error below is the one to report
		return refuse(CodeAuth, "the follower does not know the secret")
	}
	if _, err := c.nc.Write(AppendProof(buf[:0], Proof{MAC: t.prove(secret, labelAcceptor)})); err != nil {
		return ioError("send proof", err)
	}
	return nil
}

// timedReader reads from the connection and gives each read the peer's time to speak.
type timedReader struct{ c *conn }

func (r timedReader) Read(p []byte) (int, error) {
	c := r.c
	if now := time.Now(); c.timeout > 0 && c.readDeadline.Sub(now) < c.timeout-deadlineSlack {
		c.readDeadline = now.Add(c.timeout)
		if err := c.nc.SetReadDeadline(c.readDeadline); err != nil {
			return 0, err
		}
		if c.stopped.Load() { // between the two, perhaps: its deadline was overwritten
			return 0, net.ErrClosed
		}
	}
	return c.nc.Read(p)
}

// start ends the handshake's deadline: from here on each read and write has its own.
func (c *conn) start(timeout time.Duration) error {
	c.timeout = timeout
	c.readDeadline, c.writeDeadline = time.Time{}, time.Time{}
	return c.nc.SetDeadline(time.Time{})
}

// next reads the next message. For Data it returns the header alone and leaves the body to [conn.readData].
func (c *conn) next() (Header, Message, error) {
	head := c.rbuf[:HeaderSize]
	if _, err := io.ReadFull(c.br, head); err != nil {
		return Header{}, nil, ioError("read", err)
	}
	h, err := DecodeHeader(head)
	if err != nil {
		return h, nil, err
	}
	seq := c.rseq
	c.rseq++
	if h.Type == TypeData {
		return h, nil, CheckMessage(head, c.rkey, seq)
	}
	size := HeaderSize + int(h.Length)
	if size > len(c.rbuf) {
		// Only Join, Welcome and Refusal are longer than the buffer; their lengths were judged.
		c.rbuf = append(make([]byte, 0, size), head...)[:size]
	}
	p := c.rbuf[:size]
	if _, err := io.ReadFull(c.br, p[HeaderSize:]); err != nil {
		return h, nil, ioError("read", err)
	}
	if err := CheckMessage(p, c.rkey, seq); err != nil {
		return h, nil, err
	}
	m, err := DecodeMessage(h, p[HeaderSize:])
	return h, m, err
}

// dataWaits reports whether a Data message with a flag has come whole already, with nothing but marks before it.
func (c *conn) dataWaits(flag uint8) bool {
	p, _ := c.br.Peek(c.br.Buffered()) // what is buffered can be had
	for len(p) >= HeaderSize {
		h, err := DecodeHeader(p)
		size := HeaderSize + int(h.Length)
		switch {
		case err != nil || len(p) < size:
			return false
		case h.Type == TypeData:
			return h.Flags&flag != 0
		case h.Type != TypeMark:
			return false
		}
		p = p[size:]
	}
	return false
}

// readData reads up to len(p) bytes of a Data message's body.
func (c *conn) readData(p []byte) (int, error) {
	n, err := c.br.Read(p)
	if n > 0 {
		return n, nil
	}
	return 0, ioError("read", err)
}

// appendMessage appends the next message to be sent to dst.
func (c *conn) appendMessage(dst []byte, m Message) []byte {
	dst = AppendMessage(dst, m, c.wkey, c.wseq)
	c.wseq++
	return dst
}

// appendData appends the header of the next message, a Data message, to dst.
func (c *conn) appendData(dst []byte, h Header) []byte {
	dst = AppendHeader(dst, h, c.wkey, c.wseq)
	c.wseq++
	return dst
}

// extendWrite gives the next blocking write its time.
func (c *conn) extendWrite(d time.Duration) error {
	if now := time.Now(); c.writeDeadline.Sub(now) < d-deadlineSlack {
		c.writeDeadline = now.Add(d)
		if err := c.nc.SetWriteDeadline(c.writeDeadline); err != nil {
			return err
		}
		if c.stopped.Load() {
			return net.ErrClosed
		}
	}
	return nil
}

// interrupt makes whoever reads or writes return at once. The connection stays open for a goodbye.
func (c *conn) interrupt() {
	c.stopped.Store(true)
	_ = c.nc.SetDeadline(time.Unix(1, 0)) // on an error it is closed already
}

// write sends p, waiting for the peer to take it for at most d. It returns what it has not sent.
func (c *conn) write(p []byte, d time.Duration) (rest []byte, err error) {
	if err := c.extendWrite(d); err != nil {
		return p, ioError("send", err)
	}
	n, err := c.nc.Write(p)
	return p[n:], ioError("send", err)
}

// try sends what the kernel takes of p without waiting, and returns how much that was. It takes nothing where
// there is no such call. more: the next bytes follow at once, so p need not travel alone.
func (c *conn) try(p []byte, more bool) (int, error) {
	if c.raw == nil {
		return 0, nil
	}
	c.tryBuf, c.tryMore, c.tryN, c.tryErr = p, more, 0, nil
	if err := c.raw.Write(c.tryFn); err != nil {
		return 0, ioError("send", err)
	}
	c.tryBuf = nil
	return c.tryN, ioError("send", c.tryErr)
}

// goodbye tells the peer why the connection ends, behind what is left of an earlier message, and waits a little until
// it has hung up: closing with unread bytes would reset the connection, and the kernel at the other end would drop the
// message unread.
func (c *conn) goodbye(rest []byte, e *Error, d time.Duration) {
	end := time.Now().Add(d)
	if c.nc.SetDeadline(end) != nil {
		return
	}
	if _, err := c.nc.Write(c.appendMessage(rest[:len(rest):len(rest)], refusalOf(e))); err != nil {
		return
	}
	if t, ok := c.nc.(interface{ CloseWrite() error }); ok {
		if t.CloseWrite() != nil {
			return
		}
	}
	var sink [512]byte
	for range 4096 {
		if _, err := c.nc.Read(sink[:]); err != nil {
			return
		}
	}
}

// A connection over TLS begins with these (RFC 8446, 5.1).
const (
	tlsHandshake = 22
	tlsMajor     = 3
)

// hungUp reports whether err is what is left of a peer that has closed the connection, in whatever state.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// ioError names an error of the connection; a deadline becomes [ErrTimeout].
func ioError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %s", ErrTimeout, op)
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = io.EOF
	}
	return fmt.Errorf("ship: %s: %w", op, err)
}
