package resp

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// redisVersion is the version of Redis whose commands and replies these are; clients look at it to know what they may
// send.
const redisVersion = "7.2.0"

func init() {
	register([]command{
		{name: "command", arity: -1, flags: flagLoading, group: "server", since: "2.8.13", about: "Returns detailed information about all commands.", handle: commandCommand},
		{name: "config", arity: -2, flags: flagLoading | flagAdmin, group: "server", since: "2.0.0", about: "A container for server configuration commands.", handle: func(c *conn, args [][]byte) { dispatchSub(c, "config", configTable, args) }},
		{name: "info", arity: -1, flags: flagLoading | flagBarrier, group: "server", since: "1.0.0", about: "Returns information and statistics about the server.", handle: info},
		{name: "time", arity: 1, flags: flagLoading | flagFast, group: "server", since: "2.6.0", about: "Returns the server time.", handle: timeNow},
		{name: "role", arity: 1, flags: flagLoading | flagFast | flagBarrier, group: "server", since: "2.8.12", about: "Returns the replication role.", handle: role},
		{name: "wait", arity: 3, flags: flagLoading | flagBarrier, group: "generic", since: "3.0.0", about: "Blocks until the asynchronous replication of all preceding write commands sent by the connection is completed.", handle: wait},
		{name: "waitaof", arity: 4, flags: flagLoading | flagBarrier, group: "generic", since: "7.2.0", about: "Blocks until all of the preceding write commands sent by the connection are written to the append-only file of the master and/or replicas.", handle: waitAOF},
		{name: "replicaof", arity: 3, flags: flagLoading | flagAdmin | flagBarrier, group: "server", since: "5.0.0", about: "Configures a server as replica of another, or promotes it to a master.", handle: replicaOf},
		{name: "slaveof", arity: 3, flags: flagLoading | flagAdmin | flagBarrier, group: "server", since: "1.0.0", about: "Sets a Redis server as a replica of another, or promotes it to being a master.", handle: replicaOf},
	})
}

func timeNow(c *conn, _ [][]byte) {
	now := time.Now()
	c.out.array(2)
	c.out.bulkString(strconv.FormatInt(now.Unix(), 10))
	c.out.bulkString(strconv.Itoa(now.Nanosecond() / 1000))
}

func role(c *conn, _ [][]byte) {
	n := c.srv.node.Info()
	w := &c.out
	if n.Leader {
		w.array(3)
		w.bulkString("master")
		w.int(int64(n.Head))
		w.array(len(n.Replicas))
		for _, r := range n.Replicas {
			w.array(3)
			w.bulkString(r.Host)
			w.bulkString(r.Port)
			w.bulkString(strconv.FormatUint(r.Received, 10))
		}
		return
	}
	up := n.Upstream
	if up == nil {
		up = &Upstream{}
	}
	state := "connect"
	if up.Connected {
		state = "connected"
	}
	port, _ := strconv.Atoi(up.Port)
	switch { // Redis has no such things: one more element says so
	case n.LogOnly:
		w.array(6)
		defer w.bulkString("log-only")
	case n.ApplyDelay > 0:
		w.array(6)
		defer w.bulkString("delayed")
	default:
		w.array(5)
	}
	w.bulkString("slave")
	w.bulkString(up.Host)
	w.int(int64(port))
	w.bulkString(state)
	w.int(int64(n.Head))
}

func replicaOf(c *conn, args [][]byte) {
	host, port := string(args[1]), string(args[2])
	if is(args[1], "no") && is(args[2], "one") {
		host, port = "", ""
	} else if n, ok := parseInt(args[2]); !ok || n < 1 || n > 65535 {
		c.out.error("ERR Invalid master port")
		return
	}
	ctx, cancel := context.WithTimeout(c.srv.ctx, 10*time.Second)
	defer cancel()
	if err := c.srv.node.ReplicaOf(ctx, host, port); err != nil {
		c.out.failure(err)
		return
	}
	c.out.ok()
}

// parseTimeout reads the milliseconds of WAIT; 0 is no limit.
func parseTimeout(arg []byte) (time.Duration, string) {
	n, ok := parseInt(arg)
	if !ok || n > math.MaxInt64/int64(time.Millisecond) {
		return 0, "ERR timeout is not an integer or out of range"
	}
	if n < 0 {
		return 0, "ERR timeout is negative"
	}
	return time.Duration(n) * time.Millisecond, ""
}

func wait(c *conn, args [][]byte) {
	if !c.srv.node.Info().Leader {
		c.out.error("ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is configured to be writable (which is not the default) writes to replicas are just local and are not propagated.")
		return
	}
	n, ok := parseInt(args[1])
	if !ok {
		c.out.error(errNotInteger)
		return
	}
	timeout, refusal := parseTimeout(args[2])
	if refusal != "" {
		c.out.error(refusal)
		return
	}
	ctx, cancel := c.blocking(timeout)
	defer cancel()
	c.out.int(int64(c.srv.node.WaitReplicas(ctx, c.lastWrite, clampCount(n), false)))
}

