package resp

import (
	"bytes"
	"errors"
	"slices"
	"strings"
)

func init() {
	key := [3]int{1, 1, 1}
	all := [3]int{1, -1, 1}
	register([]command{
		{name: "del", arity: -2, keys: all, group: "generic", since: "1.0.0", about: "Deletes one or more keys.", check: checkKeys, decide: decideDel},
		{name: "unlink", arity: -2, flags: flagFast, keys: all, group: "generic", since: "4.0.0", about: "Asynchronously deletes one or more keys.", check: checkKeys, decide: decideDel},
		{name: "exists", arity: -2, flags: flagFast | flagSnapshot, keys: all, group: "generic", since: "1.0.0", about: "Determines whether one or more keys exist.", read: exists},
		{name: "touch", arity: -2, flags: flagFast | flagSnapshot, keys: all, group: "generic", since: "3.2.1", about: "Returns the number of existing keys out of those specified after updating the time they were last accessed.", read: exists},
		{name: "type", arity: 2, flags: flagFast, keys: key, group: "generic", since: "1.0.0", about: "Determines the type of value stored at a key.", read: typeOf},
		{name: "rename", arity: 3, keys: [3]int{1, 2, 1}, group: "generic", since: "1.0.0", about: "Renames a key and overwrites the destination.", check: checkKeys, decide: decideRename},
		{name: "renamenx", arity: 3, flags: flagFast, keys: [3]int{1, 2, 1}, group: "generic", since: "1.0.0", about: "Renames a key only when the target key name doesn't exist.", check: checkKeys, decide: decideRenameNX},
		{name: "copy", arity: -3, keys: [3]int{1, 2, 1}, group: "generic", since: "6.2.0", about: "Copies the value of a key to a new key.", check: checkCopy, decide: decideCopy},
		{name: "object", arity: -2, keys: [3]int{2, 2, 1}, group: "generic", since: "2.2.3", about: "A container for object introspection commands.", read: object},
		{name: "flushall", arity: -1, flags: flagAlone, group: "server", since: "1.0.0", about: "Removes all keys from all databases.", check: checkFlush, blind: blindFlush, decide: decideFlush},
		{name: "flushdb", arity: -1, flags: flagAlone, group: "server", since: "1.0.0", about: "Remove all keys from the current database.", check: checkFlush, blind: blindFlush, decide: decideFlush},
	})
}

func decideDel(tx Tx, w *writer, args [][]byte) error {
	n := 0
	for _, key := range args[1:] {
		exists, err := tx.Has(key)
		if err != nil {
			return err
		}
		if !exists {
			continue
		}
		n++
		if err := tx.Delete(key); err != nil {
			return err
		}
	}
	w.int(int64(n))
	return nil
}

func exists(r Reader, w *writer, args [][]byte) error {
	n := 0
	for _, key := range args[1:] {
		ok, err := r.Has(key)
		if err != nil {
			return err
		}
		if ok {
			n++
			w.hits++
		} else {
			w.misses++
		}
	}
	w.int(int64(n))
	return nil
}

func typeOf(r Reader, w *writer, args [][]byte) error {
	ok, err := r.Has(args[1])
	switch {
	case err != nil:
		return err
	case ok:
		w.status("string")
	default:
		w.status("none")
	}
	return nil
}

// move copies the value of args[1] and its expiry to args[2]. It reports whether there was one.
func move(tx Tx, args [][]byte) (found bool, err error) {
	var value []byte
	var expiry int64
	err = tx.Entry(args[1], func(v []byte, e int64) error {
		value, expiry = bytes.Clone(v), e
		return nil
	})
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, tx.Put(args[2], value, expiry)
}

