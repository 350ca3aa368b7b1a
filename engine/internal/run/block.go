package run

import (
	"shiplog/engine/internal/memindex"
)

// A data block holds entries in groups of 8. The last group may be shorter; a block of several pages has one group.
//
//	0      1      2        4       8         12       16
//	+------+------+--------+-------+---------+--------+-----------+----------+---------+-------+----------+
//	| type | zero | groups | pages | entries | common | heads     | offsets  | entries | zeros | checksum |
//	+------+------+--------+-------+---------+--------+-----------+----------+---------+-------+----------+
//	                                                    2 each      2 each                        8
//
// common is how many bytes all keys of the block share. The head of a group is 2 bytes, as a number that orders as
// they do, of its first key behind the common ones, padded with zeros; its offset is where its first entry begins.
// One offset more, of the end of the last group, follows; it is 0 where 2 bytes cannot hold it: the checksum is the end.
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
	head := blockHeader + 4*len(w.offsets) + 2
	before := w.last
	start := w.n%groupSize == 0
	if start {
		head += 4
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
	heads, offsets := b[blockHeader:], b[blockHeader+2*groups:]
	entries := blockHeader + 4*groups + 2
	from := 0
	for i, off := range w.offsets {
		le.PutUint16(heads[2*i:], head2(w.starts[from+common:w.ends[i]]))
		le.PutUint16(offsets[2*i:], uint16(entries+int(off)))
		from = w.ends[i]
	}
	if end := entries + len(w.entries); end < 1<<16 {
		le.PutUint16(offsets[2*groups:], uint16(end))
	}
	copy(b[entries:], w.entries)
}

func (w *blockBuilder) size() int { return w.capacity + checksumSize }

// dataBlock is a view of a data block that was verified. Everything read from it is checked all the same: the page may
// have been read again from a bad disk since.
type dataBlock struct {
	b       []byte // with the checksum
	heads   []byte
	offsets []byte
	groups  int
	n       int // entries
	common  int
	first   []byte // the first key, once read
}

// parse makes d a view of b, and returns false if b cannot be a data block.
func (d *dataBlock) parse(b []byte) bool {
	if len(b) < pageSize || b[0] != typeData {
		return false
	}
	groups, n, common := int(le.Uint16(b[2:])), le.Uint32(b[8:]), le.Uint32(b[12:])
	entries := blockHeader + 4*groups + 2
	if groups == 0 || n > uint32(groups*groupSize) || n <= uint32((groups-1)*groupSize) || common > memindex.MaxKeyLen ||
		entries > pageSize-checksumSize {
		return false
	}
	d.b, d.groups, d.n, d.common = b, groups, int(n), int(common)
	d.heads = b[blockHeader : blockHeader+2*groups]
	d.offsets = b[blockHeader+2*groups : entries]
	return d.offset(0) == uint32(entries)
}

// readFirst sets first, which parse leaves empty.
func (d *dataBlock) readFirst() bool {
	var e entry
	if e.decode(d.b, d.offset(0), 0) == 0 || e.shared != 0 {
		return false
	}
	d.first = d.b[e.at : e.at+e.size]
	return true
}

func (d *dataBlock) head(g int) uint16 { return le.Uint16(d.heads[2*g:]) }

func (d *dataBlock) offset(g int) uint32 { return uint32(le.Uint16(d.offsets[2*g:])) }

// count returns the number of entries of a group.
func (d *dataBlock) count(g int) int { return min(d.n-g*groupSize, groupSize) }

// end returns where the entries of a group end.
func (d *dataBlock) end(g int) int {
	if end := int(d.offset(g + 1)); end != 0 {
		return min(end, len(d.b)-checksumSize)
	}
	return len(d.b) - checksumSize
}

// find returns the last group that begins below key, or with a version of it at ref or above, or 0, and how many bytes
// key shares with the first key of the block. ok is false if the block is damaged.
func (d *dataBlock) find(key []byte, ref, base uint64) (g, known int, ok bool) {
	known = commonPrefix(d.first, key)
	if d.groups == 1 || known < len(d.first) && (known == len(key) || key[known] < d.first[known]) {
		return 0, known, true
	}
	if known < d.common { // above all of them
		return d.groups - 1, known, true
	}
	h := head2(key[d.common:])
	heads := d.heads
	for n := d.groups; n > 1; { // heads[g] < h, or g is 0
		half := n / 2
		next := g + half
		if le.Uint16(heads[2*next:]) < h {
			g = next
		}
		n -= half
	}
	for g+1 < d.groups && d.head(g+1) == h {
		e := entry{ref: base, size: uint32(len(d.first))}
		if e.decode(d.b, d.offset(g+1), base) == 0 {
			return 0, 0, false
		}
		if c, _ := e.compare(d.b, key, known); c > 0 || c == 0 && e.ref < ref {
			break
		}
		g++
	}
	return g, known, true
}

