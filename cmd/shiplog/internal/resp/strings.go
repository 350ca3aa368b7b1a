package resp

import (
	"errors"
	"math"
	"strconv"
	"time"
)

func init() {
	key := [3]int{1, 1, 1}
	register([]command{
		{name: "get", arity: 2, flags: flagRead | flagFast, keys: key, group: "string", since: "1.0.0", about: "Returns the string value of a key.", handle: get},
		{name: "set", arity: -3, flags: flagWrite, keys: key, group: "string", since: "1.0.0", about: "Sets the string value of a key, ignoring its type. The key is created if it doesn't exist.", check: checkSet, blind: blindSet, decide: decideSet},
		{name: "setnx", arity: 3, flags: flagWrite | flagFast, keys: key, group: "string", since: "1.0.0", about: "Set the string value of a key only when the key doesn't exist.", check: checkPair, decide: decideSetNX},
		{name: "getset", arity: 3, flags: flagWrite | flagFast, keys: key, group: "string", since: "1.0.0", about: "Returns the previous string value of a key after setting it to a new value.", check: checkPair, decide: decideGetSet},
		{name: "getdel", arity: 2, flags: flagWrite | flagFast, keys: key, group: "string", since: "6.2.0", about: "Returns the string value of a key after deleting the key.", check: checkKeys, decide: decideGetDel},
		{name: "mget", arity: -2, flags: flagRead | flagFast, keys: [3]int{1, -1, 1}, group: "string", since: "1.0.0", about: "Atomically returns the string values of one or more keys.", handle: mget},
		{name: "mset", arity: -3, flags: flagWrite, keys: [3]int{1, -1, 2}, group: "string", since: "1.0.1", about: "Atomically creates or modifies the string values of one or more keys.", check: checkMSet, blind: blindMSet, decide: decideMSet},
		{name: "strlen", arity: 2, flags: flagRead | flagFast, keys: key, group: "string", since: "2.2.0", about: "Returns the length of a string value.", handle: strlen},
		{name: "append", arity: 3, flags: flagWrite | flagFast, keys: key, group: "string", since: "2.0.0", about: "Appends a string to the value of a key. Creates the key if it doesn't exist.", check: checkPair, decide: decideAppend},
		{name: "incr", arity: 2, flags: flagWrite | flagFast, keys: key, group: "string", since: "1.0.0", about: "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", check: checkKeys, decide: decideIncr(1)},
		{name: "decr", arity: 2, flags: flagWrite | flagFast, keys: key, group: "string", since: "1.0.0", about: "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", check: checkKeys, decide: decideIncr(-1)},
		{name: "incrby", arity: 3, flags: flagWrite | flagFast, keys: key, group: "string", since: "1.0.0", about: "Increments the integer value of a key by a number. Uses 0 as initial value if the key doesn't exist.", check: checkIncrBy, decide: decideIncrBy},
		{name: "decrby", arity: 3, flags: flagWrite | flagFast, keys: key, group: "string", since: "1.0.0", about: "Decrements a number from the integer value of a key. Uses 0 as initial value if the key doesn't exist.", check: checkDecrBy, decide: decideDecrBy},
	})
}

func get(c *conn, args [][]byte) {
	err := c.srv.store.View(args[1], c.onValue)
	switch {
	case err == nil:
		c.hits++
	case errors.Is(err, ErrNotFound):
		c.misses++
		c.out.null()
	default:
		c.out.failure(err)
	}
}

func mget(c *conn, args [][]byte) {
	c.out.array(len(args) - 1)
	for _, key := range args[1:] {
		err := c.srv.store.View(key, c.onValue)
		switch {
		case err == nil:
			c.hits++
		case errors.Is(err, ErrNotFound):
			c.misses++
			c.out.null()
		default:
			c.out.failure(err) // as an element: the others stand
		}
		if len(c.out.buf) >= c.relieveAt && !c.silent() && !c.relieve() {
			c.closing = true
			return
		}
	}
}

