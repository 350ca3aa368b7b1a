package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"shiplog/wal"
)

// Limits of what one operation and one batch may hold, in bytes.
const (
	MaxKeySize   = 64 << 10  // keys of 0 to 64 KiB
	MaxValueSize = 64 << 20  // values of 0 to 64 MiB
	MaxBatchSize = 256 << 20 // encoded records of one batch
)

// Op is the kind of a record in the log.
type Op uint8

// The record types of wal/FORMAT.md. Their numbers are part of the format.
const (
	OpPut         Op = 1
	OpPutTTL      Op = 2
	OpDelete      Op = 3
	OpDeleteRange Op = 4
	OpRelocated   Op = 5
)

// String names the operation as dumps show it.
func (o Op) String() string {
	switch o {
	case OpPut:
		return "put"
	case OpPutTTL:
		return "put-ttl"
	case OpDelete:
		return "delete"
	case OpDeleteRange:
		return "delete-range"
	case OpRelocated:
		return "relocated"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

const (
	opMask      = 0x3f
	opReserved  = 0x40
	lastOfBatch = 0x80 // set on the last record of each batch
)

// Record is one decoded operation. Its slices point into the bytes that it was decoded from.
//
//	| op 1 | klen uvarint | key |                                   delete
//	| op 1 | klen uvarint | key | vlen uvarint | value |            put
//	| op 1 | klen uvarint | key | expiry 8 | vlen uvarint | value | put with expiry (unix ms)
//	| op 1 | klen uvarint | key | elen uvarint | end |              delete range [key, end); empty end: no bound
//	| op 1 | original ref 8 | put or put with expiry |              relocated
type Record struct {
	Op     Op
	Last   bool // last of its batch
	Key    []byte
	Value  []byte // the value; of a delete range, its end
	Expiry int64  // unix milliseconds; 0: none
	Orig   wal.Ref
}

func appendPut(dst, key, value []byte) []byte {
	dst = append(dst, byte(OpPut))
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	dst = append(dst, key...)
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

func appendPutTTL(dst, key, value []byte, expiry int64) []byte {
	dst = append(dst, byte(OpPutTTL))
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	dst = append(dst, key...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(expiry))
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

func appendDelete(dst, key []byte) []byte {
	dst = append(dst, byte(OpDelete))
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	return append(dst, key...)
}

func appendDeleteRange(dst, start, end []byte) []byte {
	dst = append(dst, byte(OpDeleteRange))
	dst = binary.AppendUvarint(dst, uint64(len(start)))
	dst = append(dst, start...)
	dst = binary.AppendUvarint(dst, uint64(len(end)))
	return append(dst, end...)
}

// AppendRecord appends the encoding of r to dst. DecodeRecord reads it back.
func AppendRecord(dst []byte, r Record) []byte {
	at := len(dst)
	if r.Orig != 0 {
		dst = append(dst, byte(OpRelocated))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Orig))
	}
	switch r.Op {
	case OpPut:
		dst = appendPut(dst, r.Key, r.Value)
	case OpPutTTL:
		dst = appendPutTTL(dst, r.Key, r.Value, r.Expiry)
	case OpDelete:
		dst = appendDelete(dst, r.Key)
	case OpDeleteRange:
		dst = appendDeleteRange(dst, r.Key, r.Value)
	}
	if r.Last {
		dst[at] |= lastOfBatch
	}
	return dst
}

// Errors of record decoding: what is there is not enough, or can never become a record.
var (
	errShortRecord = errors.New("engine: record is cut short")
	errBadRecord   = errors.New("engine: malformed record")
)

// decodeHead decodes all of a record but its value (or range end), whose length it returns: head
// is the number of bytes before it. errShortRecord asks for more bytes; nothing is allocated.
func decodeHead(p []byte) (r Record, head, valueLen int, err error) {
	if len(p) == 0 {
		return r, 0, 0, errShortRecord
	}
	first := p[0]
	r.Last = first&lastOfBatch != 0
	if first&opReserved != 0 {
		return r, 0, 0, &wal.VersionError{What: "record", Have: uint32(OpRelocated), Need: uint32(first &^ lastOfBatch)}
	}
	r.Op = Op(first & opMask)
	at := 1
	if r.Op == OpRelocated {
		if len(p) < 10 {
			return r, 0, 0, errShortRecord
		}
		r.Orig = wal.Ref(binary.LittleEndian.Uint64(p[1:]))
		r.Op = Op(p[9])
		at = 10
		if r.Orig == 0 || (r.Op != OpPut && r.Op != OpPutTTL) {
			return r, 0, 0, fmt.Errorf("%w: relocated %v", errBadRecord, r.Op)
		}
	}
	if r.Op < OpPut || r.Op > OpDeleteRange {
		if r.Op == 0 {
			return r, 0, 0, fmt.Errorf("%w: operation 0", errBadRecord)
		}
		return r, 0, 0, &wal.VersionError{What: "record", Have: uint32(OpRelocated), Need: uint32(r.Op)}
	}
	if r.Key, at, err = decodeBytes(p, at, MaxKeySize); err != nil {
		return r, 0, 0, err
	}
	switch r.Op {
	case OpDelete:
		return r, at, 0, nil
	case OpPutTTL:
		if len(p)-at < 8 {
			return r, 0, 0, errShortRecord
		}
		r.Expiry = int64(binary.LittleEndian.Uint64(p[at:]))
		at += 8
	}
	limit := MaxValueSize
	if r.Op == OpDeleteRange {
		limit = MaxKeySize
	}
	n, at, err := decodeLen(p, at, limit)
	return r, at, n, err
}

// recordKey returns the key of a record that this process has encoded.
func recordKey(p []byte) []byte {
	if Op(p[0]&opMask) == OpRelocated {
		p = p[9:]
	}
	n, w := binary.Uvarint(p[1:])
	return p[1+w : 1+w+int(n)]
}

// DecodeRecord decodes the record at the start of p and returns its length. It allocates nothing.
func DecodeRecord(p []byte) (Record, int, error) {
	r, head, n, err := decodeHead(p)
	if err != nil {
		return r, 0, err
	}
	if len(p)-head < n {
		return r, 0, errShortRecord
	}
	if r.Op != OpDelete {
		r.Value = p[head : head+n : head+n]
	}
	return r, head + n, nil
}

func decodeLen(p []byte, at, limit int) (n, next int, err error) {
	v, w := binary.Uvarint(p[at:])
	switch {
	case w == 0:
		return 0, 0, errShortRecord
	case w < 0 || v > uint64(limit):
		return 0, 0, fmt.Errorf("%w: length above %d", errBadRecord, limit)
	case w > 1 && p[at+w-1] == 0:
		return 0, 0, fmt.Errorf("%w: length not in its shortest form", errBadRecord)
	}
	return int(v), at + w, nil
}

func decodeBytes(p []byte, at, limit int) (b []byte, next int, err error) {
	n, at, err := decodeLen(p, at, limit)
	if err != nil {
		return nil, 0, err
	}
	if len(p)-at < n {
		return nil, 0, errShortRecord
	}
	return p[at : at+n : at+n], at + n, nil
}
