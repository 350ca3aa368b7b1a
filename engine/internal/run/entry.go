package run

import (
	"encoding/binary"

	"shiplog/engine/internal/memindex"
)

// An entry of a data block is two bytes, the lengths that did not fit there, the ref and the end of the key:
//
//	0      4      8     10     12      16
//	+------+------+------+------+-------+- - - - - -+- - - - - -+-------+--------+
//	| grow | rest | kind | from | width | shared    | length    | ref   | rest   |
//	+------+------+------+------+-------+- - - - - -+- - - - - -+-------+--------+
//	 byte 0 (high, low)   byte 1 (high to low)        uvarint     uvarint
//
// The entry's key shares its first bytes with the key before it, in the first entry of a group with the first key of
// the block. How many is told as the difference from the entry before (7 more than it; 0 for the first of a group), so
// that one half of a byte does for keys of any length; 15 means that the number follows. So does the length of the
// rest if that is 15. The ref has as many bytes as width says, and is counted from the ref before it upwards (0) or
// downwards (1), or from the lowest ref of the run (2); what stands before the first of a group is the latter.
const (
	growBias  = 7
	escape    = 15
	refUp     = 0
	refDown   = 1
	refAbs    = 2
	maxWidth  = 8
	entryHead = 2
)

// entry is a decoded entry. decode takes shared, size and ref of the entry before.
type entry struct {
	ref    uint64
	shared uint32 // bytes of the key that come from the key before
	size   uint32 // of the key
	at     uint32 // where the rest of the key begins
	kind   memindex.Kind
}

// rest returns the length of the key's own bytes.
func (e *entry) rest() uint32 { return e.size - e.shared }

// widthMask keeps the bytes of a ref that belong to it. A width above 8 is none.
var widthMask = [16]uint64{0, 1<<8 - 1, 1<<16 - 1, 1<<24 - 1, 1<<32 - 1, 1<<40 - 1, 1<<48 - 1, 1<<56 - 1, 1<<64 - 1}

// decode reads the entry at offset at of b into e, which holds the one before, and returns the offset behind it, or 0
// if there is no entry there. It fails only on what no writer wrote. b is followed by 8 bytes at least, as every entry
// is by the checksum of its block.
func (e *entry) decode(b []byte, at uint32, base uint64) uint32 {
	if uint64(at)+entryHead+maxWidth > uint64(len(b)) {
		return 0
	}
	m := b[at+1]
	shared, rest := uint32(b[at]>>4), uint32(b[at]&15)
	at += entryHead
	if shared != escape {
		shared += e.shared - growBias
	} else if shared, at = length(b, at); at == 0 {
		return 0
	}
	if rest == escape {
		if rest, at = length(b, at); at == 0 {
			return 0
		}
	}
	width := uint32(m & 15)
	if uint64(at)+8 > uint64(len(b)) || uint64(at+width+rest)+8 > uint64(len(b)) || width > maxWidth || shared > e.size ||
		shared+rest > memindex.MaxKeyLen {
		return 0
	}
	d := le.Uint64(b[at:]) & widthMask[width]
	switch m >> 4 & 3 {
	case refUp:
		e.ref += d
	case refDown:
		e.ref -= d
	default:
		e.ref = base + d
	}
	e.kind = memindex.Kind(m >> 6)
	e.shared, e.size, e.at = shared, shared+rest, at+width
	return at + width + rest
}

// length reads a number of key bytes. The offset is 0 if there is none.
func length(b []byte, at uint32) (n, next uint32) {
	x, w := binary.Uvarint(b[min(int(at), len(b)):])
	if w <= 0 || x > memindex.MaxKeyLen {
		return 0, 0
	}
	return uint32(x), at + uint32(w)
}

// appendEntry adds an entry to b. before holds the entry before it, and is left holding this one, but for its offset.
func appendEntry(b []byte, before *entry, shared int, key []byte, v memindex.Version, base uint64) []byte {
	rest := key[shared:]
	grow := shared - int(before.shared) + growBias
	if grow < 0 || grow >= escape {
		grow = escape
	}
	short := min(len(rest), escape)
	from, d := refUp, v.Ref-before.ref
	if down := before.ref - v.Ref; down < d {
		from, d = refDown, down
	}
	if abs := v.Ref - base; abs < d && width(abs) < width(d) {
		from, d = refAbs, abs
	}
	w := width(d)
	b = append(b, byte(grow<<4|short), byte(v.Kind)<<6|byte(from<<4|w))
	if grow == escape {
		b = binary.AppendUvarint(b, uint64(shared))
	}
	if short == escape {
		b = binary.AppendUvarint(b, uint64(len(rest)))
	}
	for i := range w {
		b = append(b, byte(d>>(8*i)))
	}
	before.ref, before.shared, before.size, before.kind = v.Ref, uint32(shared), uint32(len(key)), v.Kind
	return append(b, rest...)
}

// width returns how many bytes hold x.
func width(x uint64) int {
	n := 0
	for ; x != 0; x >>= 8 {
		n++
	}
	return n
}
