package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Create founds a new database in an empty log: IDs and salt are drawn, segment header and the record of epoch 1.0 with
// the commit rule are durable on return. [ErrExists] on a log that has a database, [ErrEpoch] on one that has followed one: what it promised there
// must not be forgotten.
func (l *Log) Create(rule Rule) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if l.tip != nil {
		return ErrExists
	}
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return fmt.Errorf("make database ID: %w", err)
	}
	epoch := MakeEpoch(1, 0)
	if p, led := l.promises(); p > epoch || p == epoch && led < epoch {
		return fmt.Errorf("%w: this node has promised %v in a database of which it has nothing any more: it can only follow", ErrEpoch, p)
	}
	if err := l.storable(&EpochRecord{Rule: rule}); err != nil {
		return err
	}
	h := Header{
		Database: DatabaseID(random[:16]), Salt: binary.LittleEndian.Uint64(random[16:]), SegmentSize: l.SegmentSize(),
		Epoch: epoch, Leader: l.NodeID(), History: HistoryID(binary.LittleEndian.Uint64(random[24:])), Time: l.nowMs(),
	}
	if err := l.promiseOwn(epoch); err != nil {
		return err
	}
	if err := l.found(&h); err != nil {
		return err
	}
	r := &EpochRecord{Epoch: epoch, Leader: h.Leader, History: h.History, Rule: rule}
	if _, err := l.appendControl(r, epoch, true); err != nil {
		return err
	}
	return l.syncHeld()
}

// StartEpoch begins an epoch that this node leads. The promise of it is persisted first; an open batch at the log's end,
// whose leader will not finish it, is cut; the record, with a fresh history ID, is durable on return. The result is the
// record's end. An epoch not above the log's own, or below a promise, is [ErrEpoch].
func (l *Log) StartEpoch(e Epoch, rule Rule) (LSN, error) {
	l.mu.Lock()
	err := l.mayStart(e, &rule)
	open, end := l.cur.open, l.cur.end
	l.mu.Unlock()
	if err == nil && open {
		err = l.Truncate(end)
	}
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.prepareAppend(); err != nil {
		return 0, err
	}
	if err := l.mayStart(e, &rule); err != nil {
		return 0, err
	}
	if err := l.promiseOwn(e); err != nil {
		return 0, err
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return 0, fmt.Errorf("make history ID: %w", err)
	}
	r := &EpochRecord{Epoch: e, Leader: l.NodeID(), History: HistoryID(binary.LittleEndian.Uint64(random[:])), Rule: rule}
	at, err := l.appendControl(r, e, true)
	if err != nil {
		return 0, err
	}
	l.learnEpoch(*r)
	return at.End, l.syncHeld()
}

// mayStart says why an epoch cannot begin here, before anything is changed. mu is held.
func (l *Log) mayStart(e Epoch, rule *Rule) error {
	if err := l.writable(); err != nil {
		return err
	}
	if l.tip == nil {
		return ErrNoDatabase
	}
	if e <= l.Epoch() {
		return fmt.Errorf("%w: %v, the log has reached %v", ErrEpoch, e, l.Epoch())
	}
	if p := l.Promised(); e < p {
		return fmt.Errorf("%w: %v, promised %v", ErrEpoch, e, p)
	}
	return l.storable(&EpochRecord{Rule: *rule})
}

// promiseOwn promises an epoch that this node is to lead, and notes that it leads it, before anything of it is written.
func (l *Log) promiseOwn(e Epoch) error {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	if e < l.node.promised {
		return fmt.Errorf("%w: %v, promised %v", ErrEpoch, e, l.node.promised)
	}
	promised, led := l.node.promised, l.node.led
	l.node.promised, l.node.led = e, max(led, e)
	if err := l.node.save(); err != nil {
		l.node.promised, l.node.led = promised, led
		return fmt.Errorf("promise epoch %v: %w", e, err)
	}
	return nil
}

// syncHeld syncs the tip while mu is held.
func (l *Log) syncHeld() error {
	l.writeGuard.begin()
	err := l.tipFile.file.Datasync()
	l.writeGuard.end()
	if err == nil {
		err = l.Err() // the answer came too late
	}
	if err != nil {
		return l.poisonWith(fmt.Errorf("sync segment: %w", err))
	}
	l.raiseDurable(l.Head())
	return nil
}

