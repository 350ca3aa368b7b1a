package run

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// The filter is a Bloom filter of lines of one cache line each (Putze, Sanders, Singler: Cache-, Hash- and
// Space-Efficient Bloom Filters, 2007): all bits of a key lie in the line that the high bits of its hash name, so a
// look-up costs one miss. A page holds 63 lines, zeros and its checksum.
const (
	lineSize     = 64
	linesPerPage = pageSize/lineSize - 1
	bitsPerKey   = 10
	probes       = 6

	// maxFilterLines bounds the writer's memory: 1 GiB of filter, 800 million keys. Beyond it the filter gets worse.
	maxFilterLines = 1 << 24
)

// Hash returns the hash of a key for [Run.GetHashed]. It is the same for all runs.
func Hash(key []byte) uint64 { return xxhash.Sum64(key) }

func filterPages(lines uint32) uint32 { return (lines + linesPerPage - 1) / linesPerPage }

// lineOffset returns where the line of a hash begins in the filter, in bytes.
func lineOffset(h uint64, lines uint32) int {
	n, _ := bits.Mul64(h, uint64(lines))
	return lineAt(uint32(n))
}

func lineAt(n uint32) int { return int(n/linesPerPage)*pageSize + int(n%linesPerPage)*lineSize }

// spread makes bit numbers of a hash: 6 times 9 bits, from the top. The line's number has used the top bits as they
// are, so they are mixed once more.
func spread(h uint64) uint64 { return h * 0x9E3779B97F4A7C15 }

// inLine reports whether all bits of the hash are set. It looks at all of them: a branch at each would be guessed wrong
// once a key, which costs more than the rest of the line, which is in the cache by then.
func inLine(line *[lineSize]byte, h uint64) bool {
	x := spread(h)
	all := byte(1)
	for range probes {
		n := x >> 55
		all &= line[n>>3] >> (n & 7)
		x <<= 9
	}
	return all != 0
}

// filterBuilder gathers a filter in memory. Keys come in no order that the filter knows, so each would wait for its line;
// those of a batch are waited for together.
type filterBuilder struct {
	pages []byte
	lines uint32
	batch [64]uint64 // hashes
	n     int        // of them
	sum   byte       // keeps the loads of touch alive
}

// newFilter returns a filter for so many keys. The number of lines is a multiple of a power of two that leaves it within
// a sixty-fourth of what is needed, so that it can be folded.
func newFilter(keys uint64) *filterBuilder {
	lines := filterLines(keys)
	if step := uint32(1) << bits.Len32(lines) >> 7; step > 0 {
		lines = (lines + step - 1) &^ (step - 1)
	}
	return &filterBuilder{pages: make([]byte, int(filterPages(lines))*pageSize), lines: lines}
}

// filterLines returns how many lines so many keys need.
func filterLines(keys uint64) uint32 {
	const perLine = lineSize * 8 / bitsPerKey
	return uint32(min(keys/perLine+1, maxFilterLines))
}

func (f *filterBuilder) add(h uint64) {
	if f.n == len(f.batch) {
		f.flush()
	}
	f.batch[f.n] = h
	f.n++
}

// flush sets the bits of the batch.
func (f *filterBuilder) flush() {
	batch := f.batch[:f.n]
	for _, h := range batch {
		f.sum += f.pages[lineOffset(h, f.lines)]
	}
	for _, h := range batch {
		line := (*[lineSize]byte)(f.pages[lineOffset(h, f.lines):])
		x := spread(h)
		for range probes {
			n := x >> 55
			line[n>>3] |= 1 << (n & 7)
			x <<= 9
		}
	}
	f.n = 0
}

// fold halves the filter while it is more than twice as large as needed. The line of a hash in a filter of n/2 lines
// is half of its number in one of n, rounded down, so two neighbours become one.
func (f *filterBuilder) fold(keys uint64) {
	f.flush()
	need := filterLines(keys)
	for f.lines%2 == 0 && f.lines/2 >= need {
		f.lines /= 2
		for i := range f.lines {
			to := f.pages[lineAt(i):][:lineSize]
			a, b := f.pages[lineAt(2*i):][:lineSize], f.pages[lineAt(2*i+1):][:lineSize]
			for j := range to {
				to[j] = a[j] | b[j]
			}
		}
	}
	f.pages = f.pages[:int(filterPages(f.lines))*pageSize]
	if rest := f.lines % linesPerPage; rest != 0 {
		clear(f.pages[lineAt(f.lines):])
	}
}
