package resp

import (
	"context"
	"errors"
	"time"
)

// Errors that a [Store] or a [Node] returns; the server turns each into the reply that Redis has for the situation.
// They are matched with errors.Is.
var (
	// ErrNotFound is returned when a key does not exist.
	ErrNotFound = errors.New("resp: key not found")
	// ErrReadOnly is returned when a write reaches a node that is not the leader.
	ErrReadOnly = errors.New("resp: node is read only")
	// ErrLoading is returned when reads must wait for the commit rule to hold for what was recovered.
	ErrLoading = errors.New("resp: node is loading")
	// ErrLogOnly is returned for reads by a node that keeps the log without an index.
	ErrLogOnly = errors.New("resp: node keeps the log only")
	// ErrNotLeading is returned by a leader that may have been replaced without knowing it; nothing was written.
	ErrNotLeading = errors.New("resp: node may not lead any more")
	// ErrTooFewFollowers is returned when the commit rule cannot hold and the write was refused unwritten.
	ErrTooFewFollowers = errors.New("resp: too few followers")
	// ErrUnknownOutcome is returned when the wait for the commit rule ended early: the write may still be committed.
	ErrUnknownOutcome = errors.New("resp: outcome of the write is unknown")
	// ErrTooLarge is returned when a key, a value or a batch is over the store's limit; nothing was written.
	ErrTooLarge = errors.New("resp: too large")
	// ErrNoSpace is returned when the disk is full; nothing was written.
	ErrNoSpace = errors.New("resp: no space left on device")
	// ErrPoisoned is returned when the log refuses writes after a failed sync.
	ErrPoisoned = errors.New("resp: log is read only after a failed sync")
	// ErrConflict is returned when a transaction lost to other writers too often; nothing was written.
	ErrConflict = errors.New("resp: transaction conflict")
	// ErrUnavailable is returned when a feature is not available in the node's present state or version.
	ErrUnavailable = errors.New("resp: not available")
)

// Position is the place of a write in the history of the log.
type Position struct {
	Epoch uint32
	LSN   uint64
}

// Reader reads the data. Times are Unix milliseconds; an expiry of 0 means never. Byte slices handed to a method are the
// caller's again when it returns; those handed to a callback are valid until it returns.
type Reader interface {
	// View calls fn with the value of key, or returns ErrNotFound.
	View(key []byte, fn func(value []byte) error) error
	// Entry is View that also tells when the value expires.
	Entry(key []byte, fn func(value []byte, expiry int64) error) error
	// Has reports whether key exists.
	Has(key []byte) (bool, error)
	// Keys calls fn for the keys at or above from, in ascending order, until it returns false.
	Keys(from []byte, fn func(key []byte) bool) error
	// Len estimates the number of keys; those that have expired and were not removed yet may count.
	Len() (int64, error)
	// Now is the time by which expiry is judged.
	Now() int64
}

// Store is what the server needs of the data. As a Reader it shows what is visible at the moment of each call. All methods may
// be called concurrently.
type Store interface {
	Reader
	// Snapshot returns what is visible now. It must be closed.
	Snapshot() Snapshot
	// NewBatch returns an empty batch, to be used by one goroutine at a time.
	NewBatch() Batch
	// Commit applies b atomically and returns when the commit rule holds for it and it is visible.
	Commit(ctx context.Context, b Batch) (Position, error)
	// Update runs fn in a serializable transaction and commits it, calling fn again if it lost against another
	// writer. It returns when the commit rule holds for the result and for all that was read. A transaction that writes
	// nothing works on a node that is not Writable too.
	Update(ctx context.Context, fn func(tx Tx) error) (Position, error)
	// NewWatch returns a watch of no keys.
	NewWatch() Watch
	// Limits returns the largest key and value, in bytes.
	Limits() (maxKey, maxValue int)
	// Writable reports whether this node accepts writes, cheaply: it is asked before each one.
	Writable() bool
}

// Snapshot is the data of one moment.
type Snapshot interface {
	Reader
	Close()
}

