package memindex

import "sync"

const (
	shardCount    = 256
	minSlotsShift = 3
)

// A slot is 32 bits of the key's hash (the tag) above 32 bits of the node's
// address; 0 is empty. The shard is chosen by the 8 bits of the hash above the
// tag.
//
// A tag's home is its highest bits, so slots are all but sorted by tag, and
// tables of any size hold the same order: growing reads and writes in
// sequence and needs nothing but the slots.
type shard struct {
	mu    sync.RWMutex // guards all below, and words 0 and 1 of the shard's nodes
	slots []uint64     // power of two, or nil
	shift uint8        // home = tag >> shift
	used  int
	limit int // used at which the table grows
	_     [128 - 24 - 24 - 8 - 16]byte
}

// split returns the shard and the tag of a hash.
func split(h uint64) (uint8, uint32) { return uint8(h >> 56), uint32(h >> 24) }

// find returns the address of key's node, or 0. The caller holds the lock,
// shared at least.
func (s *shard) find(sp space, tag uint32, key []byte) uint32 {
	if len(s.slots) == 0 {
		return 0
	}
	mask := uint32(len(s.slots) - 1)
	for i := tag >> s.shift; ; i++ {
		v := s.slots[i&mask]
		if v == 0 {
			return 0
		}
		if uint32(v>>32) == tag && equalKey(sp.node(uint32(v)), key) {
			return uint32(v)
		}
	}
}

// add enters a node that is not in the table. It returns by how many bytes
// the table grew. The caller holds the lock.
func (s *shard) add(id int, tag uint32, addr uint32) (grown int) {
	if s.used >= s.limit {
		grown = s.resize(id, max(2*len(s.slots), 1<<minSlotsShift))
	}
	s.place(uint64(tag)<<32 | uint64(addr))
	s.used++
	return grown
}

func (s *shard) place(v uint64) {
	mask := uint32(len(s.slots) - 1)
	i := uint32(v>>32) >> s.shift
	for s.slots[i&mask] != 0 {
		i++
	}
	s.slots[i&mask] = v
}

// resize moves the table to n slots and returns the difference in bytes.
func (s *shard) resize(id, n int) int {
	old := s.slots
	s.slots = make([]uint64, n)
	// Fresh memory is read before it is written: without this each page would fault twice, and the second time tell every
	// processor of the process.
	for i := 0; i < n; i += 512 {
		s.slots[i] = 0
	}
	s.shift = 32
	for m := n; m > 1; m >>= 1 {
		s.shift--
	}
	// Hashes are uniform, so with one limit all shards would grow within a
	// few thousand inserts of each other; limits spread over 0.62 to 0.75
	// spread that work over a fifth of the table's life.
	s.limit = n*5/8 + n*id/(8*shardCount)
	for _, v := range old {
		if v != 0 {
			s.place(v)
		}
	}
	return 8 * (n - len(old))
}

// remove takes the node at addr out of the table. The caller holds the lock.
// It returns by how many bytes the table shrank.
func (s *shard) remove(id int, tag, addr uint32) (shrunk int) {
	mask := uint32(len(s.slots) - 1)
	want := uint64(tag)<<32 | uint64(addr)
	i := tag >> s.shift
	for s.slots[i&mask] != want {
		if s.slots[i&mask] == 0 {
			panic("memindex: node missing from its shard")
		}
		i++
	}
	// Close the gap: pull back each following slot whose home does not lie
	// behind it, up to the next empty slot.
	i &= mask
	for j := i; ; {
		j = (j + 1) & mask
		v := s.slots[j]
		if v == 0 {
			break
		}
		home := uint32(v>>32) >> s.shift
		if (j-home)&mask >= (j-i)&mask {
			s.slots[i] = v
			i = j
		}
	}
	s.slots[i] = 0
	s.used--
	if n := len(s.slots); n > 1<<minSlotsShift && s.used < n/8 {
		return -s.resize(id, n/2)
	}
	return 0
}
