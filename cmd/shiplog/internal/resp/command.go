package resp

import (
	"errors"
	"fmt"
	"strings"
)

// flags of a command.
type flags uint16

const (
	flagSnapshot flags = 1 << iota // reads more than once, and so from one snapshot
	flagNoAuth                     // may be used before AUTH
	flagLoading                    // may be used while the node is loading
	flagFast                       // as Redis says, for COMMAND
	flagAdmin                      // likewise
	flagBarrier                    // commits the pending run first although it does not read data
	flagAlone                      // a write that is a commit of its own
	flagNow                        // is executed at once where others are queued by MULTI
	flagExec                       // answers for itself
	flagPubSub                     // may be used by a RESP2 client that is subscribed
)

// command is a row of the table of commands. A write has check, and blind or decide or both; what reads data has read; all
// others have handle.
type command struct {
	name  string
	arity int // as in Redis: the number of arguments with the name; negative: at least so many
	flags flags
	keys  [3]int // first and last position of keys, and step
	group string
	since string
	about string

	// handle executes a command that is not about data, or sees to that itself.
	handle func(c *conn, args [][]byte)
	// read appends the reply of a command that reads data. The pending run is committed first. After an error what it
	// has appended is no whole reply.
	read func(r Reader, w *writer, args [][]byte) error
	// check refuses bad arguments, before anything is queued, and says whether the answer depends on the data.
	check func(s *Server, args [][]byte) (conditional bool, refusal string)
	// blind adds a write whose answer is OK to a batch.
	blind func(b Batch, args [][]byte, now int64)
	// decide executes the write inside a transaction and appends its reply. An error gives up the transaction.
	decide func(tx Tx, w *writer, args [][]byte) error

	lower []byte
}

// commands is filled at start from the tables beside the handlers, and not changed after.
var commands = map[string]*command{}

// register is called by the init functions of the files with handlers; COMMAND lists what it collects.
func register(table []command) {
	for i := range table {
		cmd := &table[i]
		cmd.lower = []byte(cmd.name)
		commands[cmd.name] = cmd
	}
}

// lookup finds a command by its name in any case, without allocating.
func lookup(name []byte) *command {
	var low [24]byte
	if len(name) > len(low) {
		return nil
	}
	for i, b := range name {
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		low[i] = b
	}
	return commands[string(low[:len(name)])]
}

// dispatch executes a command, or adds it to the pending run, or to what MULTI has begun. The order of the refusals is Redis's.
func (c *conn) dispatch(args [][]byte) {
	c.commands++
	c.seq++
	c.deliver()
	cmd := lookup(args[0])
	if refusal := c.refusal(cmd, args); refusal != "" {
		c.reject(cmd, args, refusal)
		return
	}
	if c.lastCmd.Load() != cmd {
		c.lastCmd.Store(cmd)
	}
	switch {
	case c.multi != nil && cmd.flags&flagNow == 0:
		c.enqueue(cmd, args)
	case cmd.check != nil:
		c.write(cmd, args)
	case cmd.flags&flagExec != 0:
		c.exec()
	default:
		if cmd.read != nil || cmd.flags&flagBarrier != 0 {
			c.commitRun()
		}
		switch {
		case c.silent() || c.run.pending():
			c.answer(func() { c.execute(cmd, args) })
		default:
			c.execute(cmd, args)
		}
	}
}

// execute appends the reply of a command that does not write.
func (c *conn) execute(cmd *command, args [][]byte) {
	if cmd.read == nil {
		cmd.handle(c, args)
		return
	}
	var err error
	mark := len(c.out.buf)
	if cmd.flags&flagSnapshot != 0 && (len(args) > 2 || cmd.keys[0] == 0) {
		s := c.srv.store.Snapshot()
		err = cmd.read(s, &c.out, args)
		s.Close()
	} else {
		err = cmd.read(c.srv.store, &c.out, args)
	}
	switch {
	case err == nil:
	case errors.Is(err, errCutShort):
		c.closing = true // the client waits for elements that do not come: better a broken connection
	default:
		c.out.buf = c.out.buf[:mark]
		c.out.failure(err)
	}
}

// errCutShort is returned by a read that has sent a part of its reply and cannot go on.
var errCutShort = errors.New("resp: reply cut short")

