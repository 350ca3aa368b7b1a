package resp

import (
	"errors"
	"sync"
)

// Limits of one commit.
const (
	maxRunCommands   = 16 << 10 // commands of one run
	maxRunBytes      = 1 << 20  // bytes of arguments after which a run takes no more commands
	maxGroupRuns     = 256      // runs that the combiner decides in one transaction
	maxGroupCommands = 32 << 10
	maxGroupBytes    = 4 << 20
	maxConflicts     = 8 // transactions lost in a row before plain writes are held back
)

// run is the writes of one connection that are waiting to become one commit, with what must be answered between them.
type run struct {
	entries     []entry
	args        [][]byte // of all entries
	lits        []byte   // replies that do not depend on the store, of all entries
	bytes       int
	writes      int
	conditional bool // some answer depends on the data
	direct      bool // writes nothing, so that it needs no place in the order of commits
}

// entry is a write (cmd and its n arguments), a transaction of MULTI (exec), or a literal reply of n bytes (both nil).
type entry struct {
	cmd    *command
	exec   *execution
	n      int
	silent bool
}

func (e *entry) literal() bool { return e.cmd == nil && e.exec == nil }

func (r *run) pending() bool { return len(r.entries) > 0 }

func (r *run) full() bool { return r.bytes >= maxRunBytes || len(r.entries) >= maxRunCommands }

func (r *run) write(cmd *command, args [][]byte, conditional, silent bool) {
	r.entries = append(r.entries, entry{cmd: cmd, n: len(args), silent: silent})
	r.args = append(r.args, args...)
	for _, a := range args {
		r.bytes += len(a)
	}
	r.writes++
	r.conditional = r.conditional || conditional
}

// transaction adds the commands of an EXEC.
func (r *run) transaction(x *execution, silent bool) {
	r.entries = append(r.entries, entry{exec: x, silent: silent})
	r.bytes += x.bytes
	r.writes++
	r.conditional = r.conditional || !x.blind
	r.direct = x.direct
}

func (r *run) literal(p []byte) {
	if len(p) == 0 {
		return
	}
	r.entries = append(r.entries, entry{n: len(p)})
	r.lits = append(r.lits, p...)
	r.bytes += len(p)
}

func (r *run) reset() {
	if cap(r.entries) > 1024 || cap(r.args) > 4096 || cap(r.lits) > flushBytes {
		*r = run{}
		return
	}
	clear(r.args) // let go of replaced buffers
	*r = run{entries: r.entries[:0], args: r.args[:0], lits: r.lits[:0]}
}

// each calls fn for every entry: with its arguments for a write, with the reply for a literal.
func (r *run) each(fn func(e entry, args [][]byte, lit []byte)) {
	args, lits := r.args, r.lits
	for _, e := range r.entries {
		if e.literal() {
			fn(e, nil, lits[:e.n])
			lits = lits[e.n:]
			continue
		}
		fn(e, args[:e.n], nil)
		args = args[e.n:]
	}
}

// commitRun commits the pending run and appends its replies.
func (c *conn) commitRun() {
	if !c.run.pending() {
		return
	}
	commit := c.commitPlain
	if c.run.conditional {
		commit = c.commitConditional
	}
	if n := int64(c.run.bytes); n <= flushBytes {
		commit(&c.run)
	} else if c.hold(n) == nil { // the store's copy
		commit(&c.run)
		c.free(n)
		c.batch = nil // batches keep their memory
	} else {
		c.failRun(&c.run, errNoRoom, nil)
	}
	c.run.closeWatches()
	c.run.reset()
	c.free(c.argsHeld)
	c.argsHeld = 0
}

