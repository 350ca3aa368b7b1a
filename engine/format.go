package engine

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"shiplog/wal"
)

// The format level of a database says which records may be in its log. Each level has all of those before it. It is raised by an operator, once every
// node runs a build that knows it, and never falls: a record in the log says so, and the tail records behind it. A build that does not know the level
// of a log stores, confirms and ships it, and applies nothing from that record on.
//
//	1  the first; where the log says nothing
//	2  records of degraded spans say why, tail records list the spans
const (
	firstFormat = 1
	// FormatLevel is the newest format level that this build knows. A new database begins with it.
	FormatLevel = 2
)

// knownFormat is FormatLevel; tests play older and newer builds.
var knownFormat atomic.Uint32

func init() { knownFormat.Store(FormatLevel) }

// formatAt is a format level and the end of the record that raised it; 0 where that is not known, because it lies below what can be cut.
type formatAt struct {
	level uint32
	end   wal.LSN
}

// checkFormat answers a *wal.VersionError for a level that this build does not know.
func checkFormat(level uint32) error {
	if known := knownFormat.Load(); level > known {
		return &wal.VersionError{What: "format level", Have: known, Need: level}
	}
	return nil
}

// checkControl is checkFormat for what a control record says.
func checkControl(c wal.Control) error {
	switch c := c.(type) {
	case *wal.FormatRecord:
		return checkFormat(c.Level)
	case *wal.TailRecord:
		return checkFormat(c.FormatLevel)
	}
	return nil
}

// formatLevel is the level in force. m.mu is held.
func (m *marks) formatLevel() uint32 {
	if n := len(m.formats); n > 0 {
		return m.formats[n-1].level
	}
	return firstFormat
}

// raisedFormat takes up a record, ending at end, that says which level the log has. m.mu is held.
func (m *marks) raisedFormat(level uint32, end wal.LSN) {
	if level > m.formatLevel() {
		m.formats = append(m.formats, formatAt{level, end})
	}
}

// cutFormats forgets what records behind an LSN have raised. m.mu is held.
func (m *marks) cutFormats(at wal.LSN) {
	m.formats = slices.DeleteFunc(m.formats, func(f formatAt) bool { return f.end > at })
}

// FormatLevel is the format level of the database, as far as this node has applied its log.
func (db *DB) FormatLevel() uint32 {
	db.marks.mu.Lock()
	defer db.marks.mu.Unlock()
	return db.marks.formatLevel()
}

// RaiseFormat raises the format level of the database, on its leader, by a record that is committed on return. There is no way back: nodes whose builds do not know
// the level apply nothing any more, so all of them must be of a build that does first. A level that is in force already is no error. wal.ErrVersion: this
// build does not know the level. ErrUnknownOutcome, when ctx ends early: the record is in the log and may be committed yet.
func (db *DB) RaiseFormat(ctx context.Context, level uint32) error {
	if err := checkFormat(level); err != nil {
		return fmt.Errorf("raise the format level: %w", err)
	}
	db.ruleMu.Lock()
	defer db.ruleMu.Unlock()
	now := db.FormatLevel()
	switch {
	case level < now:
		return fmt.Errorf("%w: format level %d, the database has %d", ErrInvalidOption, level, now)
	case level == now:
		return nil
	}
	pos, err := db.appendRecord(&wal.FormatRecord{Level: level})
	if err != nil {
		return fmt.Errorf("raise the format level to %d: %w", level, err)
	}
	db.opts.Logger.Warn("the format level is raised", "from", now, "to", level, "lsn", pos.LSN.String())
	if err := db.WaitApplied(ctx, pos); err != nil {
		return &OutcomeError{Position: pos, Cause: err}
	}
	return nil
}

// createFormat says in the log of a new database that it begins with the newest level.
func (db *DB) createFormat() error {
	if level := knownFormat.Load(); level > firstFormat {
		if _, err := db.log.AppendControl(&wal.FormatRecord{Level: level}, true); err != nil {
			return fmt.Errorf("create database: %w", err)
		}
	}
	return nil
}
