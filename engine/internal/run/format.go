package run

import (
	"encoding/binary"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"shiplog/wal"
)

// Sizes of the format. doc.go draws it.
const (
	formatVersion = 1

	pageSize     = 4096
	checksumSize = 8 // the last bytes of every block
	blockHeader  = 16

	groupSize = 8 // entries that a search in a data block may have to step over

	// An index block is full at so many children, on the lowest level and above it, or so many bytes of separators,
	// but never has a single child only.
	fanOut    = 248 // fills a page
	fanOutTop = 4064
	maxFences = 64 << 10
	maxLevels = 16

	// maxPages keeps page numbers below the bit that marks a continuation.
	maxPages = 1<<31 - 1
)

// Types of blocks, the first byte of each.
const (
	typeData   = 1
	typeIndex  = 2
	typeBounds = 3
)

var (
	headMagic = [8]byte{'S', 'H', 'I', 'P', 'R', 'U', 'N', 1}
	footMagic = [8]byte{'s', 'h', 'i', 'p', 'r', 'u', 'n', 1}
)

var le = binary.LittleEndian

// bind gives each place of each run a number of its own, so that a block of another run or from another place does
// not validate. It permutes (splitmix64).
func bind(id uint64, page uint32) uint64 {
	x := id + uint64(page)*0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

func checksum(b []byte, id uint64, page uint32) uint64 {
	return xxhash.Sum64(b[:len(b)-checksumSize]) ^ bind(id, page)
}

// seal stores the checksum of a block in its last bytes.
func seal(b []byte, id uint64, page uint32) {
	le.PutUint64(b[len(b)-checksumSize:], checksum(b, id, page))
}

func sealed(b []byte, id uint64, page uint32) bool {
	return le.Uint64(b[len(b)-checksumSize:]) == checksum(b, id, page)
}

// pagesFor returns the number of pages of a block of n bytes, checksum not counted.
func pagesFor(n int) int { return (n + checksumSize + pageSize - 1) / pageSize }

// header is the first page:
//
//	0        8         12        16        24        32        40         4088
//	+--------+---------+---------+---------+---------+---------+----------+----------+
//	| magic  | version | zero    | run ID  | from    | to      | zeros    | checksum |
//	+--------+---------+---------+---------+---------+---------+----------+----------+
//
// Magic, version and checksum stay where they are in every later version. The page is sealed as page 0 of run 0.
type header struct {
	id       uint64
	from, to uint64
}

func (h *header) encode() []byte {
	b := make([]byte, pageSize)
	copy(b, headMagic[:])
	le.PutUint32(b[8:], formatVersion)
	le.PutUint64(b[16:], h.id)
	le.PutUint64(b[24:], h.from)
	le.PutUint64(b[32:], h.to)
	seal(b, 0, 0)
	return b
}

// decode returns what is wrong with the page, or "".
func (h *header) decode(b []byte) (reason string, version uint32) {
	if [8]byte(b[:8]) != headMagic {
		return "not a run", 0
	}
	if !sealed(b, 0, 0) {
		return "checksum of the header", 0
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return "", v
	}
	h.id, h.from, h.to = le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	return "", formatVersion
}

// span is a range of pages.
type span struct{ page, pages uint32 }

func (s span) end() uint32 { return s.page + s.pages }

// footer is the last page, sealed under its own number:
//
//	0        8        16        24       32        40        48
//	+--------+--------+---------+--------+---------+---------+---------+
//	| magic  | pages  | entries | keys   | deletes | min ref | max ref |
//	+--------+--------+---------+--------+---------+---------+---------+
//	56       60     64      68     72      76       80        84       88             92      4088
//	+--------+------+-------+------+-------+--------+---------+--------+--------------+-------+----------+
//	| ranges | data | pages | root | pages | bounds | pages   | levels | filter lines | zeros | checksum |
//	+--------+------+-------+------+-------+--------+---------+--------+--------------+-------+----------+
//
// pages is the length of the file; ranges is the number of range deletes. A section is its first page and its number
// of pages. They follow each other: data (with the index blocks below the root), root, bounds, filter. levels is the
// number of index blocks between the root, included, and a data block.
type footer struct {
	pages                  uint64
	entries, keys, deletes uint64
	minRef, maxRef         uint64
	ranges                 uint32
	data, root, bounds     span
	levels                 uint32
	filterLines            uint32
}

func (f *footer) filter() span {
	return span{f.bounds.end(), filterPages(f.filterLines)}
}

func (f *footer) encode(id uint64) []byte {
	b := make([]byte, 0, pageSize)
	b = append(b, footMagic[:]...)
	for _, v := range []uint64{f.pages, f.entries, f.keys, f.deletes, f.minRef, f.maxRef} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, f.ranges)
	for _, s := range []span{f.data, f.root, f.bounds} {
		b = le.AppendUint32(b, s.page)
		b = le.AppendUint32(b, s.pages)
	}
	b = le.AppendUint32(b, f.levels)
	b = le.AppendUint32(b, f.filterLines)
	b = b[:pageSize]
	seal(b, id, uint32(f.pages)-1)
	return b
}

// decode returns what is wrong with the last page of a file of so many pages, or "".
func (f *footer) decode(b []byte, id uint64, pages uint32) string {
	if [8]byte(b[:8]) != footMagic {
		return "no footer"
	}
	if !sealed(b, id, pages-1) {
		return "checksum of the footer"
	}
	for i, p := range []*uint64{&f.pages, &f.entries, &f.keys, &f.deletes, &f.minRef, &f.maxRef} {
		*p = le.Uint64(b[8+8*i:])
	}
	f.ranges = le.Uint32(b[56:])
	for i, s := range []*span{&f.data, &f.root, &f.bounds} {
		s.page, s.pages = le.Uint32(b[60+8*i:]), le.Uint32(b[64+8*i:])
	}
	f.levels, f.filterLines = le.Uint32(b[84:]), le.Uint32(b[88:])

	at := uint64(1)
	for _, s := range []span{f.data, f.root, f.bounds, f.filter()} {
		if uint64(s.page) != at {
			return "sections"
		}
		at += uint64(s.pages)
	}
	if f.pages != uint64(pages) || at+1 != f.pages || f.root.pages == 0 || f.bounds.pages == 0 ||
		f.levels == 0 || f.levels > maxLevels || f.filterLines == 0 || f.filterLines > maxFilterLines {
		return "sections"
	}
	return ""
}

// baseRef is the lowest Ref of a run's records; Refs are stored as their distance from it where that is short.
func baseRef(from uint64) uint64 { return uint64(wal.MakeRef(wal.LSN(from), 0)) }

// commonPrefix returns how many bytes a and b share at the front.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := le.Uint64(a[i:]) ^ le.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// head8 returns the first 8 bytes of b, padded with zeros, as a number that orders as they do.
func head8(b []byte) uint64 {
	if len(b) >= 8 {
		return binary.BigEndian.Uint64(b)
	}
	var x uint64
	for i, c := range b {
		x |= uint64(c) << (56 - 8*i)
	}
	return x
}

// head2 is head8 of 2 bytes.
func head2(b []byte) uint16 {
	if len(b) >= 2 {
		return binary.BigEndian.Uint16(b)
	}
	return uint16(head8(b) >> 48)
}

func appendUvarint(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }

func cutUvarint(b []byte) (n uint64, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 {
		return 0, b, false
	}
	return n, b[w:], true
}
