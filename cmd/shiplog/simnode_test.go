package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// This file is a node of the simulation: the real node with its log, index, leader and follower, on a simulated disk, network and clock.

// simDir is the directory of each node's database on its own disk.
const simDir = "/db"

// simNode is a machine: its disk stays, its processes come and go.
type simNode struct {
	s      *sim
	name   string
	follow string // what --follow says
	disk   *waltest.Disk
	skew   atomic.Int64 // of its clock, ns
	proc   *simProcess  // nil: none runs; written by the driver under the simulation's mu
	downAt time.Time
	faults []*waltest.Injection // of its disk
}

// simProcess is one run of a node.
type simProcess struct {
	node   *simNode
	disk   *waltest.Disk
	n      *node
	cancel context.CancelFunc
	dead   atomic.Bool // power is off, or it was killed
	ready  atomic.Bool // clients are served
	ln     *simListener
	work   sync.WaitGroup // what serves
	watch  sync.WaitGroup // what changes the role

	mu   sync.Mutex
	seen map[string]int64 // key: the number of the newest value read here
}

func (m *simNode) addr() string { return m.name + ":7380" }

// now is the machine's wall clock; its monotonic part goes on evenly.
func (m *simNode) now() time.Time { return time.Now().Add(time.Duration(m.skew.Load())) }

// start runs the node.
func (m *simNode) start() {
	m.s.t.Helper()
	s := m.s
	logger := slog.New(&simLog{s: s, name: m.name})
	cfg := &config.Node{Logger: logger}
	cfg.Dir, cfg.Name, cfg.Follow = simDir, m.name, m.follow
	cfg.Engine = engine.Options{
		FS: m.disk, Now: m.now, Logger: logger, SegmentSize: wal.MinSegmentSize, MemIndexSize: 1 << 20, CacheSize: 64 << 10,
		TooFew: s.cfg.tooFew, CommitTimeout: 3 * time.Second, Follower: m.follow != "",
		ReadLeases: s.cfg.leases,
	}
	if m.follow == "" && m.empty() {
		cfg.Engine.Commit = s.cfg.rule
	}
	db, err := openNode(cfg)
	if errors.Is(err, engine.ErrNotLeader) && m.follow == "" { // its log names nobody whom it could ask: the operator does as told, and says
		m.follow = s.nodes[len(s.nodes)-1].addr()
		cfg.Follow, cfg.Engine.Follower = m.follow, true
		db, err = openNode(cfg)
	}
	if err != nil && s.damaged(m) && !m.disk.Crashed() {
		s.note("%s does not open: %v", m.name, err)
		if s.mend(m) {
			db, err = openNode(cfg)
		}
	}
	if err != nil {
		if m.disk.Crashed() {
			m.disk = m.disk.Crash(s.rng.Uint64())
			m.downAt = time.Now()
			return
		}
		var corrupt *wal.CorruptError
		if !errors.Is(err, syscall.EIO) && !errors.Is(err, engine.ErrNoSpace) && !(s.damaged(m) && errors.As(err, &corrupt)) {
			s.failf("%s does not open: %v", m.name, err)
		}
		s.note("%s does not open: %v", m.name, err)
		s.count("starts that met a disk fault")
		m.disk, m.downAt = m.disk.Kill(), time.Now() // without the faults
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &simProcess{node: m, disk: m.disk, cancel: cancel, seen: map[string]int64{}}
	p.n = makeNode(cfg, db)
	p.n.respAddr, p.n.shipAddr, p.n.dial = m.name+":6380", m.addr(), p.dial
	if err := p.n.openShip(); err != nil {
		s.failf("%s: %v", m.name, err)
	}
	p.ln = s.net.listen(m.addr())
	p.work.Go(func() { _ = p.n.leader.Serve(p.ln) }) // ended by stop or die
	p.watch.Go(func() {                              // ended by cancel
		if err := p.n.join(ctx); err != nil {
			s.note("%s: join: %v", m.name, err)
		}
		p.ready.Store(true)
		p.n.watch(ctx)
	})
	m.set(p)
}

func (m *simNode) set(p *simProcess) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.proc = p
}

// empty reports whether the machine has no database yet.
func (m *simNode) empty() bool {
	names, err := m.disk.ReadDir(filepath.Join(simDir, "log"))
	return err != nil || len(names) == 0
}