func (c *conn) commitPlain(r *run) {
	if c.batch == nil {
		c.batch = c.srv.store.NewBatch()
	}
	now := c.srv.store.Now()
	args := r.args
	for _, e := range r.entries {
		switch {
		case e.exec != nil:
			e.exec.write(c.batch, now)
		case e.cmd != nil:
			e.cmd.blind(c.batch, args[:e.n], now)
			args = args[e.n:]
		}
	}
	c.srv.combine.gate.RLock()
	pos, err := c.srv.store.Commit(c.srv.ctx, c.batch)
	c.srv.combine.gate.RUnlock()
	c.batch.Reset()
	c.srv.stats.commits.Add(1)
	c.noteWrite(pos, err)
	if err == nil {
		lits := r.lits
		for _, e := range r.entries {
			switch {
			case e.literal():
				c.out.buf = append(c.out.buf, lits[:e.n]...)
				lits = lits[e.n:]
			case e.silent:
			case e.exec != nil:
				e.exec.replyPlain(&c.out)
			default:
				c.out.ok()
			}
		}
		return
	}
	c.failRun(r, err, c.commitPlain)
}

func (c *conn) commitConditional(r *run) {
	c.work.begin(c, r)
	var pos Position
	var err error
	if r.direct {
		_, err = c.srv.store.Update(c.srv.ctx, c.work.apply)
	} else {
		pos, err = c.srv.combine.do(&c.work)
	}
	c.noteWrite(pos, err)
	if err == nil {
		c.out.buf = append(c.out.buf, c.work.out.buf...)
		c.out.hits += c.work.out.hits
		c.out.misses += c.work.out.misses
		c.work.end()
		return
	}
	c.work.end()
	c.failRun(r, err, c.commitConditional)
}

func (c *conn) noteWrite(pos Position, err error) {
	if (err == nil || errors.Is(err, ErrUnknownOutcome)) && pos != (Position{}) {
		c.lastWrite = pos
	}
}

// failRun answers a run that did not commit. If it was too large as a whole, which no single command was, or one of its
// commands could not be decided, they are committed one by one.
func (c *conn) failRun(r *run, err error, again func(*run)) {
	single := r.writes > 1 && (errors.Is(err, ErrTooLarge) || undecided(err))
	r.each(func(e entry, args [][]byte, lit []byte) {
		switch {
		case e.literal():
			c.out.buf = append(c.out.buf, lit...)
		case single:
			one := run{entries: []entry{e}, args: args, writes: 1, conditional: r.conditional}
			again(&one)
		case e.exec != nil:
			e.exec.err = err
			if !e.silent {
				c.out.error(execError(err))
			}
		case !e.silent:
			c.out.failure(err)
		}
	})
}

// work is a conditional run on its way through the combiner. A connection reuses its own.
type work struct {
	conn   *conn
	run    *run
	out    writer // the replies, as the last attempt decided them
	pos    Position
	err    error
	signal chan bool // true: decided; false: lead the next group
}

func (w *work) begin(c *conn, r *run) {
	if w.signal == nil {
		w.signal = make(chan bool, 1)
	}
	w.conn, w.run = c, r
	w.out.resp3, w.out.srv = c.out.resp3, c.srv
	if w.out.value == nil {
		w.out.whole, w.out.relieve = true, w.bound
		w.out.value = func(value []byte) error {
			if len(value) > flushBytes && !c.holdReplies(len(c.out.buf)+len(w.out.buf)+len(value)) {
				return errNoRoom
			}
			w.out.bulk(value)
			return nil
		}
	}
}

func (w *work) end() {
	w.run = nil
	if cap(w.out.buf) > flushBytes {
		w.out.buf = nil
	}
	w.out.buf = w.out.buf[:0]
}

// undecidedError is an error that a command met while it was decided: nothing was written for it.
type undecidedError struct{ error }

func (e *undecidedError) Unwrap() error { return e.error }

func undecided(err error) bool {
	var u *undecidedError
	return errors.As(err, &u)
}

// apply decides the run inside a transaction. It may be called again when the transaction was lost.
func (w *work) apply(tx Tx) error {
	w.out.buf, w.out.hits, w.out.misses = w.out.buf[:0], 0, 0
	args, lits := w.run.args, w.run.lits
	for _, e := range w.run.entries {
		if e.literal() {
			w.out.buf = append(w.out.buf, lits[:e.n]...)
			lits = lits[e.n:]
			continue
		}
		mark := len(w.out.buf)
		var err error
		if e.exec != nil {
			err = e.exec.decide(tx, &w.out)
		} else {
			err = e.cmd.decide(tx, &w.out, args[:e.n])
		}
		if err != nil {
			return &undecidedError{err}
		}
		if e.silent {
			w.out.buf = w.out.buf[:mark]
		}
		if err := w.bound(); err != nil {
			return err
		}
		args = args[e.n:]
	}
	return nil
}

