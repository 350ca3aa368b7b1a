package resp

import (
	"bytes"
	"container/list"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
)

func init() {
	key := [3]int{1, 1, 1}
	all := [3]int{1, -1, 1}
	register([]command{
		{name: "del", arity: -2, flags: flagWrite, keys: all, group: "generic", since: "1.0.0", about: "Deletes one or more keys.", check: checkKeys, decide: decideDel},
		{name: "unlink", arity: -2, flags: flagWrite | flagFast, keys: all, group: "generic", since: "4.0.0", about: "Asynchronously deletes one or more keys.", check: checkKeys, decide: decideDel},
		{name: "exists", arity: -2, flags: flagRead | flagFast, keys: all, group: "generic", since: "1.0.0", about: "Determines whether one or more keys exist.", handle: exists},
		{name: "type", arity: 2, flags: flagRead | flagFast, keys: key, group: "generic", since: "1.0.0", about: "Determines the type of value stored at a key.", handle: typeOf},
		{name: "keys", arity: 2, flags: flagRead, group: "generic", since: "1.0.0", about: "Returns all key names that match a pattern.", handle: keys},
		{name: "scan", arity: -2, flags: flagRead, group: "generic", since: "2.8.0", about: "Iterates over the key names in the database.", handle: scan},
		{name: "dbsize", arity: 1, flags: flagRead | flagFast, group: "server", since: "1.0.0", about: "Returns the number of keys in the database.", handle: dbsize},
		{name: "flushall", arity: -1, flags: flagWrite | flagAlone, group: "server", since: "1.0.0", about: "Removes all keys from all databases.", check: checkFlush, blind: blindFlush},
		{name: "flushdb", arity: -1, flags: flagWrite | flagAlone, group: "server", since: "1.0.0", about: "Remove all keys from the current database.", check: checkFlush, blind: blindFlush},
	})
}