// Truncate cuts the log back to an LSN, the end of a frame or header. What is cut is kept in diverged/. A crash at any
// point is finished by the next Open. Refs above the LSN are void afterwards. The durable and committed marks
// come down to the LSN if they were above it; whether that may be is the caller's to decide.
func (l *Log) Truncate(to LSN) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if l.tip == nil {
		return ErrNoDatabase
	}
	if to == l.cur.at {
		return nil
	}
	if err := l.releaseAll(); err != nil {
		return err
	}
	cur, err := l.cuttable(to)
	if err != nil {
		return err
	}
	if err := l.dirty(); err != nil {
		return err
	}
	if err := l.saveDiverged(to); err != nil {
		return err
	}
	if err := l.dropNext(); err != nil {
		return err
	}
	l.generation.Add(1)
	if l.cache != nil {
		l.cache.cut(to)
	}
	return l.cutTo(to, cur)
}

// Cuts counts how often bytes were taken back from the log since it was opened, by [Log.Truncate] or [Log.Reset]. It rises before the
// first of them changes: who has read bytes, or a mark, and then finds Cuts as it was before knows that no cut lies between.
func (l *Log) Cuts() uint64 { return l.generation.Load() }

// cutTo removes everything from to on. The intent is durable before, and cleared after.
func (l *Log) cutTo(to LSN, cur cursor) error {
	if err := l.setIntent(to); err != nil {
		return err
	}
	old := l.segs.Load()
	keep := 0
	for keep < len(old.segs) && old.segs[keep].base() < to {
		keep++
	}
	l.head.Store(uint64(to))
	l.lowerMarks(to, cur.end)
	l.segs.Store(&segList{segs: old.segs[:keep:keep], size: old.size})
	for _, s := range old.segs[keep:] {
		l.handles.remove(s, ErrBeyondEnd)
	}
	h := *l.history.Load()
	n := len(h)
	for n > 1 && h[n-1].Start >= to {
		n--
	}
	kept := h[:n:n]
	l.history.Store(&kept)
	s := old.segs[keep-1]
	s.dropDigests(to)
	if l.tipFile != nil {
		l.tipFile.unpin()
		l.tipFile = nil
	}
	if err := eraseBehind(l, to, s.path, old.segs[keep:]); err != nil {
		return l.poisonWith(fmt.Errorf("cut back to %v: %w", to, err))
	}
	handle, err := l.handles.pin(s)
	if err != nil {
		return l.poisonWith(err)
	}
	l.tip, l.tipFile, l.alloc = s, handle, int64(to-s.base())
	l.cur = cur
	l.sealed = 0
	l.mapped = mappedFrom(to)
	l.notify()
	// The mark comes down before the intent is cleared: one above the end would make the end read as damage.
	if err := l.keeper.writeMark(); err != nil {
		return l.poisonWith(fmt.Errorf("cut back to %v: %w", to, err))
	}
	if err := l.setIntent(noLSN); err != nil {
		return l.poisonWith(fmt.Errorf("cut back to %v: %w", to, err))
	}
	return nil
}

// CanTruncate answers what Truncate would say of an LSN where nothing fails: [ErrNotBoundary], or nil. It verifies the segment up
// to there.
func (l *Log) CanTruncate(to LSN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if l.tip == nil {
		return ErrNoDatabase
	}
	if to == l.cur.at {
		return nil
	}
	_, err := l.cuttable(to)
	return err
}

// cuttable returns the cursor at an LSN that the log can be cut back to, or why it cannot.
func (l *Log) cuttable(to LSN) (cursor, error) {
	if to < l.Tail()+HeaderSize || to > l.cur.at {
		return cursor{}, fmt.Errorf("%w: cut back to %v, the log is [%v, %v)", ErrNotBoundary, to, l.Tail(), l.cur.at)
	}
	return l.cursorAt(to)
}

func (l *Log) lowerMarks(to, batchEnd LSN) {
	l.batchEnd.Store(uint64(batchEnd))
	l.durable.Store(min(l.durable.Load(), uint64(to)))
	l.committed.Store(min(l.committed.Load(), uint64(to)))
}

// eraseBehind deletes the segments behind, newest first, and makes the rest of the last one zeros, durably.
func eraseBehind(l *Log, to LSN, path string, behind []*segment) error {
	for i := len(behind) - 1; i >= 0; i-- {
		if err := l.opts.FS.Remove(behind[i].path); err != nil {
			return err
		}
		// Each removal is durable before the next: a gap in front of a later segment would read as damage.
		if err := l.opts.FS.SyncDir(l.segDir()); err != nil {
			return err
		}
	}
	base, _ := parseSegmentName(filepath.Base(path))
	return eraseTail(l.opts, path, int64(to-base))
}

