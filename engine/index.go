package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"shiplog/engine/internal/index"
	"shiplog/engine/internal/run"
	"shiplog/wal"
)

// indexMark is what a run of the index carries along: the place in the history of the log where it ends, and
// what the control records up to there have established, since they are not replayed any more.
type indexMark struct {
	Database   wal.DatabaseID
	Epoch      wal.Epoch
	History    wal.HistoryID
	Rule       []byte // a rule record
	Degraded   wal.LSN
	Format     uint32             `json:",omitempty"`
	Spans      []wal.DegradedSpan `json:",omitempty"`
	Clock      int64              // log time, unix milliseconds
	Consistent bool               // the state up to there is one that the log has been in, if the log begins at Tail or before
	Tail       wal.LSN
	Older      []byte `json:",omitempty"` // a tail record with the epochs that began before Tail
}

// freezeEvery freezes the index's table after so many versions; 0: by size only. Tests set it.
var freezeEvery atomic.Int64

// openIndex opens the index and returns where replay begins.
func (db *DB) openIndex(dir string) (from wal.LSN, err error) {
	idx, from, mark, err := index.Open(index.Options{
		FS: db.opts.FS, Dir: filepath.Join(dir, "index"), Memory: db.opts.MemIndexSize, Versions: int(freezeEvery.Load()), Logger: db.opts.Logger,
		Valid: db.validRun, Stable: db.stable, Pins: db.pinned, Failed: db.indexFailed, Damaged: db.indexDamaged,
	})
	if err != nil {
		return 0, err
	}
	db.idx = idx
	if db.opts.LogOnly {
		from, err = 0, db.dropIndex()
	}
	if err != nil {
		return 0, err
	}
	if !db.log.Empty() {
		idx.SetTail(db.log.Tail())
		idx.SetRemoved(db.log.Tail())
	}
	if from > 0 {
		return from, db.takeMark(from, mark)
	}
	return 0, nil
}

// takeMark takes up what the log had established at a run's end.
func (db *DB) takeMark(end wal.LSN, text []byte) error {
	var m indexMark
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("index mark at %v: %w", end, err)
	}
	if err := checkFormat(m.Format); err != nil {
		return fmt.Errorf("index mark at %v: %w", end, err)
	}
	c, err := wal.DecodeControl(m.Rule)
	if err != nil {
		return fmt.Errorf("index mark at %v: %w", end, err)
	}
	if r, ok := c.(*wal.RuleRecord); ok {
		db.setRule(r.Rule, end)
	}
	db.marks.setDegraded(m.Degraded)
	db.marks.mu.Lock()
	db.marks.ledger, db.marks.formats = nil, nil
	db.marks.raisedFormat(m.Format, 0)
	db.marks.learnSpans(m.Spans)
	db.marks.mu.Unlock()
	db.marks.indexed.Store(uint64(end))
	db.clock.observe(m.Clock)
	if m.Tail > 0 {
		db.noteTail(m.Tail, end)
	}
	if len(m.Older) > 0 {
		c, err := wal.DecodeControl(m.Older)
		if err != nil {
			return fmt.Errorf("index mark at %v: %w", end, err)
		}
		if r, ok := c.(*wal.TailRecord); ok {
			db.log.LearnHistory(r.History)
		}
	}
	if m.Consistent && db.log.Tail() <= m.Tail {
		db.consistentAt.CompareAndSwap(0, uint64(end))
	}
	return nil
}

// mark describes the log at end, where everything indexed ends.
func (db *DB) mark(end wal.LSN) ([]byte, error) {
	db.marks.mu.Lock()
	m := indexMark{Database: db.log.DatabaseID(), Epoch: db.log.EpochAt(end), Degraded: db.marks.degraded, Clock: db.clock.read()}
	m.Spans, m.Format = db.marks.spans(), db.marks.formatLevel()
	rule := wal.RuleRecord{Rule: db.marks.rule}
	db.marks.mu.Unlock()
	m.History = db.historyID(m.Epoch)
	m.Consistent, m.Tail = db.firstTail == 0 || db.consistentAt.Load() != 0, wal.LSN(db.newTail.Load())
	var err error
	if m.Rule, err = wal.AppendControl(nil, &rule); err != nil {
		return nil, err
	}
	older := db.log.History()
	for n := len(older); n > 0 && older[n-1].Start >= db.tail(); n-- {
		older = older[:n-1]
	}
	if len(older) > 0 {
		if m.Older, err = wal.AppendControl(nil, &wal.TailRecord{History: newestEpochs(older)}); err != nil {
			return nil, err
		}
	}
	return json.Marshal(&m)
}

func (db *DB) historyID(e wal.Epoch) wal.HistoryID {
	for _, h := range db.log.History() {
		if h.Epoch == e {
			return h.ID
		}
	}
	return 0
}

// validRun reports whether a run that ends at end is of this log.
func (db *DB) validRun(end wal.LSN, mark []byte) bool {
	var m indexMark
	if db.log.Empty() || end > db.log.BatchEnd() || end <= db.log.Tail() || json.Unmarshal(mark, &m) != nil {
		return false
	}
	return m.Database == db.log.DatabaseID() && m.Epoch == db.log.EpochAt(end) && m.History == db.historyID(m.Epoch)
}

// stable reports whether nothing below end can be cut by itself any more, or lost with the machine's power.
func (db *DB) stable(end wal.LSN) bool {
	return end <= db.log.Committed() && end <= db.log.Durable()
}

