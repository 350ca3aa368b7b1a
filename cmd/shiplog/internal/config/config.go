// Package config turns the flags of a node into checked settings.
//
// Everything that is wrong is reported at once, before a file is touched or a port is opened. Without credentials a
// port is served on loopback addresses only.
package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"shiplog/engine"
)

// SecretEnv is the environment variable that holds the shipping secret when no file is named.
const SecretEnv = "SHIPLOG_SECRET"

const defaultLeaseTTL = 5 * time.Second

// Serve are the flags of a node as they were given.
type Serve struct {
	Dir    string
	Listen string // RESP
	Ship   string // followers; empty: none are served
	HTTP   string // empty: none
	Follow string // shipping address of the upstream; empty: this node leads
	Name   string

	Commit        string
	Voters        []string
	FirstVoters   bool
	TooFew        string
	DegradeAfter  time.Duration
	CommitTimeout time.Duration
	StallTimeout  time.Duration
	Compression   string
	SegmentSize   int64
	IndexMemory   int64 // bytes
	Cache         int64 // bytes
	SpaceFactor   int   // hundredths
	MaxPinned     int64
	MaxPinnedAge  time.Duration
	ScrubInterval time.Duration
	CopyFrom      []string
	CopyAhead     int64
	SortWhenIdle  bool
	StaleReads    bool
	LogOnly       bool
	ApplyDelay    time.Duration
	ReadLeases    bool

	Etcd     []string // endpoints; none: roles change by hand
	Group    string
	LeaseTTL time.Duration
	EtcdCA   string
	EtcdCert string
	EtcdKey  string

	SecretFile      string
	RequirePassFile string
	TLS             TLS

	MaxClients    int
	ClientMemory  int64
	ClientTimeout time.Duration
	DrainTimeout  time.Duration
	LogLevel      string
	LogFormat     string
}