func waitAOF(c *conn, args [][]byte) {
	local, ok := parseInt(args[1])
	if !ok || local < 0 || local > 1 {
		c.out.error("ERR value is out of range, must be between 0 and 1")
		return
	}
	n, ok := parseInt(args[2])
	if !ok || n < 0 {
		c.out.error("ERR value is out of range, must be positive")
		return
	}
	timeout, refusal := parseTimeout(args[3])
	if refusal != "" {
		c.out.error(refusal)
		return
	}
	if !c.srv.node.Info().Leader {
		c.out.error("ERR WAITAOF cannot be used with replica instances. Please also note that writes to replicas are just local and are not propagated.")
		return
	}
	ctx, cancel := c.blocking(timeout)
	defer cancel()
	replicas := c.srv.node.WaitReplicas(ctx, c.lastWrite, clampCount(n), true)
	durable := c.srv.node.LocalDurable(ctx, c.lastWrite, local == 1)
	c.out.array(2)
	c.out.bool01(durable)
	c.out.int(int64(replicas))
}

func clampCount(n int64) int { return int(max(0, min(n, 1<<20))) }

// blocking is the context of a command that waits: it ends with the timeout (0: none), with the server, and soon
// after the client has left.
func (c *conn) blocking(timeout time.Duration) (context.Context, context.CancelFunc) {
	if c.executing { // what is in a transaction does not wait
		ctx, cancel := context.WithCancel(c.srv.ctx)
		cancel()
		return ctx, cancel
	}
	// The replies so far do not wait for this one.
	if c.flush() != nil {
		c.closing = true
	}
	var ctx context.Context
	var cancel context.CancelFunc
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(c.srv.ctx, timeout)
	} else {
		ctx, cancel = context.WithCancel(c.srv.ctx)
	}
	if c.raw == nil {
		return ctx, cancel
	}
	go func() { // ends with ctx
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if c.killed.Load() || c.srv.draining.Load() || gone(c.raw) {
					cancel()
				}
			}
		}
	}()
	return ctx, cancel
}

var configTable []subcommand

func init() {
	configTable = []subcommand{
		{"get", -3, configGet},
		{"set", -4, configSet},
		{"resetstat", 2, func(c *conn, _ [][]byte) { c.out.ok() }},
		{"rewrite", 2, func(c *conn, _ [][]byte) { c.out.error("ERR The server is running without a config file") }},
	}
}

// settings are what CONFIG GET knows, by name.
func (s *Server) settings() map[string]string {
	n := s.node.Info()
	fsync := "everysec"
	if n.Rule != "buffered" && n.Rule != "written" {
		fsync = "always"
	}
	return map[string]string{
		"appendonly":             "yes",
		"appendfsync":            fsync,
		"databases":              "1",
		"dir":                    n.Dir,
		"maxclients":             strconv.FormatInt(s.maxClients.Load(), 10),
		"maxmemory":              "0",
		"maxmemory-policy":       "noeviction",
		"proto-max-bulk-len":     strconv.Itoa(s.maxValue),
		"replica-priority":       strconv.FormatInt(s.priority.Load(), 10),
		"slave-priority":         strconv.FormatInt(s.priority.Load(), 10),
		"replica-read-only":      "yes",
		"save":                   "",
		"slave-read-only":        "yes",
		"timeout":                strconv.FormatInt(s.idleTimeout.Load()/int64(time.Second), 10),
		"shiplog-commit":         n.Rule,
		"shiplog-too-few":        n.TooFew,
		"shiplog-client-memory":  strconv.FormatInt(s.opts.ClientMemory, 10),
		"shiplog-name":           n.Name,
		"shiplog-max-key-length": strconv.Itoa(s.maxKey),
	}
}

