package resp

import (
	"context"
	"fmt"
	"maps"
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
		{"help", 2, configHelp},
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
	found := map[string]string{} // by the name that is answered: the client's own spelling, where it is no pattern
	for _, arg := range args[2:] {
		pattern := strings.ToLower(string(arg))
		if value, known := all[pattern]; known {
			found[string(arg)] = value
			continue
		}
		for name, value := range all {
			if globMatch([]byte(pattern), []byte(name)) {
				found[name] = value
			}
		}
	}
	c.out.mapHeader(len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		c.out.bulkString(name)
		c.out.bulkString(found[name])
	}
}

// setting is one that CONFIG SET changes.
type setting struct {
	low, high int64
	set       func(s *Server, n int64)
}

var changeable = map[string]setting{
	"timeout":          {0, math.MaxInt32, func(s *Server, n int64) { s.idleTimeout.Store(n * int64(time.Second)) }},
	"maxclients":       {1, 1 << 20, func(s *Server, n int64) { s.maxClients.Store(n) }},
	"replica-priority": {0, math.MaxInt32, func(s *Server, n int64) { s.priority.Store(n) }},
}

// configSet changes all that it names, or nothing.
func configSet(c *conn, args [][]byte) {
	if len(args)%2 != 0 {
		c.out.error(errSyntax)
		return
	}
	values := map[string]int64{}
	for i := 2; i < len(args); i += 2 {
		name := strings.ToLower(string(head(args[i], 64)))
		if name == "slave-priority" {
			name = "replica-priority"
		}
		to, possible := changeable[name]
		_, known := c.srv.settings()[name]
		_, twice := values[name]
		n, number := parseInt(args[i+1])
		why := ""
		switch {
		case !known:
			c.out.errorf("ERR Unknown option or number of arguments for CONFIG SET - '%s'", head(args[i], 128))
			return
		case !possible:
			why = "can't set immutable config"
		case twice:
			why = "duplicate parameter"
		case !number:
			why = "argument couldn't be parsed into an integer"
		case n < to.low || n > to.high:
			why = fmt.Sprintf("argument must be between %d and %d inclusive", to.low, to.high)
		case name == "maxclients" && n > int64(mostClients()):
			why = fmt.Sprintf("The operating system is not able to handle the specified number of clients, try with %d", mostClients())
		}
		if why != "" {
			c.out.errorf("ERR CONFIG SET failed (possibly related to argument '%s') - %s", name, why)
			return
		}
		values[name] = n
	}
	for name, n := range values {
		changeable[name].set(c.srv, n)
	}
	c.out.ok()
}

func configHelp(c *conn, _ [][]byte) {
	c.out.help("CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"GET <pattern>", "    Return parameters matching the glob-like <pattern> and their values.",
		"SET <directive> <value>", "    Set the configuration <directive> to <value>: timeout, maxclients or replica-priority.",
		"RESETSTAT", "    Accepted; nothing is reset.",
		"REWRITE", "    An error: there is no configuration file.",
		"HELP", "    Print this help.")
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