func strlen(c *conn, args [][]byte) {
	n := 0
	err := c.srv.store.View(args[1], func(value []byte) error {
		n = len(value)
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		c.out.failure(err)
		return
	}
	c.out.int(int64(n))
}

// setOptions are the parsed options of SET.
type setOptions struct {
	nx, xx, get, keepTTL bool
	hasExpiry            bool
	expiry               time.Time
}

func (o *setOptions) conditional() bool { return o.nx || o.xx || o.get || o.keepTTL }

func parseSet(args [][]byte, now time.Time) (o setOptions, refusal string) {
	for i := 3; i < len(args); i++ {
		a := args[i]
		switch {
		case is(a, "nx") && !o.xx:
			o.nx = true
		case is(a, "xx") && !o.nx:
			o.xx = true
		case is(a, "get"):
			o.get = true
		case is(a, "keepttl") && !o.hasExpiry:
			o.keepTTL = true
		case (is(a, "ex") || is(a, "px") || is(a, "exat") || is(a, "pxat")) && !o.keepTTL && !o.hasExpiry && i+1 < len(args):
			i++
			if o.expiry, refusal = parseExpiry(args[i], now, len(a) == 2, a[0]|0x20 == 'e', "set"); refusal != "" {
				// Redis looks at the number only after all options have parsed.
				if _, later := parseSetRest(args, i+1, o); later {
					return o, errSyntax
				}
				return o, refusal
			}
			o.hasExpiry = true
		default:
			return o, errSyntax
		}
	}
	return o, ""
}

// parseSetRest reports whether the options from i on have a syntax error of their own.
func parseSetRest(args [][]byte, i int, o setOptions) (setOptions, bool) {
	for ; i < len(args); i++ {
		a := args[i]
		switch {
		case is(a, "nx") && !o.xx:
			o.nx = true
		case is(a, "xx") && !o.nx:
			o.xx = true
		case is(a, "get"):
		default:
			return o, true
		}
	}
	return o, false
}

// parseExpiry reads a time to live or an absolute time, in seconds or milliseconds.
func parseExpiry(arg []byte, now time.Time, relative, seconds bool, command string) (time.Time, string) {
	n, ok := parseInt(arg)
	if !ok {
		return time.Time{}, errNotInteger
	}
	invalid := "ERR invalid expire time in '" + command + "' command"
	if n <= 0 {
		return time.Time{}, invalid
	}
	if seconds {
		if n > math.MaxInt64/1000 {
			return time.Time{}, invalid
		}
		n *= 1000
	}
	if relative {
		if n > math.MaxInt64-now.UnixMilli() {
			return time.Time{}, invalid
		}
		n += now.UnixMilli()
	}
	return time.UnixMilli(n), ""
}

func checkSet(s *Server, args [][]byte) (bool, string) {
	if refusal := s.tooLarge(args[1], args[2]); refusal != "" {
		return false, refusal
	}
	if len(args) == 3 {
		return false, ""
	}
	o, refusal := parseSet(args, s.store.Now())
	return o.conditional(), refusal
}

func (s *Server) tooLarge(key, value []byte) string {
	switch {
	case len(key) > s.maxKey:
		return "ERR key exceeds maximum allowed size of " + strconv.Itoa(s.maxKey) + " bytes"
	case len(value) > s.maxValue:
		return errTooBigString
	}
	return ""
}

func blindSet(b Batch, args [][]byte, now time.Time) {
	if len(args) > 3 {
		if o, _ := parseSet(args, now); o.hasExpiry {
			b.PutTTL(args[1], args[2], o.expiry)
			return
		}
	}
	b.Put(args[1], args[2])
}

func decideSet(tx Tx, w *writer, args [][]byte, now time.Time) error {
	if len(args) == 3 {
		w.ok()
		return tx.Put(args[1], args[2], time.Time{})
	}
	o, _ := parseSet(args, now)
	if !o.conditional() {
		w.ok()
		return tx.Put(args[1], args[2], o.expiry)
	}
	mark := len(w.buf)
	old, expiry, err := tx.Get(args[1])
	exists := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if o.get {
		if exists {
			w.bulk(old)
		} else {
			w.null()
		}
	}
	if (o.nx && exists) || (o.xx && !exists) {
		if len(w.buf) == mark {
			w.null()
		}
		return nil
	}
	if !o.get {
		w.ok()
	}
	if o.keepTTL && exists {
		o.expiry = expiry
	}
	return tx.Put(args[1], args[2], o.expiry)
}

func checkPair(s *Server, args [][]byte) (bool, string) { return true, s.tooLarge(args[1], args[2]) }

func checkKeys(s *Server, args [][]byte) (bool, string) {
	for _, key := range args[1:] {
		if refusal := s.tooLarge(key, nil); refusal != "" {
			return true, refusal
		}
	}
	return true, ""
}

func decideSetNX(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	exists, err := tx.Has(args[1])
	if err != nil {
		return err
	}
	w.bool01(!exists)
	if exists {
		return nil
	}
	return tx.Put(args[1], args[2], time.Time{})
}

func decideGetSet(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	if _, err := replyOld(tx, w, args[1]); err != nil {
		return err
	}
	return tx.Put(args[1], args[2], time.Time{})
}

func decideGetDel(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	exists, err := replyOld(tx, w, args[1])
	if err != nil || !exists {
		return err
	}
	return tx.Delete(args[1])
}

// replyOld appends the present value of key, or null.
func replyOld(tx Tx, w *writer, key []byte) (exists bool, err error) {
	old, _, err := tx.Get(key)
	switch {
	case err == nil:
		w.bulk(old)
		return true, nil
	case errors.Is(err, ErrNotFound):
		w.null()
		return false, nil
	}
	return false, err
}

func checkMSet(s *Server, args [][]byte) (bool, string) {
	if len(args)%2 == 0 {
		return false, "ERR wrong number of arguments for 'mset' command"
	}
	for i := 1; i < len(args); i += 2 {
		if refusal := s.tooLarge(args[i], args[i+1]); refusal != "" {
			return false, refusal
		}
	}
	return false, ""
}

func blindMSet(b Batch, args [][]byte, _ time.Time) {
	for i := 1; i < len(args); i += 2 {
		b.Put(args[i], args[i+1])
	}
}

func decideMSet(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	for i := 1; i < len(args); i += 2 {
		if err := tx.Put(args[i], args[i+1], time.Time{}); err != nil {
			return err
		}
	}
	w.ok()
	return nil
}

func decideAppend(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	old, expiry, err := tx.Get(args[1])
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if len(old)+len(args[2]) > w.maxValue {
		w.error(errTooBigString)
		return nil
	}
	value := make([]byte, 0, len(old)+len(args[2]))
	value = append(append(value, old...), args[2]...)
	w.int(int64(len(value)))
	return tx.Put(args[1], value, expiry)
}

func checkIncrBy(s *Server, args [][]byte) (bool, string) {
	if _, ok := parseInt(args[2]); !ok {
		return true, errNotInteger
	}
	return true, s.tooLarge(args[1], nil)
}

func checkDecrBy(s *Server, args [][]byte) (bool, string) {
	if n, ok := parseInt(args[2]); ok && n == math.MinInt64 {
		return true, errDecrOverflow
	}
	return checkIncrBy(s, args)
}

func decideIncr(delta int64) func(Tx, *writer, [][]byte, time.Time) error {
	return func(tx Tx, w *writer, args [][]byte, _ time.Time) error { return increment(tx, w, args[1], delta) }
}

func decideIncrBy(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	n, _ := parseInt(args[2])
	return increment(tx, w, args[1], n)
}

func decideDecrBy(tx Tx, w *writer, args [][]byte, _ time.Time) error {
	n, _ := parseInt(args[2])
	return increment(tx, w, args[1], -n)
}

// increment adds delta to an integer that is kept as decimal text; its time to live stays.
func increment(tx Tx, w *writer, key []byte, delta int64) error {
	old, expiry, err := tx.Get(key)
	var n int64
	switch {
	case err == nil:
		var ok bool
		if n, ok = parseInt(old); !ok {
			w.error(errNotInteger)
			return nil
		}
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if (delta > 0 && n > math.MaxInt64-delta) || (delta < 0 && n < math.MinInt64-delta) {
		w.error(errOverflow)
		return nil
	}
	n += delta
	var text [20]byte
	w.int(n)
	return tx.Put(key, strconv.AppendInt(text[:0], n, 10), expiry)
}