// bound keeps the replies of a run, which hold old values, within limits.
func (w *work) bound() error {
	if len(w.out.buf) <= flushBytes {
		return nil
	}
	if len(w.out.buf) > maxRunBytes && w.run.writes > 1 {
		return ErrTooLarge // the commands are decided one by one
	}
	// The connection's goroutine waits for this run, so what it owns can be used here.
	if !w.conn.holdReplies(len(w.conn.out.buf) + len(w.out.buf)) {
		return errNoRoom
	}
	return nil
}

// combiner decides conditional runs of all connections in the order in which they came, as many in one transaction as
// have gathered while the one before was being committed. The first to come leads; when it is served it hands the lead
// to the next in the queue, so that no client works for others for longer than one commit.
type combiner struct {
	srv *Server
	// gate is held for reading by commits of plain writes, and taken by a transaction that keeps losing to them.
	gate sync.RWMutex

	mu      sync.Mutex // guards queue, leading
	queue   []*work
	leading bool
	group   []*work // of the leader
}

func (b *combiner) do(w *work) (Position, error) {
	b.mu.Lock()
	b.queue = append(b.queue, w)
	lead := !b.leading
	b.leading = true
	b.mu.Unlock()
	for {
		if lead {
			b.lead()
		}
		if done := <-w.signal; done {
			return w.pos, w.err
		}
		lead = true
	}
}

// lead decides one group and hands over.
func (b *combiner) lead() {
	b.mu.Lock()
	group := b.group[:0]
	commands, bytes := 0, 0
	for len(group) < len(b.queue) && len(group) < maxGroupRuns {
		r := b.queue[len(group)].run
		if len(group) > 0 && (commands+len(r.entries) > maxGroupCommands || bytes+r.bytes > maxGroupBytes) {
			break
		}
		commands += len(r.entries)
		bytes += r.bytes
		group = append(group, b.queue[len(group)])
	}
	rest := copy(b.queue, b.queue[len(group):])
	clear(b.queue[rest:])
	b.queue = b.queue[:rest]
	b.mu.Unlock()

	b.decide(group)

	for _, w := range group {
		w.signal <- true // never blocks: one signal is in flight for each work
	}
	clear(group)
	b.mu.Lock()
	b.group = group
	var next *work
	if len(b.queue) > 0 {
		next = b.queue[0]
	} else {
		b.leading = false
	}
	b.mu.Unlock()
	if next != nil {
		next.signal <- false
	}
}

// decide commits a group as one transaction. A group that is too large as a whole, or in which one run cannot be decided, is
// decided run by run.
func (b *combiner) decide(group []*work) {
	pos, err := b.update(group)
	if len(group) > 1 && (errors.Is(err, ErrTooLarge) || errors.Is(err, errNoRoom) || undecided(err)) {
		for _, w := range group {
			w.pos, w.err = b.update([]*work{w})
		}
		return
	}
	for _, w := range group {
		w.pos, w.err = pos, err
	}
}

func (b *combiner) update(group []*work) (pos Position, err error) {
	attempt := func(tx Tx) error {
		for _, w := range group {
			if err := w.apply(tx); err != nil {
				return err
			}
		}
		return nil
	}
	b.srv.stats.combinedRuns.Add(int64(len(group)))
	for range maxConflicts {
		pos, err = b.srv.store.Update(b.srv.ctx, attempt)
		if !errors.Is(err, ErrConflict) {
			break
		}
	}
	if errors.Is(err, ErrConflict) {
		b.gate.Lock()
		pos, err = b.srv.store.Update(b.srv.ctx, attempt)
		b.gate.Unlock()
	}
	if err == nil {
		b.srv.stats.combinedCommits.Add(1)
	}
	return pos, err
}
