package run

import (
	"bytes"

	"shiplog/engine/internal/memindex"
)

// A data block holds entries in groups of 16. The last group may be shorter; a block of several pages has one group.
//
//	0      1      2        4       8         12       16
//	+------+------+--------+-------+---------+--------+-----------+----------+---------+-------+----------+
//	| type | zero | groups | pages | entries | common | heads     | offsets  | entries | zeros | checksum |
//	+------+------+--------+-------+---------+--------+-----------+----------+---------+-------+----------+
//	                                                    4 each      2 each                        8
//
// common is how many bytes all keys of the block share. The head of a group is 4 bytes, as a number that orders as
// they do, of its first key behind the common ones, padded with zeros; its offset is where its first entry begins.
// The first entry of the block has its key in full.

// blockBuilder makes a data block.
type blockBuilder struct {
	base uint64 // lowest ref

	entries  []byte
	offsets  []uint32 // of groups in entries
	starts   []byte   // first keys of groups
	ends     []int    // of them in starts
	last     entry
	n        int
	capacity int // bytes before the checksum
	first    []byte
}

func (w *blockBuilder) reset() {
	w.entries, w.offsets, w.starts, w.ends, w.n = w.entries[:0], w.offsets[:0], w.starts[:0], w.ends[:0], 0
}

// add adds an entry whose key shares so many bytes with the one before it, and reports whether it fitted.
func (w *blockBuilder) add(key []byte, shared int, v memindex.Version) bool {
	head := blockHeader + 6*len(w.offsets)
	before := w.last
	start := w.n%groupSize == 0
	if start {
		head += 6
		before = entry{ref: w.base}
		if w.n > 0 {
			if w.capacity > pageSize {
				return false
			}
			shared = commonPrefix(w.first, key)
		}
	}
	if w.n > 0 && head+len(w.entries)+entryHead+len(key)-shared > w.capacity {
		return false
	}
	old := len(w.entries)
	if w.n == 0 {
		shared = 0
	}
	w.entries = appendEntry(w.entries, &before, shared, key, v, w.base)
	size := head + len(w.entries)
	if w.n == 0 {
		w.capacity = pagesFor(size)*pageSize - checksumSize
		w.first = append(w.first[:0], key...)
	} else if size > w.capacity {
		w.entries = w.entries[:old]
		return false
	}
	if start {
		w.offsets = append(w.offsets, uint32(old))
		w.starts = append(w.starts, key...)
		w.ends = append(w.ends, len(w.starts))
	}
	w.last = before
	w.n++
	return true
}

// finish writes the block to b, which has as many zero bytes as the block has pages, up to the checksum. last is the
// last key that was added.
func (w *blockBuilder) finish(b, last []byte) {
	common := commonPrefix(w.first, last)
	groups := len(w.offsets)
	b[0] = typeData
	le.PutUint16(b[2:], uint16(groups))
	le.PutUint32(b[4:], uint32(len(b)/pageSize))
	le.PutUint32(b[8:], uint32(w.n))
	le.PutUint32(b[12:], uint32(common))
	heads, offsets := b[blockHeader:], b[blockHeader+4*groups:]
	entries := blockHeader + 6*groups
	from := 0
	for i, off := range w.offsets {
		le.PutUint32(heads[4*i:], head4(w.starts[from+common:w.ends[i]]))
		le.PutUint16(offsets[2*i:], uint16(entries+int(off)))
		from = w.ends[i]
	}
	copy(b[entries:], w.entries)
}

func (w *blockBuilder) size() int { return w.capacity + checksumSize }

// dataBlock is a view of a data block that was verified. Everything read from it is checked all the same: the page may
// have been read again from a bad disk since.
type dataBlock struct {
	b      []byte // checksum included
	groups uint32
	n      uint32 // entries
	common uint32
}

// parseData returns a view of b, and false if its header cannot be.
func parseData(b []byte) (d dataBlock, ok bool) {
	if len(b) < pageSize || b[0] != typeData {
		return d, false
	}
	d = dataBlock{b, uint32(le.Uint16(b[2:])), le.Uint32(b[8:]), le.Uint32(b[12:])}
	return d, d.groups > 0 && d.n <= d.groups*groupSize && d.n > (d.groups-1)*groupSize &&
		blockHeader+6*d.groups < pageSize-checksumSize
}

func (d *dataBlock) head(g uint32) uint32 { return le.Uint32(d.b[blockHeader+4*g:]) }

func (d *dataBlock) offset(g uint32) uint32 {
	return uint32(le.Uint16(d.b[blockHeader+4*d.groups+2*g:]))
}

// count returns the number of entries of a group.
func (d *dataBlock) count(g uint32) int { return int(min(d.n-g*groupSize, groupSize)) }

// first decodes the first entry of the block. The size of its key says whether there is one.
func (d *dataBlock) first(base uint64) (e entry, ok bool) {
	e.ref = base
	return e, e.decode(d.b, d.offset(0), base) != 0 && e.shared == 0
}

// start decodes the first entry of a group, given the length of the first key of the block, and returns the offset
// behind it, or 0.
func (d *dataBlock) start(g uint32, firstKey uint32, base uint64) (e entry, next uint32) {
	e = entry{ref: base, size: firstKey}
	return e, e.decode(d.b, d.offset(g), base)
}

// group returns the last group whose first key lies below key, or 0, and how many bytes key shares with the first key
// of the block. all is true if no key of the block reaches key.
func (d *dataBlock) group(key, first []byte, base uint64) (g uint32, common int, ok bool) {
	common = commonPrefix(first, key)
	if common < int(d.common) || d.groups == 1 {
		if common < len(key) && (common == len(first) || key[common] > first[common]) {
			return d.groups - 1, common, true
		}
		return 0, common, true
	}
	h := head4(key[d.common:])
	lo, hi := uint32(1), d.groups // lo: heads before it are below h
	for lo < hi {
		mid := (lo + hi) / 2
		if d.head(mid) < h {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for lo < d.groups && d.head(lo) == h {
		e, next := d.start(lo, uint32(len(first)), base)
		if next == 0 {
			return 0, 0, false
		}
		if s := int(e.shared); common < s && (common == len(key) || key[common] < first[common]) ||
			common > s || common == s && bytes.Compare(d.b[e.at:e.at+e.rest()], key[s:]) >= 0 {
			break
		}
		lo++
	}
	return lo - 1, common, true
}

// step compares key with an entry, given that the entry before it lies below key and shares known bytes with it.
func (d *dataBlock) step(e *entry, key []byte, known int) (cmp, newKnown int) {
	s := int(e.shared)
	if s > known {
		return -1, known
	}
	if s < known {
		return 1, known
	}
	rest := d.b[e.at : e.at+e.rest()]
	m := commonPrefix(rest, key[s:])
	known += m
	switch {
	case m == len(rest) && known == len(key):
		return 0, known
	case m == len(rest):
		return -1, known
	case known == len(key) || rest[m] > key[known]:
		return 1, known
	}
	return -1, known
}
