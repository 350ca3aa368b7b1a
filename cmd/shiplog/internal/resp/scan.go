package resp

import (
	"bytes"
	"container/list"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
)

func init() {
	register([]command{
		{name: "keys", arity: 2, flags: flagSnapshot, group: "generic", since: "1.0.0", about: "Returns all key names that match a pattern.", read: keys},
		{name: "scan", arity: -2, group: "generic", since: "2.8.0", about: "Iterates over the key names in the database.", read: scan},
		{name: "randomkey", arity: 1, flags: flagSnapshot, group: "generic", since: "1.0.0", about: "Returns a random key name from the database.", read: randomKey},
		{name: "dbsize", arity: 1, flags: flagFast, group: "server", since: "1.0.0", about: "Returns the number of keys in the database.", read: dbsize},
	})
}

func dbsize(r Reader, w *writer, _ [][]byte) error {
	n, err := r.Len()
	if err == nil {
		w.int(n)
	}
	return err
}

// keysBuffer is how many bytes of a KEYS reply are kept before it is sent in a second walk.
const keysBuffer = 4 << 20

// keys walks over the keys twice when the reply is large: the number of elements comes first in a reply, and a reply
// of any size must not need memory of any size.
func keys(r Reader, w *writer, args [][]byte) error {
	found := writer{}
	n := 0
	err := walkKeys(r, args[1], func(key []byte) bool {
		n++
		if len(found.buf) < keysBuffer {
			found.bulk(key)
		}
		return true
	})
	if err != nil {
		return err
	}
	w.array(n)
	if len(found.buf) < keysBuffer {
		w.buf = append(w.buf, found.buf...)
		return nil
	}
	var stuck error
	err = walkKeys(r, args[1], func(key []byte) bool {
		w.bulk(key)
		n--
		stuck = w.relieve()
		return stuck == nil
	})
	switch {
	case stuck != nil:
		return stuck
	case err != nil || n != 0:
		return errCutShort
	}
	return nil
}

// walkKeys calls fn for the keys that match, until it returns false.
func walkKeys(r Reader, pattern []byte, fn func(key []byte) bool) error {
	prefix := globPrefix(pattern)
	everything := string(pattern) == "*"
	return r.Keys(prefix, func(key []byte) bool {
		if !bytes.HasPrefix(key, prefix) {
			return false
		}
		return !everything && !globMatch(pattern, key) || fn(key)
	})
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

func scan(r Reader, w *writer, args [][]byte) error {
	cursor, ok := parseCursor(args[1])
	if !ok {
		w.error("ERR invalid cursor")
		return nil
	}
	o, refusal := parseScan(args)
	if refusal != "" {
		w.error(refusal)
		return nil
	}
	found := writer{}
	n := 0
	prefix := globPrefix(o.pattern)
	from := w.srv.cursors.resume(cursor)
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	seen, next := int64(0), uint64(0)
	err := r.Keys(from, func(key []byte) bool {
		if !bytes.HasPrefix(key, prefix) {
			return false // keys are in order: no match can follow
		}
		if seen >= min(o.count, scanMaxKeys) || len(found.buf) >= scanMaxBytes {
			next = w.srv.cursors.save(key)
			return false
		}
		seen++
		if o.strings && (o.pattern == nil || globMatch(o.pattern, key)) {
			found.bulk(key)
			n++
		}
		return true
	})
	if err != nil {
		return err
	}
	w.array(2)
	w.bulkString(strconv.FormatUint(next, 10))
	w.array(n)
	w.buf = append(w.buf, found.buf...)
	return nil
}

func parseCursor(arg []byte) (uint64, bool) {
	n, err := strconv.ParseUint(string(head(arg, 21)), 10, 64)
	return n, err == nil
}

// randomLevels bounds how many bytes of a key are drawn one by one.
const randomLevels = 32

// randomKey draws a key byte by byte: among the bytes that follow what has been drawn so far, each in its range is as likely as
// another, and what is not there stands for the next that is. So keys that are spread evenly are drawn evenly, and others are all drawn
// now and then.
func randomKey(r Reader, w *writer, _ [][]byte) error {
	var err error
	seek := func(from []byte) (found []byte) {
		if err == nil {
			err = r.Keys(from, func(key []byte) bool {
				found = bytes.Clone(key)
				return false
			})
		}
		return found
	}
	key := seek(nil)
	if key == nil && err == nil {
		w.null()
		return nil
	}
	var prefix []byte
	for level := 0; level < randomLevels && err == nil; level++ {
		last := lastByte(seek, prefix)
		if last < 0 {
			break // key is all that begins so
		}
		first := -1
		if len(key) > len(prefix) {
			first = int(key[len(prefix)])
		}
		drawn := first + rand.IntN(last-first+1)
		if drawn < 0 {
			break // the key that ends here
		}
		if drawn > first {
			key = seek(append(slices.Clip(prefix), byte(drawn)))
		}
		prefix = key[:len(prefix)+1]
	}
	if err != nil {
		return err
	}
	w.bulk(key)
	return nil
}

// lastByte finds the highest byte that follows prefix in a key, by halving; -1: none does.
func lastByte(seek func(from []byte) []byte, prefix []byte) int {
	last := -1
	for low, high := 0, 255; low <= high; {
		middle := (low + high + 1) / 2
		key := seek(append(slices.Clip(prefix), byte(middle)))
		if len(key) > len(prefix) && bytes.HasPrefix(key, prefix) {
			last = int(key[len(prefix)])
			low = last + 1
		} else {
			high = middle - 1
		}
	}
	return last
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
