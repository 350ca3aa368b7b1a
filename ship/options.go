package ship

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"shiplog/wal"
)

// Defaults of options.
const (
	DefaultHeartbeat        = time.Second
	DefaultTimeout          = 5 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultPace             = time.Millisecond
	DefaultSyncDelay        = 10 * time.Millisecond
	DefaultSyncBytes        = 8 << 20
	DefaultBackoffMin       = 50 * time.Millisecond
	DefaultBackoffMax       = 5 * time.Second
	DefaultMaxPeers         = 64
	DefaultMaxHandshakes    = 32
)

// LeaderOptions configures a [Leader]. The zero value works for loopback addresses.
type LeaderOptions struct {
	// Secret is shared by all nodes. Empty: none, and only loopback listeners are served, unless Insecure.
	Secret []byte
	// Insecure allows listeners that are not loopback without a Secret.
	Insecure bool
	// TLS, when set, is how connections are served. The log then passes through user space instead of sendfile.
	TLS *tls.Config
	// Name and Addr are told to followers: this node's name, and the address by which clients reach it.
	Name, Addr string
	// Answer, when set, answers calls. When a promise is granted, it is persisted, and nothing more is taken from a leader of an
	// older epoch, before the answer. The call's address is as this node reaches it.
	Answer func(ctx context.Context, c *Call) (*Vote, error)
	// Upstream, when set, says whom this node itself follows: nil for nobody. Its marks carry the clock of the
	// leader at the end of the chain.
	Upstream func() *Follower

	Heartbeat        time.Duration // how often each side speaks at least; zero: 1 s
	Timeout          time.Duration // silence after which a peer is dropped; zero: 5 s
	HandshakeTimeout time.Duration // bound of the whole handshake; zero: 10 s
	Pace             time.Duration // least time between messages that nobody waits for; zero: 1 ms
	MaxPeers         int           // connected followers; zero: 64
	MaxHandshakes    int           // connections in the handshake, of which the oldest makes way; zero: 32

	Now    func() time.Time // wall clock told to followers, where the node is no LogClock; nil: time.Now
	Random io.Reader        // nonces; nil: crypto/rand
	Logger *slog.Logger     // nil: discards
}

// FollowerOptions configures a [Follower]. Upstream, or Dial, is required.
type FollowerOptions struct {
	// Upstream is the host:port that is dialled.
	Upstream string
	// Dial, when set, makes the connection instead, TLS included.
	Dial func(ctx context.Context) (net.Conn, error)
	// Secret is shared by all nodes. Empty: none, and only loopback upstreams are followed, unless Insecure or Dial.
	Secret []byte
	// Insecure allows an Upstream that is not loopback without a Secret.
	Insecure bool
	// TLS, when set, is how Upstream is dialled.
	TLS *tls.Config
	// Name names the follower in the leader's status, voter list and slots. Addr is where it serves followers.
	Name, Addr string
	// Observer: never to be counted by the commit rule.
	Observer bool
	// Siblings, when set, lists host:port of other nodes that serve the same log, and how they are called. When the upstream has given up
	// what comes next in this log, it is copied from the first of them that still has it, and this node does not start over.
	Siblings func() ([]string, *CallOptions)
	// AheadDir, when set, with Siblings, is a directory of this follower's alone, made when it is needed, on the disk of the log. Segments that siblings have are fetched into it while
	// the upstream sends what is before them. What an earlier run has left there is used. Together they take three segments more than the log will.
	AheadDir string
	// AheadBytes is how much of the log must be missing for that, two segments at the least. Zero: 64 MiB.
	AheadBytes int64
	// Candidate is the epoch that this node is about to lead. An upstream that has promised it sends all that it has, committed or not. Run
	// returns ErrTrimmed where that does not go back to the end of this log, and no sibling has what is between.
	Candidate wal.Epoch
	// Database, when set, is the only one that an empty log takes up.
	Database wal.DatabaseID

	Heartbeat        time.Duration // how often this side speaks at least; zero: what the upstream asks for
	Timeout          time.Duration // silence after which the upstream is dropped; zero: 5 s
	HandshakeTimeout time.Duration // bound of dialling and handshake; zero: 10 s
	SyncDelay        time.Duration // how long received bytes that nobody waits for may stay unsynced; zero: 10 ms
	SyncBytes        int64         // how many of them during a catch-up; zero: 8 MiB
	BackoffMin       time.Duration // first pause before a reconnect; zero: 50 ms
	BackoffMax       time.Duration // longest pause; zero: 5 s

	Jitter func() float64 // in [0, 1); nil: math/rand
	Random io.Reader      // nonces; nil: crypto/rand
	Logger *slog.Logger   // nil: discards
}

