package engine

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"shiplog/wal"
)

// pipeline is the one way into the log. Writers queue their batches; whoever finds nobody leading
// leads: it takes the queue as a group, appends and indexes it, hands the lead on, and syncs. A
// group waits for the sync before it to end, so that it grows meanwhile and one fdatasync covers
// all of it. The leader is one of the writers: handing a group to a goroutine of the
// database would cost each commit a wake-up (but see leadFor).
type pipeline struct {
	mu      sync.Mutex // guards the four below
	queue   []*commit
	spare   []*commit // memory for the next queue
	leading bool
	last    int // size of the last synced group: how many may be about to come again

	syncing sync.Mutex // held from before a durable group is taken until its fdatasync has ended
	pause   pause      // guarded by syncing

	indexing sync.WaitGroup // of the group that is being synced

	// Scratch of whoever leads.
	alone   [1]*commit
	batches []*wal.Batch
	run     []*commit
	waiters []*waiter
	overlay overlay
}

// commit is one operation on its way through the pipeline.
type commit struct {
	waiter
	batch   *Batch
	control wal.Control // instead of a batch
	// decide runs in log order, in the leader's goroutine, and fills the batch from what it sees. It runs
	// again when something that it saw was not written after all, on a full disk.
	// Its error, or an empty batch, is an answer too: returned once all that it saw is visible.
	decide  decision
	given   int // operations that the batch had before decide
	refused error
	turn    chan struct{} // capacity 1: this commit is to lead
	queued  bool          // guarded by pipeline.mu: not taken by a leader yet
	timer   *time.Timer
	limit   time.Time // see deadline
	own     Batch     // the batch of single operations
}

// decision fills b from what it sees in v.
type decision func(v *view, b *Batch) error

var commitPool = sync.Pool{New: func() any {
	return &commit{waiter: waiter{done: make(chan struct{}, 1)}, turn: make(chan struct{}, 1)}
}}

func newCommit() *commit { return commitPool.Get().(*commit) }

// release gives c back, unless someone may still hold it.
func (c *commit) release() {
	if c.gone {
		return
	}
	const keep = 64 << 10
	if cap(c.own.w.Buf) > keep {
		c.own = Batch{}
	} else {
		c.own.Reset()
	}
	c.end, c.level, c.err, c.limit = 0, 0, nil, time.Time{}
	c.state.Store(running)
	c.batch, c.control, c.decide, c.given, c.refused = nil, nil, nil, 0, nil
	commitPool.Put(c)
}

// Commit applies b atomically and returns where it ends in the log once the database's commit rule
// and level l hold; the batch is then visible to every reader of this node. l Default means the
// rule alone; an l weaker than the rule is raised to it.
//
// An error that matches ErrUnknownOutcome means that the wait ended early (context, CommitTimeout,
// a failed disk): the batch may yet become visible; Outcome tells later. After any other error
// nothing was written. After ErrUnknownOutcome b is empty, else as it was. An empty batch returns the current position without waiting for anything.
//
// A call whose ctx has a deadline returns then, whatever the disk does. One whose ctx can only be cancelled may be the one that has the
// disk write for its group, and returns from that when the disk answers, or has failed (Options.StallTimeout).
// Safe for concurrent use with different batches.
func (db *DB) Commit(ctx context.Context, b *Batch, l Level) (Position, error) {
	if err := l.Validate(); err != nil {
		return Position{}, err
	}
	if b.err != nil {
		return Position{}, b.err
	}
	if b.Len() == 0 {
		return db.position(db.marks.indexedLSN()), nil
	}
	return db.commitBatch(ctx, b, l, nil)
}

// commitBatch commits b while the commit, not the caller, owns its memory: a caller that has given
// up waiting may use b again while the batch is still on its way. b is then left empty.
func (db *DB) commitBatch(ctx context.Context, b *Batch, l Level, decide decision) (Position, error) {
	c := newCommit()
	c.own, *b = *b, c.own
	c.batch, c.level, c.decide, c.given = &c.own, l, decide, c.own.Len()
	end, err := db.commit(ctx, c)
	if !c.gone {
		c.own, *b = *b, c.own
	}
	c.release()
	return db.unsure(end), err
}

