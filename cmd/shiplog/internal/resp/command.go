package resp

import (
	"fmt"
	"strings"
	"time"
)

// flags of a command.
type flags uint8

const (
	flagWrite   flags = 1 << iota // changes data
	flagRead                      // reads data: the pending run is committed first
	flagNoAuth                    // may be used before AUTH
	flagLoading                   // may be used while the node is loading
	flagFast                      // as Redis says, for COMMAND
	flagAdmin                     // likewise
	flagBarrier                   // commits the pending run first although it does not read data
	flagAlone                     // a write that is a commit of its own
)

// command is a row of the table of commands. A write has check, and blind or decide or both; anything else has handle.
type command struct {
	name  string
	arity int // as in Redis: the number of arguments with the name; negative: at least so many
	flags flags
	keys  [3]int // first and last position of keys, and step
	group string
	since string
	about string

	// handle executes a command that does not write.
	handle func(c *conn, args [][]byte)
	// check refuses bad arguments, before anything is queued, and says whether the answer depends on the data.
	check func(s *Server, args [][]byte) (conditional bool, refusal string)
	// blind adds a write whose answer is OK to a batch.
	blind func(b Batch, args [][]byte, now time.Time)
	// decide executes the write inside a transaction and appends its reply. An error gives up the transaction.
	decide func(tx Tx, w *writer, args [][]byte, now time.Time) error

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

// dispatch executes a command, or adds it to the pending run. The order of the refusals is Redis's.
func (c *conn) dispatch(args [][]byte) {
	c.commands++
	c.seq++
	cmd := lookup(args[0])
	refusal := c.refusal(cmd, args)
	if cmd == nil || refusal != "" {
		c.answer(func() { c.out.error(refusal) })
		if cmd == nil && crossProtocol(args[0]) {
			c.srv.log.Warn("client speaks HTTP, connection closed", "client", c.addr)
			c.closing = true
		}
		return
	}
	if c.lastCmd.Load() != cmd {
		c.lastCmd.Store(cmd)
	}
	if cmd.flags&flagWrite == 0 {
		if cmd.flags&(flagRead|flagBarrier) != 0 {
			c.commitRun()
		}
		if !c.silent() && !c.run.pending() {
			cmd.handle(c, args)
			return
		}
		c.answer(func() { cmd.handle(c, args) })
		return
	}
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
	case (cmd.arity > 0 && len(args) != cmd.arity) || len(args) < -cmd.arity:
		return "ERR wrong number of arguments for '" + cmd.name + "' command"
	case !c.authed && cmd.flags&flagNoAuth == 0:
		return errNoAuth
	case cmd.flags&flagWrite != 0 && !c.srv.store.Writable():
		return errReadOnly
	}
	return ""
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
	for _, a := range args[1:] {
		if b.Len() > 128+64 {
			break
		}
		fmt.Fprintf(&b, "'%s' ", head(a, 128))
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