func configGet(c *conn, args [][]byte) {
	all := c.srv.settings()
	var names []string
	for name := range all {
		if slices.ContainsFunc(args[2:], func(p []byte) bool {
			return globMatch([]byte(strings.ToLower(string(p))), []byte(name))
		}) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	c.out.mapHeader(len(names))
	for _, name := range names {
		c.out.bulkString(name)
		c.out.bulkString(all[name])
	}
}

func configSet(c *conn, args [][]byte) {
	if len(args)%2 != 0 {
		c.out.error("ERR wrong number of arguments for 'config|set' command")
		return
	}
	var apply []func()
	for i := 2; i < len(args); i += 2 {
		name := strings.ToLower(string(head(args[i], 64)))
		n, number := parseInt(args[i+1])
		switch {
		case name == "timeout" && number && n >= 0 && n <= math.MaxInt32:
			apply = append(apply, func() { c.srv.idleTimeout.Store(n * int64(time.Second)) })
		case name == "maxclients" && number && n > int64(mostClients()) && n <= 1<<20:
			c.out.errorf("ERR CONFIG SET failed (possibly related to argument '%s') - The operating system is not able to handle the specified number of clients, try with %d", name, mostClients())
			return
		case name == "maxclients" && number && n >= 1 && n <= 1<<20:
			apply = append(apply, func() { c.srv.maxClients.Store(n) })
		case (name == "replica-priority" || name == "slave-priority") && number && n >= 0 && n <= math.MaxInt32:
			apply = append(apply, func() { c.srv.priority.Store(n) })
		case name == "timeout", name == "maxclients", name == "replica-priority", name == "slave-priority":
			c.out.errorf("ERR CONFIG SET failed (possibly related to argument '%s') - argument must be an integer in range", name)
			return
		default:
			if _, known := c.srv.settings()[name]; known {
				c.out.errorf("ERR CONFIG SET failed (possibly related to argument '%s') - can't set immutable config", name)
			} else {
				c.out.errorf("ERR Unknown option or number of arguments for CONFIG SET - '%s'", name)
			}
			return
		}
	}
	for _, set := range apply {
		set()
	}
	c.out.ok()
}

func commandCommand(c *conn, args [][]byte) {
	switch {
	case len(args) == 1:
		listCommands(c, nil)
	case is(args[1], "count") && len(args) == 2:
		c.out.int(int64(len(commands)))
	case is(args[1], "info"):
		listCommands(c, args[2:])
	case is(args[1], "docs"):
		documentCommands(c, args[2:])
	case is(args[1], "list") && len(args) == 2:
		names := commandNames()
		c.out.array(len(names))
		for _, name := range names {
			c.out.bulkString(name)
		}
	case is(args[1], "count"), is(args[1], "list"):
		c.out.errorf("ERR wrong number of arguments for 'command|%s' command", strings.ToLower(string(args[1])))
	default:
		c.out.errorf("ERR unknown subcommand '%s'. Try COMMAND HELP.", head(args[1], 128))
	}
}

func commandNames() []string {
	names := make([]string, 0, len(commands))
	for name := range commands {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// listCommands answers COMMAND and COMMAND INFO; names nil or empty means all.
func listCommands(c *conn, names [][]byte) {
	if len(names) == 0 {
		all := commandNames()
		c.out.array(len(all))
		for _, name := range all {
			commands[name].describe(&c.out)
		}
		return
	}
	c.out.array(len(names))
	for _, name := range names {
		if cmd := lookup(name); cmd != nil {
			cmd.describe(&c.out)
		} else {
			c.out.nullArray()
		}
	}
}

func (cmd *command) describe(w *writer) {
	var words []string
	add := func(f flags, word string) {
		if cmd.flags&f != 0 {
			words = append(words, word)
		}
	}
	switch {
	case cmd.check != nil:
		words = append(words, "write")
	case cmd.read != nil:
		words = append(words, "readonly")
	}
	add(flagAdmin, "admin")
	add(flagLoading, "loading")
	add(flagNoAuth, "no_auth")
	add(flagFast, "fast")
	w.array(10)
	w.bulkString(cmd.name)
	w.int(int64(cmd.arity))
	w.setHeader(len(words))
	for _, word := range words {
		w.status(word)
	}
	for _, k := range cmd.keys {
		w.int(int64(k))
	}
	w.setHeader(1)
	w.status("@" + cmd.group)
	w.array(0) // tips
	w.array(0) // key specifications
	w.array(0) // subcommands
}

// documentCommands answers COMMAND DOCS; unknown names are left out, as Redis does.
func documentCommands(c *conn, names [][]byte) {
	var found []*command
	for _, name := range names {
		if cmd := lookup(name); cmd != nil {
			found = append(found, cmd)
		}
	}
	if len(names) == 0 {
		for _, name := range commandNames() {
			found = append(found, commands[name])
		}
	}
	w := &c.out
	w.mapHeader(len(found))
	for _, cmd := range found {
		w.bulkString(cmd.name)
		w.mapHeader(3)
		for _, field := range [][2]string{{"summary", cmd.about}, {"since", cmd.since}, {"group", cmd.group}} {
			w.bulkString(field[0])
			w.bulkString(field[1])
		}
	}
}

// newRunID returns 40 hex digits that are new at each start.
func newRunID() string { return randomHex(20) }

func stateOf(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

func yesNo(b bool) string { return stateOf(b, "yes", "no") }

func field(b *strings.Builder, name string, value any) { fmt.Fprintf(b, "%s:%v\r\n", name, value) }
