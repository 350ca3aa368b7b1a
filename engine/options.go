package engine

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"shiplog/wal"
	"shiplog/wal/vfs"
)

// Compression is the codec of new frames.
type Compression = wal.Compression

// The codecs. A frame that would shrink by less than an eighth is stored raw under each of them.
const (
	S2            = wal.S2
	Zstd          = wal.Zstd
	NoCompression = wal.NoCompression
)

// TooFew says what a write does while fewer followers are connected than its commit rule needs.
type TooFew uint8

// What a write does when the commit rule cannot be met at the moment.
const (
	// Refuse answers ErrTooFewFollowers at once, before anything is written.
	Refuse TooFew = iota
	// Block waits for followers, within the caller's deadline, before anything is written.
	Block
	// Degrade falls back to Durable after DegradeAfter, under a control record in the log that
	// opens the span before its first acknowledgement; another ends it.
	Degrade
)

// Options configure Open. The zero value of each field is its default. They are copied by Open.
type Options struct {
	// Commit is the commit rule of a new database: what must hold before a write becomes visible.
	// Default (zero) means Durable. It is kept in the log; for an existing database it is ignored
	// when zero and must equal the stored rule otherwise.
	Commit Level
	// FirstVoters makes the commit rule of a new database, if it is a synchronous one, count only the first N connected voters, in the
	// order of Voters; otherwise any N count. A leader with an existing database is refused it where the stored rule counts any.
	FirstVoters bool
	// Voters names the followers that count for a synchronous rule. Empty: each follower that
	// connects with a name becomes a voter by a control record.
	Voters []string
	// TooFew says what a write does while the rule cannot be met: Refuse (zero), Block or Degrade.
	TooFew TooFew
	// DegradeAfter is how long TooFew: Degrade waits before it falls back. Zero: 5 s.
	DegradeAfter time.Duration
	// CommitTimeout bounds Put, Delete and every Commit whose context has no earlier deadline; then
	// the answer is ErrUnknownOutcome. Zero: 10 s. Negative: no bound.
	CommitTimeout time.Duration
	// MaxPending bounds the bytes that may wait for their commit rule. Zero: 256 MiB.
	MaxPending int64
	// StallTimeout is how long the disk may take for one write or sync of the log. After that it counts as failed: waits end with ErrUnknownOutcome, and
	// nothing is acknowledged any more before the database is opened again, whatever the disk answers later; with Lease another node then
	// leads. A call that has the disk write for its group, and no deadline in its context, returns when the disk answers. Zero: 20 s. Negative: no bound.
	StallTimeout time.Duration
	// FlushInterval is the longest time that a write under Buffered or Written stays unsynced. Zero: 10 ms.
	FlushInterval time.Duration

	// MemIndexSize bounds the memory of the index, in bytes, at least 1 MiB: keys beyond it are kept in sorted runs on disk.
	// It may be passed by what is not committed yet; and twice over while runs cannot be written, then writes answer ErrNoSpace and a
	// follower stops applying. At most 16 GiB. Zero: 256 MiB.
	MemIndexSize int64

	// CacheSize is how many bytes of unpacked frames are kept for reads. Memory is taken as it is needed. Zero: 128 MiB. Negative: none.
	CacheSize int64
	// SpaceFactor bounds the log: reclaim keeps it below so many hundredths of what lives in it, and three segments. Small factors cost
	// writes: at 200 about a fifth, at 150 half of what is written is written again under random overwrites. Zero: 200. At least 120.
	// Negative: nothing is reclaimed.
	SpaceFactor int
	// SortWhenIdle has reclaim write small records again in the order of their keys, once each, while nothing is written. Scans after a load in
	// random order are several times as fast then; it costs one more writing, and shipping, of the data.
	SortWhenIdle bool
	// MaxPinned bounds how many bytes of log beyond its tail are kept for snapshots and for slots of followers. A snapshot that would
	// need more answers ErrSnapshotTooOld; the slot of a follower is given up, and it starts over. Zero: 4 GiB.
	MaxPinned int64

	// MaxPinnedAge bounds for how long the log is kept for a follower with a name that is not connected. Zero: no bound but MaxPinned.
	MaxPinnedAge time.Duration

	// Compression is the codec of new frames: S2 (zero), Zstd, NoCompression.
	Compression Compression
	// SegmentSize is the size of log segments of a new database in bytes, a power of two from 64 KiB to 1 GiB. Zero: 64 MiB. A leader
	// with an existing database must be given zero or the size that it has; a follower has its upstream's.
	SegmentSize int64
	// Follower opens the database read-only for clients; package ship feeds it.
	Follower bool
	// LogOnly makes a follower that keeps the log and no index: it takes and acknowledges everything, promises, and hands on what it has, but answers
	// reads with ErrLogOnly, is not counted by Applied, and is never promoted. Opened without LogOnly it builds its index from the log. An
	// index that is there is removed. It needs Follower.
	LogOnly bool
	// ApplyDelay makes a follower apply what it has only once that is older than this, by log time: a time in which a mistake can be looked up as it was
	// before. Disk and acknowledgements do not wait; Applied does not count the node; the log is kept for as much longer. A promotion
	// applies everything first. To set it, or to make it longer, may take back what was shown
	// before the restart. Zero: none.
	ApplyDelay time.Duration
	// StaleReads lets reads see the last known committed state where they would answer ErrLoading.
	StaleReads bool

	// Lease, when set, bounds what this node does as a leader; see [Lease]. A database that exists must then be opened as a Follower, and is
	// promoted. Nil: a leader leads until it learns of another.
	Lease Lease

	// ReadLeases makes a leader's reads linearizable under a rule that asks followers: they are answered only while as many voters as the rule asks for
	// are known to grant no promise to another, which they let their leader rely on for a second at a time; else, after waiting that long, with
	// ErrLeaseLost. A promotion waits until that second is over. In a degraded span, and after a promotion that was forced, nothing of
	// this holds. With Lease it is not needed.
	ReadLeases bool

	// Logger receives what an operator should know. Nil discards it.
	Logger *slog.Logger
	// FS is the file system. Nil: the operating system's.
	FS vfs.FS
	// Now is the wall clock, with its monotonic reading. Nil: time.Now.
	Now func() time.Time
}

