package resp

import (
	"errors"
	"strings"
)

func init() {
	register([]command{
		{name: "multi", arity: 1, flags: flagLoading | flagFast | flagNow, group: "transactions", since: "1.2.0", about: "Starts a transaction.", handle: multiBegin},
		{name: "exec", arity: 1, flags: flagLoading | flagNow | flagExec, group: "transactions", since: "1.2.0", about: "Executes all commands in a transaction.", handle: func(c *conn, _ [][]byte) { c.exec() }},
		{name: "discard", arity: 1, flags: flagLoading | flagFast | flagNow, group: "transactions", since: "2.0.0", about: "Discards a transaction.", handle: discard},
		{name: "watch", arity: -2, flags: flagLoading | flagFast | flagNow | flagBarrier, keys: [3]int{1, -1, 1}, group: "transactions", since: "2.2.0", about: "Monitors changes to keys to determine the execution of a transaction.", handle: watchKeys},
		{name: "unwatch", arity: 1, flags: flagLoading | flagFast, group: "transactions", since: "2.2.0", about: "Forgets about watched keys of a transaction.", handle: unwatch},
	})
}

// multi is what MULTI has begun.
type multi struct {
	queued []queued
	bytes  int   // of arguments
	held   int64 // bytes accounted for with the server
	failed bool  // a command could not be queued: EXEC will refuse
}

// queued is a command between MULTI and EXEC.
type queued struct {
	cmd     *command
	args    [][]byte
	refusal string // why its arguments are bad; its element of EXEC's reply
}

// Bytes accounted for with the server besides the arguments themselves.
const (
	queuedBytes  = 64  // a queued command
	watchedBytes = 256 // a watched key
)

func multiBegin(c *conn, _ [][]byte) {
	if c.multi != nil {
		c.out.error("ERR MULTI calls can not be nested")
		return
	}
	c.multi = &multi{}
	c.queueLen.Store(0)
	c.out.ok()
}

// enqueue keeps a command for EXEC.
func (c *conn) enqueue(cmd *command, args [][]byte) {
	m := c.multi
	n := 0
	for _, a := range args {
		n += len(a)
	}
	cost := int64(n + len(args)*argBytes + queuedBytes)
	if err := c.hold(cost); err != nil {
		m.failed = true
		c.answer(func() { c.out.failure(err) })
		return
	}
	m.held += cost
	m.bytes += n
	all := make([]byte, 0, n)
	own := make([][]byte, len(args))
	for i, a := range args {
		all = append(all, a...)
		own[i] = all[len(all)-len(a) : len(all) : len(all)]
	}
	m.queued = append(m.queued, queued{cmd: cmd, args: own})
	c.queueLen.Store(int32(len(m.queued)))
	if c.silent() || c.run.pending() {
		c.answer(func() { c.out.status("QUEUED") })
		return
	}
	c.out.raw("+QUEUED\r\n")
}

func discard(c *conn, _ [][]byte) {
	if c.multi == nil {
		c.out.error("ERR DISCARD without MULTI")
		return
	}
	c.discard()
	c.out.ok()
}

// discard forgets what MULTI has begun, and the watched keys.
func (c *conn) discard() {
	if c.multi != nil {
		c.free(c.multi.held)
		c.multi = nil
		c.queueLen.Store(-1)
	}
	c.unwatch()
}

// dropTransaction lets go of all watches of a connection that ends.
func (c *conn) dropTransaction() {
	c.run.closeWatches()
	c.unwatch()
}

func watchKeys(c *conn, args [][]byte) {
	if c.multi != nil {
		c.out.error("ERR WATCH inside MULTI is not allowed")
		return
	}
	if c.watch == nil {
		c.watch = c.srv.store.NewWatch()
	}
	for _, key := range args[1:] {
		if err := c.watchKey(key); err != nil {
			c.out.failure(err)
			return
		}
	}
	c.watchLen.Store(int32(c.watch.Len()))
	c.out.ok()
}

func (c *conn) watchKey(key []byte) error {
	if len(key) > c.srv.maxKey {
		return nil // it is not there and never will be
	}
	cost := int64(len(key) + watchedBytes)
	if err := c.hold(cost); err != nil {
		return err
	}
	before := c.watch.Len()
	err := c.watch.Add(key)
	if c.watch.Len() == before {
		c.free(cost)
	} else {
		c.watchHeld += cost
	}
	return err
}

func unwatch(c *conn, _ [][]byte) {
	c.unwatch()
	c.out.ok()
}

func (c *conn) unwatch() {
	if c.watch == nil {
		return
	}
	c.watch.Close()
	c.watch = nil
	c.watchLen.Store(0)
	c.free(c.watchHeld)
	c.watchHeld = 0
}

// execution is an EXEC on its way to a commit.
type execution struct {
	queued []queued
	watch  Watch // nil: none
	bytes  int
	data   bool // some commands are about data, or there is a watch
	blind  bool // writes alone, whose answers are known, and no watch
	direct bool // no writes
	others bool // some commands are not about data: they are executed once the rest is committed

	// What the last attempt has decided.
	aborted bool   // a watched key has changed
	replies []byte // of the commands that are about data, if there are others
	ends    []int  // where the reply of each command ends in them
	err     error  // of the commit
}