// Put sets key to value and waits for the commit rule, for CommitTimeout at the most.
func (db *DB) Put(key, value []byte) error {
	c := newCommit()
	c.own.Put(key, value)
	return db.commitOwn(c)
}

// Delete removes key and waits for the commit rule. Deleting what is not there is no error.
func (db *DB) Delete(key []byte) error {
	c := newCommit()
	c.own.Delete(key)
	return db.commitOwn(c)
}

func (db *DB) commitOwn(c *commit) error {
	err := c.own.err
	if err == nil {
		c.batch = &c.own
		_, err = db.commit(context.Background(), c)
	}
	c.release()
	return err
}

// commit takes c through the pipeline and waits for its outcome. It returns where c ends in the log; 0: not in the log, or
// that is not known.
func (db *DB) commit(ctx context.Context, c *commit) (wal.LSN, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := db.admit(ctx, c); err != nil {
		return 0, err
	}
	if bound := db.logBound.Load(); bound != 0 && uint64(db.log.Head()) >= bound && c.control == nil && !c.own.w.Urgent {
		db.awaitSpace(ctx)
	}
	p := &db.pipe
	durable := db.needsDisk(c)
	p.mu.Lock()
	lead := !p.leading
	p.leading = true
	if !lead || durable {
		p.queue = append(p.queue, c)
		c.queued = true
	}
	p.mu.Unlock()
	switch {
	case lead && durable:
		db.leadFor(ctx)
	case lead:
		db.leadAlone(c)
	}
	if !c.park() { // most often the answer is there: no clock, no timer, no sleep
		return db.outcome(c)
	}
	return db.await(ctx, c)
}

// deadline is when the wait for c ends, counted from the first time that it is asked for; zero: never.
func (db *DB) deadline(c *commit) time.Time {
	if c.limit.IsZero() && db.opts.CommitTimeout > 0 && c.control == nil {
		c.limit = time.Now().Add(db.opts.CommitTimeout)
	}
	return c.limit
}

// await waits for the end of c, leading a group when it is c's turn.
func (db *DB) await(ctx context.Context, c *commit) (wal.LSN, error) {
	var expired <-chan time.Time
	if deadline := db.deadline(c); !deadline.IsZero() {
		left := max(0, time.Until(deadline))
		if c.timer == nil {
			c.timer = time.NewTimer(left)
		} else {
			c.timer.Reset(left)
		}
		defer c.timer.Stop()
		expired = c.timer.C
	}
	for {
		select {
		case <-c.done:
			return db.outcome(c)
		case <-c.turn:
			db.leadFor(ctx)
		case <-ctx.Done():
			return db.abandon(c, ctx.Err())
		case <-expired:
			return db.abandon(c, context.DeadlineExceeded)
		}
	}
}

// abandon ends the caller's wait. What is still queued is taken out: it was never written.
func (db *DB) abandon(c *commit, cause error) (wal.LSN, error) {
	p := &db.pipe
	p.mu.Lock()
	if c.queued {
		for i, q := range p.queue {
			if q == c {
				p.queue = append(p.queue[:i], p.queue[i+1:]...)
				break
			}
		}
		c.queued = false
		select {
		case <-c.turn: // it was to lead: the next one does
			p.handOn()
		default:
		}
		p.mu.Unlock()
		return 0, cause
	}
	p.mu.Unlock()
	end, left := db.marks.leave(&c.waiter)
	if !left {
		return db.outcome(c)
	}
	return 0, &OutcomeError{Position: db.unsure(end), Cause: cause}
}

// outcome is the answer of a commit whose wait is over.
func (db *DB) outcome(c *commit) (wal.LSN, error) {
	if c.err == nil && !db.held() { // asked again: this goroutine may have slept since its wait was over
		return 0, &OutcomeError{Position: db.unsure(c.end), Cause: ErrLeaseLost}
	}
	if c.err == nil {
		return c.end, c.refused
	}
	if failed := (*OutcomeError)(nil); errors.As(c.err, &failed) { // of many: each has its own place in the log
		return 0, &OutcomeError{Position: db.unsure(c.end), Cause: failed.Cause}
	}
	return 0, c.err
}