const (
	defaultDegradeAfter  = 5 * time.Second
	defaultCommitTimeout = 10 * time.Second
	defaultMaxPending    = 256 << 20
	defaultMemIndexSize  = 256 << 20
	defaultCacheSize     = 128 << 20
	defaultSpaceFactor   = 200
	minSpaceFactor       = 120
	defaultMaxPinned     = 4 << 30
	minMemIndexSize      = 1 << 20
	maxMemIndexSize      = 16 << 30 // a table reaches 64 GiB
	defaultFlushInterval = 10 * time.Millisecond
)

// withDefaults validates o, reporting every violation at once, and fills in what is zero.
func (o *Options) withDefaults() (Options, error) {
	var c Options
	if o != nil {
		c = *o
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrInvalidOption}, args...)...))
	}
	if err := c.Commit.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.SegmentSize != 0 && (c.SegmentSize < 64<<10 || c.SegmentSize > 1<<30 || c.SegmentSize&(c.SegmentSize-1) != 0) {
		bad("segment size %d is not a power of two from 64 KiB to 1 GiB", c.SegmentSize)
	}
	if c.Compression > NoCompression {
		bad("unknown compression %d", c.Compression)
	}
	if c.TooFew > Degrade {
		bad("unknown TooFew %d", c.TooFew)
	}
	if c.DegradeAfter < 0 || c.MaxPending < 0 || c.FlushInterval < 0 {
		bad("negative DegradeAfter, MaxPending or FlushInterval")
	}
	if c.MemIndexSize != 0 && c.MemIndexSize < minMemIndexSize {
		bad("index memory of %d bytes, at least %d are needed", c.MemIndexSize, minMemIndexSize)
	}
	if c.MemIndexSize > maxMemIndexSize {
		bad("index memory of %d bytes, at most %d are possible", c.MemIndexSize, int64(maxMemIndexSize))
	}
	if c.SpaceFactor > 0 && c.SpaceFactor < minSpaceFactor {
		bad("space factor %d, at least %d hundredths are needed", c.SpaceFactor, minSpaceFactor)
	}
	if c.LogOnly && !c.Follower {
		bad("LogOnly without Follower: a node without an index cannot lead")
	}
	if c.ApplyDelay < 0 || c.ApplyDelay > 0 && c.LogOnly {
		bad("ApplyDelay is negative, or there is nothing to delay with LogOnly")
	}
	if c.MaxPinned < 0 {
		bad("negative MaxPinned")
	}
	if c.MaxPinnedAge < 0 {
		bad("negative MaxPinnedAge")
	}
	if len(c.Voters) > MaxVoters {
		bad("%d voters, at most %d are possible", len(c.Voters), MaxVoters)
	}
	seen := map[string]bool{}
	for _, name := range c.Voters {
		if name == "" || seen[name] {
			bad("voter name %q is empty or given twice", name)
		}
		seen[name] = true
		if len(name) > wal.MaxName {
			bad("voter name of %d bytes, at most %d are possible", len(name), wal.MaxName)
		}
	}
	if len(c.Voters) > 0 && c.Commit.synchronous() && c.Commit.N() > len(c.Voters) {
		bad("rule %v with only %d voters", c.Commit, len(c.Voters))
	}
	if c.FirstVoters && len(c.Voters) == 0 {
		bad("FirstVoters needs Voters")
	}
	if len(errs) > 0 {
		return c, errors.Join(errs...)
	}
	if c.Commit == Default {
		c.Commit = Durable
	}
	c.DegradeAfter = cmp.Or(c.DegradeAfter, defaultDegradeAfter)
	c.CommitTimeout = cmp.Or(c.CommitTimeout, defaultCommitTimeout)
	c.MaxPending = cmp.Or(c.MaxPending, defaultMaxPending)
	c.MemIndexSize = cmp.Or(c.MemIndexSize, defaultMemIndexSize)
	c.CacheSize = cmp.Or(c.CacheSize, defaultCacheSize)
	c.SpaceFactor = cmp.Or(c.SpaceFactor, defaultSpaceFactor)
	c.MaxPinned = cmp.Or(c.MaxPinned, defaultMaxPinned)
	c.FlushInterval = cmp.Or(c.FlushInterval, defaultFlushInterval)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.FS == nil {
		c.FS = vfs.OS
	}
	return c, nil
}
