package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/engine/internal/index"
	"shiplog/wal"
)

// Position is a place in the log: an LSN, and the epoch whose leader wrote what ends there.
type Position = wal.Position

// DB is an open database. All its methods are safe for concurrent use.
type DB struct {
	opts    Options
	log     *wal.Log
	idx     *index.Index
	clock   *clock
	marks   marks
	pipe    pipeline
	pins    pins
	slots   slots
	healer  atomic.Pointer[Healer]
	watches watches
	push    atomic.Pointer[func()]

	floor        atomic.Uint64 // LSN below which only pinned readers find what they look for
	firstTail    wal.LSN       // a tail record that gives up what is below makes the log a consistent state; 0: it was one when it was opened
	consistentAt atomic.Uint64 // end of the tail record that makes [tail, ...) a consistent state
	loadedAt     atomic.Uint64 // reads answer ErrLoading until this LSN is visible; 0: no wait
	applyErr     atomic.Pointer[error]
	takenBack    atomic.Uint64 // how often the index was cut below what had been shown
	newTail      atomic.Uint64 // where the newest tail record says that the log begins

	reclaimAt  atomic.Uint64                 // end of the log from which reclaim is to look again; 0: it has been told
	logBound   atomic.Uint64                 // end of the log from which writes wait for reclaim; 0: they do not
	boundMoved atomic.Pointer[chan struct{}] // closed when that changes; nil: nobody waits

	majorFaults atomic.Int64  // of this process, when an iterator looked last
	cold        atomic.Bool   // frames of a stretch were not in memory, when an iterator looked last
	warm        atomic.Uint32 // stretches since then in which none was missing

	overfull   atomic.Bool // the index has outgrown its memory, and cannot be written to the disk
	rebuilding sync.Mutex  // held by whoever rebuilds damaged runs of the index

	trimMu  sync.Mutex  // guards trims and trimmed, and removal
	trims   []trimmable // in log order
	trimmed trimmable   // the highest of those that have left trims

	opened  time.Time // the clock of leases counts from here
	lending lending

	applyingAll atomic.Int32  // the delay of application is lifted
	applyKick   chan struct{} // one token: look again at what waits for its time
	appliedTime atomic.Int64  // log time of the newest batch that was applied as a follower
	clockPath   string
	clockSaved  time.Time    // of the flusher, and of Close after it
	heldTime    atomic.Int64 // log time of the first that waits for its time; 0: none does

	closed   atomic.Bool
	follower atomic.Bool
	fenced   atomic.Uint32 // epoch that fenced this leader; 0: none

	ruleMu sync.Mutex // held over the making of a rule record, from the rule that it changes on

	promoting  chan struct{} // one token: one candidacy at a time; before roleMu
	electorate Electorate    // guarded by roleMu

	roleMu      sync.Mutex // serialises changes of role, and Close
	applier     *applier   // of a follower; guarded by roleMu
	flusher     *flusher
	reclaim     *reclaimer    // of a leader; nil without reclaim; guarded by roleMu
	reclaimKick chan struct{} // one token: look again
	ending      atomic.Bool   // the end of a degraded span is being appended
}

// loadingUntilConsistent in loadedAt: the log starts at a moved tail, and its tail record has not been seen.
const loadingUntilConsistent = ^uint64(0)

// Open opens the database in dir, creating directory and database when they are not there. It
// recovers: what was never durable is cut from the end of the log and reported to the logger; what
// was durable is never cut (*wal.CorruptError instead). A leader that was not closed cleanly starts
// a new epoch, so that what its followers may hold beyond its own end can be told apart.
//
// Open starts a goroutine that flushes (and one that applies, on a follower); Close stops them.
func Open(dir string, opts *Options) (*DB, error) {
	o, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	db := &DB{opts: o, clock: newClock(o.Now), promoting: make(chan struct{}, 1), applyKick: make(chan struct{}, 1), opened: time.Now()}
	db.slots.fs, db.slots.path = o.FS, filepath.Join(dir, slotsFile)
	db.clockPath = filepath.Join(dir, clockFile)
	db.marks.readLeases = o.ReadLeases
	db.marks.followers = map[wal.NodeID]*follower{}
	db.marks.named, db.marks.lease, db.marks.showsLate = o.Voters, o.Lease, o.late()
	if !o.Follower {
		db.clock.observe(db.clock.now().UnixMilli())
	}
	db.log, err = wal.Open(dir, &wal.Options{
		FS: o.FS, SegmentSize: o.SegmentSize, Compression: o.Compression, Logger: o.Logger, Now: db.clock.time,
		CacheSize: max(0, o.CacheSize), StallTimeout: o.StallTimeout, Poisoned: func(err error) { db.marks.fail(&OutcomeError{Cause: err}) },
	})
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := db.start(dir, opts); err != nil {
		if db.idx != nil {
			db.idx.Close()
		}
		return nil, errors.Join(fmt.Errorf("open database: %w", err), db.log.Close())
	}
	return db, nil
}

