package resp

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

func init() {
	key := [3]int{1, 1, 1}
	register([]command{
		{name: "get", arity: 2, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Returns the string value of a key.", read: get},
		{name: "set", arity: -3, keys: key, group: "string", since: "1.0.0", about: "Sets the string value of a key, ignoring its type. The key is created if it doesn't exist.", check: checkSet, blind: blindSet, decide: decideSet},
		{name: "setnx", arity: 3, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Set the string value of a key only when the key doesn't exist.", check: checkPair, decide: decideSetNX},
		{name: "getset", arity: 3, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Returns the previous string value of a key after setting it to a new value.", check: checkPair, decide: decideGetSet},
		{name: "setex", arity: 4, keys: key, group: "string", since: "2.0.0", about: "Sets the string value and expiration time of a key. Creates the key if it doesn't exist.", check: checkSetEx, blind: blindSetEx, decide: decideSetEx},
		{name: "psetex", arity: 4, keys: key, group: "string", since: "2.6.0", about: "Sets both string value and expiration time in milliseconds of a key. The key is created if it doesn't exist.", check: checkSetEx, blind: blindSetEx, decide: decideSetEx},
		{name: "getdel", arity: 2, flags: flagFast, keys: key, group: "string", since: "6.2.0", about: "Returns the string value of a key after deleting the key.", check: checkKeys, decide: decideGetDel},
		{name: "mget", arity: -2, flags: flagFast | flagSnapshot, keys: [3]int{1, -1, 1}, group: "string", since: "1.0.0", about: "Atomically returns the string values of one or more keys.", read: mget},
		{name: "mset", arity: -3, keys: [3]int{1, -1, 2}, group: "string", since: "1.0.1", about: "Atomically creates or modifies the string values of one or more keys.", check: checkMSet, blind: blindMSet, decide: decideMSet},
		{name: "msetnx", arity: -3, keys: [3]int{1, -1, 2}, group: "string", since: "1.0.1", about: "Atomically modifies the string values of one or more keys only when all keys don't exist.", check: checkMSetNX, decide: decideMSetNX},
		{name: "strlen", arity: 2, flags: flagFast, keys: key, group: "string", since: "2.2.0", about: "Returns the length of a string value.", read: strlen},
		{name: "append", arity: 3, flags: flagFast, keys: key, group: "string", since: "2.0.0", about: "Appends a string to the value of a key. Creates the key if it doesn't exist.", check: checkPair, decide: decideAppend},
		{name: "incr", arity: 2, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", check: checkKeys, decide: decideIncr(1)},
		{name: "decr", arity: 2, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", check: checkKeys, decide: decideIncr(-1)},
		{name: "incrby", arity: 3, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Increments the integer value of a key by a number. Uses 0 as initial value if the key doesn't exist.", check: checkIncrBy, decide: decideIncrBy},
		{name: "decrby", arity: 3, flags: flagFast, keys: key, group: "string", since: "1.0.0", about: "Decrements a number from the integer value of a key. Uses 0 as initial value if the key doesn't exist.", check: checkDecrBy, decide: decideDecrBy},
	})
}

func get(r Reader, w *writer, args [][]byte) error { return w.found(r, args[1]) }

func mget(r Reader, w *writer, args [][]byte) error {
	w.array(len(args) - 1)
	for _, key := range args[1:] {
		switch err := w.found(r, key); {
		case err == nil:
		case w.whole:
			return err
		default:
			w.failure(err) // as an element: the others stand
		}
		if err := w.relieve(); err != nil {
			return err
		}
	}
	return nil
}

func strlen(r Reader, w *writer, args [][]byte) error {
	n := 0
	err := r.View(args[1], func(value []byte) error {
		n = len(value)
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	w.int(int64(n))
	return nil
}

// setOptions are the options of SET and GETEX.
type setOptions struct {
	nx, xx, get, keepTTL, persist bool

	unit   string // of amount: ex, px, exat, pxat; empty: there is none
	amount []byte
}

func (o *setOptions) conditional() bool { return o.nx || o.xx || o.get || o.keepTTL }

// parseSetOptions reads the options of SET, or of GETEX; false when they make no sense together. An option may be repeated: the
// last one counts.
func parseSetOptions(args [][]byte, getEx bool) (o setOptions, ok bool) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case is(a, "nx") && !getEx && !o.xx:
			o.nx = true
		case is(a, "xx") && !getEx && !o.nx:
			o.xx = true
		case is(a, "get") && !getEx:
			o.get = true
		case is(a, "keepttl") && !getEx && o.unit == "":
			o.keepTTL = true
		case is(a, "persist") && getEx && o.unit == "":
			o.persist = true
		case i+1 < len(args) && !o.keepTTL && !o.persist && o.takeUnit(a):
			i++
			o.amount = args[i]
		default:
			return o, false
		}
	}
	return o, true
}

func (o *setOptions) takeUnit(arg []byte) bool {
	for _, unit := range []string{"ex", "px", "exat", "pxat"} {
		if is(arg, unit) && (o.unit == "" || o.unit == unit) {
			o.unit = unit
			return true
		}
	}
	return false
}

// expiry is when the value is to expire; 0: never, or not said.
func (o *setOptions) expiry(now int64, command string) (at int64, refusal string) {
	if o.unit == "" {
		return 0, ""
	}
	return parseExpiry(o.amount, now, len(o.unit) == 2, o.unit[0] == 'e', command)
}

// parseExpiry reads a time to live or an absolute time, in seconds or milliseconds, and returns Unix milliseconds. What was in range when
// it was checked, and is not any more because of the time that has passed, is the end of time.
func parseExpiry(arg []byte, now int64, relative, seconds bool, command string) (int64, string) {
	n, ok := parseInt(arg)
	if !ok {
		return 0, errNotInteger
	}
	if n <= 0 || (seconds && n > math.MaxInt64/1000) {
		return 0, expireTime(command)
	}
	if seconds {
		n *= 1000
	}
	if relative {
		if n > math.MaxInt64-now {
			return math.MaxInt64, expireTime(command)
		}
		n += now
	}
	return n, ""
}

func expireTime(command string) string { return "ERR invalid expire time in '" + command + "' command" }

func checkSet(s *Server, args [][]byte) (bool, string) {
	if refusal := s.tooLarge(args[1], args[2]); refusal != "" {
		return false, refusal
	}
	if len(args) == 3 {
		return false, ""
	}
	o, ok := parseSetOptions(args[3:], false)
	if !ok {
		return false, errSyntax
	}
	_, refusal := o.expiry(s.store.Now(), "set")
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

func blindSet(b Batch, args [][]byte, now int64) {
	o, _ := parseSetOptions(args[3:], false)
	if at, _ := o.expiry(now, "set"); at != 0 {
		b.PutTTL(args[1], args[2], at)
	} else {
		b.Put(args[1], args[2])
	}
}

func decideSet(tx Tx, w *writer, args [][]byte) error {
	o, _ := parseSetOptions(args[3:], false)
	expiry, _ := o.expiry(tx.Now(), "set")
	if !o.conditional() {
		w.ok()
		return tx.Put(args[1], args[2], expiry)
	}
	mark := len(w.buf)
	var exists bool
	var err error
	if o.get {
		exists, err = replyOld(tx, w, args[1])
	} else {
		exists, err = tx.Has(args[1])
	}
	if err != nil {
		return err
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
		if expiry, err = expiryOf(tx, args[1]); err != nil {
			return err
		}
	}
	return tx.Put(args[1], args[2], expiry)
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

func decideSetNX(tx Tx, w *writer, args [][]byte) error {
	exists, err := tx.Has(args[1])
	if err != nil {
		return err
	}
	w.bool01(!exists)
	if exists {
		return nil
	}
	return tx.Put(args[1], args[2], 0)
}

func decideGetSet(tx Tx, w *writer, args [][]byte) error {
	if _, err := replyOld(tx, w, args[1]); err != nil {
		return err
	}
	return tx.Put(args[1], args[2], 0)
}

func decideGetDel(tx Tx, w *writer, args [][]byte) error {
	exists, err := replyOld(tx, w, args[1])
	if err != nil || !exists {
		return err
	}
	return tx.Delete(args[1])
}

// replyOld appends the present value of key, or null.
func replyOld(tx Tx, w *writer, key []byte) (exists bool, err error) {
	misses := w.misses
	err = w.found(tx, key)
	return err == nil && w.misses == misses, err
}

func checkMSet(s *Server, args [][]byte) (bool, string) {
	if len(args)%2 == 0 {
		return false, "ERR wrong number of arguments for '" + strings.ToLower(string(args[0])) + "' command"
	}
	for i := 1; i < len(args); i += 2 {
		if refusal := s.tooLarge(args[i], args[i+1]); refusal != "" {
			return false, refusal
		}
	}
	return false, ""
}

func blindMSet(b Batch, args [][]byte, _ int64) {
	for i := 1; i < len(args); i += 2 {
		b.Put(args[i], args[i+1])
	}
}

func decideMSet(tx Tx, w *writer, args [][]byte) error {
	for i := 1; i < len(args); i += 2 {
		if err := tx.Put(args[i], args[i+1], 0); err != nil {
			return err
		}
	}
	w.ok()
	return nil
}

func checkMSetNX(s *Server, args [][]byte) (bool, string) {
	_, refusal := checkMSet(s, args)
	return true, refusal
}

func decideMSetNX(tx Tx, w *writer, args [][]byte) error {
	for i := 1; i < len(args); i += 2 {
		exists, err := tx.Has(args[i])
		if err != nil {
			return err
		}
		if exists {
			w.int(0)
			return nil
		}
	}
	for i := 1; i < len(args); i += 2 {
		if err := tx.Put(args[i], args[i+1], 0); err != nil {
			return err
		}
	}
	w.int(1)
	return nil
}

// parseSetEx reads the time to live of SETEX and PSETEX.
func parseSetEx(args [][]byte, now int64) (int64, string) {
	name := strings.ToLower(string(args[0]))
	return parseExpiry(args[2], now, true, name == "setex", name)
}

func checkSetEx(s *Server, args [][]byte) (bool, string) {
	if refusal := s.tooLarge(args[1], args[3]); refusal != "" {
		return false, refusal
	}
	_, refusal := parseSetEx(args, s.store.Now())
	return false, refusal
}

func blindSetEx(b Batch, args [][]byte, now int64) {
	expiry, _ := parseSetEx(args, now)
	b.PutTTL(args[1], args[3], expiry)
}

func decideSetEx(tx Tx, w *writer, args [][]byte) error {
	expiry, _ := parseSetEx(args, tx.Now())
	w.ok()
	return tx.Put(args[1], args[3], expiry)
}

func decideAppend(tx Tx, w *writer, args [][]byte) error {
	var value []byte
	var expiry int64
	err := tx.Entry(args[1], func(old []byte, e int64) error {
		expiry = e
		if len(old)+len(args[2]) <= w.srv.maxValue {
			value = make([]byte, 0, len(old)+len(args[2]))
			value = append(append(value, old...), args[2]...)
		}
		return nil
	})
	switch {
	case errors.Is(err, ErrNotFound):
		value = args[2]
	case err != nil:
		return err
	case value == nil:
		w.error(errTooBigString)
		return nil
	}
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

func decideIncr(delta int64) func(Tx, *writer, [][]byte) error {
	return func(tx Tx, w *writer, args [][]byte) error { return increment(tx, w, args[1], delta) }
}

func decideIncrBy(tx Tx, w *writer, args [][]byte) error {
	n, _ := parseInt(args[2])
	return increment(tx, w, args[1], n)
}

func decideDecrBy(tx Tx, w *writer, args [][]byte) error {
	n, _ := parseInt(args[2])
	return increment(tx, w, args[1], -n)
}

// increment adds delta to an integer that is kept as decimal text; its time to live stays.
func increment(tx Tx, w *writer, key []byte, delta int64) error {
	var n, expiry int64
	integer := true
	err := tx.Entry(key, func(old []byte, e int64) error {
		n, integer = parseInt(old)
		expiry = e
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if !integer {
		w.error(errNotInteger)
		return nil
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