// get looks for the newest version of key below at.
func (d *dataBlock) get(key []byte, at, base uint64) (v memindex.Version, o outcome) {
	g, shared, ok := d.find(key, at, base)
	if !ok {
		return v, damaged
	}
	for ; g < d.groups; g++ {
		known := shared
		if g == 0 {
			known = 0
		}
		e := entry{ref: base, size: uint32(len(d.first))}
		var i int
		var next uint32
		if i, next, o = d.scan(g, key, known, base, &e); o != found {
			if o == below {
				continue
			}
			return v, o
		}
		for ; ; i++ {
			if e.ref < at {
				return memindex.Version{Ref: e.ref, Kind: e.kind}, found
			}
			if i+1 == d.count(g) {
				break
			}
			if next = e.decode(d.b, next, base); next == 0 {
				return v, damaged
			}
			if int(e.shared) != len(key) || int(e.size) != len(key) {
				return v, absent
			}
		}
		o = older
	}
	if o == older {
		return v, older
	}
	return v, absent
}

// outcome says how a search for a version ended.
type outcome int

const (
	absent  outcome = iota
	found           // here it is
	below           // all keys are below the one sought
	older           // the block ends with a version of the key that is too new: the next block may have an older one
	damaged         // the block makes no sense
)

// scan looks for key in a group, from its first entry on, which shares its front with the first key of the block. key
// is above that and shares known bytes with it; for group 0, known is 0. If key is found, e is its first entry there,
// the one with number i, and next is the offset behind it. If all entries are below, outcome is below.
func (d *dataBlock) scan(g int, key []byte, known int, base uint64, e *entry) (i int, next uint32, o outcome) {
	b, at := d.b, d.offset(g)
	shared, size, ref := e.shared, e.size, e.ref
	var kind memindex.Kind // of the entry at i
	for i = range d.count(g) {
		x, rest, more, delta := uint32(escape<<4), uint32(0), uint32(0), uint64(0)
		if int(at)+entryFast <= len(b) {
			p := b[at : at+entryFast]
			x = uint32(le.Uint16(p))
			if rest = x & 15; rest == escape {
				rest, more = uint32(p[entryHead]), 1
			}
			delta = le.Uint64(p[entryHead+more:])
		}
		if width := x >> 8 & 15; x>>4&15 != escape && rest < 0x80 && width <= maxWidth {
			if shared += x>>4&15 - growBias; shared > size {
				return 0, 0, damaged
			}
			size = shared + rest
			switch delta &= widthMask[width]; x >> 12 & 3 {
			case refUp:
				ref += delta
			case refDown:
				ref -= delta
			default:
				ref = base + delta
			}
			kind = memindex.Kind(x >> 14)
			at += entryHead + more + width
		} else {
			slow := entry{ref: ref, shared: shared, size: size}
			if slow.decode(b, at, base) == 0 {
				return 0, 0, damaged
			}
			shared, size, ref, kind, rest, at = slow.shared, slow.size, slow.ref, slow.kind, slow.rest(), slow.at
		}
		switch {
		case int(shared) > known:
		case int(shared) < known:
			return 0, 0, absent
		case int(at+rest) > len(b):
			return 0, 0, damaged
		case rest > 0 && known < len(key) && b[at] != key[known]: // most often
			if b[at] > key[known] {
				return 0, 0, absent
			}
		default:
			m := commonPrefix(b[at:at+rest], key[known:])
			known += m
			if m == int(rest) {
				if known == len(key) {
					*e = entry{ref: ref, shared: shared, size: size, at: at, kind: kind}
					return i, at + rest, found
				}
			} else if known == len(key) || b[int(at)+m] > key[known] {
				return 0, 0, absent
			}
		}
		at += rest
	}
	return 0, 0, below
}

// entryFast is as much as an entry without long lengths takes before the rest of its key, at the most.
const entryFast = entryHead + 1 + maxWidth

// compare compares an entry of b with key, given that key shares known bytes with the key before the entry, and lies
// above it. It returns how many bytes the entry shares with key, if the entry lies below key.
func (e *entry) compare(b, key []byte, known int) (c, newKnown int) {
	s := int(e.shared)
	if s > known {
		return -1, known
	}
	if s < known {
		return 1, known
	}
	rest := b[e.at : e.at+e.rest()]
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
