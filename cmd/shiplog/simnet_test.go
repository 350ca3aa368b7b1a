package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// This file is a network in memory for the simulation: hosts, links with a delay, a rate and losses in each direction, which
// can be cut. It does to a connection what TCP under it does: bytes arrive in order or not at all, what is lost comes later, and what is sent into a
// cut waits until that is mended or until somebody's timeout ends the connection.

// simNet is the network. Its random numbers are its own.
type simNet struct {
	mu        sync.Mutex
	rng       *rand.Rand
	links     map[[2]string]*simLink // from, to
	listeners map[string]*simListener
	pipes     map[*simPipe]struct{} // that may have something on its way
	counts    map[string]int
}

// simLink is one direction between two hosts.
type simLink struct {
	delay, jitter time.Duration
	loss          float64 // of pieces; each is sent again after 200 ms, 400 ms and so on
	rate          float64 // bytes a second; 0: no bound
	garble        float64 // of pieces: a byte of them is changed
	cut           bool
}

func newSimNet(rng *rand.Rand) *simNet {
	return &simNet{
		rng: rng, links: map[[2]string]*simLink{}, listeners: map[string]*simListener{}, pipes: map[*simPipe]struct{}{}, counts: map[string]int{},
	}
}

const (
	simDelay       = 200 * time.Microsecond
	simRetransmit  = 200 * time.Millisecond
	simMaxBackoff  = 3 * time.Second
	simMaxInFlight = 8 << 20 // bytes of one direction before a writer waits
	simPiece       = 16 << 10
)

// link returns the link from one host to another. mu is held.
func (n *simNet) link(from, to string) *simLink {
	l := n.links[[2]string{from, to}]
	if l == nil {
		l = &simLink{delay: simDelay, jitter: simDelay}
		n.links[[2]string{from, to}] = l
	}
	return l
}

// alter changes the link from one host to another. What waited at a cut that is mended goes on its way.
func (n *simNet) alter(from, to string, fn func(l *simLink)) {
	n.mu.Lock()
	l := n.link(from, to)
	was := l.cut
	fn(l)
	var held []*simPipe
	if was && !l.cut {
		for p := range n.pipes {
			if p.from == from && p.to == to {
				held = append(held, p)
			}
		}
	}
	n.mu.Unlock()
	for _, p := range held {
		p.release()
	}
}

// heal makes all links what they were at the beginning.
func (n *simNet) heal() {
	n.mu.Lock()
	keys := make([][2]string, 0, len(n.links))
	for k := range n.links {
		keys = append(keys, k)
	}
	n.mu.Unlock()
	for _, k := range keys {
		n.alter(k[0], k[1], func(l *simLink) { *l = simLink{delay: simDelay, jitter: simDelay} })
	}
}

// arrival says when a piece that is sent now arrives; never: the link is cut.
func (n *simNet) arrival(from, to string, size int) (after time.Duration, cut, garbled bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	after = l.delay
	if l.jitter > 0 {
		after += time.Duration(n.rng.Int64N(int64(l.jitter)))
	}
	for again := simRetransmit; n.rng.Float64() < l.loss; again = min(2*again, simMaxBackoff) {
		after += again
		n.counts["pieces lost"]++
	}
	if l.rate > 0 {
		after += time.Duration(float64(size) / l.rate * float64(time.Second))
	}
	garbled = n.rng.Float64() < l.garble
	return after, l.cut, garbled
}

// dial connects from a host to an address.
func (n *simNet) dial(ctx context.Context, from, addr string) (net.Conn, error) {
	to, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	for again := time.Second; ; again *= 2 {
		there, cut, _ := n.arrival(from, to, 64)
		back, cutBack, _ := n.arrival(to, from, 64)
		wait := there + back
		if cut || cutBack {
			wait = again // another attempt
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: "sim", Err: ctx.Err()}
		}
		if cut || cutBack {
			continue
		}
		n.mu.Lock()
		ln := n.listeners[addr]
		n.mu.Unlock()
		if ln == nil {
			return nil, &net.OpError{Op: "dial", Net: "sim", Err: syscall.ECONNREFUSED}
		}
		return ln.connect(from)
	}
}