func decideDel(tx Tx, w *writer, args [][]byte, _ time.Time) error {
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

func exists(c *conn, args [][]byte) {
	n := 0
	for _, key := range args[1:] {
		ok, err := c.srv.store.Has(key)
		if err != nil {
			c.out.failure(err)
			return
		}
		if ok {
			n++
			c.hits++
		} else {
			c.misses++
		}
	}
	c.out.int(int64(n))
}

func typeOf(c *conn, args [][]byte) {
	ok, err := c.srv.store.Has(args[1])
	switch {
	case err != nil:
		c.out.failure(err)
	case ok:
		c.out.status("string")
	default:
		c.out.status("none")
	}
}

func dbsize(c *conn, _ [][]byte) { c.out.int(c.srv.node.Info().Keys) }

func checkFlush(_ *Server, args [][]byte) (bool, string) {
	if len(args) > 2 || (len(args) == 2 && !is(args[1], "sync") && !is(args[1], "async")) {
		return false, errSyntax
	}
	return false, ""
}

func blindFlush(b Batch, _ [][]byte, _ time.Time) { b.DeleteAll() }

// keysBuffer is how many bytes of a KEYS reply are kept before it is sent in a second walk.
const keysBuffer = 4 << 20

// keys walks over the keys twice when the reply is large: the number of elements comes first in a reply, and a reply
// of any size must not need memory of any size.
func keys(c *conn, args [][]byte) {
	it, err := c.srv.store.NewIterator()
	if err != nil {
		c.out.failure(err)
		return
	}
	defer func() { _ = it.Close() }() // its error is Err, asked for below
	found := writer{}
	n := 0
	walkKeys(it, args[1], func(key []byte) bool {
		n++
		if len(found.buf) < keysBuffer {
			found.bulk(key)
		}
		return true
	})
	if err := it.Err(); err != nil {
		c.out.failure(err)
		return
	}
	c.out.array(n)
	if len(found.buf) < keysBuffer || c.silent() {
		c.out.buf = append(c.out.buf, found.buf...)
		return
	}
	walkKeys(it, args[1], func(key []byte) bool {
		c.out.bulk(key)
		n--
		return len(c.out.buf) < c.relieveAt || c.relieve()
	})
	if n != 0 {
		c.closing = true // the client waits for elements that do not come: better a broken connection
	}
}

// walkKeys calls fn for the keys that match, until it returns false.
func walkKeys(it Iterator, pattern []byte, fn func(key []byte) bool) {
	prefix := globPrefix(pattern)
	everything := string(pattern) == "*"
	for ok := it.SeekGE(prefix); ok; ok = it.Next() {
		key := it.Key()
		if !bytes.HasPrefix(key, prefix) {
			return
		}
		if (everything || globMatch(pattern, key)) && !fn(key) {
			return
		}
	}
}

// scanOptions are the parsed options of SCAN.
type scanOptions struct {
	pattern []byte
	count   int64
	strings bool // TYPE allows strings, of which everything here is
}

func parseScan(args [][]byte) (o scanOptions, refusal string) {
	o = scanOptions{count: 10, strings: true}
	for i := 2; i < len(args); i += 2 {
		if i+1 == len(args) {
			return o, errSyntax
		}
		switch {
		case is(args[i], "count"):
			n, ok := parseInt(args[i+1])
			if !ok {
				return o, errNotInteger
			}
			if n < 1 {
				return o, errSyntax
			}
			o.count = n
		case is(args[i], "match"):
			o.pattern = args[i+1]
		case is(args[i], "type"):
			o.strings = is(args[i+1], "string")
		default:
			return o, errSyntax
		}
	}
	return o, ""
}

// Bounds of one SCAN call, whatever COUNT says.
const (
	scanMaxKeys  = 100_000
	scanMaxBytes = 1 << 20
)

func scan(c *conn, args [][]byte) {
	cursor, err := strconv.ParseUint(string(head(args[1], 21)), 10, 64)
	if err != nil {
		c.out.error("ERR invalid cursor")
		return
	}
	o, refusal := parseScan(args)
	if refusal != "" {
		c.out.error(refusal)
		return
	}
	it, err := c.srv.store.NewIterator()
	if err != nil {
		c.out.failure(err)
		return
	}
	defer func() { _ = it.Close() }() // its error is Err, asked for below
	found := writer{}
	n := 0
	prefix := globPrefix(o.pattern)
	from := c.srv.cursors.resume(cursor)
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	ok := it.SeekGE(from)
	for seen := int64(0); ok && seen < min(o.count, scanMaxKeys) && len(found.buf) < scanMaxBytes; seen++ {
		key := it.Key()
		if !bytes.HasPrefix(key, prefix) {
			ok = false // keys are in order: no match can follow
			break
		}
		if o.strings && (o.pattern == nil || globMatch(o.pattern, key)) {
			found.bulk(key)
			n++
		}
		ok = it.Next()
	}
	if err := it.Err(); err != nil {
		c.out.failure(err)
		return
	}
	next := uint64(0)
	if ok {
		next = c.srv.cursors.save(it.Key())
	}
	c.out.array(2)
	c.out.bulkString(strconv.FormatUint(next, 10))
	c.out.array(n)
	c.out.buf = append(c.out.buf, found.buf...)
}

// Bounds of the cursor table.
const (
	maxCursors     = 8192
	maxCursorBytes = 8 << 20
)

// cursorTable remembers where the SCAN iterations under way go on. Keys are walked in order, so whatever is there
// throughout an iteration is returned, and what a cursor stands for is the next key. The table is bounded; a cursor
// that fell out of it, because thousands of newer ones came or the node was restarted, begins at the first key again:
// the guarantee holds, with repetitions, which SCAN allows.
type cursorTable struct {
	mu    sync.Mutex // guards all
	byID  map[uint64]*list.Element
	order list.List // of cursor, oldest first
	bytes int
}

type cursor struct {
	id  uint64
	key []byte
}

func (t *cursorTable) save(key []byte) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID = map[uint64]*list.Element{}
	}
	for t.order.Len() >= maxCursors || t.bytes+len(key) > maxCursorBytes {
		oldest := t.order.Front()
		if oldest == nil {
			break
		}
		t.drop(oldest)
	}
	// 53 bits, because some clients keep cursors as floating point numbers.
	id := rand.Uint64()>>11 | 1
	for t.byID[id] != nil {
		id = rand.Uint64()>>11 | 1
	}
	t.byID[id] = t.order.PushBack(cursor{id, bytes.Clone(key)})
	t.bytes += len(key)
	return id
}

// resume returns the key at which a cursor goes on; nil is the first. A cursor may be used again.
func (t *cursorTable) resume(id uint64) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		return nil
	}
	t.order.MoveToBack(e)
	return e.Value.(cursor).key
}

func (t *cursorTable) drop(e *list.Element) {
	cur := t.order.Remove(e).(cursor)
	t.bytes -= len(cur.key)
	delete(t.byID, cur.id)
}
