package engine

import (
	"errors"

	"shiplog/wal"
)

// This file appends and indexes one group of commits; commit.go says who leads it.

// appendGroup decides, appends and indexes the group in its order; what it returns is appended and still to be indexed.
func (db *DB) appendGroup(group []*commit, durable bool) appended {
	p := &db.pipe
	p.run = p.run[:0]
	decides := false
	for _, c := range group {
		decides = decides || c.decide != nil
	}
	p.overlay.reset()
	for _, c := range group {
		if err := db.refuse(c); err != nil {
			c.finish(err)
			continue
		}
		if c.control != nil {
			db.appendRun(durable)
			db.appendControl(c)
			continue
		}
		if c.decide != nil && !db.decide(c, durable) {
			continue
		}
		p.run = append(p.run, c)
		if decides && !p.overlay.add(c.batch) {
			db.appendRun(durable) // a range delete: later decisions look in the index
		}
	}
	a, _ := db.logRun(durable)
	return a
}

// decide lets c see the state that all before it have made. It reports whether there is anything to append.
func (db *DB) decide(c *commit, durable bool) bool {
	for {
		if c.given == 0 {
			c.batch.Reset()
		}
		err := c.decide(&view{db: db, overlay: &db.pipe.overlay}, c.batch)
		if err == nil && c.batch.err != nil {
			err = c.batch.err
		}
		if err == nil && c.batch.Len() > 0 {
			return true
		}
		// The answer rests on everything before it: it is given when that is visible.
		if db.appendRun(durable) {
			c.refused, c.level = err, Buffered
			db.marks.enter(&c.waiter, db.marks.indexedLSN())
			return false
		}
	}
}

// appended is a run of batches that the log has, and the index does not have yet.
type appended struct {
	run []*commit
	end wal.LSN
}

// appendRun appends and indexes the collected batches as one group. It reports whether all of them were appended.
func (db *DB) appendRun(durable bool) bool {
	a, ok := db.logRun(durable)
	db.indexRun(a)
	return ok
}

// logRun appends the collected batches as one group. It reports whether all of them were appended.
func (db *DB) logRun(durable bool) (appended, bool) {
	p := &db.pipe
	if len(p.run) == 0 {
		return appended{}, true
	}
	run := p.run
	p.run = p.run[:0]
	p.overlay.reset()
	p.batches = p.batches[:0]
	for _, c := range run {
		p.batches = append(p.batches, &c.batch.w)
	}
	for _, b := range p.batches {
		for i := range min(b.Len(), prefetchOps) {
			db.idx.Prefetch(recordKey(b.Record(i)))
		}
	}
	r, err := db.log.Append(p.batches, durable)
	clear(p.batches)
	if err != nil {
		db.appendFailed(run, durable, err)
		return appended{}, false
	}
	if push := db.push.Load(); push != nil {
		(*push)()
	}
	if at := db.reclaimAt.Load(); at != 0 && uint64(r.End) >= at {
		db.reclaimAt.Store(0)
		select {
		case db.reclaimKick <- struct{}{}:
		default:
		}
	}
	return appended{run, r.End}, true
}

// indexRun enters what was appended into the index, and has its commits wait for their outcome.
func (db *DB) indexRun(a appended) {
	if len(a.run) == 0 {
		return
	}
	p := &db.pipe
	p.waiters = p.waiters[:0]
	for _, c := range a.run {
		db.index(c.batch)
		p.waiters = append(p.waiters, &c.waiter)
	}
	db.marks.appended(a.end, p.waiters)
	if db.idx.Full() {
		db.freeze(a.end)
	}
	clear(p.waiters)
}

// prefetchOps is how many operations ahead the index is asked to fetch what it will need.
const prefetchOps = 8

// index enters the records of an appended batch into the index.
func (db *DB) index(b *Batch) {
	n := b.w.Len()
	for i := range n {
		if i+prefetchOps < n {
			db.idx.Prefetch(recordKey(b.w.Record(i + prefetchOps)))
		}
		rec, ref := b.w.Record(i), b.w.Ref(i)
		if op := Op(rec[0] & opMask); op <= OpDelete {
			key := recordKey(rec)
			db.idx.Insert(key, uint64(ref), kindOf(op))
			db.watches.written(key, op, ref)
			continue
		}
		r, _, err := DecodeRecord(rec)
		if err != nil {
			panic("engine: a batch holds what it did not encode: " + err.Error())
		}
		db.indexRecord(r, ref)
	}
}

// appendFailed answers the batches of a failed append. After a full disk each is tried alone, so
// that one large batch does not refuse the small ones, or the deletes; decisions are made again, because what
// they were made on may not have been written.
func (db *DB) appendFailed(run []*commit, durable bool, err error) {
	if errors.Is(err, wal.ErrPoisoned) {
		for _, c := range run {
			c.finish(&OutcomeError{Cause: err})
		}
		db.poisoned(err)
		return
	}
	if len(run) == 1 || !errors.Is(err, wal.ErrNoSpace) {
		for _, c := range run {
			c.finish(err)
		}
		return
	}
	for _, c := range append([]*commit(nil), run...) {
		if c.decide != nil && !db.decide(c, durable) {
			continue
		}
		db.pipe.run = append(db.pipe.run[:0], c)
		db.appendRun(durable)
	}
}

// timeAt is the log time of the frame at an LSN.
func (db *DB) timeAt(at wal.LSN) int64 {
	f, err := db.log.FrameAt(at)
	if err != nil {
		return db.clock.read()
	}
	return f.Time
}

// appendControl appends and syncs c's control record; its effect on the marks begins with it. The
// answer waits for the disk only.
func (db *DB) appendControl(c *commit) {
	if t, ok := c.control.(*wal.TailRecord); ok {
		db.completeTail(t)
	}
	r, err := db.log.AppendControl(c.control, false)
	if err != nil {
		c.finish(err)
		if errors.Is(err, wal.ErrPoisoned) {
			db.poisoned(err)
		}
		return
	}
	c.end = r.End
	db.applyControl(c.control, r.End, db.timeAt(r.Start))
	db.marks.appended(r.End, nil)
	if _, err := db.log.Sync(); err != nil {
		db.poisoned(err)
		c.finish(&OutcomeError{Cause: err})
		return
	}
	c.finish(nil)
}

// poisoned ends every wait after a failed sync: no later success can be believed.
func (db *DB) poisoned(err error) {
	db.opts.Logger.Error("log poisoned", "error", err)
	db.marks.fail(&OutcomeError{Cause: err})
}