// Register adds the flags to fs.
func (c *Serve) Register(fs *pflag.FlagSet) {
	fs.StringVar(&c.Dir, "dir", "", "directory of the database; created when it is not there (required)")
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:6380", "address for Redis clients")
	fs.StringVar(&c.Ship, "ship", "127.0.0.1:7380", "address for followers; \"\" serves none")
	fs.StringVar(&c.HTTP, "http", "127.0.0.1:8380", "address for status, metrics and profiles; \"\" serves none")
	fs.StringVar(&c.Follow, "follow", "", "be a follower of the node that ships at HOST:PORT")
	fs.StringVar(&c.Name, "name", "", "name of this node (default: the name of the host)")
	fs.StringVar(&c.Commit, "commit", "", "commit rule of a new database: buffered, written, durable, received:N, replicated:N or applied:N (default durable)")
	fs.StringSliceVar(&c.Voters, "voters", nil, "names of the followers that count for the rule (default: each that connects by name)")
	fs.BoolVar(&c.FirstVoters, "first-voters", false, "count the first N connected of --voters, in their order, instead of any N")
	fs.StringVar(&c.TooFew, "too-few", "refuse", "what a write does while too few followers are connected: refuse, block or degrade")
	fs.DurationVar(&c.DegradeAfter, "degrade-after", 0, "how long --too-few degrade waits first (default 5s)")
	fs.DurationVar(&c.StallTimeout, "stall-timeout", 0, "how long the disk may take for one write or sync before it counts as failed; negative: no bound (default 20s)")
	fs.DurationVar(&c.CommitTimeout, "commit-timeout", 0, "longest wait of a write for the rule; then its outcome is unknown; negative: no bound (default 10s)")
	fs.StringVar(&c.Compression, "compression", "s2", "codec of new frames: s2, zstd or none")
	sizeVar(fs, &c.SegmentSize, "segment-size", 0, "size of a log segment of a new database, a power of two (default 64MiB)")
	sizeVar(fs, &c.IndexMemory, "index-memory", 0, "memory for the index; keys beyond it go to sorted runs on disk (default 256MiB)")
	sizeVar(fs, &c.Cache, "cache", 0, "memory for unpacked frames; -1: none (default 128MiB)")
	fs.IntVar(&c.SpaceFactor, "space-factor", 0, "keep the log below this many hundredths of what lives in it; -1: reclaim nothing (default 200)")
	sizeVar(fs, &c.MaxPinned, "slot-bytes", 0, "log kept for a follower with a name that is behind or away, before it must start over (default 4GiB)")
	fs.DurationVar(&c.MaxPinnedAge, "slot-age", 0, "how long the log is kept for a follower that is away (default: no bound but --slot-bytes)")
	fs.StringSliceVar(&c.CopyFrom, "copy-from", nil, "as a follower that lacks much, shipping addresses of further nodes to copy from at once (those that this node knows of are asked by themselves)")
	sizeVar(fs, &c.CopyAhead, "copy-ahead", 64<<20, "as a follower, copy from several nodes at once when so many bytes are missing; 0: from the leader alone")
	fs.DurationVar(&c.ScrubInterval, "scrub-interval", 24*time.Hour, "rest between two verifications of the whole log on the disk, which mend it from peers; 0: none")
	fs.BoolVar(&c.SortWhenIdle, "sort-when-idle", false, "while nothing is written, write small records again in the order of their keys: faster scans")
	fs.BoolVar(&c.StaleReads, "stale-reads", false, "serve the last known state where reads would answer LOADING")
	fs.BoolVar(&c.LogOnly, "log-only", false, "as a follower, keep the log without an index: confirms writes and votes, but answers no reads and never leads")
	fs.DurationVar(&c.ApplyDelay, "apply-delay", 0, "as a follower, apply and show only what is older than this by log time; disk and acknowledgements do not wait")
	fs.StringSliceVar(&c.Etcd, "etcd", nil, "etcd endpoints, HOST:PORT or URL: a lease there says who leads, and a follower takes over by itself")
	fs.StringVar(&c.Group, "group", "", "name in etcd of the group of nodes that this one belongs to (required with --etcd)")
	fs.DurationVar(&c.LeaseTTL, "lease-ttl", defaultLeaseTTL, "how long the lease runs without being renewed, in whole seconds: the longest time without a leader, nearly")
	fs.StringVar(&c.EtcdCA, "etcd-ca", "", "authorities (PEM) that certify etcd")
	fs.StringVar(&c.EtcdCert, "etcd-cert", "", "certificate (PEM) of this node towards etcd")
	fs.StringVar(&c.EtcdKey, "etcd-key", "", "private key (PEM) of --etcd-cert")
	fs.BoolVar(&c.ReadLeases, "read-leases", true, "under a rule that asks followers, answer reads as the leader only while its voters promise nobody else to follow; false: a leader that was replaced may show an older state until it hears of that")
	fs.StringVar(&c.SecretFile, "secret-file", "", "file with the secret that nodes share (or the environment variable "+SecretEnv+")")
	fs.StringVar(&c.RequirePassFile, "requirepass-file", "", "file with the password of Redis clients and of HTTP")
	c.TLS.Register(fs)
	fs.IntVar(&c.MaxClients, "max-clients", 10_000, "Redis clients at once")
	sizeVar(fs, &c.ClientMemory, "client-memory", 256<<20, "what all Redis clients together may have buffered")
	fs.DurationVar(&c.ClientTimeout, "client-timeout", 0, "close clients that were idle for so long (default never)")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", 15*time.Second, "how long commands in flight may take at shutdown")
	fs.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "text", "text or json")
}

// TLS are the files for every port, and for the connection to the upstream.
type TLS struct{ Cert, Key, CA string }

// Register adds the flags to fs.
func (t *TLS) Register(fs *pflag.FlagSet) {
	fs.StringVar(&t.Cert, "tls-cert", "", "certificate (PEM) of this node: serves every port by TLS")
	fs.StringVar(&t.Key, "tls-key", "", "private key (PEM) of --tls-cert")
	fs.StringVar(&t.CA, "tls-ca", "", "authorities (PEM) that certify the nodes; followers must then show a certificate too")
}

