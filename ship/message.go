package ship

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"shiplog/wal"
)

// Versions of the protocol and of the log format that this build speaks, and limits of messages.
const (
	// MinProtocol and MaxProtocol are the lowest and the highest protocol version that this build speaks.
	MinProtocol = 1
	MaxProtocol = 1
	// MinFormat and MaxFormat are the lowest and the highest log format version that this build ships.
	MinFormat = 1
	MaxFormat = 1

	// HelloSize is the size of the first message of each side.
	HelloSize = 64
	// ProofSize is the size of the second message of each side.
	ProofSize = 48
	// HeaderSize is the size of the header of every later message.
	HeaderSize = 24
	// MaxData is the most log bytes that one Data message carries.
	MaxData = 1 << 20
	// MaxHistory is the most history entries that a Join or a Welcome carries: the newest.
	MaxHistory = 1024
	// MaxName is the longest name, and the longest address, in bytes.
	MaxName = 255
	// MaxText is the longest text of a Refusal, in bytes.
	MaxText = 400

	joinFixed    = 96
	welcomeFixed = 144
	refusalFixed = 80
	markSize     = 64
	ackSize      = 48
	callFixed    = 48
	voteFixed    = 72
	entrySize    = 36
	maxBody      = welcomeFixed + 2*MaxName + MaxHistory*entrySize
	nonceSize    = 32
	macSize      = 32
)

const magic = "shiprepl"

// Side says who sends a [Hello].
type Side uint8

// The sides of a connection.
const (
	Dialer   Side = 1
	Acceptor Side = 2
)

// KindStream is the only kind of connection of protocol version 1: a follower asks for the log.
const KindStream = 1

// Hello is the first message of each side; its layout is the same in every protocol version.
//
//	0        8    10   12   14   16   17   18      24         56      64
//	+--------+----+----+----+----+----+----+-------+----------+-------+
//	| magic  |plo |phi |flo |fhi |side|kind| zero  | nonce    | check |
//	+--------+----+----+----+----+----+----+-------+----------+-------+
type Hello struct {
	MinProtocol, MaxProtocol uint16
	MinFormat, MaxFormat     uint16
	Side                     Side
	Kind                     uint8
	Nonce                    [nonceSize]byte
}

// AppendHello appends the 64 bytes of h to dst.
func AppendHello(dst []byte, h Hello) []byte {
	n := len(dst)
	dst = append(dst, magic...)
	dst = binary.LittleEndian.AppendUint16(dst, h.MinProtocol)
	dst = binary.LittleEndian.AppendUint16(dst, h.MaxProtocol)
	dst = binary.LittleEndian.AppendUint16(dst, h.MinFormat)
	dst = binary.LittleEndian.AppendUint16(dst, h.MaxFormat)
	dst = append(dst, byte(h.Side), h.Kind, 0, 0, 0, 0, 0, 0)
	dst = append(dst, h.Nonce[:]...)
	return binary.LittleEndian.AppendUint64(dst, xxhash.Sum64(dst[n:]))
}

// DecodeHello reads the 64 bytes of a Hello. It does not judge the versions.
func DecodeHello(p []byte) (Hello, error) {
	var h Hello
	if len(p) != HelloSize || string(p[:8]) != magic {
		return h, refuse(CodeProtocol, "not a shipping peer")
	}
	if binary.LittleEndian.Uint64(p[56:]) != xxhash.Sum64(p[:56]) {
		return h, refuse(CodeProtocol, "hello: checksum")
	}
	h.MinProtocol = binary.LittleEndian.Uint16(p[8:])
	h.MaxProtocol = binary.LittleEndian.Uint16(p[10:])
	h.MinFormat = binary.LittleEndian.Uint16(p[12:])
	h.MaxFormat = binary.LittleEndian.Uint16(p[14:])
	h.Side, h.Kind = Side(p[16]), p[17]
	copy(h.Nonce[:], p[24:])
	// The six zero bytes are left to later versions: whoever speaks one of ours sends zeros and is not asked.
	if h.MinProtocol > h.MaxProtocol || h.MinFormat > h.MaxFormat || (h.Side != Dialer && h.Side != Acceptor) {
		return h, refuse(CodeProtocol, "hello: fields")
	}
	return h, nil
}

// Proof is the second message of each side: that it knows the secret. Code is zero in the dialer's; the acceptor
// answers with a code when the dialer's proof is wrong, and with its own proof when it is right.
//
//	0      2        8            40      48
//	+------+--------+------------+-------+
//	| code | zero   | mac        | check |
//	+------+--------+------------+-------+
type Proof struct {
	Code Code
	MAC  [macSize]byte
}

// AppendProof appends the 48 bytes of p to dst.
func AppendProof(dst []byte, p Proof) []byte {
	n := len(dst)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(p.Code))
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	dst = append(dst, p.MAC[:]...)
	return binary.LittleEndian.AppendUint64(dst, xxhash.Sum64(dst[n:]))
}