// exec executes what MULTI has begun. One that only writes becomes a part of the pending run, like any write, so that many
// of a pipeline are one commit.
func (c *conn) exec() {
	m := c.multi
	if m == nil {
		c.answer(func() { c.out.error("ERR EXEC without MULTI") })
		return
	}
	x := &execution{queued: m.queued, watch: c.watch, bytes: m.bytes}
	writes := x.prepare(c.srv)
	refusal := ""
	switch {
	case m.failed:
		refusal = "EXECABORT Transaction discarded because of previous errors."
	case writes && !c.srv.store.Writable():
		refusal = execAbort(c.srv.readOnly())
	}
	if refusal != "" {
		c.discard()
		c.answer(func() { c.out.error(refusal) })
		return
	}
	// The run takes over what is held for the transaction.
	c.multi, c.watch = nil, nil
	c.argsHeld += m.held + c.watchHeld
	c.watchHeld = 0
	c.queueLen.Store(-1)
	c.watchLen.Store(0)
	alone := x.direct || x.others || c.run.full()
	if alone {
		c.commitRun()
	}
	if x.data {
		c.run.transaction(x, c.silent() || x.others)
	}
	if alone {
		c.commitRun()
	}
	if x.others || !x.data {
		c.answer(func() { c.assemble(x) })
	}
}

// prepare checks the arguments of the commands and finds out what kind of transaction they make. It reports whether they write.
func (x *execution) prepare(s *Server) (writes bool) {
	x.data, x.blind, x.direct = x.watch != nil, x.watch == nil, true
	x.ends = make([]int, len(x.queued))
	for i := range x.queued {
		q := &x.queued[i]
		switch {
		case q.cmd.check != nil:
			var conditional bool
			conditional, q.refusal = q.cmd.check(s, q.args)
			x.data, x.direct = true, false
			x.blind = x.blind && (q.refusal != "" || !conditional)
		case q.cmd.read != nil:
			x.data, x.blind = true, false
		default:
			x.others, x.blind = true, false
		}
	}
	x.blind = x.blind && !x.direct
	return !x.direct
}

// write adds a blind transaction to a batch.
func (x *execution) write(b Batch, now int64) {
	for i := range x.queued {
		if q := &x.queued[i]; q.refusal == "" {
			q.cmd.blind(b, q.args, now)
		}
	}
}

// replyPlain appends the reply of a blind transaction that is committed.
func (x *execution) replyPlain(w *writer) {
	w.array(len(x.queued))
	for i := range x.queued {
		if q := &x.queued[i]; q.refusal != "" {
			w.error(q.refusal)
		} else {
			w.ok()
		}
	}
}

// decide executes the commands that are about data inside a transaction and appends the reply.
func (x *execution) decide(tx Tx, w *writer) error {
	x.aborted, x.ends, x.replies = false, x.ends[:0], x.replies[:0]
	if x.watch != nil {
		same, err := tx.Unchanged(x.watch)
		if err != nil {
			return err
		}
		if x.aborted = !same; x.aborted {
			w.nullArray()
			return nil
		}
	}
	w.array(len(x.queued))
	first := len(w.buf)
	for i := range x.queued {
		q := &x.queued[i]
		mark := len(w.buf)
		var err error
		switch {
		case q.refusal != "":
			w.error(q.refusal)
		case q.cmd.decide != nil:
			err = q.cmd.decide(tx, w, q.args)
		case q.cmd.read != nil:
			err = q.cmd.read(tx, w, q.args)
		}
		if err == nil {
			err = w.relieve()
		}
		if err != nil {
			w.buf = w.buf[:mark]
			return err
		}
		x.ends = append(x.ends, len(w.buf)-first)
	}
	if x.others {
		x.replies = append(x.replies, w.buf[first:]...)
	}
	return nil
}

// assemble answers a transaction with commands that are not about data: the others' replies are there.
func (c *conn) assemble(x *execution) {
	switch {
	case x.err != nil:
		c.out.error(execError(x.err))
		return
	case x.aborted:
		c.out.nullArray()
		return
	}
	c.executing = true
	defer func() { c.executing = false }()
	c.out.array(len(x.queued))
	from := 0
	for i := range x.queued {
		q := &x.queued[i]
		if q.cmd.check == nil && q.cmd.read == nil {
			q.cmd.handle(c, q.args)
		}
		c.out.buf = append(c.out.buf, x.replies[from:x.ends[i]]...)
		from = x.ends[i]
	}
}

// execError is EXEC's answer when the transaction was not committed, or perhaps was.
func execError(err error) string {
	if errors.Is(err, ErrUnknownOutcome) {
		return errorText(err)
	}
	return execAbort(errorText(err))
}

func execAbort(cause string) string {
	return "EXECABORT Transaction discarded because of: " + strings.TrimPrefix(cause, "ERR ")
}

// closeWatches lets go of the watches of the transactions in the run.
func (r *run) closeWatches() {
	for i := range r.entries {
		if x := r.entries[i].exec; x != nil && x.watch != nil {
			x.watch.Close()
		}
	}
}
