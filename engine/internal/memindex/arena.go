package memindex

import (
	"math/bits"
	"sync/atomic"
)

// MaxKeyLen is the length of the longest key, in bytes.
const MaxKeyLen = 64 << 10

// The arena hands out blocks of whole 16-byte units. An address is a unit's
// number, so 32 bits reach 64 GiB. Address 0 is never handed out: it ends
// lists and marks empty slots.
const (
	unitWords  = 2
	chunkShift = 14 // log2 of the units in a chunk
	chunkUnits = 1 << chunkShift
	chunkWords = chunkUnits * unitWords
	chunkBytes = chunkWords * 8
)

// A key node is two words and the key; a version node is the two words alone:
//
//	0        8        16
//	+--------+--------+----------------------+
//	| ref    | meta   | key, big-endian words|
//	+--------+--------+----------------------+
//
//	meta, low bits first: 32 address of the next older version, 17 key length,
//	8 shard, 2 kind, 1 queued for pruning, 1 set only if there is exactly one
//	older version
//
// Keys are packed as big-endian words, padded with zeros, so that words
// compare as the bytes do, on any machine and without unsafe.
//
// Words 0 and 1 of a key node change under its shard's lock, with atomic
// stores because scans load them without it. Key words never change while the
// node is allocated.
const (
	lenShift   = 32
	lenMask    = 1<<17 - 1
	shardShift = 49
	kindShift  = 57
	kindMask   = 3
	queuedBit  = 1 << 59
	pairBit    = 1 << 60
	keyWords0  = 2 // first word of the key
)

func metaPrev(m uint64) uint32 { return uint32(m) }
func metaLen(m uint64) int     { return int(m >> lenShift & lenMask) }
func metaShard(m uint64) uint8 { return uint8(m >> shardShift) }
func metaKind(m uint64) Kind   { return Kind(m >> kindShift & kindMask) }
func withPrev(m uint64, prev uint32) uint64 {
	return m&^uint64(1<<32-1) | uint64(prev)
}

func withKind(m uint64, k Kind) uint64 {
	return m&^(kindMask<<kindShift) | uint64(k)<<kindShift
}

type chunk [chunkWords]uint64

// space resolves addresses. A value taken while an address was reachable
// resolves that address for as long as its node is allocated.
type space []*chunk

// node returns the words from address a to the end of its chunk.
func (s space) node(a uint32) []uint64 {
	return s[a>>chunkShift][a&(chunkUnits-1)*unitWords:]
}

// keyLen returns the length of the key in node a.
func (s space) keyLen(a uint32) int {
	return metaLen(atomic.LoadUint64(&s.node(a)[1]))
}

// appendKey appends the key in node a to dst.
func (s space) appendKey(dst []byte, a uint32) []byte {
	return appendKey(dst, s.node(a), s.keyLen(a))
}

// Size classes: every number of units up to exactClasses, then eight steps to
// each doubling, which wastes at most an eighth.
const (
	exactClasses = 32
	numClasses   = exactClasses + 8*8 + 1
)

// classOf returns the smallest class whose blocks hold n units.
func classOf(n int) int {
	if n <= exactClasses {
		return n
	}
	b := bits.Len(uint(n-1)) - 1 // 2^b < n <= 2^(b+1), b >= 5
	step := 1 << (b - 3)
	return exactClasses + (b-5)*8 + (n-1<<b+step-1)/step
}

// classUnits returns the size of the blocks of class c, in units.
func classUnits(c int) int {
	if c <= exactClasses {
		return c
	}
	c -= exactClasses + 1
	b := c/8 + 5
	return 1<<b + (c%8+1)<<(b-3)
}

// nodeUnits returns the size of the node of a key of n bytes, in units.
func nodeUnits(n int) int {
	return (keyWords0 + (n+7)/8 + unitWords - 1) / unitWords
}

// freeList is a stack of free blocks of one class, linked through their first
// words. The tail allows a whole list to be handed over at once.
type freeList struct{ head, tail uint32 }

// freeLists are the free blocks of all classes. The zero value is empty.
type freeLists [numClasses]freeList

// put frees the block of class c at address a.
func (f *freeLists) put(s space, c int, a uint32) {
	l := &f[c]
	s.node(a)[0] = uint64(l.head)
	if l.head == 0 {
		l.tail = a
	}
	l.head = a
}

// putNode frees a key node of a key of n bytes.
func (f *freeLists) putNode(s space, n int, a uint32) {
	f.put(s, classOf(nodeUnits(n)), a)
}

// putChain frees the version nodes from a down to the oldest.
func (f *freeLists) putChain(s space, a uint32) {
	for a != 0 {
		next := metaPrev(s.node(a)[1])
		f.put(s, 1, a)
		a = next
	}
}

// arena allocates nodes. Only the writer calls its methods; readers use the
// published space.
type arena struct {
	space     space
	published atomic.Pointer[space] // what readers resolve addresses with
	next      uint32                // first unit never handed out
	end       uint32                // end of the newest chunk
	free      freeLists
}

func (a *arena) init() {
	s := space{}
	a.published.Store(&s)
}

// alloc returns a block of class c with undefined contents.
func (a *arena) alloc(c int) uint32 {
	if l := &a.free[c]; l.head != 0 {
		at := l.head
		l.head = uint32(a.space.node(at)[0])
		return at
	}
	n := uint32(classUnits(c))
	if a.end-a.next < n {
		a.grow()
	}
	at := a.next
	a.next += n
	return at
}

// grow starts a new chunk and frees what is left of the last one.
func (a *arena) grow() {
	for c := numClasses - 1; a.next < a.end; {
		if n := uint32(classUnits(c)); n <= a.end-a.next {
			a.free.put(a.space, c, a.next)
			a.next += n
		} else {
			c--
		}
	}
	if len(a.space) >= 1<<(32-chunkShift) {
		panic("memindex: arena exceeds 64 GiB")
	}
	a.space = append(a.space, new(chunk))
	a.end = uint32(len(a.space)) << chunkShift // wraps to 0 for the last chunk, as next will
	a.next = a.end - chunkUnits
	if a.next == 0 {
		a.next = 1
	}
	s := a.space
	a.published.Store(&s)
}

// take adds the free blocks of f and empties it.
func (a *arena) take(f *freeLists) {
	for c := range f {
		if from, to := &f[c], &a.free[c]; from.head != 0 {
			a.space.node(from.tail)[0] = uint64(to.head)
			if to.head == 0 {
				to.tail = from.tail
			}
			to.head = from.head
			*from = freeList{}
		}
	}
}