// listen makes a listener.
func (n *simNet) listen(addr string) *simListener {
	host, _, _ := net.SplitHostPort(addr)
	ln := &simListener{net: n, addr: simAddr(addr), host: host, conns: make(chan net.Conn, 64), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = ln
	return ln
}

// drop ends all connections of a host. told: the other sides hear of it.
func (n *simNet) drop(host string, told bool) {
	n.mu.Lock()
	var pipes []*simPipe
	for p := range n.pipes {
		if p.from == host || p.to == host {
			pipes = append(pipes, p)
		}
	}
	n.mu.Unlock()
	for _, p := range pipes {
		p.fail(p.to == host, p.from == host, told)
	}
}

// reset ends the connections between two hosts, at both ends.
func (n *simNet) reset(a, b string) {
	n.mu.Lock()
	var pipes []*simPipe
	for p := range n.pipes {
		if p.from == a && p.to == b || p.from == b && p.to == a {
			pipes = append(pipes, p)
		}
	}
	n.mu.Unlock()
	for _, p := range pipes {
		p.fail(true, true, false)
	}
}

type simAddr string

func (simAddr) Network() string  { return "sim" }
func (a simAddr) String() string { return string(a) }

type simListener struct {
	net   *simNet
	addr  simAddr
	host  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		if l.net.listeners[string(l.addr)] == l {
			delete(l.net.listeners, string(l.addr))
		}
		l.net.mu.Unlock()
		close(l.done)
		for { // who was not accepted is hung up on
			select {
			case c := <-l.conns:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *simListener) Addr() net.Addr { return l.addr }

func (l *simListener) connect(from string) (net.Conn, error) {
	up, down := l.net.pipe(from, l.host), l.net.pipe(l.host, from)
	near := &simConn{in: down, out: up, local: simAddr(from + ":0"), remote: l.addr}
	far := &simConn{in: up, out: down, local: l.addr, remote: simAddr(from + ":0")}
	select {
	case <-l.done:
	case l.conns <- far:
		select {
		case <-l.done: // it may not be accepted any more
			_ = far.Close()
		default:
		}
		return near, nil
	}
	_ = near.Close()
	_ = far.Close()
	return nil, &net.OpError{Op: "dial", Net: "sim", Err: syscall.ECONNREFUSED}
}

// simPipe is one direction of a connection.
type simPipe struct {
	net      *simNet
	from, to string

	mu       sync.Mutex
	moved    *sync.Cond
	queue    []simPacket
	size     int       // bytes in queue
	last     time.Time // when the newest of queue arrives
	gone     bool      // the reader has closed, or its host is gone
	closed   bool      // the writer has closed, or its host is gone
	readErr  error     // what the reader gets at once
	writeErr error     // what the writer gets at once
	read     simDeadline
	write    simDeadline
}

// simPacket is a piece on its way; without bytes it is the end, or err.
type simPacket struct {
	data []byte
	err  error
	at   time.Time // zero: held by a cut
	end  bool
}

func (n *simNet) pipe(from, to string) *simPipe {
	p := &simPipe{net: n, from: from, to: to}
	p.moved = sync.NewCond(&p.mu)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pipes[p] = struct{}{}
	return p
}

func (p *simPipe) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved.Broadcast()
}

// send puts a piece on its way. mu is held.
func (p *simPipe) send(k simPacket) {
	after, cut, garbled := p.net.arrival(p.from, p.to, len(k.data))
	if garbled && len(k.data) > 0 {
		p.net.mu.Lock()
		i, bit := p.net.rng.IntN(len(k.data)), p.net.rng.IntN(8)
		p.net.counts["bytes changed"]++
		p.net.mu.Unlock()
		k.data[i] ^= 1 << bit
	}
	p.size += len(k.data)
	if held := len(p.queue) > 0 && p.queue[len(p.queue)-1].at.IsZero(); !cut && !held {
		p.schedule(&k, after)
	}
	p.queue = append(p.queue, k)
}

// schedule says when a piece arrives: not before the one in front of it. mu is held.
func (p *simPipe) schedule(k *simPacket, after time.Duration) {
	k.at = time.Now().Add(after)
	if k.at.Before(p.last) {
		k.at = p.last
	}
	p.last = k.at
	time.AfterFunc(time.Until(k.at), p.wake)
}

// release sends what a cut held.
func (p *simPipe) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.queue {
		if k := &p.queue[i]; k.at.IsZero() {
			after, cut, _ := p.net.arrival(p.from, p.to, len(k.data))
			if cut {
				return
			}
			p.schedule(k, after+simRetransmit)
		}
	}
}

func (p *simPipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.readErr != nil:
			return 0, p.readErr
		case p.read.passed():
			return 0, os.ErrDeadlineExceeded
		}
		if len(p.queue) > 0 && !p.queue[0].at.IsZero() && !time.Now().Before(p.queue[0].at) {
			k := &p.queue[0]
			if k.err != nil || k.end {
				if p.readErr = k.err; k.end {
					p.readErr = io.EOF
				}
				p.forget()
				return 0, p.readErr
			}
			n := copy(b, k.data)
			if k.data = k.data[n:]; len(k.data) == 0 {
				p.queue = slices.Delete(p.queue, 0, 1)
			}
			p.size -= n
			p.moved.Broadcast()
			return n, nil
		}
		p.moved.Wait()
	}
}

