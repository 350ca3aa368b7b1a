package engine

import (
	"errors"
	"fmt"

	"shiplog/wal"
)

// Errors of reads and writes. Test with errors.Is: most arrive wrapped with their circumstances.
var (
	// ErrNotFound is returned when a key has no visible, unexpired value.
	ErrNotFound = errors.New("engine: key not found")
	// ErrConflict is returned by CompareAndSwap's and Update's transactions that kept meeting newer writes.
	ErrConflict = errors.New("engine: conflict with a newer write")
	// ErrNotInteger is returned by Increment when the stored value is not a decimal int64 or the sum overflows.
	ErrNotInteger = errors.New("engine: value is not an integer or out of range")
	// ErrKeyTooLarge is returned for keys above MaxKeySize.
	ErrKeyTooLarge = errors.New("engine: key too large")
	// ErrValueTooLarge is returned for values above MaxValueSize.
	ErrValueTooLarge = errors.New("engine: value too large")
	// ErrBatchTooLarge is returned for batches above MaxBatchSize.
	ErrBatchTooLarge = errors.New("engine: batch too large")
	// ErrUnknownOutcome is returned when a write's wait ended early: it may yet become visible, or
	// be lost at a fork. The error is an *OutcomeError, whose Position can be asked with DB.Outcome.
	ErrUnknownOutcome = errors.New("engine: outcome unknown")
	// ErrTooFewFollowers is returned before anything is written, when the commit rule cannot be met.
	ErrTooFewFollowers = errors.New("engine: too few followers for the commit rule")
	// ErrPendingFull is returned before anything is written, when more than MaxPending bytes already
	// wait for their followers.
	ErrPendingFull = errors.New("engine: too many unconfirmed bytes")
	// ErrReadOnly is returned for writes on a follower.
	ErrReadOnly = errors.New("engine: this node is a follower")
	// ErrFenced is returned for writes on a leader that has learnt of a higher epoch.
	ErrFenced = errors.New("engine: fenced by a higher epoch")
	// ErrLeaseLost is returned by a leader whose lease has run out: for reads, for writes before anything is written, and as the cause of
	// ErrUnknownOutcome for those that were under way.
	ErrLeaseLost = errors.New("engine: the lease to lead has run out")
	// ErrLoading is returned for reads while what was recovered, or copied so far, may not be shown yet.
	ErrLoading = errors.New("engine: loading")
	// ErrLogOnly is returned for reads, waits for readers and promotions of a node that keeps the log only: Options.LogOnly.
	ErrLogOnly = errors.New("engine: this node keeps the log only")
	// ErrTrimmed is returned by Changes and Outcome for a position below the tail of the log.
	ErrTrimmed = wal.ErrTrimmed
	// ErrSnapshotTooOld is returned by reads of a snapshot, and of its iterators, when the log has given up what it may show.
	ErrSnapshotTooOld = errors.New("engine: snapshot too old")
	// ErrLost is returned for a position that this database's history does not contain.
	ErrLost = errors.New("engine: position was lost at a fork of the history")
	// ErrNoQuorum is returned by Promote when too few voters have promised the new epoch.
	ErrNoQuorum = errors.New("engine: too few promises to lead")
	// ErrNotLeader is returned by Open for a directory whose log belongs to another leader.
	ErrNotLeader = errors.New("engine: the log belongs to another leader; open it as a follower")
	// ErrClosed is returned after Close, of the database, the snapshot or the iterator that is used.
	ErrClosed = errors.New("engine: database closed")
	// ErrInvalidOption is returned for options and arguments that make no sense.
	ErrInvalidOption = errors.New("engine: invalid option")
	// ErrTxDone is returned by a transaction that is used after its function has returned.
	ErrTxDone = errors.New("engine: transaction has ended")
	// ErrLocked is returned by Open when another process, or another DB, has the directory open.
	ErrLocked = wal.ErrLocked
	// ErrStalled is why the log of a disk that has not answered for StallTimeout takes no more writes.
	ErrStalled = wal.ErrStalled
	// ErrPoisoned is returned after a failed sync: the log takes no more writes until it is reopened.
	ErrPoisoned = wal.ErrPoisoned
	// ErrNoSpace is returned before anything is written when the disk is full; writes work again
	// once there is room.
	ErrNoSpace = wal.ErrNoSpace
)

// errIndexFull is the full disk as the index meets it.
var errIndexFull = fmt.Errorf("%w: the index cannot be written, and has outgrown its memory", ErrNoSpace)

// OutcomeError is the error of a write whose wait ended before its commit rule or level held.
// It matches ErrUnknownOutcome, and whatever ended the wait (context.DeadlineExceeded, ErrPoisoned...).
type OutcomeError struct {
	Position wal.Position // where the write ends in the log; zero: it had not got there when the wait ended
	Cause    error        // what ended the wait
}

// Error implements error.
func (e *OutcomeError) Error() string {
	if e.Position == (wal.Position{}) {
		return fmt.Sprintf("%v: %v", ErrUnknownOutcome, e.Cause)
	}
	return fmt.Sprintf("%v at %v: %v", ErrUnknownOutcome, e.Position, e.Cause)
}

// Unwrap gives ErrUnknownOutcome and the cause to errors.Is.
func (e *OutcomeError) Unwrap() []error { return []error{ErrUnknownOutcome, e.Cause} }
