package run

import (
	"errors"
	"fmt"
)

var (
	// ErrOrder is returned by [Writer.Add] for an entry that does not come behind the last one: keys ascend, and the
	// Refs of one key descend.
	ErrOrder = errors.New("run: entry out of order")
	// ErrTooLarge is returned for a key longer than [memindex.MaxKeyLen] and for a run past its largest size.
	ErrTooLarge = errors.New("run: too large")
	// ErrFinished is returned by methods of a [Writer] after Finish or Abort.
	ErrFinished = errors.New("run: writer is finished")
)

// CorruptError reports bytes of a run that do not validate. The run is derived data: it is to be dropped and rebuilt
// from the log.
type CorruptError struct {
	Path   string // file
	Offset int64  // where the block begins that does not validate, in bytes
	Reason string // what does not hold
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("run: corrupt: %s offset %d: %s", e.Path, e.Offset, e.Reason)
}

// Is reports whether target is a [*CorruptError] with no fields set, so that errors.Is can test for the kind.
func (e *CorruptError) Is(target error) bool {
	t, ok := target.(*CorruptError)
	return ok && *t == CorruptError{}
}
