package resp

import (
	"bytes"
	"fmt"
)

// Protocol limits that Redis fixes.
const (
	maxInlineBytes    = 64 << 10 // of an inline command, and of the line that announces a length
	maxArgs           = 1 << 20  // arguments of a command
	maxArgsBeforeAuth = 10       // for a client that has not authenticated
	maxBulkBeforeAuth = 16 << 10 // bytes of an argument, for a client that has not authenticated
)

// protocolError ends a connection after its text was sent, as "-ERR Protocol error: ...".
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

// scanner finds the end of the command at the front of a growing buffer, and refuses lengths over the limits
// before anything is allocated for them. It remembers how far it came, so that a command that arrives a byte at a
// time costs time in proportion to its length. Offsets count from the start of the command.
type scanner struct {
	pos     int // everything before was looked at
	total   int // arguments of the command
	args    int // of them still to come; -1 before the first line
	bulk    int // bytes of the present argument with its line end; -1 before its length
	started bool
}

type scanLimits struct {
	args, bulk, command int
	authed              bool
}

// scan looks at the command at the front of p. It returns its length once complete, else 0. need is a lower bound of
// the bytes that the command takes as far as is known.
func (s *scanner) scan(p []byte, lim scanLimits) (n, need int, err error) {
	if len(p) == 0 {
		return 0, 1, nil
	}
	if !s.started {
		*s = scanner{args: -1, bulk: -1, started: true}
	}
	if p[0] != '*' {
		return s.scanInline(p)
	}
	for {
		if s.bulk >= 0 {
			if need = s.pos + s.bulk; len(p) < need {
				return 0, need, nil
			}
			if p[need-2] != '\r' || p[need-1] != '\n' {
				return 0, 0, protocolError("invalid bulk length")
			}
			s.pos, s.bulk = need, -1
			s.args--
		}
		if s.args == 0 {
			n = s.pos
			s.started = false
			return n, n, nil
		}
		line, ok, err := s.line(p)
		if err != nil {
			return 0, 0, err
		}
		if !ok {
			return 0, len(p) + 1, nil
		}
		if err := s.length(line, lim); err != nil {
			return 0, 0, err
		}
	}
}

// length takes in a line that announces the number of arguments or the length of one.
func (s *scanner) length(line []byte, lim scanLimits) error {
	n, ok := parseLength(line[1:])
	if s.args < 0 {
		if !ok || n > int64(lim.args) {
			return protocolError("invalid multibulk length")
		}
		if !lim.authed && n > maxArgsBeforeAuth {
			return protocolError("unauthenticated multibulk length")
		}
		s.args = int(max(n, 0))
		s.total = s.args
		return nil
	}
	if line[0] != '$' {
		return protocolError(fmt.Sprintf("expected '$', got '%c'", printable(line[0])))
	}
	if !ok || n < 0 || n > int64(lim.bulk) {
		return protocolError("invalid bulk length")
	}
	if !lim.authed && n > maxBulkBeforeAuth {
		return protocolError("unauthenticated bulk length")
	}
	if s.pos+int(n) > lim.command {
		return protocolError("command exceeds the limit of the query buffer")
	}
	s.bulk = int(n) + 2
	return nil
}

// line returns the line at pos, without its end, and steps over it.
func (s *scanner) line(p []byte) (line []byte, ok bool, err error) {
	if s.args >= 0 && len(p) > s.pos && p[s.pos] != '$' {
		return nil, false, protocolError(fmt.Sprintf("expected '$', got '%c'", printable(p[s.pos])))
	}
	rest := p[s.pos:]
	// A length has at most 20 digits; Redis allows the line to be longer, which no client needs.
	if len(rest) > 32 {
		rest = rest[:32]
	}
	end := bytes.IndexByte(rest, '\n')
	if end < 0 {
		if len(rest) == 32 {
			if s.args < 0 {
				return nil, false, protocolError("too big mbulk count string")
			}
			return nil, false, protocolError("too big bulk count string")
		}
		return nil, false, nil
	}
	if end < 2 || rest[end-1] != '\r' {
		if s.args < 0 {
			return nil, false, protocolError("invalid multibulk length")
		}
		return nil, false, protocolError("invalid bulk length")
	}
	s.pos += end + 1
	return rest[:end-1], true, nil
}

func (s *scanner) scanInline(p []byte) (n, need int, err error) {
	end := bytes.IndexByte(p[s.pos:], '\n')
	if end < 0 {
		if len(p) > maxInlineBytes {
			return 0, 0, protocolError("too big inline request")
		}
		s.pos = len(p)
		return 0, len(p) + 1, nil
	}
	n = s.pos + end + 1
	if n > maxInlineBytes {
		return 0, 0, protocolError("too big inline request")
	}
	s.started = false
	return n, n, nil
}

// parseLength reads the number of a length line. Redis takes it by string2ll, that is as strictly as parseInt.
func parseLength(p []byte) (int64, bool) { return parseInt(p) }

func printable(b byte) byte {
	if b < ' ' || b > '~' {
		return '?'
	}
	return b
}

// splitInline splits an inline command into its arguments, with Redis's quoting: "..." with escapes, '...' without.
// The arguments are appended to args. ok is false when quotes do not match.
func splitInline(line []byte, args [][]byte) (_ [][]byte, ok bool) {
	line = bytes.TrimRight(line, "\r\n")
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return args, true
		}
		arg := make([]byte, 0, 16)
		for i < len(line) && !isSpace(line[i]) {
			quote := line[i]
			if quote != '"' && quote != '\'' {
				arg = append(arg, quote)
				i++
				continue
			}
			if arg, i, ok = quoted(line, i+1, quote, arg); !ok {
				return nil, false
			}
			// A closing quote must be followed by a blank or nothing at all.
			if i < len(line) && !isSpace(line[i]) {
				return nil, false
			}
		}
		args = append(args, arg)
	}
}

// quoted appends the text from line[i] to the closing quote to arg and returns where it goes on.
func quoted(line []byte, i int, quote byte, arg []byte) ([]byte, int, bool) {
	for i < len(line) {
		b := line[i]
		switch {
		case b == quote:
			return arg, i + 1, true
		case b == '\\' && quote == '\'' && i+1 < len(line) && line[i+1] == '\'':
			arg = append(arg, '\'')
			i += 2
		case b == '\\' && quote == '"' && i+3 < len(line) && line[i+1] == 'x' && isHex(line[i+2]) && isHex(line[i+3]):
			arg = append(arg, unhex(line[i+2])<<4|unhex(line[i+3]))
			i += 4
		case b == '\\' && quote == '"' && i+1 < len(line):
			arg = append(arg, unescape(line[i+1]))
			i += 2
		default:
			arg = append(arg, b)
			i++
		}
	}
	return nil, i, false
}

func isSpace(b byte) bool { return b == ' ' || (b >= '\t' && b <= '\r') || b == 0 }

func isHex(b byte) bool {
	return (b >= '0' && b <= '9') || (b >= 'a' && b <= 'f') || (b >= 'A' && b <= 'F')
}

func unhex(b byte) byte {
	switch {
	case b <= '9':
		return b - '0'
	case b >= 'a':
		return b - 'a' + 10
	}
	return b - 'A' + 10
}

func unescape(b byte) byte {
	switch b {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return b
}
