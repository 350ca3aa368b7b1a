package wal

import (
	"errors"
	"fmt"
)

// Opening.
var (
	// ErrLocked is returned by Open when another process, or another Log of this process, has the directory open.
	ErrLocked = errors.New("wal: directory is locked by another process")
	// ErrVersion matches every [*VersionError]: the bytes were written by a newer format.
	ErrVersion = errors.New("wal: unsupported format version")
	// ErrDatabase is returned when bytes or a directory belong to another database than the one expected.
	ErrDatabase = errors.New("wal: belongs to another database")
	// ErrNoDatabase is returned by calls that need a database on a log that has none yet.
	ErrNoDatabase = errors.New("wal: no database in this log")
	// ErrExists is returned by Create on a log that has a database.
	ErrExists = errors.New("wal: database exists")
)

// Writing.
var (
	// ErrClosed is returned after Close by every call that needs a file of the log.
	ErrClosed = errors.New("wal: log closed")
	// ErrReadOnly is returned by writing calls on a log that was opened read-only or that recovery holds back.
	ErrReadOnly = errors.New("wal: log is read-only")
	// ErrPoisoned is returned by writing calls after a sync or a store failed: what the disk holds past the last
	// successful sync is unknown until the log is opened again. The error that caused it is wrapped.
	ErrPoisoned = errors.New("wal: log poisoned by a failed write or sync")
	// ErrStalled is why a log was poisoned whose disk has not answered for Options.StallTimeout.
	ErrStalled = errors.New("wal: the disk does not answer")
	// ErrNoSpace is returned when the disk is full. Nothing was appended; reads go on, and writes work again once
	// there is room.
	ErrNoSpace = errors.New("wal: no space left on device")
	// ErrTooLarge is returned when a record, a batch or a control record is over its limit.
	ErrTooLarge = errors.New("wal: too large")
	// ErrEpoch is returned when an epoch is lower than one that this node has seen or promised.
	ErrEpoch = errors.New("wal: epoch too low")
	// ErrGap is returned by AppendRaw when the bytes offered do not begin at the head.
	ErrGap = errors.New("wal: bytes do not begin at the head")
	// ErrInvalid is returned for bytes offered to AppendRaw that are not valid at their position. Nothing of the
	// offending frame was written.
	ErrInvalid = errors.New("wal: bytes are not valid at this position")
	// ErrNotBoundary is returned by Truncate and DigestAt for a position that is not the end of a frame or header.
	ErrNotBoundary = errors.New("wal: position is not at the end of a frame")
)

// Reading.
var (
	// ErrTrimmed is returned for positions below the tail.
	ErrTrimmed = errors.New("wal: position is below the tail")
	// ErrBeyondEnd is returned for positions at or past the head.
	ErrBeyondEnd = errors.New("wal: position is past the head")
	// ErrIO is returned when the medium fails under a read: a read error, or a fault of the memory map. See [IOError].
	ErrIO = errors.New("wal: I/O error")
)

// VersionError says which version, codec or type was met and which is the newest that this code knows. It
// matches [ErrVersion].
type VersionError struct {
	What       string // "segment format", "codec", "control record", ...
	Have, Need uint32 // what this code supports at most; what the bytes ask for
}

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("wal: %s version %d is not supported (this build knows up to %d)", e.What, e.Need, e.Have)
}

// Is reports whether target is [ErrVersion].
func (e *VersionError) Is(target error) bool { return target == ErrVersion }

// CorruptError reports damage: bytes that were durable, or that stand before bytes that were, and that do not
// validate. They are never cut away.
type CorruptError struct {
	Path   string // file
	LSN    LSN    // position of the frame or header that does not validate
	Offset int64  // the same position in the file
	Reason string // what does not hold
	Err    error  // cause, or nil
}

// IOError says where the medium has failed under a read. It matches [ErrIO].
type IOError struct {
	Path   string // file
	LSN    LSN    // what was read begins here; for a fault of the map, the byte that could not be had. 0: no segment's file
	Offset int64  // the same position in the file
	Err    error  // cause
}

// Error implements error.
func (e *IOError) Error() string {
	return fmt.Sprintf("%v: %s offset %d (LSN %s): %v", ErrIO, e.Path, e.Offset, e.LSN, e.Err)
}

// Unwrap returns the cause.
func (e *IOError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrIO].
func (e *IOError) Is(target error) bool { return target == ErrIO }

// Error implements error.
func (e *CorruptError) Error() string {
	s := fmt.Sprintf("wal: corrupt: %s offset %d (LSN %s): %s", e.Path, e.Offset, e.LSN, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// Is reports whether target is a [*CorruptError] with no fields set, so that errors.Is can test for the kind.
func (e *CorruptError) Is(target error) bool {
	t, ok := target.(*CorruptError)
	return ok && *t == CorruptError{}
}
