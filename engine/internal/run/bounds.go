package run

import (
	"bytes"

	"shiplog/engine/internal/memindex"
)

// RangeDelete deletes every version below Ref of the keys from Start, inclusive, to End, exclusive. A nil End means no
// upper bound.
type RangeDelete struct {
	Start, End []byte
	Ref        uint64
}

// The bounds block holds the first and the last key and the range deletes:
//
//	0      1       4       8        12      16
//	+------+-------+-------+--------+-------+-----------------+---------------+- - - - - - - - - - - - -+- - - +
//	| type | zeros | pages | ranges | zero  | n, smallest key | n, largest key| n, start, n, end, 8 ref | ...  |
//	+------+-------+-------+--------+-------+-----------------+---------------+- - - - - - - - - - - - -+- - - +
//
// Lengths are uvarints; that of an end is 0 for none and one more than its length otherwise.
func encodeBounds(smallest, largest []byte, ranges []RangeDelete) []byte {
	b := make([]byte, blockHeader, pageSize)
	appendBytes := func(p []byte, more int) {
		b = appendUvarint(b, len(p)+more)
		b = append(b, p...)
	}
	appendBytes(smallest, 0)
	appendBytes(largest, 0)
	for _, d := range ranges {
		appendBytes(d.Start, 0)
		if d.End == nil {
			b = append(b, 0)
		} else {
			appendBytes(d.End, 1)
		}
		b = le.AppendUint64(b, d.Ref)
	}
	pages := pagesFor(len(b))
	b = append(b, make([]byte, pages*pageSize-len(b))...)
	b[0] = typeBounds
	le.PutUint32(b[4:], uint32(pages))
	le.PutUint32(b[8:], uint32(len(ranges)))
	return b
}

// bounds is a decoded bounds block. It owns its bytes.
type bounds struct {
	smallest, largest []byte
	ranges            []RangeDelete
}

// decodeBounds takes a verified block.
func decodeBounds(block []byte, ranges uint32) (d bounds, ok bool) {
	if block[0] != typeBounds || le.Uint32(block[8:]) != ranges {
		return d, false
	}
	b := bytes.Clone(block[blockHeader : len(block)-checksumSize])
	if d.smallest, b, ok = cutBytes(b, 0); !ok {
		return d, false
	}
	if d.largest, b, ok = cutBytes(b, 0); !ok {
		return d, false
	}
	if uint64(ranges)*10 > uint64(len(b)) {
		return d, false
	}
	d.ranges = make([]RangeDelete, ranges)
	for i := range d.ranges {
		r := &d.ranges[i]
		if r.Start, b, ok = cutBytes(b, 0); !ok {
			return d, false
		}
		if r.End, b, ok = cutBytes(b, 1); !ok || len(b) < 8 {
			return d, false
		}
		r.Ref, b = le.Uint64(b), b[8:]
	}
	return d, true
}

// cutBytes takes bytes and the length before them, which counts more than there are, off the front of b. The length 0
// with more stands for nil.
func cutBytes(b []byte, more uint64) (p, rest []byte, ok bool) {
	n, b, ok := cutUvarint(b)
	if !ok {
		return nil, b, false
	}
	if n < more {
		return nil, b, true
	}
	if n -= more; n > uint64(len(b)) || n > 2*memindex.MaxKeyLen {
		return nil, b, false
	}
	return b[:n:n], b[n:], true
}
