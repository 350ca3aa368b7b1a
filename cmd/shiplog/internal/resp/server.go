package resp

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal/vfs"
)

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("resp: server closed")

// Defaults of Options.
const (
	defaultMaxClients   = 10_000
	defaultClientMemory = 256 << 20
	defaultPartial      = 30 * time.Second
	defaultWrite        = 30 * time.Second
	defaultAuth         = 60 * time.Second
)

// Options configure a Server. Store and Node are required; the zero value of everything else is usable.
type Options struct {
	Store Store
	Node  Node

	// Password that clients must give by AUTH or HELLO; empty: none is needed.
	Password string
	// MaxClients is the number of connections served at once; zero: 10,000. It is not more than half of the descriptors that the process
	// may have: the others are for files and followers.
	MaxClients int
	// ClientMemory bounds what the connections buffer together, in bytes, beyond 16 KiB each; zero: 256 MiB.
	ClientMemory int64
	// IdleTimeout closes connections that sent nothing for so long; zero: never, as in Redis.
	IdleTimeout time.Duration
	// PartialTimeout is how long the rest of a command that was begun may take, plus a second for each 64 KiB that
	// came; zero: 30 s.
	PartialTimeout time.Duration
	// WriteTimeout is how long a client may leave replies unread; zero: 30 s.
	WriteTimeout time.Duration
	// AuthTimeout is how long a client may stay without authenticating when a password is set; zero: 60 s.
	AuthTimeout time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// Server serves Redis clients. Serve may be called for several listeners.
type Server struct {
	opts     Options
	store    Store
	node     Node
	log      *slog.Logger
	passHash [sha256.Size]byte
	started  time.Time
	runID    string
	combine  combiner
	cursors  cursorTable
	hub      hub
	limits   scanLimits
	maxKey   int
	maxValue int

	maxClients  atomic.Int64
	idleTimeout atomic.Int64 // ns
	priority    atomic.Int64 // for Sentinel: lower ones are promoted first, 0 never

	ctx    context.Context // ends what commands wait for when draining takes too long
	cancel context.CancelFunc
	done   sync.WaitGroup // one for each connection

	nextID   atomic.Int64
	memory   atomic.Int64 // bytes buffered beyond the base buffers
	draining atomic.Bool

	mu        sync.Mutex // guards conns, listeners
	conns     map[int64]*conn
	listeners map[net.Listener]struct{}

	stats serverStats
}

// serverStats counts since the start.
type serverStats struct {
	commands, connections, rejected        atomic.Int64
	inBytes, outBytes, hits, misses        atomic.Int64
	commits, combinedRuns, combinedCommits atomic.Int64
	protocolErrors, timeouts, slow         atomic.Int64
}

// Stats is a snapshot of a server's counters.
type Stats struct {
	Clients         int   // connected now
	ClientMemory    int64 // bytes buffered beyond the base buffers
	Commands        int64
	Connections     int64
	Rejected        int64 // connections over MaxClients
	InBytes         int64
	OutBytes        int64
	KeyspaceHits    int64
	KeyspaceMisses  int64
	Commits         int64 // runs of plain writes committed
	CombinedRuns    int64 // runs decided in transactions
	CombinedCommits int64 // transactions that took
	ProtocolErrors  int64
	Timeouts        int64
	SlowSubscribers int64 // disconnected because too much waited for them
}

// New returns a server; it starts nothing.
func New(o Options) *Server {
	if o.Store == nil || o.Node == nil {
		panic("resp: Store and Node are required")
	}
	o.MaxClients = orDefault(o.MaxClients, defaultMaxClients)
	if most := mostClients(); o.MaxClients > most {
		if o.Logger != nil {
			o.Logger.Warn("fewer clients than asked for: the process may have too few files open (ulimit -n)", "asked", o.MaxClients, "max_clients", most, "descriptors", vfs.Descriptors())
		}
		o.MaxClients = most
	}
	o.ClientMemory = orDefault(o.ClientMemory, defaultClientMemory)
	o.PartialTimeout = orDefault(o.PartialTimeout, defaultPartial)
	o.WriteTimeout = orDefault(o.WriteTimeout, defaultWrite)
	o.AuthTimeout = orDefault(o.AuthTimeout, defaultAuth)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opts: o, store: o.Store, node: o.Node, log: o.Logger,
		passHash:  sha256.Sum256([]byte(o.Password)),
		started:   time.Now(),
		runID:     newRunID(),
		conns:     map[int64]*conn{},
		hub:       hub{channels: map[string]map[*conn]struct{}{}, patterns: map[string]map[*conn]struct{}{}},
		listeners: map[net.Listener]struct{}{},
	}
	s.maxKey, s.maxValue = o.Store.Limits()
	s.limits = scanLimits{
		args: maxArgs,
		// One byte over the limit still parses, so that the client gets the command's own error.
		bulk:    max(s.maxKey, s.maxValue) + 1,
		command: int(min(o.ClientMemory, 1<<30)),
	}
	s.maxClients.Store(int64(o.MaxClients))
	s.priority.Store(100)
	s.idleTimeout.Store(int64(o.IdleTimeout))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.combine.srv = s
	return s
}