// eraseTail cuts a segment file at an offset. What is allocated there later reads as zeros.
func eraseTail(o Options, path string, off int64) error {
	f, err := o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(off)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// eraseTailAgain is eraseTail where its sync may have failed before: the system then takes the last page for written, and would not write what comes
// into it later either, unless it is dropped; see [vfs.File].
func eraseTailAgain(o Options, path string, off int64) error {
	f, err := o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = f.Sync() // dirty pages cannot be dropped; what counts is the sync in eraseTail
	err = f.DropCache(off)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return eraseTail(o, path, off)
}

func (l *Log) setIntent(to LSN) error {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	old := l.node.cut
	l.node.cut = to
	if err := l.node.save(); err != nil {
		l.node.cut = old
		return err
	}
	return nil
}

// cursorAt walks the segment that ends at or holds an LSN up to it.
func (l *Log) cursorAt(to LSN) (cursor, error) {
	sl := l.segs.Load()
	s := sl.find(to - 1)
	if s == nil {
		return cursor{}, fmt.Errorf("%w: %v", ErrNotBoundary, to)
	}
	var c cursor
	c.open = l.openAt(s)
	c.begin(&s.header)
	if c.open {
		c.end = s.base() // below it: the caller does not cut into a batch that began earlier
	}
	var b Buffer
	for c.at < to {
		b.valid = false
		if err := l.load(c.at, &b); err != nil {
			return c, err
		}
		if reason := c.check(&b.meta); reason != "" {
			return c, s.corrupt(c.at, reason, nil)
		}
		c.pass(&b.meta)
	}
	if c.at != to {
		return c, fmt.Errorf("%w: %v", ErrNotBoundary, to)
	}
	return c, nil
}

// openAt reports whether a batch of an earlier segment goes on in s.
func (l *Log) openAt(s *segment) bool {
	var b Buffer
	if err := l.load(s.base()+HeaderSize, &b); err != nil {
		return false
	}
	m := &b.meta
	return m.flags&(FlagSeal|FlagFirst) == 0
}

// saveDiverged keeps the bytes from to on: the header of the segment they begin in, then the bytes, in a file named
// after their first and last LSN. It is durable on return.
func (l *Log) saveDiverged(to LSN) error {
	dir := filepath.Join(l.dir, "diverged")
	end := l.cur.at
	name := filepath.Join(dir, fmt.Sprintf("%v-%v-%v.cut", l.Epoch(), to, end))
	if err := l.opts.FS.MkdirAll(dir, dirPerm); err != nil {
		return fmt.Errorf("save what is cut: %w", spaceError(err))
	}
	f, err := l.opts.FS.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return fmt.Errorf("save what is cut: %w", spaceError(err))
	}
	s := l.segs.Load().find(to - 1)
	head := s.header.Marshal()
	_, err = f.WriteAt(head[:], 0)
	buf := make([]byte, 256<<10)
	for at := to; err == nil && at < end; {
		p := buf[:min(uint64(len(buf)), uint64(end-at))]
		if _, err = l.ReadAt(p, at); err == nil {
			_, err = f.WriteAt(p, HeaderSize+int64(at-to))
			at += LSN(len(p))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = l.opts.FS.SyncDir(dir)
	}
	if err == nil {
		err = l.opts.FS.SyncDir(l.dir)
	}
	if err != nil {
		return fmt.Errorf("save what is cut: %w", spaceError(err))
	}
	l.opts.Logger.Warn("log cut back", "to_lsn", to.String(), "from_lsn", end.String(), "kept_in", name)
	return nil
}

// TrimBefore removes the segments that lie wholly below an LSN, which must not be above the durable mark, down to a place that can
// be the tail (see [Log.TailBelow]), and what an earlier removal that was interrupted has left in front of the tail. Readers that are inside them end with [ErrTrimmed] at their next step. Durable on return.
func (l *Log) TrimBefore(at LSN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if at > l.Durable() {
		return fmt.Errorf("%w: trim below %v, durable is %v", ErrBeyondEnd, at, l.Durable())
	}
	at = l.TailBelow(at)
	old := l.segs.Load()
	n := 0
	for n < len(old.segs)-1 && old.segs[n].end() <= at {
		n++
	}
	if n == 0 && len(l.headless) == 0 {
		return nil
	}
	gone := l.headless
	l.headless = nil
	for _, s := range old.segs[:n] {
		l.handles.remove(s, ErrTrimmed)
		gone = append(gone, s.path)
	}
	l.segs.Store(&segList{segs: old.segs[n:], size: old.size})
	for i, path := range gone { // oldest first: a crash leaves no gap
		err := l.opts.FS.Remove(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) { // a removal whose sync failed
			err = l.opts.FS.SyncDir(l.segDir())
		}
		if err != nil {
			l.headless = gone[i:] // for the next call
			return fmt.Errorf("trim: %w", err)
		}
	}
	return nil
}
