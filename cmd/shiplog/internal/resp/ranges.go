package resp

import (
	"errors"
)

func init() {
	key := [3]int{1, 1, 1}
	register([]command{
		{name: "getrange", arity: 4, keys: key, group: "string", since: "2.4.0", about: "Returns a substring of the string stored at a key.", read: getRange},
		{name: "substr", arity: 4, keys: key, group: "string", since: "1.0.0", about: "Returns a substring from a string value.", read: getRange},
		{name: "setrange", arity: 4, keys: key, group: "string", since: "2.2.0", about: "Overwrites a part of a string value with another by an offset. Creates the key if it doesn't exist.", check: checkSetRange, decide: decideSetRange},
	})
}

func getRange(r Reader, w *writer, args [][]byte) error {
	start, ok1 := parseInt(args[2])
	end, ok2 := parseInt(args[3])
	if !ok1 || !ok2 {
		w.error(errNotInteger)
		return nil
	}
	err := r.View(args[1], func(value []byte) error {
		n := int64(len(value))
		if start < 0 && end < 0 && start > end {
			return w.value(nil)
		}
		if start < 0 {
			start = max(0, start+n)
		}
		if end < 0 {
			end = max(0, end+n)
		}
		end = min(end, n-1)
		if start > end {
			return w.value(nil)
		}
		return w.value(value[start : end+1])
	})
	if errors.Is(err, ErrNotFound) {
		w.bulk(nil)
		return nil
	}
	return err
}

func checkSetRange(s *Server, args [][]byte) (bool, string) {
	offset, ok := parseInt(args[2])
	switch {
	case !ok:
		return true, errNotInteger
	case offset < 0:
		return true, "ERR offset is out of range"
	}
	return true, s.tooLarge(args[1], args[3])
}

func decideSetRange(tx Tx, w *writer, args [][]byte) error {
	offset, _ := parseInt(args[2])
	patch := args[3]
	var value []byte
	var expiry int64
	length, tooBig := 0, false
	err := tx.Entry(args[1], func(old []byte, e int64) error {
		length, expiry = len(old), e
		if tooBig = offset > int64(w.srv.maxValue-len(patch)); len(patch) > 0 && !tooBig {
			value = make([]byte, max(len(old), int(offset)+len(patch)))
			copy(value, old)
		}
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		err = nil
		if tooBig = offset > int64(w.srv.maxValue-len(patch)); len(patch) > 0 && !tooBig {
			value = make([]byte, int(offset)+len(patch))
		}
	}
	switch {
	case err != nil:
		return err
	case len(patch) == 0: // nothing is written, and no key created
		w.int(int64(length))
		return nil
	case tooBig:
		w.error(errTooBigString)
		return nil
	}
	copy(value[offset:], patch)
	w.int(int64(len(value)))
	return tx.Put(args[1], value, expiry)
}