// Batch is a list of unconditional writes.
type Batch interface {
	Put(key, value []byte)
	PutTTL(key, value []byte, expiry int64)
	Delete(key []byte)
	// DeleteAll deletes every key.
	DeleteAll()
	Reset()
}

// Tx is a transaction in the making; it sees its own writes.
type Tx interface {
	Reader
	Put(key, value []byte, expiry int64) error
	Delete(key []byte) error
	DeleteAll() error
	// Unchanged reports whether no key of w was changed between its being added and this transaction, the transaction's
	// own writes included.
	Unchanged(w Watch) (bool, error)
}

// Watch notices changes of keys: writes, even those that change nothing, deletes and expiry. It is used by one goroutine at a
// time, and must be closed.
type Watch interface {
	// Add takes up a key; from the call's return on changes are noticed. Adding a key again changes nothing.
	Add(key []byte) error
	// Len is the number of keys.
	Len() int
	Close()
}

// Node is what the server needs of the node around the store.
type Node interface {
	// Failover has another node take over, in the background; writes are refused meanwhile.
	Failover(ctx context.Context, f Failover) error
	// AbortFailover ends that, and this node leads on.
	AbortFailover() error
	// LeaderAddr is where clients reach the leader, as far as this node knows; empty: it does not, or leads itself.
	LeaderAddr() string
	// Info returns what INFO, ROLE and CONFIG GET report.
	Info() NodeInfo
	// WaitReplicas waits until n followers have pos in memory, or on disk when durable, or ctx ends, and returns
	// how many have.
	WaitReplicas(ctx context.Context, pos Position, n int, durable bool) int
	// LocalDurable reports whether this node's disk has pos; when wait is set it first waits for it or ctx's end.
	LocalDurable(ctx context.Context, pos Position, wait bool) bool
	// ReplicaOf makes the node follow the one whose RESP address is given. NO ONE has an empty host.
	ReplicaOf(ctx context.Context, host, port string) error
}

// NodeInfo is a snapshot of the node for INFO, ROLE and CONFIG GET. LSNs are bytes.
type NodeInfo struct {
	Version    string // of this program
	NodeID     string
	Name       string
	Dir        string
	Rule       string
	TooFew     string
	ShipAddr   string // where this node ships from; empty when it does not
	HTTPAddr   string
	DatabaseID string
	HistoryID  string
	Epoch      string
	Leader     bool
	Loading    bool
	LogOnly    bool          // keeps the log without an index
	ApplyDelay time.Duration // by how much a follower applies later on purpose

	Tail, Head, Durable, Committed, Applied, Visible uint64

	DegradedFrom  uint64   // start of the open span in which the commit rule is degraded; 0: none
	DegradedSpans []string // the newest spans in which it was, oldest first, as fields of INFO
	Failed        string   // why the log takes no more writes; empty: it does

	FormatLevel uint32
	Digest      string
	DigestLSN   uint64
	Keys        int64

	FailoverState string // as INFO shows it

	Slots   []string // what is kept for followers, as fields of INFO
	Repairs Repairs

	Upstream *Upstream // nil on a leader
	Replicas []Replica // connected followers
}

// Repairs is what was found damaged in the log, and mended, since the node was started.
type Repairs struct {
	Scrubs                           int64     // of the whole log
	LastScrub                        time.Time // zero: none yet
	Damaged, Repaired, Failed, Bytes int64     // segments; Bytes: that were mended
}

// Upstream is the node that a follower follows.
type Upstream struct {
	Host, Port string
	Connected  bool
	LastIO     time.Time // of the last message; zero: none yet
	DownSince  time.Time // when the link was lost; zero while connected
	Reason     string    // why it is not connected
	LagBytes   int64     // committed and not served here; -1: not connected, so that nobody knows
	LagMs      int64     // age of what is served here, by log time; it grows while cut off, not while nothing is written; -1: never known
}

// Replica is a connected follower as its upstream sees it.
type Replica struct {
	NodeID, Name, Host, Port         string
	State                            string // Redis's word: online, wait_bgsave or send_bulk
	Voter, LogOnly, Delayed          bool
	Sent, Received, Durable, Applied uint64
	LastAck                          time.Time
	Lag                              time.Duration
}