func (p *simProcess) dial(ctx context.Context, addr string) (net.Conn, error) {
	if p.dead.Load() {
		return nil, errors.New("the machine is off")
	}
	return p.node.s.net.dial(ctx, p.node.name, addr)
}

// alive reports whether clients may believe what the process says.
func (p *simProcess) alive() bool { return !p.dead.Load() && !p.disk.Crashed() }

// stop ends the process as SIGTERM does.
func (m *simNode) stop() {
	p := m.proc
	if p == nil {
		return
	}
	m.set(nil)
	m.downAt = time.Now()
	p.ready.Store(false)
	p.cancel()
	p.endRoles()
	p.n.endFollowing()
	drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = p.n.leader.Shutdown(drain) // followers that do not listen are cut off
	p.work.Wait()
	err := p.n.db.Close()
	if err != nil && !errors.Is(err, engine.ErrPoisoned) {
		m.s.failf("%s: close: %v", m.name, err)
	}
	p.dead.Store(true)
	m.s.net.drop(m.name, true)
	m.closed(p)
}

// crash ends the machine, or with kill only its process, in the middle of the next call that changes its disk.
func (m *simNode) crash(kill bool) {
	p := m.proc
	if p == nil {
		return
	}
	s := m.s
	in := p.disk.Inject(waltest.Fault{Skip: s.rng.IntN(12), Crash: true})
	for range 20 {
		if p.disk.Crashed() {
			break
		}
		s.sleep(50 * time.Millisecond)
	}
	in.End()
	p.dead.Store(true)
	p.disk.PowerOff()
	m.set(nil)
	m.downAt = time.Now()
	p.ready.Store(false)
	s.net.drop(m.name, kill)
	p.cancel()
	s.away.Go(func() { // what is left of the process ends by itself; nobody hears of it
		p.endRoles()
		p.n.endFollowing()
		drain, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.n.leader.Shutdown(drain)
		p.work.Wait()
		_ = p.n.db.Close()
		m.closed(p)
	})
	if kill {
		m.disk = p.disk.Kill()
	} else {
		m.disk = p.disk.Crash(s.rng.Uint64())
	}
}

// closed expects that a process that has ended holds no file, map or lock.
func (m *simNode) closed(p *simProcess) {
	if open := p.disk.Open(); len(open) > 0 {
		m.s.failf("%s has ended and still holds %q", m.name, open)
	}
}

// wipe puts a new disk into a machine that is off.
func (m *simNode) wipe() {
	m.disk = waltest.NewDisk()
	m.s.count("disks replaced")
}

// forget deletes everything that is derived from the log, on a machine that is off.
func (m *simNode) forget() error {
	dir := filepath.Join(simDir, "index")
	names, err := m.disk.ReadDir(dir)
	if err != nil {
		return nil //nolint:nilerr // there is none yet
	}
	for _, name := range names {
		if err := m.disk.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return m.disk.SyncDir(dir)
}

// why is the error for which the node follows nobody any more.
func (p *simProcess) why() error {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	return p.n.final
}

// leads reports whether the process takes writes.
func (p *simProcess) leads() bool { return p != nil && p.ready.Load() && p.alive() && p.n.leads() }

// operatorsCase reports whether an error of following is another node's refusal for good, which no fault of the simulated kinds may
// cause, and not one of this node's own disk.
func operatorsCase(err error) bool {
	var refusal *ship.Error
	return errors.As(err, &refusal)
}

// simLog keeps the newest lines that all nodes have logged.
type simLog struct {
	s     *sim
	name  string
	attrs string
}

func (l *simLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *simLog) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s%s", r.Level, l.name, r.Message, l.attrs)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	l.s.note("%s", b.String())
	return nil
}

func (l *simLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *l
	for _, a := range attrs {
		c.attrs += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return &c
}

func (l *simLog) WithGroup(string) slog.Handler { return l }

// failed reports whether the process has met an error of its disk that only a restart ends.
func (p *simProcess) failed() bool {
	return p != nil && (p.n.db.Log().Err() != nil || p.n.db.Stats().Failed != nil || p.why() != nil)
}

// endRoles ends what changes the node's role, as the end of a real node does.
func (p *simProcess) endRoles() {
	p.watch.Wait()
	_ = p.n.AbortFailover()
	p.n.failovers.done.Wait()
}
