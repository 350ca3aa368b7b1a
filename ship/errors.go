package ship

import (
	"errors"
	"fmt"
	"strings"

	"shiplog/wal"
)

// Lifecycle.
var (
	// ErrLeaderClosed is returned by [Leader.Serve] after [Leader.Shutdown].
	ErrLeaderClosed = errors.New("ship: leader closed")
	// ErrRunning is returned by [Follower.Run] while another Run of the same Follower is going on.
	ErrRunning = errors.New("ship: follower is running already")
	// ErrNoSecret is returned for a listener or an upstream that is not on this machine when no secret is set.
	ErrNoSecret = errors.New("ship: no secret: only loopback addresses are allowed")
	// ErrTimeout is returned when the peer stayed silent, or did not take what was sent, for too long.
	ErrTimeout = errors.New("ship: peer timed out")
)

// Refusals. An [*Error] matches the one of its code.
var (
	// ErrProtocol is returned when the peer sent bytes that are no valid message at that point.
	ErrProtocol = errors.New("ship: protocol violation")
	// ErrAuth is returned when the two sides do not share a secret.
	ErrAuth = errors.New("ship: authentication failed: the secrets differ")
	// ErrVersion is returned when the sides have no protocol or log format version in common.
	ErrVersion = errors.New("ship: no common version")
	// ErrDatabase is returned when the peer holds another database.
	ErrDatabase = errors.New("ship: peer holds another database")
	// ErrSelf is returned when a node was told to follow itself.
	ErrSelf = errors.New("ship: node follows itself")
	// ErrFenced is returned when the upstream's epoch is lower than one that the follower has seen or promised.
	ErrFenced = errors.New("ship: upstream is fenced by a higher epoch")
	// ErrSplitBrain is returned when both sides hold the same epoch under different history IDs.
	ErrSplitBrain = errors.New("ship: split brain: one epoch, two histories")
	// ErrDiverged is returned when the follower's log leaves the upstream's history at a fork below its end.
	ErrDiverged = errors.New("ship: follower's log diverged")
	// ErrDivergedCommitted is returned when the fork lies below the follower's own committed mark.
	ErrDivergedCommitted = errors.New("ship: follower's log diverged below its committed mark")
	// ErrDigest is returned when both sides agree on the history and yet hold different bytes.
	ErrDigest = errors.New("ship: digests differ")
	// ErrTrimmed is returned when the upstream no longer has the bytes after the follower's end.
	ErrTrimmed = errors.New("ship: upstream has trimmed the log past the follower's end")
	// ErrAhead is returned when the follower's log ends past the upstream's, in the same history.
	ErrAhead = errors.New("ship: follower is ahead of its upstream")
	// ErrBehind is returned when the upstream's log ends below the follower's committed mark.
	ErrBehind = errors.New("ship: upstream ends below the follower's committed mark")
	// ErrNotReady is returned while the upstream has no database to ship.
	ErrNotReady = errors.New("ship: upstream is not ready")
	// ErrShutdown is returned when the peer is shutting down.
	ErrShutdown = errors.New("ship: peer is shutting down")
	// ErrBusy is returned when the upstream has as many followers as it allows.
	ErrBusy = errors.New("ship: upstream has too many followers")
	// ErrReplaced is returned when a newer connection of the same node took over.
	ErrReplaced = errors.New("ship: replaced by a newer connection of this node")
	// ErrCorrupt is returned when bytes of the stream do not validate at their position.
	ErrCorrupt = errors.New("ship: bytes in the stream are not valid at their position")
	// ErrInternal is returned when the peer cannot go on for a reason of its own, such as its disk.
	ErrInternal = errors.New("ship: peer failed")
	// ErrLoop is returned when the chain of upstreams does not end at a leader.
	ErrLoop = errors.New("ship: upstreams form a loop")
	// ErrNotAdmitted is returned when the leader's node does not take the follower.
	ErrNotAdmitted = errors.New("ship: follower is not admitted")
	// ErrUnsupported is returned when the peer asks for something that this build does not offer.
	ErrUnsupported = errors.New("ship: not supported")
)

// Code says why one side ends a connection. Codes are part of the protocol.
type Code uint16