// start opens the index, replays the log from where its runs end, and takes up the role.
func (db *DB) start(dir string, asked *Options) error {
	db.marks.log = db.log
	db.marks.ruleLevel.Store(uint32(Durable))
	if r := db.log.Recovery(); r.Cut {
		db.opts.Logger.Warn("cut a torn tail", "lsn", r.CutFrom.String(), "bytes", r.CutBytes)
	}
	if !db.log.Empty() {
		db.firstTail = db.log.Tail()
		if db.firstTail > 0 {
			db.loadedAt.Store(loadingUntilConsistent)
		}
	}
	if err := db.slots.load(db.log.Head()); err != nil {
		db.opts.Logger.Error("slots are forgotten: what followers that are away lack may be gone when they come", "error", err)
	}
	db.follower.Store(db.opts.Follower)
	from, err := db.openIndex(dir)
	if err != nil {
		return err
	}
	if !db.log.Empty() {
		if db.delay() > 0 {
			if err := db.observeLog(); err != nil {
				return err
			}
			db.loadClock()
		}
		if err := db.replay(from); err != nil {
			return err
		}
	}
	if db.opts.Follower {
		db.becomeFollower()
	} else if err := db.becomeLeader(asked); err != nil {
		return err
	}
	db.assumeLent()
	db.raiseFloor()
	db.flusher = startFlusher(db)
	if db.opts.SpaceFactor > 0 {
		db.reclaim = startReclaimer(db)
	}
	return nil
}

// becomeFollower shows what was known to be committed and starts to apply what ship will append.
func (db *DB) becomeFollower() {
	if db.log.Empty() {
		db.loadedAt.Store(1) // until anything at all is known to be committed
	}
	m := &db.marks
	m.mu.Lock()
	m.leader, m.fenced = false, nil
	m.ends, m.degraded, m.epochEnd = lsnQueue{}, 0, 0
	if !db.log.Empty() {
		m.durable.Store(uint64(db.log.Durable()))
	}
	m.told = max(m.told, db.log.Committed())
	m.readMoved()
	m.advance()
	m.signal()
	m.mu.Unlock()
	db.applier = db.startApplier(db.marks.indexedLSN())
}

// becomeLeader creates a new database, or takes up the epoch that this node led; a new one, with the
// restart part raised, if it was not closed cleanly.
func (db *DB) becomeLeader(asked *Options) error {
	clean := true
	switch {
	case db.log.Empty():
		if err := db.log.Create(db.newRule()); errors.Is(err, wal.ErrEpoch) {
			return fmt.Errorf("%w: %w", ErrNotLeader, err)
		} else if err != nil {
			return fmt.Errorf("create database: %w", err)
		}
		if err := db.createFormat(); err != nil {
			return err
		}
		if err := db.replay(0); err != nil {
			return err
		}
	default:
		if db.opts.Lease != nil {
			return fmt.Errorf("%w: with a lease a database is opened as a follower, and promoted", ErrInvalidOption)
		}
		history := db.log.History()
		last := history[len(history)-1]
		if last.Leader != db.log.NodeID() {
			return fmt.Errorf("%w: epoch %v was led by node %v, this is node %v", ErrNotLeader, last.Epoch, last.Leader, db.log.NodeID())
		}
		promised := db.log.Promised()
		if promised > last.Epoch && promised.Term() != last.Epoch.Term() {
			return fmt.Errorf("%w: this node has promised epoch %v", ErrFenced, promised)
		}
		// Within a term, only its leader raises the restart part: a promise beyond the log is this node's own, and the record of the epoch was lost.
		clean = db.log.Recovery().Clean && promised <= last.Epoch
		if db.marks.rule.Level == 0 {
			// The crash came between the first header and the first epoch record: the database is as good as new.
			db.setRule(db.newRule(), 0)
			clean = false
		} else if err := db.checkRule(asked); err != nil {
			return err
		}
	}
	m := &db.marks
	end := m.indexedLSN()
	m.mu.Lock()
	m.endChangesBefore(m.termEnd)
	m.mu.Unlock()
	if !clean {
		e := max(db.log.Epoch(), db.log.Promised()) // never one again whose record was lost
		if e.Term() == wal.MaxTerm && e.Restart() == wal.MaxRestart {
			return fmt.Errorf("start epoch after an unclean stop: %w: none is above %v", wal.ErrEpoch, e)
		}
		var err error
		if end, err = db.log.StartEpoch(e.NextRestart(), m.rule); err != nil {
			return fmt.Errorf("start epoch after an unclean stop: %w", err)
		}
		m.indexed.Store(uint64(end))
		history := db.log.History()
		m.epochEnds(end, db.timeAt(history[len(history)-1].Start))
		m.degraded = 0
	}
	db.beginLead(end, clean)
	return nil
}