// DecodeProof reads the 48 bytes of a Proof.
func DecodeProof(b []byte) (Proof, error) {
	var p Proof
	if len(b) != ProofSize || binary.LittleEndian.Uint64(b[40:]) != xxhash.Sum64(b[:40]) ||
		binary.LittleEndian.Uint64(b)>>16 != 0 {
		return p, refuse(CodeProtocol, "proof: malformed")
	}
	p.Code = Code(binary.LittleEndian.Uint16(b))
	copy(p.MAC[:], b[8:])
	return p, nil
}

// Type is the type of a message.
type Type uint8

// The types of messages after the proofs.
const (
	TypeJoin    Type = 1 // follower: who and where I am
	TypeWelcome Type = 2 // upstream: accepted, from here
	TypeRefusal Type = 3 // either side, at any time: the connection ends, and why
	TypeData    Type = 4 // upstream: log bytes
	TypeMark    Type = 5 // upstream: committed mark, clock, digest; heartbeat
	TypeAck     Type = 6 // follower: how far I am; heartbeat
	TypeCall    Type = 7 // instead of a join: a question, or a request for a promise
	TypeVote    Type = 8 // the answer to a call
)

// Flags of messages. Unknown ones are refused.
const (
	// DataHead says that the end of this message was all that the upstream had to send.
	DataHead = 1
	// DataSync asks the follower to sync at once and to acknowledge: someone is waiting.
	DataSync = 2
	// DataReceipt asks the follower to acknowledge what it has received before it syncs.
	DataReceipt = 4
	// MarkDigest says that the Mark carries a digest.
	MarkDigest = 1
	// MarkLease says that the leader's reads rest on it that the follower, from this Mark on, grants no promise for [ReadLease]. A Mark
	// without it ends that.
	MarkLease = 2
	// MarkStalled says that the sender's disk has not answered for a second.
	MarkStalled = 4
)

// flagMask and bodyLimits hold, by type, the flags that exist and the length of the body.
var (
	flagMask   = [...]uint8{TypeData: DataHead | DataSync | DataReceipt, TypeMark: MarkDigest | MarkLease | MarkStalled, TypeVote: 0}
	bodyLimits = [...]struct{ min, max uint32 }{
		TypeJoin:    {joinFixed, joinFixed + 2*MaxName + MaxHistory*entrySize},
		TypeWelcome: {welcomeFixed, maxBody},
		TypeRefusal: {refusalFixed, refusalFixed + MaxText},
		TypeData:    {1, MaxData},
		TypeMark:    {markSize, markSize},
		TypeAck:     {ackSize, ackSize},
		TypeCall:    {callFixed, callFixed + 2*MaxName},
		TypeVote:    {voteFixed, voteFixed + 2*MaxName},
	}
)

// Header stands before every message after the proofs.
//
//	0               8    9    10   12       16              24
//	+---------------+----+----+----+--------+---------------+
//	| check         |type|flag|zero| length | LSN           |
//	+---------------+----+----+----+--------+---------------+
//
// The check is XXH64 over: the direction's key, the message's number in its direction, bytes 8 to 24 of the header,
// and the body, except for Data, whose body carries checksums of its own. Bytes that were lost, doubled, reordered
// or changed, or that belong to another session, therefore fail it.
type Header struct {
	Type   Type
	Flags  uint8
	Length uint32  // of the body
	LSN    wal.LSN // of the first byte of a Data message; zero in others
}

// appendHeader appends h with an empty check.
func appendHeader(dst []byte, h Header) []byte {
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0, byte(h.Type), h.Flags, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, h.Length)
	return binary.LittleEndian.AppendUint64(dst, uint64(h.LSN))
}

// AppendHeader appends the 24 bytes of h to dst, with the check of a message without a body that is checked.
func AppendHeader(dst []byte, h Header, key, seq uint64) []byte {
	n := len(dst)
	dst = appendHeader(dst, h)
	binary.LittleEndian.PutUint64(dst[n:], check(dst[n:], key, seq))
	return dst
}

// DecodeHeader reads a header and judges type, flags and length, so that nothing is read or allocated for a
// message that cannot be one. It does not look at the check, which covers the body as well.
func DecodeHeader(p []byte) (Header, error) {
	var h Header
	if len(p) < HeaderSize {
		return h, refuse(CodeProtocol, "header: %d bytes", len(p))
	}
	h.Type, h.Flags = Type(p[8]), p[9]
	h.Length = binary.LittleEndian.Uint32(p[12:])
	h.LSN = wal.LSN(binary.LittleEndian.Uint64(p[16:]))
	switch {
	case h.Type < TypeJoin || h.Type > TypeVote:
		return h, refuse(CodeProtocol, "message type %d", h.Type)
	case h.Flags&^flagMask[h.Type] != 0, p[10] != 0, p[11] != 0:
		return h, refuse(CodeProtocol, "message type %d: unknown flags", h.Type)
	case h.Length < bodyLimits[h.Type].min || h.Length > bodyLimits[h.Type].max:
		return h, refuse(CodeProtocol, "message type %d: length %d", h.Type, h.Length)
	case h.Type == TypeData && h.LSN+wal.LSN(h.Length) < h.LSN, h.Type != TypeData && h.LSN != 0:
		return h, refuse(CodeProtocol, "message type %d: LSN %s", h.Type, h.LSN)
	}
	return h, nil
}

