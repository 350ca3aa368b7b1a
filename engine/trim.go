package engine

import (
	"errors"
	"slices"

	"shiplog/wal"
)

// This file moves the tail of the log, and removes what is below it.

// tail is where the log begins, as its newest tail record says. Files below it may still be there.
func (db *DB) tail() wal.LSN {
	return max(db.log.Tail(), wal.LSN(db.newTail.Load()))
}

// moveTail records that the log begins at to.
func (db *DB) moveTail(to wal.LSN) error {
	db.opts.Logger.Debug("tail moves", "to_lsn", to.String())
	_, err := db.appendRecord(&wal.TailRecord{Tail: to})
	return err
}

// completeTail fills in what a tail record carries, as it is where the record stands. Only the pipeline calls it.
func (db *DB) completeTail(r *wal.TailRecord) {
	m := &db.marks
	m.mu.Lock()
	r.Rule, r.DegradedFrom, r.FormatLevel = m.rule, m.degraded, m.formatLevel()
	if r.FormatLevel >= 2 {
		r.Spans = m.spans()
	}
	m.mu.Unlock()
	r.History, r.ClockFloor = newestEpochs(db.log.History()), db.clock.read()
}

// tailEpochs is how many epochs a tail record carries: as many as fit into a frame of the smallest segments. Who comes back from an older one
// has no epoch in common with the log.
const tailEpochs = 256

// newestEpochs is as much of a history as a tail record carries.
func newestEpochs(h []wal.HistoryEntry) []wal.HistoryEntry {
	return h[max(len(h)-tailEpochs, 0):]
}

// trimmable is a tail record whose segments this node has not removed yet.
type trimmable struct {
	tail, end wal.LSN // the log's new beginning; the end of the record
}

// noteTail takes up a tail record that ends at end.
func (db *DB) noteTail(tail, end wal.LSN) {
	db.trimMu.Lock()
	defer db.trimMu.Unlock()
	db.trims = append(db.trims, trimmable{tail, end})
	if uint64(tail) > db.newTail.Load() {
		db.newTail.Store(uint64(tail))
	}
}

// forgetTails forgets the tail records behind an LSN that the log is about to be cut back to. If one of them has removed segments here, what
// they held may have been written again behind the LSN only: reads answer ErrLoading until another record gives these segments up.
func (db *DB) forgetTails(lsn wal.LSN) {
	db.trimMu.Lock()
	defer db.trimMu.Unlock()
	db.trims = slices.DeleteFunc(db.trims, func(t trimmable) bool { return t.end > lsn })
	if db.trimmed.end > lsn {
		db.trimmed = trimmable{}
	}
	sound := db.trimmed.tail
	for _, t := range db.trims {
		sound = max(sound, t.tail)
	}
	db.newTail.Store(uint64(sound))
	if tail := db.log.Tail(); tail > sound {
		db.firstTail = tail
		db.consistentAt.Store(0)
		db.loadedAt.Store(loadingUntilConsistent)
		db.takenBack.Add(1)
	}
}

// trim removes the segments below the newest tail whose record is durable and committed here, but none that a snapshot or a
// follower may still need, up to the cap.
func (db *DB) trim() {
	db.trimMu.Lock()
	defer db.trimMu.Unlock()
	done := 0
	to := wal.LSN(0)
	for _, t := range db.trims {
		if !db.stable(t.end) {
			break
		}
		done++
		to = max(to, t.tail)
		if t.tail >= db.trimmed.tail {
			db.trimmed = t
		}
	}
	if done == 0 {
		return
	}
	to, whole := db.releaseTo(to)
	if to >= db.log.Tail() {
		switch err := db.log.TrimBefore(to); {
		case errors.Is(err, wal.ErrClosed):
			return
		case err != nil: // tried again by the next call
			db.opts.Logger.Error("segments could not be removed", "error", err)
			return
		}
		db.idx.SetRemoved(db.log.Tail())
	}
	if whole {
		db.trims = slices.Delete(db.trims, 0, done)
	}
}

// releaseTo tells the index that the log begins at to, or at what is pinned below; whole: at to. No snapshot comes in
// between: those before hold it back, those after read behind the tail record.
func (db *DB) releaseTo(to wal.LSN) (tail wal.LSN, whole bool) {
	db.pins.mu.Lock()
	defer db.pins.mu.Unlock()
	keep := db.pinnedTail(to)
	tail = keep // if lower, looked at again when the next pin goes
	if tail <= db.log.Tail() {
		return tail, keep == to
	}
	tail = db.log.TailBelow(tail)
	// Who has read the visible mark before the tail record, and looks for what was written again behind it, looks again.
	db.raiseReadFloor(min(db.marks.committedLSN(), db.marks.visibleLSN()))
	db.idx.SetTail(tail)
	return tail, keep == to
}

// pinnedTail is the lowest LSN at or below to that snapshots and slots hold the log at. pins.mu is held.
func (db *DB) pinnedTail(to wal.LSN) wal.LSN {
	keep := to
	floor := wal.LSN(0)
	if limit := wal.LSN(db.opts.MaxPinned); to > limit {
		floor = to - limit
	}
	hold := func(at wal.LSN) {
		if at >= floor {
			keep = min(keep, at)
		}
	}
	for _, p := range db.pins.at {
		hold(p.tail)
	}
	db.slots.hold(db, to, hold)
	return keep
}
