package nettest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Network joins hosts, any of which reaches any other. Its methods may be called by several goroutines at once.
type Network struct {
	t    testing.TB
	wg   sync.WaitGroup
	over chan struct{} // closed at the end

	mu    sync.RWMutex // guards all below
	hosts []*Host      // by the last byte of their address, less 1
	links map[[2]*Host]*link
}

// Host is a network namespace. Its methods may be called by several goroutines at once.
type Host struct {
	Name string
	IP   string // 10.77.0.1 and up

	n   *Network
	ns  *os.File // the namespace
	tun *os.File // its device
}

// New makes a network without hosts, which ends with the test, or skips the test where that is not possible.
func New(t testing.TB) *Network {
	t.Helper()
	n := &Network{t: t, links: map[[2]*Host]*link{}, over: make(chan struct{})}
	probe, err := n.newHost("probe", 254)
	if err != nil {
		t.Skipf("network namespaces need root, and /dev/net/tun: %v", err)
	}
	_ = errors.Join(probe.tun.Close(), probe.ns.Close()) // nothing was sent
	t.Cleanup(n.close)
	return n
}

// close ends the forwarding. Processes may outlive it, unreached.
func (n *Network) close() {
	close(n.over)
	for _, h := range n.hosts {
		_ = h.tun.Close() // its reader ends
	}
	n.wg.Wait()
	for _, h := range n.hosts {
		_ = h.ns.Close() // with the last process in it the namespace goes
	}
}

// Host adds a host.
func (n *Network) Host(name string) *Host {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	h, err := n.newHost(name, byte(len(n.hosts)+1))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, o := range n.hosts {
		for _, pair := range [][2]*Host{{h, o}, {o, h}} {
			l := &link{n: n, to: pair[1], queue: make(chan packet, 16<<10)}
			n.links[pair] = l
			n.wg.Go(l.run) // ended by close
		}
	}
	n.hosts = append(n.hosts, h)
	n.wg.Go(h.forward) // ended by close
	return h
}

// newHost makes a namespace with a device in it that is up, with the address 10.77.0.last.
func (n *Network) newHost(name string, last byte) (*Host, error) {
	h := &Host{Name: name, IP: fmt.Sprintf("10.77.0.%d", last), n: n}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		if h.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if h.tun, err = openTUN(); err != nil {
			return errors.Join(err, h.ns.Close())
		}
		if err := configure(last); err != nil {
			return errors.Join(err, h.tun.Close(), h.ns.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// onThread runs fn on a thread that may change its namespace, and puts it back.
func onThread(fn func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = own.Close() }() // only read from
	err = fn()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

const device = "tun0"

// openTUN makes the device of the calling thread's namespace.
func openTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a TUN device: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), device), nil
}

// turnOn are the flags of a device that is up.
func turnOn(r *unix.Ifreq) error {
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return nil
}

// turnOff are those of one that is down.
func turnOff(r *unix.Ifreq) error {
	r.SetUint16(0)
	return nil
}

// deviceStep is one request about a device.
type deviceStep struct {
	device string
	req    uint
	set    func(r *unix.Ifreq) error
}

// configure gives the devices of the calling thread's namespace addresses and turns them on.
func configure(last byte) error {
	return ask(
		deviceStep{device, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(MTU); return nil }},
		deviceStep{device, unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(16 << 10); return nil }},
		deviceStep{device, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{10, 77, 0, last}) }},
		deviceStep{device, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }},
		deviceStep{device, unix.SIOCSIFFLAGS, turnOn},
		deviceStep{"lo", unix.SIOCSIFFLAGS, turnOn},
	)
}

// ask has the kernel take steps in the calling thread's namespace.
func ask(steps ...deviceStep) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }() // nothing was sent
	for _, step := range steps {
		r, err := unix.NewIfreq(step.device)
		if err == nil {
			err = step.set(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(s, step.req, r)
		}
		if err != nil {
			return fmt.Errorf("set up %s: %w", step.device, err)
		}
	}
	return nil
}

// Plug turns the host's device on, or off: then whatever is sent on it fails at once, and nothing is heard.
func (h *Host) Plug(in bool) error {
	set := turnOff
	if in {
		set = turnOn
	}
	return h.In(func() error { return ask(deviceStep{device, unix.SIOCSIFFLAGS, set}) })
}

// In runs fn with its thread in the host's namespace: sockets that fn makes itself, and processes that it starts, are the host's.
func (h *Host) In(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter host %s: %w", h.Name, err)
		}
		return fn()
	})
}

// Start starts a command on the host.
func (h *Host) Start(cmd *exec.Cmd) error { return h.In(cmd.Start) }