// The codes. A gap is never reused.
const (
	CodeProtocol          Code = 1
	CodeAuth              Code = 2
	CodeVersion           Code = 3
	CodeDatabase          Code = 4
	CodeSelf              Code = 5
	CodeFenced            Code = 6
	CodeSplitBrain        Code = 7
	CodeDiverged          Code = 8
	CodeDivergedCommitted Code = 9
	CodeDigest            Code = 10
	CodeTrimmed           Code = 11
	CodeAhead             Code = 12
	CodeBehind            Code = 13
	CodeNotReady          Code = 14
	CodeShutdown          Code = 15
	CodeBusy              Code = 16
	CodeReplaced          Code = 17
	CodeCorrupt           Code = 18
	CodeInternal          Code = 19
	CodeLoop              Code = 20
	CodeNotAdmitted       Code = 21
	CodeUnsupported       Code = 22
)

// codes holds what each code means: its sentinel, and whether trying again without a change by an operator is
// pointless.
var codes = map[Code]struct {
	err   error
	final bool
}{
	CodeProtocol:          {ErrProtocol, false},
	CodeAuth:              {ErrAuth, false}, // secrets are rotated one node after the other
	CodeVersion:           {ErrVersion, true},
	CodeDatabase:          {ErrDatabase, true},
	CodeSelf:              {ErrSelf, true},
	CodeFenced:            {ErrFenced, false}, // the address may come to name the new leader
	CodeSplitBrain:        {ErrSplitBrain, true},
	CodeDiverged:          {ErrDiverged, true},
	CodeDivergedCommitted: {ErrDivergedCommitted, true},
	CodeDigest:            {ErrDigest, true},
	CodeTrimmed:           {ErrTrimmed, true},
	CodeAhead:             {ErrAhead, false}, // an upstream that follows itself catches up
	CodeBehind:            {ErrBehind, false},
	CodeNotReady:          {ErrNotReady, false},
	CodeShutdown:          {ErrShutdown, false},
	CodeBusy:              {ErrBusy, false},
	CodeReplaced:          {ErrReplaced, false},
	CodeCorrupt:           {ErrCorrupt, false},
	CodeInternal:          {ErrInternal, false},
	CodeLoop:              {ErrLoop, false},
	CodeNotAdmitted:       {ErrNotAdmitted, false},
	CodeUnsupported:       {ErrUnsupported, true},
}

// String returns the text of the code's sentinel, or the number of a code that this build does not know.
func (c Code) String() string {
	if k, ok := codes[c]; ok {
		return strings.TrimPrefix(k.err.Error(), "ship: ")
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// Final reports whether a follower stops on this code instead of trying again.
func (c Code) Final() bool { return codes[c].final }

// Error is a refusal: found by this side, or told by the peer. Fields that do not apply to the code are zero.
type Error struct {
	Code   Code
	Remote bool           // the peer said so
	Epoch  wal.Epoch      // fenced: the higher epoch; diverged: the epoch that names the fork; split brain: the shared one
	LSN    wal.LSN        // diverged: the fork; digest, corrupt: where; trimmed: the upstream's tail; ahead, behind: its end
	Digest wal.Digest     // the upstream's digest at LSN (diverged, digest)
	Mine   wal.HistoryID  // split brain: the history of the side that sends the refusal
	Theirs wal.HistoryID  // split brain: the history of the other side
	Node   wal.NodeID     // fenced, diverged: leader of Epoch, where known
	DB     wal.DatabaseID // database: the one that the sender of the refusal holds
	Text   string         // for people
	Err    error          // local cause, or nil; not sent

	final bool // the peer's word on finality, for codes unknown to this build
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Remote {
		b.WriteString("ship: peer refused: ")
	} else {
		b.WriteString("ship: ")
	}
	b.WriteString(e.Code.String())
	if e.Text != "" {
		b.WriteString(": " + e.Text)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the local cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the sentinel of e's code.
func (e *Error) Is(target error) bool {
	k, ok := codes[e.Code]
	return ok && k.err == target
}

// Final reports whether a follower stops on this error instead of trying again.
func (e *Error) Final() bool {
	if k, ok := codes[e.Code]; ok {
		return k.final
	}
	return e.final
}

// refuse makes an [Error] found by this side.
func refuse(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Text: fmt.Sprintf(format, args...)}
}

// final reports whether [Follower.Run] must return err: the peer or the protocol says so, or this node's own log
// can take nothing more.
func final(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		if e.Final() {
			return true
		}
		if e.Err == nil {
			return false
		}
	}
	for _, f := range []error{wal.ErrClosed, wal.ErrPoisoned, wal.ErrReadOnly, wal.ErrVersion, wal.ErrDatabase, ErrNoSecret} {
		if errors.Is(err, f) {
			return true
		}
	}
	return false
}
