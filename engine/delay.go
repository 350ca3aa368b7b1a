package engine

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"shiplog/wal"
	"shiplog/wal/vfs"
)

// A delayed follower (Options.ApplyDelay) has everything on its disk at once, and applies a batch once that is older than the delay by log time.
// What somebody has deleted by mistake is there meanwhile. Its committed mark is what its upstream says, whatever is applied, so that forks are judged
// by what it knows. A promotion applies everything first.

// delay is by how much this node applies later than it could; zero on a leader, and while it is being promoted.
func (db *DB) delay() time.Duration {
	if db.opts.ApplyDelay == 0 || !db.follower.Load() || db.applyingAll.Load() > 0 {
		return 0
	}
	return db.opts.ApplyDelay
}

// early is for how long a frame is not to be applied yet. A batch that has begun is applied to its end.
func (db *DB) early(f wal.Frame) time.Duration {
	delay := db.delay()
	if delay == 0 || !f.First() {
		return 0
	}
	return max(0, delay-time.Duration(db.clock.read()-f.Time)*time.Millisecond)
}

// applyAll lifts the delay until resume is called.
func (db *DB) applyAll() (resume func()) {
	db.applyingAll.Add(1)
	db.kickApplier()
	return func() { db.applyingAll.Add(-1) }
}

// kickApplier has an applier that waits for a batch to grow old look again. It does not block.
func (db *DB) kickApplier() {
	select {
	case db.applyKick <- struct{}{}:
	default:
	}
}

// unapplied is how many bytes of whole batches this node has on purpose not applied yet.
func (db *DB) unapplied() wal.LSN {
	end, applied := db.log.BatchEnd(), db.marks.indexedLSN()
	if db.delay() == 0 || end <= applied {
		return 0
	}
	return end - applied
}

// ReadTime is log time as this node's readers stand in it, in unix milliseconds: what has expired by then is gone for them. On a delayed follower that is
// the delay ago, or the time of the newest batch that is applied, if that is later; else it is LogTime.
func (db *DB) ReadTime() int64 {
	now := db.clock.read()
	if db.opts.ApplyDelay == 0 || !db.follower.Load() {
		return now
	}
	return max(now-db.opts.ApplyDelay.Milliseconds(), db.appliedTime.Load())
}

// ShownUntil is a log time, in unix milliseconds, up to which readers of a delayed follower see all that it has: that of the first batch which it
// holds back. 0: it holds none back.
func (db *DB) ShownUntil() int64 { return db.heldTime.Load() }

// ShowsLate reports whether this node shows what it has later on purpose.
func (db *DB) ShowsLate() bool { return db.opts.ApplyDelay > 0 }

// clockFile keeps the log time that a delayed follower has come to, so that what was old enough before a restart is so after it, with nobody there who
// tells the time. What it says may be some seconds old; lost, it costs a look that goes back in time until there is an upstream.
const (
	clockFile  = "clock"
	clockEvery = 5 * time.Second
	maxClock   = 128 // bytes of the file
)

// saveClock writes the file if it is due, or now.
func (db *DB) saveClock(now bool) {
	if db.delay() == 0 || db.log.Empty() || !now && time.Since(db.clockSaved) < clockEvery {
		return
	}
	db.clockSaved = time.Now()
	text := fmt.Appendf(nil, "%v %d\n", db.log.DatabaseID(), db.clock.read())
	if err := vfs.ReplaceFile(db.opts.FS, db.clockPath, text); err != nil {
		db.opts.Logger.Error("the log time is not kept: the next restart may show less for a while", "error", err)
	}
}

// loadClock takes up what the file says of this database.
func (db *DB) loadClock() {
	f, err := db.opts.FS.OpenFile(db.clockPath, os.O_RDONLY, 0)
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // opened for reading
	text := make([]byte, maxClock)
	n, err := f.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return
	}
	id, ms, _ := strings.Cut(strings.TrimSuffix(string(text[:n]), "\n"), " ")
	if at, err := strconv.ParseInt(ms, 10, 64); err == nil && id == db.log.DatabaseID().String() {
		db.clock.observe(at)
	}
}

// observeLog moves the clock to the time of the newest frame in the log: before an upstream has told the time, nothing else says how old the rest is.
func (db *DB) observeLog() error {
	head, tail := db.log.Head(), db.log.Tail()
	for back := wal.LSN(64 << 10); ; back *= 2 {
		from := tail
		if head > tail+back {
			found, err := db.log.FrameFrom(head - back)
			if errors.Is(err, wal.ErrBeyondEnd) {
				continue
			}
			if err != nil {
				return err
			}
			from = found
		}
		newest := int64(math.MinInt64)
		for from < head {
			f, err := db.log.FrameAt(from)
			if errors.Is(err, wal.ErrBeyondEnd) {
				break // a header that nothing follows
			}
			if err != nil {
				return err
			}
			if !f.Seal() {
				newest = max(newest, f.Time)
			}
			from = f.End()
		}
		if newest > math.MinInt64 || head <= tail+back {
			db.clock.observe(newest)
			return nil
		}
	}
}

// ruleAtEnd is the level of the rule at the end of the log, and where the degraded span begins that is open there; 0: none is. What is not applied yet
// on purpose is looked through for it.
func (db *DB) ruleAtEnd() (Level, wal.LSN, error) {
	m := &db.marks
	m.mu.Lock()
	rule, degraded, from := m.rule, m.degraded, m.indexedLSN()
	m.mu.Unlock()
	if db.delay() == 0 {
		return Level(rule.Level), degraded, nil
	}
	r := &controls{log: db.log, at: max(from, db.log.Tail())}
	for r.Next() {
		if !r.Frame().Control() {
			continue
		}
		c, err := wal.DecodeControl(r.Raw())
		if err != nil {
			return 0, 0, err
		}
		switch c := c.(type) {
		case *wal.EpochRecord:
			rule, degraded = c.Rule, 0
		case *wal.RuleRecord:
			rule = c.Rule
		case *wal.TailRecord:
			rule, degraded = c.Rule, c.DegradedFrom
		case *wal.DegradedRecord:
			if degraded = 0; c.Begin {
				degraded = c.From
			}
		}
	}
	return Level(rule.Level), degraded, r.Err()
}