func decideRename(tx Tx, w *writer, args [][]byte) error {
	if bytes.Equal(args[1], args[2]) {
		exists, err := tx.Has(args[1])
		switch {
		case err != nil:
			return err
		case exists:
			w.ok()
		default:
			w.error(errNoSuchKey)
		}
		return nil
	}
	found, err := move(tx, args)
	if err != nil {
		return err
	}
	if !found {
		w.error(errNoSuchKey)
		return nil
	}
	w.ok()
	return tx.Delete(args[1])
}

func decideRenameNX(tx Tx, w *writer, args [][]byte) error {
	for i, key := range args[1:] {
		exists, err := tx.Has(key)
		switch {
		case err != nil:
			return err
		case i == 0 && !exists:
			w.error(errNoSuchKey)
			return nil
		case i == 1 && exists:
			w.int(0)
			return nil
		}
	}
	w.int(1)
	if _, err := move(tx, args); err != nil {
		return err
	}
	return tx.Delete(args[1])
}

func checkCopy(s *Server, args [][]byte) (bool, string) {
	for i := 3; i < len(args); i++ {
		switch {
		case is(args[i], "replace"):
		case is(args[i], "db") && i+1 < len(args):
			i++
			if refusal := checkDB(args[i]); refusal != "" {
				return true, refusal
			}
		default:
			return true, errSyntax
		}
	}
	if bytes.Equal(args[1], args[2]) {
		return true, "ERR source and destination objects are the same"
	}
	return checkKeys(s, args[:3])
}

func decideCopy(tx Tx, w *writer, args [][]byte) error {
	replace := slices.ContainsFunc(args[3:], func(a []byte) bool { return is(a, "replace") })
	if !replace {
		exists, err := tx.Has(args[2])
		if err != nil {
			return err
		}
		if exists {
			w.int(0)
			return nil
		}
	}
	found, err := move(tx, args)
	if err != nil {
		return err
	}
	w.bool01(found)
	return nil
}

// Lengths from which on Redis keeps a string otherwise.
const (
	maxIntText  = 20
	maxEmbedded = 44
)

// object answers what little there is to say about a value: no counts and times of access are kept.
func object(r Reader, w *writer, args [][]byte) error {
	sub := strings.ToLower(string(head(args[1], 32)))
	switch sub {
	case "help":
		return objectHelp(w, args)
	case "encoding", "refcount", "freq", "idletime":
	default:
		w.errorf("ERR unknown subcommand '%s'. Try OBJECT HELP.", head(args[1], 128))
		return nil
	}
	if len(args) != 3 {
		w.errorf("ERR wrong number of arguments for 'object|%s' command", sub)
		return nil
	}
	err := r.View(args[2], func(value []byte) error {
		_, integer := parseInt(value)
		switch {
		case sub == "refcount":
			w.int(1)
		case sub == "freq":
			w.error("ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.")
		case sub == "idletime":
			w.error("ERR access times are not tracked")
		case integer && len(value) <= maxIntText:
			w.bulkString("int")
		case len(value) <= maxEmbedded:
			w.bulkString("embstr")
		default:
			w.bulkString("raw")
		}
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		w.null()
		return nil
	}
	return err
}

func objectHelp(w *writer, args [][]byte) error {
	if len(args) != 2 {
		w.error("ERR wrong number of arguments for 'object|help' command")
		return nil
	}
	w.help("OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
		"ENCODING <key>", "    Return the kind of internal representation used in order to store the value associated with a <key>.",
		"FREQ <key>", "    Not tracked: an error.",
		"IDLETIME <key>", "    Not tracked: an error.",
		"REFCOUNT <key>", "    Return 1.",
		"HELP", "    Print this help.")
	return nil
}

func checkFlush(_ *Server, args [][]byte) (bool, string) {
	if len(args) > 2 || (len(args) == 2 && !is(args[1], "sync") && !is(args[1], "async")) {
		return false, errSyntax
	}
	return false, ""
}

func blindFlush(b Batch, _ [][]byte, _ int64) { b.DeleteAll() }

func decideFlush(tx Tx, w *writer, _ [][]byte) error {
	w.ok()
	return tx.DeleteAll()
}