// withDefaults returns a copy of o with defaults filled in, or an error that reports everything that is wrong.
func (o *LeaderOptions) withDefaults() (LeaderOptions, error) {
	var r LeaderOptions
	if o != nil {
		r = *o
	}
	r.Heartbeat = cmp.Or(r.Heartbeat, DefaultHeartbeat)
	r.Timeout = cmp.Or(r.Timeout, DefaultTimeout)
	r.HandshakeTimeout = cmp.Or(r.HandshakeTimeout, DefaultHandshakeTimeout)
	r.Pace = cmp.Or(r.Pace, DefaultPace)
	r.MaxPeers = cmp.Or(r.MaxPeers, DefaultMaxPeers)
	r.MaxHandshakes = cmp.Or(r.MaxHandshakes, DefaultMaxHandshakes)
	r.Logger = cmp.Or(r.Logger, slog.New(slog.DiscardHandler))
	if r.Now == nil {
		r.Now = time.Now
	}
	errs := []error{validName("name", r.Name), validName("address", r.Addr)}
	errs = append(errs, checkTimes(r.Heartbeat, r.Timeout, r.HandshakeTimeout)...)
	if r.Pace < 0 || r.MaxPeers < 0 || r.MaxHandshakes < 0 {
		errs = append(errs, errors.New("pace, peers and handshakes cannot be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return r, fmt.Errorf("ship: leader options: %w", err)
	}
	return r, nil
}

// withDefaults returns a copy of o with defaults filled in, or an error that reports everything that is wrong.
func (o *FollowerOptions) withDefaults() (FollowerOptions, error) {
	var r FollowerOptions
	if o != nil {
		r = *o
	}
	r.Timeout = cmp.Or(r.Timeout, DefaultTimeout)
	r.HandshakeTimeout = cmp.Or(r.HandshakeTimeout, DefaultHandshakeTimeout)
	r.SyncDelay = cmp.Or(r.SyncDelay, DefaultSyncDelay)
	r.SyncBytes = cmp.Or(r.SyncBytes, DefaultSyncBytes)
	r.AheadBytes = cmp.Or(r.AheadBytes, aheadBytes)
	r.BackoffMin = cmp.Or(r.BackoffMin, DefaultBackoffMin)
	r.BackoffMax = cmp.Or(r.BackoffMax, DefaultBackoffMax)
	r.Logger = cmp.Or(r.Logger, slog.New(slog.DiscardHandler))
	errs := []error{validName("name", r.Name), validName("address", r.Addr)}
	heartbeat := r.Heartbeat
	if heartbeat == 0 {
		heartbeat = r.Timeout / 5
	}
	errs = append(errs, checkTimes(heartbeat, r.Timeout, r.HandshakeTimeout)...)
	if r.SyncDelay < 0 || r.SyncBytes < 0 || r.BackoffMin < 0 || r.BackoffMax < r.BackoffMin {
		errs = append(errs, errors.New("delays and sizes cannot be negative, and the longest pause not below the first"))
	}
	switch {
	case r.Upstream == "" && r.Dial == nil:
		errs = append(errs, errors.New("upstream is missing"))
	case r.Dial != nil && r.TLS != nil:
		errs = append(errs, errors.New("TLS has no effect with Dial: dial with TLS there"))
	case r.Dial == nil && len(r.Secret) == 0 && !r.Insecure && !loopback(r.Upstream):
		errs = append(errs, fmt.Errorf("upstream %s: %w", r.Upstream, ErrNoSecret))
	}
	if err := errors.Join(errs...); err != nil {
		return r, fmt.Errorf("ship: follower options: %w", err)
	}
	return r, nil
}

func checkTimes(heartbeat, timeout, handshake time.Duration) (errs []error) {
	if heartbeat < time.Millisecond {
		errs = append(errs, fmt.Errorf("heartbeat %v: want at least 1 ms", heartbeat))
	}
	if timeout < 2*heartbeat {
		errs = append(errs, fmt.Errorf("timeout %v: want at least two heartbeats of %v", timeout, heartbeat))
	}
	if timeout > time.Hour {
		errs = append(errs, fmt.Errorf("timeout %v: want at most an hour", timeout))
	}
	if handshake <= 0 {
		errs = append(errs, fmt.Errorf("handshake timeout %v: want more than zero", handshake))
	}
	return errs
}

// loopback reports whether host:port names this machine alone.
func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
