package ship_test

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// This file is a network in memory: buffered, with deadlines, that works in a synctest bubble, and whose
// directions can be made to lose, change, delay and cut bytes.

// stream is one direction of a connection.
type stream struct {
	mu     sync.Mutex
	moved  *sync.Cond
	buf    []byte
	limit  int // bytes that are buffered before a writer waits
	eof    bool
	broken bool // both ends get errors
	read   deadline
	write  deadline

	// mangle, when set, decides what of the bytes written arrives; ok false cuts the connection after them.
	mangle func(p []byte) (out []byte, ok bool)
	// most, when set, is how many bytes one Read returns.
	most int
	// stalled: nothing can be read, for now.
	stalled bool
	written int // bytes that writers handed over
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, wake func()) {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at, d.timer = t, nil
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), wake)
	}
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newStream() *stream {
	s := &stream{limit: 1 << 20}
	s.moved = sync.NewCond(&s.mu)
	return s
}

func (s *stream) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved.Broadcast()
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.broken:
			return 0, net.ErrClosed
		case s.read.passed():
			return 0, os.ErrDeadlineExceeded
		case len(s.buf) > 0 && !s.stalled:
			if s.most > 0 {
				p = p[:min(len(p), s.most)]
			}
			n := copy(p, s.buf)
			s.buf = append(s.buf[:0], s.buf[n:]...)
			s.moved.Broadcast()
			return n, nil
		case s.eof && !s.stalled:
			return 0, io.EOF
		}
		s.moved.Wait()
	}
}

func (s *stream) Write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n < len(p) {
		switch {
		case s.broken || s.eof:
			return n, errors.New("broken pipe")
		case s.write.passed():
			return n, os.ErrDeadlineExceeded
		case len(s.buf) >= s.limit:
			s.moved.Wait()
			continue
		}
		part := p[n:min(len(p), n+s.limit-len(s.buf))]
		n += len(part)
		s.written += len(part)
		out, ok := part, true
		if s.mangle != nil {
			out, ok = s.mangle(append([]byte(nil), part...))
		}
		s.buf = append(s.buf, out...)
		if !ok {
			s.eof = true
		}
		s.moved.Broadcast()
	}
	return n, nil
}

func (s *stream) end(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eof = true
	if broken {
		s.broken = true
		s.read.set(time.Time{}, nil)
		s.write.set(time.Time{}, nil)
	}
	s.moved.Broadcast()
}

// memConn is one end of a connection.
type memConn struct {
	in, out *stream
	once    sync.Once
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "mem" }

// memPipe returns the two ends of a connection.
func memPipe() (a, b *memConn) {
	x, y := newStream(), newStream()
	return &memConn{in: x, out: y}, &memConn{in: y, out: x}
}

func (c *memConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *memConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *memConn) CloseWrite() error           { c.out.end(false); return nil }
func (c *memConn) LocalAddr() net.Addr         { return memAddr{} }
func (c *memConn) RemoteAddr() net.Addr        { return memAddr{} }

// Close ends both directions: the peer reads what is on its way and then the end, as after FIN.
func (c *memConn) Close() error {
	c.once.Do(func() {
		c.out.end(false)
		c.in.end(true)
		c.out.mu.Lock()
		c.out.write.set(time.Time{}, nil)
		c.out.mu.Unlock()
	})
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.broken {
		return net.ErrClosed
	}
	c.in.read.set(t, c.in.wake)
	c.in.moved.Broadcast()
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.broken {
		return net.ErrClosed
	}
	c.out.write.set(t, c.out.wake)
	c.out.moved.Broadcast()
	return nil
}

// memListener hands connections to Accept.
type memListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn, 16), done: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr{} }

// dial connects; alter sees the two directions, towards the listener and back, before a byte has passed.
func (l *memListener) dial(alter func(up, down *stream)) (net.Conn, error) {
	a, b := memPipe()
	if alter != nil {
		alter(a.out, a.in)
	}
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	}
}