// write adds a write to the pending run.
func (c *conn) write(cmd *command, args [][]byte) {
	conditional, refusal := cmd.check(c.srv, args)
	if refusal != "" {
		c.answer(func() { c.out.error(refusal) })
		return
	}
	alone := cmd.flags&flagAlone != 0
	if alone || c.run.full() {
		c.commitRun()
	}
	c.run.write(cmd, args, conditional, c.silent())
	if alone {
		c.commitRun()
	}
}

// refusal is why a command cannot be executed, or empty.
func (c *conn) refusal(cmd *command, args [][]byte) string {
	switch {
	case cmd == nil:
		return unknownCommand(args)
	case !cmd.takes(len(args)):
		return "ERR wrong number of arguments for '" + cmd.name + "' command"
	case !c.authed && cmd.flags&flagNoAuth == 0:
		return errNoAuth
	case cmd.check != nil && !c.srv.store.Writable():
		return c.srv.readOnly()
	case cmd.flags&flagPubSub == 0 && !c.out.resp3 && c.subscribed():
		return "ERR Can't execute '" + cmd.name + "': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
	}
	return ""
}

// takes reports whether a command may have n arguments, its name included.
func (cmd *command) takes(n int) bool { return n == cmd.arity || cmd.arity < 0 && n >= -cmd.arity }

// readOnly refuses a write on a follower, and says where to go.
func (s *Server) readOnly() string {
	if addr := s.node.LeaderAddr(); addr != "" {
		return errReadOnly + " The leader is at " + addr
	}
	return errReadOnly
}

// reject answers a command that cannot be executed. It makes what MULTI has begun fail.
func (c *conn) reject(cmd *command, args [][]byte, refusal string) {
	if c.multi != nil {
		c.multi.failed = true
	}
	if cmd != nil && cmd.flags&flagExec != 0 {
		c.discard()
		refusal = execAbort(refusal)
	}
	c.answer(func() { c.out.error(refusal) })
	if cmd == nil && crossProtocol(args[0]) {
		c.srv.log.Warn("client speaks HTTP, connection closed", "client", c.addr)
		c.closing = true
	}
}

// answer runs fn, which appends a reply, and puts the reply where it belongs: behind the pending run, or nowhere when
// the client wants none.
func (c *conn) answer(fn func()) {
	mark := len(c.out.buf)
	fn()
	// fn may have flushed what was there, or committed the run.
	mark = min(mark, len(c.out.buf))
	switch {
	case c.silent():
		c.out.buf = c.out.buf[:mark]
	case c.run.pending():
		c.run.literal(c.out.buf[mark:])
		c.out.buf = c.out.buf[:mark]
	}
}

func unknownCommand(args [][]byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "ERR unknown command '%s', with args beginning with: ", head(args[0], 128))
	from := b.Len()
	for _, a := range args[1:] {
		left := 128 - (b.Len() - from)
		if left <= 0 {
			break
		}
		fmt.Fprintf(&b, "'%s' ", head(a, left))
	}
	return b.String()
}

func head(p []byte, n int) []byte { return p[:min(len(p), n)] }

// crossProtocol recognises a browser that was made to send a request to this port.
func crossProtocol(name []byte) bool {
	return strings.EqualFold(string(head(name, 8)), "post") || strings.EqualFold(string(head(name, 8)), "host:")
}

// subcommand is a row of the table of a container command.
type subcommand struct {
	name   string
	arity  int // with the container's name
	handle func(c *conn, args [][]byte)
}

// dispatchSub executes a subcommand with Redis's errors.
func dispatchSub(c *conn, container string, table []subcommand, args [][]byte) {
	for i := range table {
		sub := &table[i]
		if !strings.EqualFold(sub.name, string(head(args[1], 32))) {
			continue
		}
		if (sub.arity > 0 && len(args) != sub.arity) || len(args) < -sub.arity {
			c.out.errorf("ERR wrong number of arguments for '%s|%s' command", container, sub.name)
			return
		}
		sub.handle(c, args)
		return
	}
	c.out.errorf("ERR unknown subcommand '%s'. Try %s HELP.", head(args[1], 128), strings.ToUpper(container))
}

// is compares an argument with a lower-case word in any case.
func is(arg []byte, word string) bool {
	if len(arg) != len(word) {
		return false
	}
	for i, b := range arg {
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		if b != word[i] {
			return false
		}
	}
	return true
}