// Node are checked settings.
type Node struct {
	Serve
	Engine   engine.Options
	Secret   []byte
	Password string
	Logger   *slog.Logger

	ServerTLS *tls.Config // of the RESP and HTTP ports; nil: plain
	ShipTLS   *tls.Config // of the shipping port, which asks for certificates when there is a CA
	ClientTLS *tls.Config // towards other nodes
	EtcdTLS   *tls.Config // towards etcd
}

// Resolve checks the settings and reads the files that they name. Its error lists everything that is wrong.
func (c *Serve) Resolve() (*Node, error) {
	n := &Node{Serve: *c}
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if c.Dir == "" {
		check(errors.New("--dir is required"))
	} else {
		n.Dir = filepath.Clean(c.Dir)
	}
	check(n.resolveName())
	check(n.resolveEngine())
	check(n.resolveLogger())
	var err error
	n.Secret, err = ReadSecret(c.SecretFile)
	check(err)
	password, err := readSecret("--requirepass-file", c.RequirePassFile)
	check(err)
	n.Password = string(password)
	n.ServerTLS, n.ShipTLS, n.ClientTLS, err = c.TLS.load()
	check(err)
	check(address("--listen", c.Listen, n.Password != "", "--requirepass-file"))
	check(address("--ship", c.Ship, len(n.Secret) > 0, "--secret-file or "+SecretEnv))
	check(address("--http", c.HTTP, n.Password != "", "--requirepass-file"))
	if c.Follow != "" {
		if err := HostPort("--follow", c.Follow); err != nil {
			check(err)
		} else if len(n.Secret) == 0 && !Loopback(c.Follow) {
			check(fmt.Errorf("--follow %s leaves this machine: give --secret-file or %s", c.Follow, SecretEnv))
		}
	}
	for _, addr := range c.CopyFrom {
		check(hostPort("--copy-from", addr))
		if len(n.Secret) == 0 && !Loopback(addr) {
			check(fmt.Errorf("--copy-from %s leaves this machine: give --secret-file or %s", addr, SecretEnv))
		}
	}
	if c.CopyAhead < 0 {
		check(fmt.Errorf("--copy-ahead %d is negative", c.CopyAhead))
	}
	if c.CopyAhead == 0 && len(c.CopyFrom) > 0 {
		check(errors.New("--copy-from has no meaning with --copy-ahead 0, which copies from the leader alone"))
	}
	if c.Listen == "" {
		check(errors.New("--listen is required"))
	}
	check(n.resolveEtcd())
	check(n.checkBounds())
	return n, errors.Join(errs...)
}

func (n *Node) checkBounds() error {
	var errs []error
	if n.MaxClients < 1 || n.ClientMemory < 1<<20 {
		errs = append(errs, errors.New("--max-clients must be at least 1, --client-memory at least 1 MiB"))
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"--client-timeout", n.ClientTimeout}, {"--drain-timeout", n.DrainTimeout}, {"--scrub-interval", n.ScrubInterval}, {"--degrade-after", n.DegradeAfter}} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("%s %v is negative", d.flag, d.value))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) resolveName() error {
	if n.Name == "" {
		n.Name, _ = os.Hostname()
	}
	if len(n.Name) > 64 || strings.ContainsFunc(n.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' }) {
		return fmt.Errorf("--name %q: want up to 64 printable characters without blanks and commas", n.Name)
	}
	return nil
}