func (p *simPipe) Write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < len(b) {
		switch {
		case p.writeErr != nil:
			return n, p.writeErr
		case p.closed:
			return n, net.ErrClosed
		case p.write.passed():
			return n, os.ErrDeadlineExceeded
		case p.size >= simMaxInFlight:
			p.moved.Wait()
			continue
		}
		part := b[n:min(len(b), n+simPiece)]
		if n += len(part); !p.gone {
			p.send(simPacket{data: slices.Clone(part)})
		}
	}
	return n, nil
}

// closeWrite is the writer's end: what is on its way still arrives.
func (p *simPipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.write.stop()
	if !p.gone {
		p.send(simPacket{end: true})
	}
	p.moved.Broadcast()
}

// closeRead is the reader's end: the writer goes on until it learns of it by its other direction.
func (p *simPipe) closeRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone, p.queue, p.size = true, nil, 0
	p.readErr = net.ErrClosed
	p.read.stop()
	p.moved.Broadcast()
	p.forget()
}

// forget: nothing is read any more.
func (p *simPipe) forget() {
	p.gone, p.queue, p.size = true, nil, 0
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	delete(p.net.pipes, p)
}

// fail breaks a direction because the host of its reader or of its writer has gone; told: the other one hears of it, as far as the link lets it.
func (p *simPipe) fail(reader, writer, told bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	broken := &net.OpError{Op: "sim", Net: "sim", Err: syscall.ECONNRESET}
	if writer {
		p.writeErr, p.closed = broken, true
		if !reader && told && !p.gone {
			p.send(simPacket{err: broken})
		}
	}
	if reader {
		p.readErr = broken
		p.forget()
		if told && !writer {
			p.writeErr = broken
		}
	}
	p.moved.Broadcast()
}

type simDeadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *simDeadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at, d.timer = time.Time{}, nil
}

func (d *simDeadline) set(t time.Time, wake func()) {
	d.stop()
	if d.at = t; !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), wake)
	}
}

func (d *simDeadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// simConn is one end of a connection.
type simConn struct {
	in, out       *simPipe
	local, remote simAddr
}

func (c *simConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *simConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *simConn) CloseWrite() error           { c.out.closeWrite(); return nil }
func (c *simConn) LocalAddr() net.Addr         { return c.local }
func (c *simConn) RemoteAddr() net.Addr        { return c.remote }

func (c *simConn) Close() error {
	c.out.closeWrite()
	c.in.closeRead()
	return nil
}

func (c *simConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.read.set(t, c.in.wake)
	c.in.moved.Broadcast()
	return nil
}

func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.write.set(t, c.out.wake)
	c.out.moved.Broadcast()
	return nil
}
