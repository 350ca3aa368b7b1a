package wal

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the log since the database was created. It says nothing about which history the
// position is in: LSNs of two nodes are compared only together with their epochs, as a [Position].
type LSN uint64

// String returns the LSN as 16 hexadecimal digits, so that text sorts as numbers do.
func (l LSN) String() string { return fmt.Sprintf("%016x", uint64(l)) }

// ParseLSN reads what [LSN.String] writes: up to 16 hexadecimal digits.
func ParseLSN(s string) (LSN, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) > 16 {
		return 0, fmt.Errorf("wal: parse LSN %q: want up to 16 hexadecimal digits", s)
	}
	return LSN(v), nil
}

// Epoch is a term of leadership: the term in the upper 20 bits, the restart in the lower 12. Epochs are ordered
// as integers. A promotion raises the term; an unclean restart of a leader raises the restart alone.
type Epoch uint32

const (
	epochRestartBits = 12
	// MaxTerm is the highest term that an epoch can hold.
	MaxTerm = 1<<20 - 1
	// MaxRestart is the highest restart that an epoch can hold.
	MaxRestart = 1<<epochRestartBits - 1
)

// MakeEpoch packs a term and a restart. It panics when either is out of range: callers raise them through
// [Epoch.NextTerm] and [Epoch.NextRestart], which cannot overflow silently.
func MakeEpoch(term, restart uint32) Epoch {
	if term > MaxTerm || restart > MaxRestart {
		panic("wal: epoch out of range")
	}
	return Epoch(term<<epochRestartBits | restart)
}

// Term returns the term of leadership.
func (e Epoch) Term() uint32 { return uint32(e) >> epochRestartBits }

// Restart returns how often the leader of this term restarted uncleanly.
func (e Epoch) Restart() uint32 { return uint32(e) & MaxRestart }

// NextTerm returns the first epoch of the next term.
func (e Epoch) NextTerm() Epoch { return MakeEpoch(e.Term()+1, 0) }

// NextRestart returns the epoch of the next unclean restart in the same term; when the restarts of a term are
// used up it is the first of the next term.
func (e Epoch) NextRestart() Epoch {
	if e.Restart() == MaxRestart {
		return e.NextTerm()
	}
	return e + 1
}

// String returns "term.restart".
func (e Epoch) String() string {
	return strconv.FormatUint(uint64(e.Term()), 10) + "." + strconv.FormatUint(uint64(e.Restart()), 10)
}

// ParseEpoch reads what [Epoch.String] writes.
func ParseEpoch(s string) (Epoch, error) {
	t, r, ok := strings.Cut(s, ".")
	term, err1 := strconv.ParseUint(t, 10, 32)
	restart, err2 := strconv.ParseUint(r, 10, 32)
	if !ok || err1 != nil || err2 != nil || term > MaxTerm || restart > MaxRestart {
		return 0, fmt.Errorf("wal: parse epoch %q: want term.restart", s)
	}
	return MakeEpoch(uint32(term), uint32(restart)), nil
}

// Position is an LSN in a history: the epoch in which its byte was written, and the byte.
type Position struct {
	Epoch Epoch
	LSN   LSN
}

// String returns "term.restart/lsn".
func (p Position) String() string { return p.Epoch.String() + "/" + p.LSN.String() }

// ParsePosition reads what [Position.String] writes.
func ParsePosition(s string) (Position, error) {
	e, l, ok := strings.Cut(s, "/")
	if !ok {
		return Position{}, fmt.Errorf("wal: parse position %q: want epoch/LSN", s)
	}
	epoch, err := ParseEpoch(e)
	if err != nil {
		return Position{}, err
	}
	lsn, err := ParseLSN(l)
	if err != nil {
		return Position{}, err
	}
	return Position{Epoch: epoch, LSN: lsn}, nil
}

// NodeID identifies a node, that is one data directory. A copy of a directory gets another one.
type NodeID [16]byte

// String returns 32 hexadecimal digits.
func (id NodeID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the ID is unset.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// ParseNodeID reads what [NodeID.String] writes.
func ParseNodeID(s string) (id NodeID, err error) { return id, parseID(id[:], s, "node ID") }

// DatabaseID identifies a database: all nodes that hold its log share it.
type DatabaseID [16]byte

// String returns 32 hexadecimal digits.
func (id DatabaseID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the ID is unset.
func (id DatabaseID) IsZero() bool { return id == DatabaseID{} }

// ParseDatabaseID reads what [DatabaseID.String] writes.
func ParseDatabaseID(s string) (id DatabaseID, err error) {
	return id, parseID(id[:], s, "database ID")
}

func parseID(dst []byte, s, what string) error {
	if hex.DecodedLen(len(s)) != len(dst) || len(s)%2 != 0 {
		return fmt.Errorf("wal: parse %s %q: want %d hexadecimal digits", what, s, 2*len(dst))
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return fmt.Errorf("wal: parse %s %q: %w", what, s, err)
	}
	return nil
}

// HistoryID is the random number of one epoch record. Two nodes that hold the same epoch with different history
// IDs are a split brain.
type HistoryID uint64

// String returns 16 hexadecimal digits.
func (h HistoryID) String() string { return fmt.Sprintf("%016x", uint64(h)) }

// Digest stands for every byte of the log before a position: a chain over the checksums of segment headers and
// frames. Equal digests at equal positions mean equal bytes.
type Digest uint64

// String returns 16 hexadecimal digits.
func (d Digest) String() string { return fmt.Sprintf("%016x", uint64(d)) }

// Ref names a record: the LSN of the frame in which it begins and its offset in the frame's raw bytes. Refs rise
// strictly in log order.
//
//	63                                   12 11            0
//	+--------------------------------------+---------------+
//	|              frame LSN / 8           |  raw offset   |
//	+--------------------------------------+---------------+
type Ref uint64

const (
	refOffsetBits = 12
	// MaxRefLSN is the first LSN that a Ref cannot hold.
	MaxRefLSN LSN = 1 << (64 - refOffsetBits + 3)
)

// MakeRef packs the LSN of a frame, a multiple of 8, and a raw offset below 4096.
func MakeRef(frame LSN, offset int) Ref {
	return Ref(uint64(frame)>>3<<refOffsetBits | uint64(offset)&(1<<refOffsetBits-1))
}

// LSN returns the LSN of the frame.
func (r Ref) LSN() LSN { return LSN(uint64(r) >> refOffsetBits << 3) }

// Offset returns the record's offset in the frame's raw bytes.
func (r Ref) Offset() int { return int(r & (1<<refOffsetBits - 1)) }

// String returns "lsn+offset".
func (r Ref) String() string { return r.LSN().String() + "+" + strconv.Itoa(r.Offset()) }

// Range is a stretch of the log: Start is its first byte, End the byte after its last.
type Range struct {
	Start, End LSN
}