// freeze closes the index's table in memory at end, the end of everything indexed and of a batch.
func (db *DB) freeze(end wal.LSN) {
	mark, err := db.mark(end)
	if err != nil {
		db.opts.Logger.Error("index not frozen", "error", err)
		return
	}
	db.idx.Freeze(end, mark)
	if db.idx.Overfull(overfullAt) {
		db.overfull.Store(true)
	}
}

const (
	// overfullAt is how many times over the index may outgrow its memory, while it cannot be written, before writes are refused and a
	// follower stops applying.
	overfullAt = 2
	// overfullOpen is the same for Open: what was let in must also come back.
	overfullOpen = 2 * overfullAt
)

// indexOverfull reports whether there is no room for more in the index.
func (db *DB) indexOverfull() bool {
	if !db.overfull.Load() {
		return false
	}
	if db.idx.Overfull(overfullAt) {
		return true
	}
	db.overfull.Store(false)
	return false
}

// overfullEvery is how often a follower looks whether there is room again.
const overfullEvery = 50 * time.Millisecond

// awaitIndex holds application back while the index cannot be written and has outgrown its memory.
func (db *DB) awaitIndex(ctx context.Context) error {
	if !db.indexOverfull() {
		return nil
	}
	db.opts.Logger.Error("application waits: the index cannot be written", "applied_lsn", db.marks.indexedLSN().String())
	tick := time.NewTicker(overfullEvery)
	defer tick.Stop()
	for db.indexOverfull() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// freezeAfter freezes after a chunk that ends with a batch.
func (db *DB) freezeAfter(c *chunk) {
	if c.endsBatch() && db.idx.Full() {
		db.freeze(c.end)
	}
}

// pinned lists the positions below end at which snapshots read. All others read at the visible mark, which has passed
// it: those who have read the mark before look again.
func (db *DB) pinned(dst []wal.LSN, end wal.LSN) []wal.LSN {
	p := &db.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	for lsn := range p.at {
		if lsn < end {
			dst = append(dst, lsn)
		}
	}
	db.raiseReadFloor(min(end, db.marks.visibleLSN()))
	return dst
}

// raiseReadFloor makes readers below lsn that are not pinned look again. pins.mu is held.
func (db *DB) raiseReadFloor(lsn wal.LSN) {
	if uint64(lsn) > db.floor.Load() {
		db.floor.Store(uint64(lsn))
	}
}

// indexFailed is told when runs cannot be written, and when they can again.
func (db *DB) indexFailed(err error) {
	if err == nil {
		db.overfull.Store(false)
	}
}

// indexDamaged is told of a damaged run. It is built again from the log while the rest is served.
func (db *DB) indexDamaged(err error) {
	db.opts.Logger.Error("index is damaged and will be rebuilt from the log", "error", err)
	if !db.rebuilding.TryLock() {
		return // whoever rebuilds looks again
	}
	go func() { // Close waits for it
		defer db.rebuilding.Unlock()
		if db.closed.Load() {
			return
		}
		if err := db.idx.Rebuild(db.replayInto); err != nil && !db.closed.Load() {
			db.opts.Logger.Error("index was not rebuilt", "error", err)
		}
	}()
}

// replayInto gives out what the log holds in [from, to).
func (db *DB) replayInto(from, to wal.LSN, into *index.Entries) error {
	return db.decoded(from, to, nil, func(c *chunk) error {
		if db.closed.Load() {
			return ErrClosed
		}
		return c.applyInto(into)
	})
}

// indexError says what a damaged run means for a reader: it will be there again.
func (db *DB) indexError(err error) error {
	var damage *run.CorruptError
	if errors.As(err, &damage) || errors.Is(err, wal.ErrIO) {
		return fmt.Errorf("%w: %w", ErrLoading, err)
	}
	return err
}

// cutIndex cuts the index back to lsn, before the log is. It returns where application has to go on.
func (db *DB) cutIndex(lsn wal.LSN) (from wal.LSN, err error) {
	from, mark, err := db.idx.CutFrom(lsn)
	if err != nil {
		return db.marks.indexedLSN(), err
	}
	if from < lsn {
		// Until the rest is applied again, what is shown is not what was.
		need := uint64(max(1, min(lsn, db.marks.visibleLSN())))
		if db.loadedAt.Load() != loadingUntilConsistent {
			db.loadedAt.Store(need)
		}
		db.takenBack.Add(1)
		if from > 0 {
			err = db.takeMark(from, mark)
		}
		if at := db.consistentAt.Load(); at != 0 {
			db.consistentAt.Store(max(at, need))
		}
	}
	return min(from, db.marks.indexedLSN()), err
}

// cleanClose is the memory of the index from which Close writes it out, so that the next Open need not replay for more than
// some milliseconds.
const cleanClose = 1 << 20

// closeIndex ends the index. What is in memory is written out where replaying it would take time.
func (db *DB) closeIndex() {
	db.rebuilding.Lock() // it sees that the database is closed
	defer db.rebuilding.Unlock()
	end := db.marks.indexedLSN()
	if !db.log.Empty() && db.idx.Stats().MemoryBytes >= cleanClose && db.stable(end) && end == db.log.Head() {
		if mark, err := db.mark(end); err == nil {
			db.idx.Settle(end, mark)
		}
	}
	db.idx.Close()
}
