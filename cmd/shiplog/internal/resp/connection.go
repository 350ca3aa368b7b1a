package resp

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

func init() {
	free := flagNoAuth | flagLoading | flagFast
	register([]command{
		{name: "ping", arity: -1, flags: flagLoading | flagFast | flagPubSub, group: "connection", since: "1.0.0", about: "Returns the server's liveliness response.", handle: ping},
		{name: "echo", arity: 2, flags: flagLoading | flagFast, group: "connection", since: "1.0.0", about: "Returns the given string.", handle: echo},
		{name: "auth", arity: -2, flags: free, group: "connection", since: "1.0.0", about: "Authenticates the connection.", handle: auth},
		{name: "hello", arity: -1, flags: free | flagBarrier, group: "connection", since: "6.0.0", about: "Handshakes with the Redis server.", handle: hello},
		{name: "select", arity: 2, flags: flagLoading | flagFast, group: "connection", since: "1.0.0", about: "Changes the selected database.", handle: selectDB},
		{name: "quit", arity: -1, flags: free | flagBarrier | flagNow | flagPubSub, group: "connection", since: "1.0.0", about: "Closes the connection.", handle: quit},
		{name: "reset", arity: 1, flags: free | flagBarrier | flagNow | flagPubSub, group: "connection", since: "6.2.0", about: "Resets the connection.", handle: reset},
		{name: "client", arity: -2, flags: flagLoading | flagBarrier, group: "connection", since: "2.4.0", about: "A container for client connection commands.", handle: func(c *conn, args [][]byte) { dispatchSub(c, "client", clientTable, args) }},
	})
}

var clientTable []subcommand

func init() {
	clientTable = []subcommand{
		{"setname", 3, clientSetName},
		{"getname", 2, clientGetName},
		{"id", 2, func(c *conn, _ [][]byte) { c.out.int(c.id) }},
		{"info", 2, func(c *conn, _ [][]byte) { c.out.verbatim(c.describe(time.Now()) + "\n") }},
		{"list", -2, clientList},
		{"kill", -3, clientKill},
		{"setinfo", 4, clientSetInfo},
		{"no-evict", 3, clientOnOff},
		{"no-touch", 3, clientOnOff},
		{"reply", 3, clientReply},
		{"help", 2, clientHelp},
	}
}

func ping(c *conn, args [][]byte) {
	switch {
	case len(args) <= 2 && !c.out.resp3 && c.subscribed():
		c.out.array(2)
		c.out.bulkString("pong")
		c.out.bulk(bytes.Join(args[1:], nil))
	case len(args) == 1:
		c.out.status("PONG")
	case len(args) == 2:
		c.out.bulk(args[1])
	default:
		c.out.error("ERR wrong number of arguments for 'ping' command")
	}
}

func echo(c *conn, args [][]byte) { c.out.bulk(args[1]) }

func quit(c *conn, _ [][]byte) {
	c.out.ok()
	c.closing = true
}

func reset(c *conn, _ [][]byte) {
	c.discard()
	if s := c.sub.Load(); s != nil {
		s.lock()
		c.unsubscribeAll()
		c.out.buf = append(c.out.buf, s.take()...)
	}
	c.mu.Lock()
	c.name = ""
	c.mu.Unlock()
	c.authed = !c.srv.needsPassword()
	c.setProtocol(2)
	c.mute = false
	c.out.status("RESET")
}

func selectDB(c *conn, args [][]byte) {
	if refusal := checkDB(args[1]); refusal != "" {
		c.out.error(refusal)
		return
	}
	c.out.ok()
}

// checkDB refuses every database but 0.
func checkDB(arg []byte) (refusal string) {
	n, ok := parseInt(arg)
	switch {
	case !ok:
		return errNotInteger
	case n != int64(int32(n)):
		return "ERR value is out of range, value must between -2147483648 and 2147483647"
	case n != 0:
		return errDBRange
	}
	return ""
}

func auth(c *conn, args [][]byte) {
	if len(args) > 3 {
		c.out.error(errSyntax)
		return
	}
	user := []byte("default")
	if len(args) == 3 {
		user = args[1]
	} else if !c.srv.needsPassword() {
		c.out.error(errNoPassword)
		return
	}
	if c.login(user, args[len(args)-1]) {
		c.out.ok()
	}
}

// maxFailures is how often a connection may try passwords.
const maxFailures = 10

// login answers with an error itself. Without a password the default user needs none.
func (c *conn) login(user, password []byte) bool {
	if c.srv.authenticate(user, password) || (!c.srv.needsPassword() && string(user) == "default") {
		c.authed = true
		c.failures = 0
		return true
	}
	c.srv.log.Warn("authentication failed", "client", c.addr)
	c.out.error(errWrongPass)
	if c.failures++; c.failures >= maxFailures {
		c.closing = true
	}
	return false
}

func (c *conn) setProtocol(version int) {
	c.protocol.Store(int32(version))
	c.out.resp3 = version == 3
}

