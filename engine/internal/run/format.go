package run

import (
	"encoding/binary"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"shiplog/wal"
)

// Sizes of the format. doc.go draws it.
const (
	formatVersion = 2

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

var footMagic = [8]byte{'S', 'H', 'I', 'P', 'R', 'U', 'N', '\n'}

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

// footer is the last page, sealed under its own number as if it were of run 0, because the ID is in it:
//
//	0       8         12     16      24      32      40      48        56      64       72       80
//	+-------+---------+------+-------+-------+-------+-------+---------+-------+--------+--------+--------+
//	| magic | version | zero | ID    | from  | to    | pages | entries | keys  | deletes| min ref| max ref|
//	+-------+---------+------+-------+-------+-------+-------+---------+-------+--------+--------+--------+
//	88       92      96     100      104      108            112     4088
//	+--------+--------+------+--------+--------+--------------+-------+----------+
//	| ranges | levels | data | root   | bounds | filter lines | zeros | checksum |
//	+--------+--------+------+--------+--------+--------------+-------+----------+
//
// pages is the length of the file, data, root and bounds are those of the sections, which follow each other: data with
// the index blocks below the root, filter, root, bounds, footer. ranges is the number of range deletes, levels that of
// the index blocks between the root, included, and a data block. Magic, version and checksum stay where they are in
// every later version.
type footer struct {
	id                     uint64
	from, to               uint64
	pages                  uint64
	entries, keys, deletes uint64
	minRef, maxRef         uint64

	ranges, levels     uint32
	data, root, bounds uint32
	filterLines        uint32
}

func (f *footer) fields() ([]*uint64, []*uint32) {
	return []*uint64{&f.id, &f.from, &f.to, &f.pages, &f.entries, &f.keys, &f.deletes, &f.minRef, &f.maxRef},
		[]*uint32{&f.ranges, &f.levels, &f.data, &f.root, &f.bounds, &f.filterLines}
}

// rootPage returns the first page of the root. The filter begins at the page behind the data, the bounds behind the root.
func (f *footer) rootPage() uint32 { return f.data + filterPages(f.filterLines) }

func (f *footer) encode() []byte {
	b := make([]byte, 0, pageSize)
	b = append(b, footMagic[:]...)
	b = le.AppendUint64(b, formatVersion)
	long, short := f.fields()
	for _, v := range long {
		b = le.AppendUint64(b, *v)
	}
	for _, v := range short {
		b = le.AppendUint32(b, *v)
	}
	b = b[:pageSize]
	seal(b, 0, uint32(f.pages)-1)
	return b
}

// decode takes the last page of a file of so many pages. It returns what is wrong with it, or "", and the version.
func (f *footer) decode(b []byte, pages uint32) (reason string, version uint32) {
	if [8]byte(b[:8]) != footMagic {
		return "no footer", 0
	}
	if !sealed(b, 0, pages-1) {
		return "checksum of the footer", 0
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return "", v
	}
	b = b[16:]
	long, short := f.fields()
	for _, v := range long {
		*v, b = le.Uint64(b), b[8:]
	}
	for _, v := range short {
		*v, b = le.Uint32(b), b[4:]
	}
	sum := uint64(f.data) + uint64(filterPages(f.filterLines)) + uint64(f.root) + uint64(f.bounds) + 1
	if f.pages != uint64(pages) || f.pages != sum || f.root == 0 || f.bounds == 0 || f.filterLines == 0 ||
		f.filterLines > maxFilterLines || f.levels == 0 || f.levels > maxLevels {
		return "sections", formatVersion
	}
	return "", formatVersion
}

func (f *footer) info(b []byte) Info {
	return Info{
		From: f.from, To: f.to, Entries: f.entries, Keys: f.keys, Deletes: f.deletes, RangeDeletes: int(f.ranges),
		Size: int64(f.pages) * pageSize, Checksum: le.Uint64(b[pageSize-checksumSize:]), MinRef: f.minRef, MaxRef: f.maxRef,
	}
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