// beginLead takes up the leader's marks: the log and the index end at end; clean says that no epoch was begun there.
func (db *DB) beginLead(end wal.LSN, clean bool) {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader, m.fenced = true, nil
	m.durable.Store(uint64(db.log.Durable()))
	visible := end
	m.endChangesAt(db.log.Committed())
	if Level(m.ruleLevel.Load()).synchronous() && m.degraded == 0 {
		// Nothing that was not known to be confirmed is shown before it is.
		visible = min(end, max(db.log.Committed(), m.visibleLSN()))
		m.epochEnd = 0
		if !clean {
			m.epochEnd = end
		}
	}
	m.visible.Store(uint64(visible))
	if visible < end {
		m.ends.push(end)
		db.loadedAt.Store(uint64(end))
	}
	m.readMoved()
	m.advance()
}

// newRule is the commit rule and the voters that the options ask for.
func (db *DB) newRule() wal.Rule {
	r := wal.Rule{Level: uint32(db.opts.Commit), First: db.opts.FirstVoters}
	for _, name := range db.opts.Voters {
		r.Voters = append(r.Voters, wal.Voter{Name: name})
	}
	return r
}

// checkRule refuses options that contradict what the log says.
func (db *DB) checkRule(asked *Options) error {
	stored := Level(db.marks.rule.Level)
	if asked != nil && asked.Commit != Default && asked.Commit != stored {
		return fmt.Errorf("%w: commit rule %v asked for, the database has %v", ErrInvalidOption, asked.Commit, stored)
	}
	if asked != nil && asked.FirstVoters && !db.marks.rule.First {
		return fmt.Errorf("%w: FirstVoters asked for, in the database any of the voters count", ErrInvalidOption)
	}
	if size := db.log.SegmentSize(); asked != nil && asked.SegmentSize != 0 && asked.SegmentSize != size {
		return fmt.Errorf("%w: segments of %d bytes asked for, the database has %d", ErrInvalidOption, asked.SegmentSize, size)
	}
	return nil
}

// refuse says why a write cannot be taken at all.
func (db *DB) refuse(c *commit) error {
	switch {
	case db.closed.Load():
		return ErrClosed
	case db.follower.Load():
		return ErrReadOnly
	case db.fenced.Load() != 0:
		return fmt.Errorf("%w: epoch %v", ErrFenced, wal.Epoch(db.fenced.Load()))
	case !db.held():
		return ErrLeaseLost
	case c.control == nil && !c.own.w.Urgent && db.indexOverfull():
		return errIndexFull
	}
	return db.log.Err() // poisoned: nothing of a later write gets into the log
}

// position is the position of lsn in this node's current epoch.
func (db *DB) position(lsn wal.LSN) Position {
	return Position{Epoch: db.log.EpochAt(lsn), LSN: lsn}
}

// Follow makes this node a follower: writes are refused from the call on, those in flight end, and
// package ship may feed it. A follower stays one. Where the log's last bytes cannot be synced it says so, and the node follows all the same, with
// a log that takes nothing until it is reopened.
func (db *DB) Follow(ctx context.Context) error {
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	if db.closed.Load() {
		return ErrClosed
	}
	if db.follower.Swap(true) {
		return nil
	}
	db.drain()
	_, err := db.log.Sync()
	m := &db.marks
	m.mu.Lock()
	m.failWaiters(&OutcomeError{Cause: ErrReadOnly})
	m.waiting = waiterQueue{}
	m.told = m.committedLSN()
	m.mu.Unlock()
	if at := db.loadedAt.Load(); at != loadingUntilConsistent {
		db.loadedAt.CompareAndSwap(at, 0) // what a leader has to have confirmed before it answers may be cut; a follower shows what is committed
	}
	db.slots.forgetGone()
	db.appliedTime.Store(db.clock.read())
	db.becomeFollower()
	return cmp.Or(err, ctx.Err())
}

// drain waits until all that was in the pipeline has been appended or refused. It is called when writes are refused: what
// comes later is never appended.
func (db *DB) drain() {
	c := newCommit()
	c.control = &wal.FormatRecord{} // is refused
	p := &db.pipe
	p.mu.Lock()
	lead := !p.leading
	p.leading = true
	p.queue = append(p.queue, c)
	c.queued = true
	p.mu.Unlock()
	if lead {
		db.lead()
	}
	if c.park() {
		for waits := true; waits; {
			select {
			case <-c.done:
				waits = false
			case <-c.turn:
				db.lead()
			}
		}
	}
	c.release()
}

// Close ends waits with ErrUnknownOutcome, syncs, records the clean close and releases the
// directory. It may be called more than once; calls after the first return nil.
func (db *DB) Close() error {
	db.roleMu.Lock()
	defer db.roleMu.Unlock()
	if db.closed.Swap(true) {
		return nil
	}
	if db.reclaim != nil {
		db.reclaim.stop()
	}
	db.pipe.syncing.Lock() // the group in hand ends first; later ones are refused
	db.pipe.syncing.Unlock()
	if db.applier != nil {
		db.applier.stop()
	}
	db.flusher.stop()
	_, syncErr := db.log.Sync()
	if syncErr == nil {
		db.marks.synced(db.log.Durable())
	}
	db.marks.fail(&OutcomeError{Cause: ErrClosed})
	db.slots.flush(db)
	db.saveClock(true)
	db.closeIndex()
	if err := db.log.Close(); err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}