func hello(c *conn, args [][]byte) {
	version := int64(c.protocol.Load())
	if len(args) > 1 {
		var ok bool
		if version, ok = parseInt(args[1]); !ok {
			c.out.error("ERR Protocol version is not an integer or out of range")
			return
		}
		if version < 2 || version > 3 {
			c.out.error("NOPROTO unsupported protocol version")
			return
		}
	}
	var name []byte
	var user, password []byte
	for i := 2; i < len(args); i++ {
		switch left := len(args) - i - 1; {
		case is(args[i], "auth") && left >= 2:
			user, password = args[i+1], args[i+2]
			i += 2
		case is(args[i], "setname") && left >= 1:
			name = args[i+1]
			if !validName(name) {
				c.out.error(errClientName)
				return
			}
			i++
		default:
			c.out.errorf("ERR Syntax error in HELLO option '%s'", head(args[i], 128))
			return
		}
	}
	if user != nil && !c.login(user, password) {
		return
	}
	if !c.authed {
		c.out.error("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
		return
	}
	if name != nil {
		c.rename(name)
	}
	c.setProtocol(int(version))
	role := "replica"
	if c.srv.node.Info().Leader {
		role = "master"
	}
	w := &c.out
	w.mapHeader(7)
	w.bulkString("server")
	w.bulkString("redis")
	w.bulkString("version")
	w.bulkString(redisVersion)
	w.bulkString("proto")
	w.int(version)
	w.bulkString("id")
	w.int(c.id)
	w.bulkString("mode")
	w.bulkString("standalone")
	w.bulkString("role")
	w.bulkString(role)
	w.bulkString("modules")
	w.array(0)
}

// validName reports whether a client may be called so: CLIENT LIST separates its fields by blanks.
func validName(name []byte) bool {
	for _, b := range name {
		if b < '!' || b > '~' {
			return false
		}
	}
	return len(name) <= 1024
}

func (c *conn) rename(name []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.name = string(name)
}

func clientSetName(c *conn, args [][]byte) {
	if !validName(args[2]) {
		c.out.error(errClientName)
		return
	}
	c.rename(args[2])
	c.out.ok()
}

func clientGetName(c *conn, _ [][]byte) {
	c.mu.Lock()
	name := c.name
	c.mu.Unlock()
	if name == "" {
		c.out.null()
		return
	}
	c.out.bulkString(name)
}

func clientSetInfo(c *conn, args [][]byte) {
	var field *string
	switch {
	case is(args[2], "lib-name"):
		field = &c.libName
	case is(args[2], "lib-ver"):
		field = &c.libVersion
	default:
		c.out.errorf("ERR Unrecognized option '%s'", head(args[2], 128))
		return
	}
	if !validName(args[3]) {
		c.out.errorf("ERR %s cannot contain spaces, newlines or special characters.", strings.ToLower(string(args[2])))
		return
	}
	c.mu.Lock()
	*field = string(args[3])
	c.mu.Unlock()
	c.out.ok()
}

func clientOnOff(c *conn, args [][]byte) {
	if !is(args[2], "on") && !is(args[2], "off") {
		c.out.error(errSyntax)
		return
	}
	c.out.ok() // nothing is evicted here, and nothing keeps access times
}

func clientReply(c *conn, args [][]byte) {
	switch {
	case is(args[2], "on"):
		c.mute = false
		c.out.ok()
	case is(args[2], "off"):
		c.mute = true
	case is(args[2], "skip"):
		if !c.mute { // else ON would go unanswered
			c.skip = c.seq + 1
		}
	default:
		c.out.error(errSyntax)
	}
}

func clientHelp(c *conn, _ [][]byte) {
	c.out.help("CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"GETNAME", "    Return the name of the current connection.",
		"ID", "    Return the ID of the current connection.",
		"INFO", "    Return information about the current client connection.",
		"KILL <ip:port>", "    Kill connection made from <ip:port>.",
		"KILL <option> <value> [<option> <value> [...]]", "    Kill connections. Options are: ADDR, LADDR, ID, TYPE, SKIPME, MAXAGE.",
		"LIST [TYPE <type>] [ID <id> ...]", "    Return information about client connections.",
		"NO-EVICT (ON|OFF)", "    Accepted; nothing is evicted.",
		"REPLY (ON|OFF|SKIP)", "    Control the replies sent to the current connection.",
		"SETINFO <option> <value>", "    Set client meta attr. Options are: LIB-NAME, LIB-VER.",
		"SETNAME <name>", "    Assign the name <name> to the current connection.",
		"HELP", "    Print this help.")
}

// describe is a line of CLIENT LIST, with Redis's fields. It may be called by another connection.
func (c *conn) describe(now time.Time) string {
	c.mu.Lock()
	name, lib, version := c.name, c.libName, c.libVersion
	c.mu.Unlock()
	last := "NULL"
	if cmd := c.lastCmd.Load(); cmd != nil {
		last = cmd.name
	}
	idle := now.Sub(time.Unix(0, c.lastActive.Load()))
	channels, patterns := c.subscriptions()
	multi := c.queueLen.Load()
	flags := ""
	if channels+patterns > 0 {
		flags += "P"
	}
	if multi >= 0 {
		flags += "x"
	}
	if flags == "" {
		flags = "N"
	}
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=-1 name=%s age=%d idle=%d flags=%s db=0 sub=%d psub=%d ssub=0 multi=%d watch=%d qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=%d rbp=0 obl=0 oll=0 omem=0 tot-mem=%d events=r cmd=%s user=default redir=-1 resp=%d lib-name=%s lib-ver=%s",
		c.id, c.addr, c.laddr, name, int(now.Sub(c.created).Seconds()), max(0, int(idle.Seconds())), flags, channels, patterns, multi, c.watchLen.Load(),
		baseBuffer, baseBuffer+c.bufBytes.Load(), last, c.protocol.Load(), lib, version)
}