// check returns the check of the message in p, which begins with its header and ends with what is covered. It
// hashes key, number and the rest in one piece, without a copy of the body: the number takes the place of the
// check itself, and the key is folded in by a seed that no message shows.
func check(p []byte, key, seq uint64) uint64 {
	saved := binary.LittleEndian.Uint64(p)
	binary.LittleEndian.PutUint64(p, mix64(key+seq*0x9E3779B97F4A7C15))
	sum := xxhash.Sum64(p)
	binary.LittleEndian.PutUint64(p, saved)
	return mix64(sum ^ bits.RotateLeft64(key, 32))
}

// mix64 is the finaliser of splitmix64.
func mix64(x uint64) uint64 {
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// Message is one of [*Join], [*Welcome], [*Refusal], [*Mark], [*Ack], [*Call], [*Vote].
type Message interface {
	messageType() Type
	flags() uint8
	appendBody(dst []byte) []byte
}

// AppendMessage appends header and body of m, the seq'th message of a direction with that key.
func AppendMessage(dst []byte, m Message, key, seq uint64) []byte {
	n := len(dst)
	dst = appendHeader(dst, Header{Type: m.messageType(), Flags: m.flags()})
	dst = m.appendBody(dst)
	binary.LittleEndian.PutUint32(dst[n+12:], uint32(len(dst)-n-HeaderSize))
	binary.LittleEndian.PutUint64(dst[n:], check(dst[n:], key, seq))
	return dst
}

// CheckMessage verifies the check of the message in p (header and body; the header alone for Data).
func CheckMessage(p []byte, key, seq uint64) error {
	if binary.LittleEndian.Uint64(p) != check(p, key, seq) {
		return refuse(CodeProtocol, "message %d: checksum", seq)
	}
	return nil
}

// DecodeMessage reads the body of a message other than Data. The result shares no memory with body.
func DecodeMessage(h Header, body []byte) (Message, error) {
	if uint64(len(body)) != uint64(h.Length) {
		return nil, refuse(CodeProtocol, "message type %d: %d bytes of %d", h.Type, len(body), h.Length)
	}
	d := decoder{p: body}
	var m Message
	switch h.Type {
	case TypeJoin:
		m = d.join()
	case TypeWelcome:
		m = d.welcome()
	case TypeRefusal:
		m = d.refusal()
	case TypeMark:
		m = d.mark(h.Flags)
	case TypeAck:
		m = d.ack()
	case TypeCall:
		m = d.call()
	case TypeVote:
		m = d.vote()
	default:
		return nil, refuse(CodeProtocol, "message type %d out of place", h.Type)
	}
	if d.bad || len(d.p) != 0 {
		return nil, refuse(CodeProtocol, "message type %d: malformed", h.Type)
	}
	return m, nil
}

// decoder takes fields off the front of p; once a field does not fit or does not hold it is bad.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.p) < n {
		d.bad = true
		return make([]byte, min(n, 16))
	}
	b := d.p[:n:n]
	d.p = d.p[n:]
	return b
}

func (d *decoder) u8() uint8    { return d.take(1)[0] }
func (d *decoder) u16() uint16  { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32  { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64  { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *decoder) lsn() wal.LSN { return wal.LSN(d.u64()) }
func (d *decoder) id() [16]byte { return [16]byte(d.take(16)) }

func (d *decoder) zero(n int) {
	for range n {
		d.need(d.u8() == 0)
	}
}

func (d *decoder) need(ok bool) { d.bad = d.bad || !ok }

// text takes n bytes that a terminal or a log can show.
func (d *decoder) text(n int) string {
	if d.bad || len(d.p) < n {
		d.bad = true
		return ""
	}
	s := string(d.take(n))
	d.need(printable(s))
	return s
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

func (d *decoder) history(n int) []wal.HistoryEntry {
	if d.bad || n > MaxHistory || len(d.p) != n*entrySize {
		d.bad = true
		return nil
	}
	if n == 0 {
		return nil
	}
	h := make([]wal.HistoryEntry, n)
	for i := range h {
		h[i] = wal.HistoryEntry{Epoch: wal.Epoch(d.u32()), Start: d.lsn(), ID: wal.HistoryID(d.u64()), Leader: d.id()}
		// Epochs rise strictly; starts do not fall.
		d.need(i == 0 || (h[i].Epoch > h[i-1].Epoch && h[i].Start >= h[i-1].Start))
	}
	return h
}

func appendHistory(dst []byte, h []wal.HistoryEntry) []byte {
	for _, e := range h {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(e.Epoch))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Start))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(e.ID))
		dst = append(dst, e.Leader[:]...)
	}
	return dst
}

// validName reports an error for a name or an address that messages cannot carry.
func validName(what, s string) error {
	if len(s) > MaxName || !printable(s) {
		return fmt.Errorf("%s %q: want at most %d bytes of printable text", what, s, MaxName)
	}
	return nil
}
