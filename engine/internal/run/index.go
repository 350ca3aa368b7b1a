package run

import (
	"bytes"
	"encoding/binary"
)

// An index block tells which child holds a key. Children are data blocks on the lowest level, index blocks above.
//
//	0      1       4       8          12       16
//	+------+-------+-------+----------+--------+-----------+----------+--------+--------+-------+-------+----------+
//	| type | zeros | pages | children | common | heads     | children | ends   | common | tails | zeros | checksum |
//	+------+-------+-------+----------+--------+-----------+----------+--------+--------+-------+-------+----------+
//	                                             8 each      4 each     4 each                              8
//
// Each child has a separator: above every key of the child before it and not above its own first key (that of the
// very first child is this key). common is the length of what all separators of the block share, and these bytes; a
// head is the next 8 bytes of a separator, as a number that orders as they do, padded with zeros; a tail is what is
// left. The low 28 bits of an end say where the tail ends, the others how many bytes of the head are not padding.
// A child is the number of its first page; the highest bit says that it begins with an older version of the last key
// of the child before it. Its separator is that key.
const (
	continues  = 1 << 31
	headShift  = 28
	maxTails   = 1<<headShift - 1
	indexEntry = 16
)

// indexBuilder gathers the separators of an index block.
type indexBuilder struct {
	keys  []byte
	ends  []int
	pages []uint32 // with continues
}

func (x *indexBuilder) add(separator []byte, page uint32) {
	x.keys = append(x.keys, separator...)
	x.ends = append(x.ends, len(x.keys))
	x.pages = append(x.pages, page)
}

func (x *indexBuilder) full(level int) bool {
	limit := fanOut
	if level > 0 {
		limit = fanOutTop
	}
	return len(x.pages) >= limit || len(x.pages) > 1 && len(x.keys) >= maxFences
}

func (x *indexBuilder) reset() { x.keys, x.ends, x.pages = x.keys[:0], x.ends[:0], x.pages[:0] }

func (x *indexBuilder) key(i int) []byte {
	from := 0
	if i > 0 {
		from = x.ends[i-1]
	}
	return x.keys[from:x.ends[i]]
}

// common returns how many bytes all separators share.
func (x *indexBuilder) common() int {
	if len(x.pages) == 0 {
		return 0
	}
	return commonPrefix(x.key(0), x.key(len(x.pages)-1))
}

// size returns the length of the block without checksum and padding.
func (x *indexBuilder) size() int {
	n, common := len(x.pages), x.common()
	size := blockHeader + indexEntry*n + common
	for i := range n {
		size += max(len(x.key(i))-common-8, 0)
	}
	return size
}

// finish writes the block to b, which is zero and has whole pages.
func (x *indexBuilder) finish(b []byte) {
	n, common := len(x.pages), x.common()
	b[0] = typeIndex
	le.PutUint32(b[4:], uint32(len(b)/pageSize))
	le.PutUint32(b[8:], uint32(n))
	le.PutUint32(b[12:], uint32(common))
	heads, pages, ends := b[blockHeader:], b[blockHeader+8*n:], b[blockHeader+12*n:]
	tails := b[blockHeader+indexEntry*n:]
	if n > 0 {
		tails = tails[copy(tails, x.key(0)[:common]):]
	}
	end := 0
	for i, page := range x.pages {
		rest := x.key(i)[common:]
		head := min(len(rest), 8)
		end += copy(tails[end:], rest[head:])
		le.PutUint64(heads[8*i:], head8(rest))
		le.PutUint32(pages[4*i:], page)
		le.PutUint32(ends[4*i:], uint32(head<<headShift|end))
	}
}

// indexBlock is a view of an index block that was verified.
type indexBlock struct {
	b      []byte // without the checksum
	n      int
	common int
}

// parse makes x a view of b, and returns false if b cannot be an index block with children.
func (x *indexBlock) parse(b []byte) bool {
	b = b[:len(b)-checksumSize]
	n, common := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
	x.b, x.n, x.common = b, int(n), int(common)
	return b[0] == typeIndex && n > 0 && blockHeader+n*indexEntry+common <= uint64(len(b))
}

func (x *indexBlock) head(i int) uint64 { return le.Uint64(x.b[blockHeader+8*i:]) }

// child returns the first page of child i, and whether it continues the key that the one before ends with.
func (x *indexBlock) child(i int) (page uint32, cont bool) {
	p := le.Uint32(x.b[blockHeader+8*x.n+4*i:])
	return p &^ continues, p&continues != 0
}

// end returns where tail i ends in the tails, and how many bytes of the head are not padding.
func (x *indexBlock) end(i int) (end, head int) {
	e := le.Uint32(x.b[blockHeader+12*x.n+4*i:])
	return int(e & maxTails), min(int(e>>headShift), 8)
}

// shared returns the bytes that all separators share.
func (x *indexBlock) shared() []byte {
	at := blockHeader + indexEntry*x.n
	return x.b[at : at+x.common]
}

// compare compares separator i with key, given what is left of key behind the common bytes and that the head is equal.
func (x *indexBlock) compare(i int, rest []byte) int {
	if _, head := x.end(i); head < 8 || len(rest) < 8 {
		return head - min(len(rest), 8)
	}
	return bytes.Compare(x.tail(i), rest[8:])
}

// find returns the last child that begins below the first version of key, or 0: the first one that may hold it.
func (x *indexBlock) find(key []byte) int {
	if x.common > 0 {
		shared := x.shared()
		if c := commonPrefix(shared, key); c < len(shared) {
			if c == len(key) || key[c] < shared[c] {
				return 0
			}
			return x.n - 1
		}
		key = key[x.common:]
	}
	h := head8(key)
	heads := x.b[blockHeader : blockHeader+8*x.n]
	i := 0
	for n := x.n; n > 1; { // heads[i] < h, or i is 0
		half := n / 2
		next := i + half
		if le.Uint64(heads[8*next:]) < h {
			i = next
		}
		n -= half
	}
	if i+1 < x.n && x.head(i+1) == h {
		i = x.among(i+1, h, key) - 1
	}
	return i
}

// among returns the first child from lo on that does not begin below the first version of the key, given that the head
// of lo is that of the key.
func (x *indexBlock) among(lo int, h uint64, rest []byte) int {
	hi := x.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		below := false
		if x.head(mid) == h {
			c := x.compare(mid, rest)
			_, cont := x.child(mid)
			below = c < 0 || c == 0 && !cont
		}
		if below {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// continued reports whether child i begins with an older version of key, which the one before it ends with.
func (x *indexBlock) continued(i int, key []byte) bool {
	if _, cont := x.child(i); !cont || !bytes.HasPrefix(key, x.shared()) {
		return false
	}
	rest := key[x.common:]
	return x.head(i) == head8(rest) && x.compare(i, rest) == 0
}

// tail returns what is behind the head of separator i.
func (x *indexBlock) tail(i int) []byte {
	tails := x.b[blockHeader+indexEntry*x.n+x.common:]
	from := 0
	if i > 0 {
		from, _ = x.end(i - 1)
	}
	to, _ := x.end(i)
	to = min(to, len(tails))
	return tails[min(from, to):to]
}

// separator returns separator i, in the memory of b.
func (x *indexBlock) separator(b []byte, i int) []byte {
	_, head := x.end(i)
	b = append(b[:0], x.shared()...)
	b = binary.BigEndian.AppendUint64(b, x.head(i))[:x.common+head]
	return append(b, x.tail(i)...)
}
