package resp

import (
	"errors"
	"math"
	"strings"
)

func init() {
	key := [3]int{1, 1, 1}
	register([]command{
		{name: "expire", arity: -3, flags: flagFast, keys: key, group: "generic", since: "1.0.0", about: "Sets the expiration time of a key in seconds.", check: checkExpire, decide: decideExpire},
		{name: "pexpire", arity: -3, flags: flagFast, keys: key, group: "generic", since: "2.6.0", about: "Sets the expiration time of a key in milliseconds.", check: checkExpire, decide: decideExpire},
		{name: "expireat", arity: -3, flags: flagFast, keys: key, group: "generic", since: "1.2.0", about: "Sets the expiration time of a key to a Unix timestamp.", check: checkExpire, decide: decideExpire},
		{name: "pexpireat", arity: -3, flags: flagFast, keys: key, group: "generic", since: "2.6.0", about: "Sets the expiration time of a key to a Unix milliseconds timestamp.", check: checkExpire, decide: decideExpire},
		{name: "persist", arity: 2, flags: flagFast, keys: key, group: "generic", since: "2.2.0", about: "Removes the expiration time of a key.", check: checkKeys, decide: decidePersist},
		{name: "ttl", arity: 2, flags: flagFast, keys: key, group: "generic", since: "1.0.0", about: "Returns the expiration time in seconds of a key.", read: ttl},
		{name: "pttl", arity: 2, flags: flagFast, keys: key, group: "generic", since: "2.6.0", about: "Returns the expiration time in milliseconds of a key.", read: ttl},
		{name: "expiretime", arity: 2, flags: flagFast, keys: key, group: "generic", since: "7.0.0", about: "Returns the expiration time of a key as a Unix timestamp.", read: ttl},
		{name: "pexpiretime", arity: 2, flags: flagFast, keys: key, group: "generic", since: "7.0.0", about: "Returns the expiration time of a key as a Unix milliseconds timestamp.", read: ttl},
		{name: "getex", arity: -2, flags: flagFast, keys: key, group: "string", since: "6.2.0", about: "Returns the string value of a key after setting its expiration time.", check: checkGetEx, decide: decideGetEx},
	})
}

// expiryOf returns when key expires, in Unix milliseconds; 0: never. ErrNotFound: there is no key.
func expiryOf(r Reader, key []byte) (expiry int64, err error) {
	err = r.Entry(key, func(_ []byte, e int64) error {
		expiry = e
		return nil
	})
	return expiry, err
}

// expireOptions are the conditions under which EXPIRE and its kin do something.
type expireOptions struct{ nx, xx, gt, lt bool }

func parseExpireOptions(args [][]byte) (o expireOptions, refusal string) {
	for _, a := range args {
		switch {
		case is(a, "nx"):
			o.nx = true
		case is(a, "xx"):
			o.xx = true
		case is(a, "gt"):
			o.gt = true
		case is(a, "lt"):
			o.lt = true
		default:
			return o, "ERR Unsupported option " + string(head(a, 128))
		}
	}
	switch {
	case o.nx && (o.xx || o.gt || o.lt):
		refusal = "ERR NX and XX, GT or LT options at the same time are not compatible"
	case o.gt && o.lt:
		refusal = "ERR GT and LT options at the same time are not compatible"
	}
	return o, refusal
}

// parseDeadline reads the time of EXPIRE and its kin, which may lie in the past, in Unix milliseconds.
func parseDeadline(args [][]byte, now int64) (at int64, refusal string) {
	name := strings.ToLower(string(args[0]))
	n, ok := parseInt(args[2])
	if !ok {
		return 0, errNotInteger
	}
	if !strings.HasPrefix(name, "p") {
		if n > math.MaxInt64/1000 || n < math.MinInt64/1000 {
			return 0, expireTime(name)
		}
		n *= 1000
	}
	if !strings.HasSuffix(name, "at") {
		if n > math.MaxInt64-now {
			return math.MaxInt64, expireTime(name)
		}
		n += now
	}
	return n, ""
}

func checkExpire(s *Server, args [][]byte) (bool, string) {
	if _, refusal := parseExpireOptions(args[3:]); refusal != "" {
		return true, refusal
	}
	if _, refusal := parseDeadline(args, s.store.Now()); refusal != "" {
		return true, refusal
	}
	return true, s.tooLarge(args[1], nil)
}

func decideExpire(tx Tx, w *writer, args [][]byte) error {
	at, _ := parseDeadline(args, tx.Now())
	o, _ := parseExpireOptions(args[3:])
	var value []byte
	done := false
	err := tx.Entry(args[1], func(v []byte, old int64) error {
		switch {
		case o.nx && old != 0, o.xx && old == 0, o.gt && (old == 0 || at <= old), o.lt && old != 0 && at >= old:
			return nil
		}
		done = true
		if at > tx.Now() {
			value = append(make([]byte, 0, len(v)), v...)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	w.bool01(done)
	switch {
	case !done:
		return nil
	case value == nil:
		return tx.Delete(args[1])
	}
	return tx.Put(args[1], value, at)
}

func decidePersist(tx Tx, w *writer, args [][]byte) error {
	var value []byte
	err := tx.Entry(args[1], func(v []byte, old int64) error {
		if old != 0 {
			value = append(make([]byte, 0, len(v)), v...)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	w.bool01(value != nil)
	if value == nil {
		return nil
	}
	return tx.Put(args[1], value, 0)
}

// ttl answers TTL, PTTL, EXPIRETIME and PEXPIRETIME: -2 when there is no key, -1 when it does not expire. Seconds are rounded.
func ttl(r Reader, w *writer, args [][]byte) error {
	expiry, err := expiryOf(r, args[1])
	switch {
	case errors.Is(err, ErrNotFound):
		w.int(-2)
		return nil
	case err != nil:
		return err
	case expiry == 0:
		w.int(-1)
		return nil
	}
	if len(args[0]) <= len("pttl") {
		expiry = max(0, expiry-r.Now())
	}
	if args[0][0]|0x20 != 'p' {
		expiry = int64((uint64(expiry) + 500) / 1000)
	}
	w.int(expiry)
	return nil
}

func checkGetEx(s *Server, args [][]byte) (bool, string) {
	if _, ok := parseSetOptions(args[2:], true); !ok {
		return true, errSyntax
	}
	return checkKeys(s, args[:2])
}

func decideGetEx(tx Tx, w *writer, args [][]byte) error {
	o, _ := parseSetOptions(args[2:], true)
	expiry, refusal := o.expiry(tx.Now(), "getex")
	if refusal != "" { // matters only where there is a value
		exists, err := tx.Has(args[1])
		switch {
		case err != nil:
			return err
		case exists:
			w.error(refusal)
		default:
			w.null()
		}
		return nil
	}
	exists, err := replyOld(tx, w, args[1])
	if err != nil || !exists || (expiry == 0 && !o.persist) {
		return err
	}
	if expiry != 0 && expiry <= tx.Now() {
		return tx.Delete(args[1])
	}
	var value []byte
	err = tx.Entry(args[1], func(v []byte, old int64) error {
		if !o.persist || old != 0 { // the same time again is a write too: who watches the key sees it
			value = append(make([]byte, 0, len(v)), v...)
		}
		return nil
	})
	if err != nil || value == nil {
		return err
	}
	return tx.Put(args[1], value, expiry)
}