func (n *Node) resolveEngine() error {
	var errs []error
	o := engine.Options{
		Voters: n.Voters, FirstVoters: n.FirstVoters, DegradeAfter: n.DegradeAfter, CommitTimeout: n.CommitTimeout, StallTimeout: n.StallTimeout,
		SegmentSize: n.SegmentSize, Follower: n.Follow != "", StaleReads: n.StaleReads, LogOnly: n.LogOnly, ApplyDelay: n.ApplyDelay,
		MemIndexSize: n.IndexMemory, CacheSize: n.Cache, SpaceFactor: n.SpaceFactor, MaxPinned: n.MaxPinned, MaxPinnedAge: n.MaxPinnedAge, SortWhenIdle: n.SortWhenIdle,
		ReadLeases: n.ReadLeases && len(n.Etcd) == 0, // else the lease in etcd does as much
	}
	if n.Commit != "" {
		level, err := engine.ParseLevel(n.Commit)
		if err != nil {
			errs = append(errs, fmt.Errorf("--commit: %w", err))
		}
		o.Commit = level
	}
	if n.Follow != "" && (n.Commit != "" || len(n.Voters) > 0 || n.FirstVoters || n.SegmentSize != 0) {
		errs = append(errs, errors.New("--commit, --voters, --first-voters and --segment-size are the leader's: a follower has them from its log"))
	}
	if n.DegradeAfter != 0 && n.TooFew != "degrade" {
		errs = append(errs, errors.New("--degrade-after needs --too-few degrade"))
	}
	if n.LogOnly && n.Follow == "" && len(n.Etcd) == 0 {
		errs = append(errs, errors.New("--log-only needs --follow or --etcd: a node without an index does not lead"))
	}
	if n.LogOnly && (n.IndexMemory != 0 || n.SortWhenIdle || n.StaleReads || n.TooFew != "refuse") {
		errs = append(errs, errors.New("--index-memory, --sort-when-idle, --stale-reads and --too-few have no meaning with --log-only: there is no index, and the node never leads"))
	}
	if n.Ship == "" && (o.Commit.N() > 0 || len(n.Voters) > 0 || n.MaxPinned != 0 || n.MaxPinnedAge != 0) {
		errs = append(errs, errors.New("--commit with a number of followers, --voters, --slot-bytes and --slot-age need --ship: without it this node has no followers"))
	}
	if n.Follow == "" && len(n.Etcd) == 0 && (n.ApplyDelay > 0 || len(n.CopyFrom) > 0) {
		errs = append(errs, errors.New("--apply-delay and --copy-from need --follow or --etcd: they are for followers"))
	}
	if n.ApplyDelay < 0 || n.ApplyDelay > 0 && n.LogOnly {
		errs = append(errs, errors.New("--apply-delay cannot be negative, and has no meaning with --log-only"))
	}
	switch n.TooFew {
	case "refuse":
		o.TooFew = engine.Refuse
	case "block":
		o.TooFew = engine.Block
	case "degrade":
		o.TooFew = engine.Degrade
	default:
		errs = append(errs, fmt.Errorf("--too-few %q: want refuse, block or degrade", n.TooFew))
	}
	switch n.Compression {
	case "s2":
		o.Compression = engine.S2
	case "zstd":
		o.Compression = engine.Zstd
	case "none":
		o.Compression = engine.NoCompression
	default:
		errs = append(errs, fmt.Errorf("--compression %q: want s2, zstd or none", n.Compression))
	}
	n.Engine = o
	return errors.Join(errs...)
}

// resolveEtcd checks what says who leads.
func (n *Node) resolveEtcd() error {
	var errs []error
	if len(n.Etcd) == 0 {
		if n.Group != "" || n.LeaseTTL != defaultLeaseTTL || n.EtcdCA != "" || n.EtcdCert != "" || n.EtcdKey != "" {
			return errors.New("--group, --lease-ttl and --etcd-ca, -cert, -key need --etcd")
		}
		return nil
	}
	if n.Group == "" || len(n.Group) > 64 || strings.ContainsFunc(n.Group, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		errs = append(errs, fmt.Errorf("--group %q: want 1 to 64 printable characters without blanks and slashes", n.Group))
	}
	if n.LeaseTTL < time.Second || n.LeaseTTL > time.Hour || n.LeaseTTL%time.Second != 0 {
		errs = append(errs, fmt.Errorf("--lease-ttl %v: want whole seconds, from 1s to 1h", n.LeaseTTL))
	}
	if n.Follow != "" {
		errs = append(errs, errors.New("--follow: with --etcd a node finds the leader by itself"))
	}
	if !n.ReadLeases {
		errs = append(errs, errors.New("--read-leases=false has no meaning with --etcd: reads need the lease there"))
	}
	if n.Ship == "" {
		errs = append(errs, errors.New("--ship is required with --etcd: each node may come to lead"))
	}
	files := TLS{Cert: n.EtcdCert, Key: n.EtcdKey, CA: n.EtcdCA}
	var err error
	if n.EtcdTLS, err = files.Client(); err != nil {
		errs = append(errs, fmt.Errorf("etcd: %w", err))
	}
	return errors.Join(errs...)
}