// clients lists the connections by ID.
func (s *Server) clients() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*conn, 0, len(s.conns))
	for _, c := range s.conns {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *conn) int { return int(a.id - b.id) })
	return list
}

func clientList(c *conn, args [][]byte) {
	keep := func(*conn) bool { return true }
	switch {
	case len(args) == 2:
	case is(args[2], "type") && len(args) == 4:
		kind, ok := clientType(args[3])
		if !ok {
			c.out.errorf("ERR Unknown client type '%s'", head(args[3], 128))
			return
		}
		keep = kind.has
	case is(args[2], "id") && len(args) > 3:
		ids := map[int64]bool{}
		for _, a := range args[3:] {
			id, ok := parseInt(a)
			if !ok {
				c.out.error("ERR Invalid client ID")
				return
			}
			ids[id] = true
		}
		keep = func(other *conn) bool { return ids[other.id] }
	default:
		c.out.error(errSyntax)
		return
	}
	var b strings.Builder
	now := time.Now()
	for _, other := range c.srv.clients() {
		if keep(other) {
			b.WriteString(other.describe(now))
			b.WriteByte('\n')
		}
	}
	c.out.verbatim(b.String())
}

// clientKind is a type of clients; empty: any.
type clientKind string

func (k clientKind) has(c *conn) bool {
	switch k {
	case "":
		return true
	case "normal":
		return !c.subscribed()
	case "pubsub":
		return c.subscribed()
	}
	return false // followers do not come by this protocol
}

func clientType(arg []byte) (kind clientKind, known bool) {
	for _, kind := range []clientKind{"normal", "pubsub", "master", "slave", "replica"} {
		if is(arg, string(kind)) {
			return kind, true
		}
	}
	return "", false
}

// killFilter says which connections CLIENT KILL means.
type killFilter struct {
	id          int64
	addr, laddr []byte
	kind        clientKind
	skipMe      bool
	maxAge      time.Duration
}

func (f *killFilter) match(c, me *conn) bool {
	return (f.id == 0 || f.id == c.id) && (f.addr == nil || string(f.addr) == c.addr) &&
		(f.laddr == nil || string(f.laddr) == c.laddr) && f.kind.has(c) && !(f.skipMe && c == me) &&
		(f.maxAge == 0 || time.Since(c.created) >= f.maxAge)
}

func clientKill(c *conn, args [][]byte) {
	f := killFilter{skipMe: true}
	old := len(args) == 3
	if old {
		f.addr, f.skipMe = args[2], false
	} else if refusal := f.parse(args[2:]); refusal != "" {
		c.out.error(refusal)
		return
	}
	n := 0
	for _, other := range c.srv.clients() {
		if !f.match(other, c) {
			continue
		}
		n++
		if other == c {
			c.closing = true
		} else {
			other.kill()
		}
	}
	switch {
	case !old:
		c.out.int(int64(n))
	case n == 0:
		c.out.error("ERR No such client")
	default:
		c.out.ok()
	}
}

func (f *killFilter) parse(args [][]byte) (refusal string) {
	if len(args)%2 != 0 {
		return errSyntax
	}
	for ; len(args) > 0; args = args[2:] {
		value := args[1]
		switch {
		case is(args[0], "id"):
			id, ok := parseInt(value)
			if !ok || id < 1 {
				return "ERR client-id should be greater than 0"
			}
			f.id = id
		case is(args[0], "addr"):
			f.addr = value
		case is(args[0], "laddr"):
			f.laddr = value
		case is(args[0], "type"):
			kind, ok := clientType(value)
			if !ok {
				return "ERR Unknown client type '" + string(head(value, 128)) + "'"
			}
			f.kind = kind
		case is(args[0], "user"):
			if string(value) != "default" {
				return "ERR No such user '" + string(head(value, 128)) + "'"
			}
		case is(args[0], "skipme"):
			if !is(value, "yes") && !is(value, "no") {
				return errSyntax
			}
			f.skipMe = is(value, "yes")
		case is(args[0], "maxage"):
			n, err := strconv.ParseUint(string(bytes.TrimSpace(head(value, 12))), 10, 31)
			if err != nil || n == 0 {
				return errSyntax
			}
			f.maxAge = time.Duration(n) * time.Second
		default:
			return errSyntax
		}
	}
	return ""
}