// mostClients is how many clients there can be, whatever is asked for.
func mostClients() int { return max(vfs.Descriptors()/2, 1) }

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Serve accepts connections until Shutdown, then returns ErrServerClosed. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	defer func() { _ = ln.Close() }()
	if !s.track(ln) {
		return ErrServerClosed
	}
	defer s.untrack(ln)
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		if err != nil {
			if s.draining.Load() {
				return ErrServerClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors, or a client that went away: go on, but do not spin.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept", "error", err)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			continue
		}
		pause = 0
		s.accept(nc)
	}
}

func (s *Server) accept(nc net.Conn) {
	s.stats.connections.Add(1)
	c := newConn(s, nc)
	s.mu.Lock()
	full := int64(len(s.conns)) >= s.maxClients.Load()
	if !full && !s.draining.Load() {
		s.conns[c.id] = c
		s.done.Add(1)
		s.mu.Unlock()
		go c.serve() // ends when the client goes, on Shutdown, or when it is killed
		return
	}
	s.mu.Unlock()
	if full {
		s.stats.rejected.Add(1)
		if nc.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) == nil {
			_, _ = nc.Write([]byte("-" + errMaxClients + "\r\n")) // it is turned away, told or not
		}
	}
	_ = nc.Close()
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c.id)
	s.mu.Unlock()
	s.done.Done()
}

func (s *Server) track(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) untrack(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// lastWords is how long the answers of commands whose waits were cut short may take to be sent.
const lastWords = time.Second

// Shutdown stops accepting, lets the commands that have arrived finish and be answered, and closes the connections.
// When ctx ends first, waits are cut short, those who waited are told so, connections are closed, and ctx's error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for ln := range s.listeners {
		_ = ln.Close() // Serve returns what there is to tell
	}
	for _, c := range s.conns {
		c.wake()
	}
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() { // ends with the last connection
		s.done.Wait()
		close(idle)
	}()
	var err error
	select {
	case <-idle:
	case <-ctx.Done():
		err = ctx.Err()
		s.cancel()
		select {
		case <-idle:
			return err
		case <-time.After(lastWords):
		}
		s.mu.Lock()
		for _, c := range s.conns {
			_ = c.nc.Close()
		}
		s.mu.Unlock()
		<-idle
	}
	s.cancel()
	return err
}

// Stats returns the counters as of now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	clients := len(s.conns)
	s.mu.Unlock()
	t := &s.stats
	return Stats{
		Clients: clients, ClientMemory: s.memory.Load(), Commands: t.commands.Load(), Connections: t.connections.Load(),
		Rejected: t.rejected.Load(), InBytes: t.inBytes.Load(), OutBytes: t.outBytes.Load(),
		KeyspaceHits: t.hits.Load(), KeyspaceMisses: t.misses.Load(), Commits: t.commits.Load(),
		CombinedRuns: t.combinedRuns.Load(), CombinedCommits: t.combinedCommits.Load(),
		ProtocolErrors: t.protocolErrors.Load(), Timeouts: t.timeouts.Load(), SlowSubscribers: t.slow.Load(),
	}
}

// reserve accounts for n more bytes of buffer; false when the connections hold too much together.
func (s *Server) reserve(n int64) bool {
	if s.memory.Add(n) > s.opts.ClientMemory && n > 0 {
		s.memory.Add(-n)
		return false
	}
	return true
}

// authenticate compares in constant time.
func (s *Server) authenticate(user, password []byte) bool {
	sum := sha256.Sum256(password)
	same := subtle.ConstantTimeCompare(sum[:], s.passHash[:]) == 1
	return same && string(user) == "default"
}

func (s *Server) needsPassword() bool { return s.opts.Password != "" }
