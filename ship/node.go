package ship

import (
	"time"

	"shiplog/wal"
)

// Node is what both sides need of the node whose log they ship. The engine's DB is one.
type Node interface {
	// Log returns the node's log.
	Log() *wal.Log
	// Committed, Applied and Visible return the node's marks; see the package documentation of wal for the words.
	Committed() wal.LSN
	Applied() wal.LSN
	Visible() wal.LSN
	// Subscribe has a value sent to ch, without blocking, whenever the head or a mark has moved.
	Subscribe(ch chan<- struct{}) (cancel func())
	// Fence says that a higher epoch was seen. It is persisted, and writes have stopped, on return.
	Fence(e wal.Epoch) error
}

// LeaderNode is what a [Leader] needs of its node. A DB of package engine is one, of either role.
type LeaderNode interface {
	Node
	// AdmitPeer is called when a follower that wishes to be a voter is durable up to the committed mark, as read
	// when it had been sent everything below it; and again at intervals while the answer is no. It reports whether
	// the follower is a voter. It may append to the log; it does not wait for a commit.
	AdmitPeer(id wal.NodeID, name, addr string) (voter bool, err error)
	// PeerAck tells how far a follower is, voter or not. It does not block.
	PeerAck(id wal.NodeID, received, durable, applied, visible wal.LSN)
	// PeerGone says that a follower's connection ended; it is called once after the last PeerAck.
	PeerGone(id wal.NodeID)
}

// FollowerNode is what a [Follower] needs of its node. A DB of package engine that was opened as a follower is one.
type FollowerNode interface {
	Node
	// FollowMark says that everything below committed is committed in the history that is being followed, and what
	// the leader's clock showed (Unix milliseconds) when it said so.
	FollowMark(committed wal.LSN, leaderTime int64) error
}

// Cutter is implemented by follower nodes that can have their log cut back: CutLog does what wal.Log.Truncate does,
// and drops what the node derived from the bytes above. The log of a node that is no Cutter is cut only above what
// it has applied; else the follower stops with [ErrDiverged].
type Cutter interface {
	CutLog(to wal.LSN) error
}

// CommitJudge is implemented by follower nodes that know under which rule what they hold was committed: CommittedAlone reports
// whether no follower had to confirm anything that was committed at or above an LSN, so that another history may lack it. A node that is
// no CommitJudge never cuts below its committed mark.
type CommitJudge interface {
	CommittedAlone(from wal.LSN) bool
}

// Restarter is implemented by follower nodes that can give up their whole log, and what they derived from it, to copy it anew.
// The log is empty, durably, on return. A node that is no Restarter stops with [ErrTrimmed] where that is needed.
type Restarter interface {
	StartOver() error
}

// SlotHolder is implemented by nodes that keep the log for their followers. HoldSlot is called when a follower begins to be fed
// from an LSN, ReleaseSlot when that connection has ended; PeerAck between them tells what the follower has on its disk.
type SlotHolder interface {
	HoldSlot(id wal.NodeID, name string, from wal.LSN)
	ReleaseSlot(id wal.NodeID)
}

// DamageTaker is implemented by nodes that can do something about damage in their own log. Damaged is called when a follower has
// found what this node sent not to be valid, and when the medium did not give back what was to be sent. It does not block.
type DamageTaker interface {
	Damaged(at wal.LSN)
}

// LogClock is implemented by leader nodes that have a better clock than the system's: log time, which never falls.
type LogClock interface {
	// LogTime returns Unix milliseconds.
	LogTime() int64
}

// LogKeeper is implemented by follower nodes that may keep the log without applying it. KeepsLogOnly says whether this one does: its
// upstream then expects no readers of it.
type LogKeeper interface {
	KeepsLogOnly() bool
}

// LateShower is implemented by follower nodes that may show what they have later on purpose. ShowsLate says whether this one does: its
// leader then waits for none of its readers.
type LateShower interface {
	ShowsLate() bool
}

// FeatureShowsLate is the feature of a follower that is a [LateShower], and of an upstream that takes that into account.
const FeatureShowsLate = 2

// ReaderJudge is implemented by leader nodes that count followers' readers. PeerReads is called at the beginning of each connection of one that wishes to be a voter, before
// [LeaderNode.AdmitPeer], and says whether readers of the follower see what it has as soon as they can.
type ReaderJudge interface {
	PeerReads(id wal.NodeID, name string, reads bool)
}

// VoterLister is implemented by leader nodes whose voters change. A follower that is no voter any more drops to the
// committed mark at once; one that has become a voter is admitted at its next acknowledgement. With a node that is no VoterLister,
// a voter stays one until its connection ends.
type VoterLister interface {
	// IsVoter reports whether the follower is a voter now. It is asked before each message, and does not block.
	IsVoter(id wal.NodeID) bool
}

// ReadLeaser is implemented by leader nodes whose reads rest on leases of their followers.
type ReadLeaser interface {
	// WantsReadLease reports whether they do, now. It does not block.
	WantsReadLease() bool
	// PeerLease tells that a follower grants no promise within [ReadLease] of a moment in the past.
	PeerLease(id wal.NodeID, asked time.Time)
}

// ReadLender is implemented by follower nodes that know when to hold a promise back. Both methods do not block.
type ReadLender interface {
	// LendRead lets the leader of an epoch rely on it, for [ReadLease] from now on, that this node grants no promise. False: it has, or
	// is about to.
	LendRead(e wal.Epoch) bool
	// ReleaseRead says that the leader relies on nothing any more.
	ReleaseRead()
}

// VisibilityAwaiter is implemented by nodes that know whether writes wait for what followers' readers see. The method does not block.
type VisibilityAwaiter interface {
	// AwaitsVisibility reports whether the commit rule asks for that. Then a leader sends marks, and a follower tells what has become visible, at
	// once, else within some milliseconds.
	AwaitsVisibility() bool
}

// ReadLease is how long a follower that returns the probe of a [Mark] with Lease grants no promise, counted from when it received it.
const ReadLease = time.Second

// FeatureReadLease is the feature of a follower that lends such leases, and of a leader that wants them.
const FeatureReadLease = 1

// SyncHinter is implemented by leader nodes that know whether anybody waits for the disks of followers, now. While
// it says no, voters sync a little later instead of at once, which brings what they have received sooner. A node
// that is no SyncHinter always waits.
type SyncHinter interface {
	AwaitsSync() bool
	// AwaitsReceipt says whether anybody may wait for what followers have received, sooner than for their disks. While it
	// says no, voters that sync at once acknowledge once, after that.
	AwaitsReceipt() bool
}
