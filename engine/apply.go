package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"shiplog/wal"
)

// chunkOps is how many operations are decoded ahead of the index at a time.
const chunkOps = 8 << 10

// replay enters the log from an LSN, or from its tail if that is higher, to the end of its last complete batch into the index.
func (db *DB) replay(from wal.LSN) error {
	return db.decoded(from, math.MaxUint64, db.early, func(c *chunk) error {
		db.apply(c)
		if c.end != 0 {
			db.marks.indexed.Store(uint64(c.end))
			db.idx.SetFloor(refAt(min(c.end, db.log.Committed())))
		}
		db.freezeAfter(c)
		if db.idx.Overfull(overfullOpen) {
			return fmt.Errorf("replay up to %v: %w", db.marks.indexedLSN(), errIndexFull)
		}
		return nil
	})
}

// decoded calls take with what the log holds in [from, to), from its tail on, chunk after chunk; a chunk is valid during the call. One goroutine reads,
// verifies, decompresses and decodes, up to the first frame that is early (nil: none is); the caller's indexes: the two halves of the work are about equal. Both have ended on return.
func (db *DB) decoded(from, to wal.LSN, early func(wal.Frame) time.Duration, take func(c *chunk) error) error {
	full, free := make(chan *chunk, 4), make(chan *chunk, 6)
	for range cap(free) {
		free <- &chunk{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with the log, an error, or cancel
		defer close(done)
		defer close(full)
		db.decodeAll(ctx, max(from, db.log.Tail()), to, early, full, free)
	}()
	defer func() {
		cancel()
		<-done
	}()
	for c := range full {
		if c.err != nil {
			return c.err
		}
		if err := take(c); err != nil {
			return err
		}
		c.reset()
		free <- c
	}
	return nil
}

func (db *DB) decodeAll(ctx context.Context, from, to wal.LSN, early func(wal.Frame) time.Duration, full chan<- *chunk, free <-chan *chunk) {
	r := db.newFrames(from)
	defer r.Close()
	d := db.newDecoder()
	c := <-free
	send := func() bool {
		last := c.err != nil // afterwards it is the receiver's
		select {
		case full <- c:
		case <-ctx.Done():
			return false
		}
		if last {
			return false
		}
		select {
		case c = <-free:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for r.End() < to && r.Next() {
		if early != nil && early(r.Frame()) > 0 {
			break
		}
		if c.err = c.add(d, r.Frame(), r.Raw()); c.err != nil {
			send()
			return
		}
		if len(c.ops) >= chunkOps && !send() {
			return
		}
	}
	c.err = r.Err()
	if c.err != nil || len(c.ops) > 0 || c.end != 0 {
		send()
	}
}

// applier follows the log of a follower and indexes what ship appends to it. Started by Open and
// Follow, stopped by stop.
type applier struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (db *DB) startApplier(from wal.LSN) *applier {
	ctx, cancel := context.WithCancel(context.Background())
	a := &applier{cancel: cancel, done: make(chan struct{})}
	go func() { // stopped by a.stop
		defer close(a.done)
		if err := db.applyLive(ctx, from); err != nil && ctx.Err() == nil && !errors.Is(err, wal.ErrClosed) {
			db.opts.Logger.Error("application of the log has stopped", "error", err, "applied_lsn", db.marks.indexedLSN().String())
			db.applyErr.Store(&err)
			db.marks.touch()
		}
	}()
	return a
}

func (a *applier) stop() {
	a.cancel()
	<-a.done
}

func (db *DB) applyLive(ctx context.Context, from wal.LSN) error {
	moved := make(chan struct{}, 1)
	defer db.log.Notify(moved)()
	d := db.newDecoder()
	var c chunk
	var r frames
	held := false // the frame that r stands at waits for its time
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	defer func() {
		if r != nil {
			r.Close()
		}
	}()
	for {
		if r == nil && !db.log.Empty() {
			if tail := db.log.Tail(); tail > 0 && from == 0 {
				// A copy that starts at a moved tail is a state that the log has been in from the tail record on.
				db.firstTail = tail
				db.loadedAt.Store(loadingUntilConsistent)
				db.idx.SetTail(tail)
				db.idx.SetRemoved(tail)
			}
			r = db.newFrames(max(from, db.log.Tail()))
		}
		end := db.log.BatchEnd()
		if r == nil || end > db.log.Head() { // it is being published
			end = 0
		}
		early := time.Duration(0)
		for r != nil && (held || r.Next()) {
			if early = db.early(r.Frame()); early > 0 {
				held = true
				db.heldTime.Store(r.Frame().Time)
				break
			}
			held = false
			if err := c.add(d, r.Frame(), r.Raw()); err != nil {
				return err
			}
			if len(c.ops) >= chunkOps {
				db.applyChunk(&c)
				if err := db.awaitIndex(ctx); err != nil {
					return err
				}
			}
		}
		if r != nil {
			if err := r.Err(); err != nil {
				return err
			}
		}
		db.applyChunk(&c)
		if err := db.awaitIndex(ctx); err != nil {
			return err
		}
		if !held {
			db.heldTime.Store(0)
		}
		if !held && end > db.marks.indexedLSN() && end&wal.LSN(db.log.SegmentSize()-1) != 0 { // a segment's header, which nothing follows yet; see BatchEnd for seals
			db.marks.applied(end)
		}
		if !db.log.Empty() {
			db.marks.synced(db.log.Durable())
		}
		var old <-chan time.Time
		if held {
			wait.Reset(early)
			old = wait.C
		}
		select {
		case <-moved:
		case <-old:
		case <-db.applyKick:
		case <-ctx.Done():
			return nil
		}
	}
}

func (db *DB) applyChunk(c *chunk) {
	db.apply(c)
	if c.end != 0 {
		db.marks.applied(c.end)
	}
	db.freezeAfter(c)
	c.reset()
}

// applyControl takes over what a control record says that ends at end and was written at a log time, in unix milliseconds. Calls come in log order.
func (db *DB) applyControl(c wal.Control, end wal.LSN, at int64) {
	switch c := c.(type) {
	case *wal.EpochRecord:
		db.setRule(c.Rule, end)
		if c.Epoch.Restart() == 0 {
			db.marks.beganTerm(end)
		}
		db.marks.epochEnds(end, at)
		db.marks.setDegraded(0)
	case *wal.RuleRecord:
		db.setRule(c.Rule, end)
	case *wal.FormatRecord:
		db.marks.mu.Lock()
		db.marks.raisedFormat(c.Level, end)
		db.marks.mu.Unlock()
	case *wal.DegradedRecord:
		db.marks.degradedRecord(c, end, at)
		if c.Begin {
			db.marks.setDegraded(c.From)
			db.marks.replayedDegraded(end)
		} else {
			db.marks.setDegraded(0)
		}
	case *wal.TailRecord:
		db.setRule(c.Rule, end)
		db.marks.setDegraded(c.DegradedFrom)
		db.marks.mu.Lock()
		db.marks.learnSpans(c.Spans)
		db.marks.raisedFormat(c.FormatLevel, end)
		db.marks.mu.Unlock()
		db.clock.observe(c.ClockFloor)
		db.log.LearnHistory(c.History)
		db.noteTail(c.Tail, end)
		if c.Tail >= db.firstTail {
			db.consistentAt.CompareAndSwap(0, uint64(end))
		}
	}
}

func (db *DB) setRule(rule wal.Rule, end wal.LSN) {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setRule(rule, end)
	m.advance()
}

// CutLog cuts a follower's log back to lsn, the end of a frame, and takes the same from the index. What is
// cut is kept in diverged/. It never goes below the committed mark. Durable on return.
func (db *DB) CutLog(lsn wal.LSN) error {
	if err := db.waitKnown(); err != nil { // the rule that was in force is known then
		return fmt.Errorf("cut back to %v: %w", lsn, err)
	}
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	switch {
	case db.closed.Load():
		return ErrClosed
	case !db.follower.Load():
		return fmt.Errorf("cut back to %v: this node is the leader", lsn)
	case lsn < db.marks.shownLSN() && !db.CommittedAlone(lsn): // what readers see is committed; the mark of that name also waits for this disk
		return fmt.Errorf("cut back to %v: everything up to %v is committed", lsn, db.marks.shownLSN())
	}
	if err := db.log.CanTruncate(lsn); err != nil {
		return fmt.Errorf("cut back to %v: %w", lsn, err)
	}
	db.applier.stop()
	db.holdFloor(true)
	defer db.holdFloor(false)
	db.forgetTails(lsn)
	from, err := min(lsn, db.marks.indexedLSN()), error(nil)
	if !db.opts.LogOnly {
		from, err = db.cutIndex(lsn) // first, so that no run speaks of what the log does not hold
	}
	if err == nil {
		err = db.log.Truncate(lsn)
	}
	if err != nil {
		err = fmt.Errorf("cut back to %v: %w", lsn, err)
	} else {
		from = min(from, db.log.BatchEnd())
	}
	db.pins.mu.Lock()
	db.floor.Store(min(db.floor.Load(), uint64(from)))
	db.pins.mu.Unlock()
	if shown := db.marks.visibleLSN(); err == nil && lsn < shown {
		db.takenBack.Add(1)
		db.opts.Logger.Warn("writes that were visible here were cut; they are kept in diverged", "from_lsn", lsn.String(), "to_lsn", shown.String())
	}
	told := from
	if db.marks.showsLate {
		told = db.log.BatchEnd()
	}
	db.marks.cut(from, told, db.log.Durable())
	db.applier = db.startApplier(from)
	return err
}

// holdFloor stops the floor from being raised, or lets it be raised again.
func (db *DB) holdFloor(hold bool) {
	db.pins.mu.Lock()
	defer db.pins.mu.Unlock()
	db.pins.held = hold
}

// CommittedAlone reports whether no follower had to confirm what was committed at or above an LSN: the rule in force there asks
// for none, or was degraded, and nothing in the log says otherwise since. In doubt it answers no.
func (db *DB) CommittedAlone(from wal.LSN) bool {
	if db.waitKnown() != nil {
		return false
	}
	rule, degraded, err := db.ruleAtEnd()
	if err != nil {
		return false
	}
	committed := db.marks.shownLSN()
	if rule.synchronous() && (degraded == 0 || degraded > from) {
		return false
	}
	start, err := db.log.FrameFrom(from)
	if err != nil {
		return errors.Is(err, wal.ErrBeyondEnd)
	}
	r := db.log.NewReader(start)
	defer r.Close()
	for r.Next() && r.Frame().LSN < committed {
		if !r.Frame().Control() {
			continue
		}
		c, err := wal.DecodeControl(r.Raw())
		if err != nil {
			return false
		}
		switch c := c.(type) {
		case *wal.RuleRecord:
			if Level(c.Rule.Level) != rule {
				return false
			}
		case *wal.EpochRecord:
			if Level(c.Rule.Level) != rule || rule.synchronous() {
				return false
			}
		case *wal.DegradedRecord:
			if !c.Begin {
				return false
			}
		}
	}
	return r.Err() == nil
}

// StartOver gives up the whole log of a follower, and the index, so that both can be copied anew from a tail that lies behind its
// end. Reads answer ErrLoading until the copy shows no less than was shown before. Durable on return.
func (db *DB) StartOver() error {
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	switch {
	case db.closed.Load():
		return ErrClosed
	case !db.follower.Load():
		return errors.New("start over: this node is the leader")
	case db.log.Empty():
		return nil
	}
	if err := db.log.Err(); err != nil { // it cannot be emptied: the index keeps what it shows
		return fmt.Errorf("start over: %w", err)
	}
	db.applier.stop()
	defer func() { db.applier = db.startApplier(db.marks.indexedLSN()) }()
	m := &db.marks
	head := db.log.Head()
	db.loadedAt.Store(uint64(max(1, m.visibleLSN())))
	db.holdFloor(true)
	defer db.holdFloor(false)
	db.takenBack.Add(1)  // who reads now looks again, and meets loadedAt
	db.idx.SetTail(head) // snapshots of what was here have lost it
	if _, _, err := db.idx.CutFrom(0); err != nil {
		return fmt.Errorf("start over: %w", err)
	}
	if err := db.log.Reset(); err != nil {
		return fmt.Errorf("start over: %w", err)
	}
	db.trimMu.Lock()
	db.trims, db.trimmed = nil, trimmable{}
	db.newTail.Store(0)
	db.trimMu.Unlock()
	db.firstTail = 0
	db.consistentAt.Store(0)
	db.floor.Store(0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.indexed.Store(0)
	m.durable.Store(0)
	m.visible.Store(0)
	m.committed.Store(0)
	m.told, m.degraded, m.ledger, m.formats, m.rule = 0, 0, nil, nil, wal.Rule{}
	m.signal()
	return nil
}

// waitKnown waits until what the log's control records say is known: all of it is applied, or held back on purpose.
func (db *DB) waitKnown() error {
	if db.delay() > 0 {
		return nil
	}
	return db.waitIndexed(context.Background())
}

// LogTime is log time in unix milliseconds: what the leader's heartbeats carry, and what expiry is judged by.
func (db *DB) LogTime() int64 { return db.clock.read() }
