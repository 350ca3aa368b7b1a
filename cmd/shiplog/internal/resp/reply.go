package resp

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/tidwall/redcon"
)

// Replies that are the same each time. They are Redis's, to the letter.
const (
	errSyntax        = "ERR syntax error"
	errNotInteger    = "ERR value is not an integer or out of range"
	errOverflow      = "ERR increment or decrement would overflow"
	errDecrOverflow  = "ERR decrement would overflow"
	errReadOnly      = "READONLY You can't write against a read only replica."
	errLogOnly       = "LOGONLY This node keeps the log only: it answers no reads."
	errNotLeading    = "MASTERDOWN The lease to lead has run out."
	errLoading       = "LOADING Redis is loading the dataset in memory"
	errNoReplicas    = "NOREPLICAS Not enough good replicas to write."
	errNoAuth        = "NOAUTH Authentication required."
	errWrongPass     = "WRONGPASS invalid username-password pair or user is disabled."
	errNoPassword    = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"
	errTooBigString  = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
	errMaxClients    = "ERR max number of clients reached"
	errClientName    = "ERR Client names cannot contain spaces, newlines or special characters."
	errShuttingDown  = "ERR server is shutting down"
	errNoClientSpace = "OOM client buffers of this node are full"
	errDBRange       = "ERR DB index is out of range"
	errNoSuchKey     = "ERR no such key"
)

const replyOK = "+OK\r\n"

// writer appends replies to a buffer in the protocol version of its connection. redcon's append functions write
// what both versions share; what only RESP3 has is written here.
type writer struct {
	buf    []byte
	srv    *Server
	resp3  bool
	whole  bool  // a reply is given whole or not at all, as in a transaction
	hits   int64 // reads of keys that exist, and that do not
	misses int64
	// value appends a value, unless that would be too much to hold: errNoRoom. Made once, for the path of GET.
	value func(value []byte) error
	// relieve makes room between the elements of a long reply. Its error, when there is none, ends the command.
	relieve func() error
}

func (w *writer) ok()                 { w.buf = append(w.buf, replyOK...) }
func (w *writer) raw(p string)        { w.buf = append(w.buf, p...) }
func (w *writer) status(s string)     { w.buf = redcon.AppendString(w.buf, s) }
func (w *writer) error(s string)      { w.buf = redcon.AppendError(w.buf, s) }
func (w *writer) int(n int64)         { w.buf = redcon.AppendInt(w.buf, n) }
func (w *writer) array(n int)         { w.buf = redcon.AppendArray(w.buf, n) }
func (w *writer) bulkString(s string) { w.buf = redcon.AppendBulkString(w.buf, s) }
func (w *writer) bulk(p []byte)       { w.buf = redcon.AppendBulk(w.buf, p) }

func (w *writer) errorf(format string, args ...any) { w.error(fmt.Sprintf(format, args...)) }

func (w *writer) bool01(b bool) {
	if b {
		w.int(1)
	} else {
		w.int(0)
	}
}

// found appends the value of key, or null.
func (w *writer) found(r Reader, key []byte) error {
	err := r.View(key, w.value)
	switch {
	case err == nil:
		w.hits++
	case errors.Is(err, ErrNotFound):
		w.misses++
		w.null()
		return nil
	}
	return err
}

func (w *writer) null() {
	if w.resp3 {
		w.raw("_\r\n")
	} else {
		w.raw("$-1\r\n")
	}
}

// nullArray is the null of a reply that is otherwise an array.
func (w *writer) nullArray() {
	if w.resp3 {
		w.raw("_\r\n")
	} else {
		w.raw("*-1\r\n")
	}
}

// push begins a message of n elements that the client has not asked for; RESP2 has an array instead.
func (w *writer) push(n int) {
	if !w.resp3 {
		w.array(n)
		return
	}
	w.header('>', n)
}

// mapHeader begins a map of n pairs; RESP2 has a flat array instead.
func (w *writer) mapHeader(n int) {
	if !w.resp3 {
		w.array(2 * n)
		return
	}
	w.header('%', n)
}

// setHeader begins a set of n elements; RESP2 has an array instead.
func (w *writer) setHeader(n int) {
	if !w.resp3 {
		w.array(n)
		return
	}
	w.header('~', n)
}

// verbatim writes text that is meant for people, as INFO does.
func (w *writer) verbatim(s string) {
	if !w.resp3 {
		w.bulkString(s)
		return
	}
	w.header('=', len(s)+4)
	w.raw("txt:")
	w.raw(s)
	w.raw("\r\n")
}

// help writes the lines of a container command's HELP.
func (w *writer) help(lines ...string) {
	w.array(len(lines))
	for _, line := range lines {
		w.status(line)
	}
}

func (w *writer) header(kind byte, n int) {
	w.buf = append(w.buf, kind)
	w.buf = strconv.AppendInt(w.buf, int64(n), 10)
	w.buf = append(w.buf, '\r', '\n')
}

// failure writes the reply for an error of the store.
func (w *writer) failure(err error) { w.error(errorText(err)) }

// errorText is Redis's text for an error of the store, or one in its manner where it has none.
func errorText(err error) string {
	switch {
	case errors.Is(err, ErrReadOnly):
		return errReadOnly
	case errors.Is(err, ErrLogOnly):
		return errLogOnly
	case errors.Is(err, ErrNotLeading):
		return errNotLeading
	case errors.Is(err, ErrLoading):
		return errLoading
	case errors.Is(err, ErrTooFewFollowers):
		return errNoReplicas
	case errors.Is(err, ErrUnknownOutcome):
		return "UNKNOWNOUTCOME " + err.Error()
	case errors.Is(err, ErrTooLarge):
		return errTooBigString
	case errors.Is(err, ErrNoSpace):
		return "MISCONF Errors writing to the AOF file: No space left on device"
	case errors.Is(err, ErrPoisoned):
		return "MISCONF Errors writing to the AOF file: " + err.Error()
	case errors.Is(err, errNoRoom):
		return errNoClientSpace
	case errors.Is(err, ErrConflict):
		return "TRYAGAIN " + err.Error()
	}
	return "ERR " + err.Error()
}

// parseInt reads a decimal integer as strictly as Redis does: no blanks, no plus sign, no leading zeros.
func parseInt(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 20 {
		return 0, false
	}
	digits := p
	negative := p[0] == '-'
	if negative {
		digits = p[1:]
	}
	if len(digits) == 0 || (digits[0] == '0' && len(p) > 1) {
		return 0, false
	}
	var n uint64
	for _, d := range digits {
		if d < '0' || d > '9' || n > (math.MaxUint64-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(d-'0')
	}
	switch {
	case negative && n <= 1<<63:
		return -int64(n-1) - 1, true
	case !negative && n <= math.MaxInt64:
		return int64(n), true
	}
	return 0, false
}