func (n *Node) resolveLogger() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(n.LogLevel)); err != nil {
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", n.LogLevel)
	}
	o := &slog.HandlerOptions{Level: level}
	switch n.LogFormat {
	case "text":
		n.Logger = slog.New(slog.NewTextHandler(os.Stderr, o))
	case "json":
		n.Logger = slog.New(slog.NewJSONHandler(os.Stderr, o))
	default:
		return fmt.Errorf("--log-format %q: want text or json", n.LogFormat)
	}
	n.Engine.Logger = n.Logger
	return nil
}

// maxSecret bounds secrets and passwords, in bytes.
const maxSecret = 4096

// readSecret reads a file without the line end after its last byte; an empty path gives nothing.
func readSecret(flag, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	p = bytes.TrimRight(p, "\r\n")
	if len(p) == 0 || len(p) > maxSecret {
		return nil, fmt.Errorf("%s %s: holds %d bytes, want 1 to %d", flag, path, len(p), maxSecret)
	}
	return p, nil
}

// ReadSecret reads the file with the shipping secret; without one, the secret is that of the environment, or empty.
func ReadSecret(path string) ([]byte, error) {
	if path == "" {
		return []byte(os.Getenv(SecretEnv)), nil
	}
	return readSecret("--secret-file", path)
}

// ReadPassword reads the password file of a client command.
func ReadPassword(path string) (string, error) {
	p, err := readSecret("--requirepass-file", path)
	return string(p), err
}

// address checks a listening address, and that it has credentials when others can reach it.
func address(flag, addr string, credentials bool, need string) error {
	if addr == "" {
		return nil
	}
	if err := hostPort(flag, addr); err != nil {
		return err
	}
	if !credentials && !Loopback(addr) {
		return fmt.Errorf("%s %s is reachable from other machines: give %s, or listen on 127.0.0.1", flag, addr, need)
	}
	return nil
}

// HostPort checks an address to connect to.
func HostPort(flag, addr string) error {
	if err := hostPort(flag, addr); err != nil {
		return err
	}
	if _, port, _ := net.SplitHostPort(addr); port == "0" {
		return fmt.Errorf("%s %q: want HOST:PORT", flag, addr)
	}
	return nil
}

// hostPort checks an address to listen on, where host and port may be left to the system.
func hostPort(flag, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s %q: want HOST:PORT", flag, addr)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%s %q: unknown port", flag, addr)
	}
	return nil
}

// Loopback reports whether host:port is reachable from this machine alone.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// load makes the settings of both sides. No certificate and no authorities: no TLS.
func (t *TLS) load() (server, ship, client *tls.Config, err error) {
	if (t.Cert == "") != (t.Key == "") {
		return nil, nil, nil, errors.New("--tls-cert and --tls-key belong together")
	}
	if t.Cert == "" && t.CA == "" {
		return nil, nil, nil, nil
	}
	client = &tls.Config{MinVersion: tls.VersionTLS12}
	var pool *x509.CertPool
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("--tls-ca: %w", err)
		}
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, nil, nil, fmt.Errorf("--tls-ca %s: holds no certificate", t.CA)
		}
		client.RootCAs = pool
	}
	if t.Cert == "" {
		return nil, nil, client, nil
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
	}
	client.Certificates = []tls.Certificate{pair}
	server = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	ship = server.Clone()
	if pool != nil {
		ship.ClientCAs, ship.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return server, ship, client, nil
}

// Client returns the TLS settings of a command that asks a node; nil: plain.
func (t *TLS) Client() (*tls.Config, error) {
	_, _, client, err := t.load()
	return client, err
}