// DialContext connects from the host; addr has an IP address. What the host itself serves is reached also when all its links are cut.
func (h *Host) DialContext(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = h.In(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens on the host; addr has an IP address.
func (h *Host) Listen(network, addr string) (ln net.Listener, err error) {
	err = h.In(func() error {
		ln, err = net.Listen(network, addr)
		return err
	})
	return ln, err
}

// Sysctl writes a setting of the host's network, a path below /proc/sys/net.
func (h *Host) Sysctl(path, value string) error {
	return h.In(func() error { return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644) })
}

// forward takes the host's packets until its device is closed.
func (h *Host) forward() {
	for {
		p := make([]byte, MTU)
		k, err := h.tun.Read(p)
		if err != nil {
			return
		}
		p = p[:k]
		if k < 20 || p[0]>>4 != 4 {
			continue // IPv6 looks for routers
		}
		if l := h.n.route(h, binary.BigEndian.Uint32(p[16:])); l != nil {
			l.send(p)
		}
	}
}

// route is the link from a host to an address, or nil.
func (n *Network) route(from *Host, to uint32) *link {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if last := to - (10<<24 | 77<<16); last >= 1 && last <= uint32(len(n.hosts)) {
		return n.links[[2]*Host{from, n.hosts[last-1]}]
	}
	return nil
}

// Set changes the link from one host to another, for what is sent from now on; what is on its way arrives, unless the link is cut.
func (n *Network) Set(from, to *Host, s Link) {
	n.mu.RLock()
	l := n.links[[2]*Host{from, to}]
	n.mu.RUnlock()
	l.change(s)
}

// SetBoth changes the links of two hosts in both directions.
func (n *Network) SetBoth(a, b *Host, s Link) {
	n.Set(a, b, s)
	n.Set(b, a, s)
}

// Heal has all links deliver everything at once.
func (n *Network) Heal() {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, l := range n.links {
		l.change(Link{})
	}
}

// Counts returns what became of all packets.
func (n *Network) Counts() (c Counts) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, l := range n.links {
		l.count(&c)
	}
	return c
}

// CountsOf returns what became of the packets from one host to another.
func (n *Network) CountsOf(from, to *Host) (c Counts) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	n.links[[2]*Host{from, to}].count(&c)
	return c
}

type packet struct {
	due  time.Time
	data []byte
}

// link carries packets in one direction, in their order.
type link struct {
	n     *Network
	to    *Host
	queue chan packet

	mu     sync.Mutex // guards all below, and the order of queue
	set    Link
	free   time.Time // when what was sent so far has left
	last   time.Time // when what was sent so far arrives
	counts Counts
}

// count adds what became of the link's packets.
func (l *link) count(c *Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.Delivered += l.counts.Delivered
	c.Cut += l.counts.Cut
	c.Lost += l.counts.Lost
	c.Overflowed += l.counts.Overflowed
	c.Bytes += l.counts.Bytes
}

func (l *link) change(s Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set = s
}

// send decides what becomes of a packet.
func (l *link) send(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.set
	switch {
	case s.Cut:
		l.counts.Cut++
		return
	case s.Loss > 0 && rand.Float64() < s.Loss:
		l.counts.Lost++
		return
	}
	now := time.Now()
	leaves := now
	if s.Rate > 0 {
		queue := s.Queue
		if queue == 0 {
			queue = 100 * time.Millisecond
		}
		if l.free.After(now) {
			leaves = l.free
		}
		if leaves.Sub(now) > queue {
			l.counts.Overflowed++
			return
		}
		leaves = leaves.Add(time.Duration(int64(len(p)) * int64(time.Second) / s.Rate))
		l.free = leaves
	}
	due := leaves.Add(s.Delay)
	if due.Before(l.last) {
		due = l.last
	}
	l.last = due
	if !due.After(now) && len(l.queue) == 0 {
		l.deliver(p)
		return
	}
	select {
	case l.queue <- packet{due, p}:
	default:
		l.counts.Overflowed++
	}
}

// deliver hands a packet to its host's kernel. l.mu is held.
func (l *link) deliver(p []byte) {
	if _, err := l.to.tun.Write(p); err != nil {
		return // the end, or a kernel that has no room: lost
	}
	l.counts.Delivered++
	l.counts.Bytes += int64(len(p))
}

// run delivers what waits until the network is closed.
func (l *link) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var p packet
		select {
		case p = <-l.queue:
		case <-l.n.over:
			return
		}
		if d := time.Until(p.due); d > 0 {
			timer.Reset(d)
			select {
			case <-timer.C:
			case <-l.n.over:
				return
			}
		}
		l.arrive(p.data)
	}
}

// arrive delivers a packet that was on its way, unless the link was cut meanwhile.
func (l *link) arrive(p []byte) {
	l.mu.Lock() // once a link is cut nothing arrives
	defer l.mu.Unlock()
	if l.set.Cut {
		l.counts.Cut++
		return
	}
	l.deliver(p)
}