// unsure is the position of a write whose outcome is not known; none where it had not got as far as the log.
func (db *DB) unsure(end wal.LSN) Position {
	if end == 0 {
		return Position{}
	}
	return db.position(end)
}

// handOn passes the lead to the first in the queue. p.mu is held.
func (p *pipeline) handOn() {
	if len(p.queue) > 0 {
		p.queue[0].turn <- struct{}{}
	} else {
		p.leading = false
	}
}

// leadAlone takes c, which found nobody leading and needs no disk, through the pipeline.
func (db *DB) leadAlone(c *commit) {
	p := &db.pipe
	p.alone[0] = c
	db.indexRun(db.appendGroup(p.alone[:], false))
	p.alone[0] = nil
	p.mu.Lock()
	p.handOn()
	p.mu.Unlock()
	db.flusher.kick()
}

// leadFor leads for a caller. One whose context has a deadline has another goroutine lead, so that the deadline holds also while the disk does not answer. It
// costs a tenth to a fifth of a commit that waits for nobody else.
func (db *DB) leadFor(ctx context.Context) {
	if _, bounded := ctx.Deadline(); bounded {
		go db.lead() // ends with its group
		return
	}
	db.lead()
}

// lead takes one group through the pipeline.
func (db *DB) lead() {
	p := &db.pipe
	durable := db.groupIsDurable()
	if durable {
		p.syncing.Lock()
		db.awaitVoters()
		p.gather()
	}
	p.mu.Lock()
	group := p.queue
	p.queue, p.spare = p.spare[:0], nil
	for _, c := range group {
		c.queued = false
	}
	p.mu.Unlock()

	a, n := db.appendGroup(group, durable), len(group)
	if durable && len(a.run) >= indexBeside && runtime.GOMAXPROCS(0) > 1 {
		p.indexing.Go(func() { db.finish(a, group) }) // waited for below
	} else {
		db.finish(a, group)
	}
	if !durable {
		db.flusher.kick()
		return
	}
	p.last = n // guarded by syncing
	began := time.Now()
	_, err := db.log.Sync()
	p.pause.took = time.Since(began)
	p.indexing.Wait()
	p.syncing.Unlock()
	if err != nil {
		db.poisoned(err)
		return
	}
	db.marks.synced(db.log.Durable())
}

// finish indexes what a group has appended, and hands the lead on.
func (db *DB) finish(a appended, group []*commit) {
	p := &db.pipe
	db.indexRun(a)
	clear(group)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = group[:0]
	p.handOn()
}

// indexBeside is from how many commits on a group is indexed beside its sync, by another goroutine: a wake-up costs as much as some ten of them.
const indexBeside = 24

// needsDisk reports whether c needs the disk before its answer.
func (db *DB) needsDisk(c *commit) bool {
	return Level(db.marks.ruleLevel.Load()).durable() || c.level.durable() || c.control != nil
}

// groupIsDurable reports whether what is queued now needs the disk before its answer.
func (db *DB) groupIsDurable() bool {
	p := &db.pipe
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.queue, db.needsDisk)
}

// idleLooks is how often gather looks in vain at the most. Looks, because time stands still for whoever never sleeps in a test of virtual time; it is some ten
// microseconds, however long the last sync was.
const idleLooks = 256

// gather lets the writers of the last group, just woken, queue up again before the next one is taken: a sync for a few of them costs the
// others a sync of waiting. It yields the processor until as many are there or, where no more come, for an eighth of a sync.
func (p *pipeline) gather() {
	if p.last < 2 {
		return
	}
	seen, looks, idle := -1, 0, time.Time{}
	for {
		p.mu.Lock()
		n := len(p.queue)
		p.mu.Unlock()
		switch {
		case n >= p.last:
			return
		case n != seen:
			seen, looks, idle = n, 0, time.Now()
		case looks == idleLooks || time.Since(idle) > p.pause.took/8:
			return
		}
		looks++
		runtime.Gosched()
	}
}
