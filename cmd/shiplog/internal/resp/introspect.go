package resp

import (
	"maps"
	"slices"
	"strings"
)

// This file is how the table of commands describes itself.

func init() {
	register([]command{
		{name: "command", arity: -1, flags: flagLoading, group: "server", since: "2.8.13", about: "Returns detailed information about all commands.", handle: func(c *conn, args [][]byte) {
			if len(args) == 1 {
				listCommands(c, nil)
				return
			}
			dispatchSub(c, "command", commandTable, args)
		}},
	})
}

var commandTable []subcommand

func init() {
	commandTable = []subcommand{
		{"count", 2, func(c *conn, _ [][]byte) { c.out.int(int64(len(commands))) }},
		{"info", -2, func(c *conn, args [][]byte) { listCommands(c, args[2:]) }},
		{"docs", -2, func(c *conn, args [][]byte) { documentCommands(c, args[2:]) }},
		{"list", -2, nameCommands},
		{"getkeys", -4, commandKeys},
		{"help", 2, commandHelp},
	}
}

func commandHelp(c *conn, _ [][]byte) {
	c.out.help("COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"(no subcommand)", "    Return details about all commands.",
		"COUNT", "    Return the total number of commands.",
		"LIST [FILTERBY (MODULE <name> | ACLCAT <category> | PATTERN <pattern>)]", "    Return the names of commands.",
		"INFO [<command-name> ...]", "    Return details about commands, or all.",
		"DOCS [<command-name> ...]", "    Return documentation about commands, or all.",
		"GETKEYS <full-command>", "    Return the keys from a full command.",
		"HELP", "    Print this help.")
}

// nameCommands answers COMMAND LIST.
func nameCommands(c *conn, args [][]byte) {
	keep := func(*command) bool { return true }
	switch {
	case len(args) == 2:
	case len(args) != 5 || !is(args[2], "filterby"):
		c.out.error(errSyntax)
		return
	case is(args[3], "module"):
		keep = func(*command) bool { return false }
	case is(args[3], "aclcat"):
		keep = func(cmd *command) bool { return slices.Contains(cmd.categories(), strings.ToLower(string(args[4]))) }
	case is(args[3], "pattern"):
		pattern := []byte(strings.ToLower(string(args[4])))
		keep = func(cmd *command) bool { return globMatch(pattern, cmd.lower) }
	default:
		c.out.error(errSyntax)
		return
	}
	names := slices.DeleteFunc(commandNames(), func(name string) bool { return !keep(commands[name]) })
	c.out.array(len(names))
	for _, name := range names {
		c.out.bulkString(name)
	}
}

// commandKeys answers COMMAND GETKEYS: a client of a proxy or a cluster asks where the keys of a command are.
func commandKeys(c *conn, args [][]byte) {
	args = args[2:]
	cmd := lookup(args[0])
	switch {
	case cmd == nil:
		c.out.error("ERR Invalid command specified")
		return
	case cmd.keys[0] == 0:
		c.out.error("ERR The command has no key arguments")
		return
	case !cmd.takes(len(args)):
		c.out.error("ERR Invalid number of arguments specified for command")
		return
	}
	last := cmd.keys[1]
	if last < 0 {
		last += len(args)
	}
	c.out.array((last-cmd.keys[0])/cmd.keys[2] + 1)
	for i := cmd.keys[0]; i <= last; i += cmd.keys[2] {
		c.out.bulk(args[i])
	}
}

func commandNames() []string {
	return slices.Sorted(maps.Keys(commands))
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
			c.out.null()
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
	categories := cmd.categories()
	w.setHeader(len(categories))
	for _, name := range categories {
		w.status("@" + name)
	}
	w.array(0) // tips
	w.array(0) // key specifications
	w.array(0) // subcommands
}

// categories are those of Redis's access control lists.
func (cmd *command) categories() (names []string) {
	switch {
	case cmd.check != nil:
		names = append(names, "write")
	case cmd.read != nil:
		names = append(names, "read")
	}
	switch cmd.group {
	case "generic":
		names = append(names, "keyspace")
	case "transactions":
		names = append(names, "transaction")
	case "server":
	default:
		names = append(names, cmd.group)
	}
	if cmd.flags&flagAdmin != 0 {
		names = append(names, "admin", "dangerous")
	}
	if cmd.flags&flagFast != 0 {
		return append(names, "fast")
	}
	return append(names, "slow")
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
