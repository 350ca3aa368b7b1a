package memindex

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// fan is a sorted run of entries, the body of every tree node: for each entry
// the address of a key node and 8 bytes of its key, taken behind the skip
// bytes that all keys of the fan share. In a leaf the entries are its keys;
// above, each is the lowest key of a child.
//
// skip may be less than the longest shared prefix, never more. It stays a
// little behind when it is chosen, so that a few keys at the edges do not
// force it down, and follows when too little of the 8 bytes tells keys apart.
type fan struct {
	skip   int
	loose  int                 // entries at the end that are in order among themselves only; leaf.go
	shared [sharedWords]uint64 // the shared bytes, as far as they fit; zeros behind
	prefix []uint64
	addr   []uint32
}

const (
	sharedWords = 4
	skipSlack   = 2 // bytes that a new skip stays short of the shared prefix
	skipWaste   = 5 // shared bytes within the 8 of a prefix at which skip follows
)

// matchShared compares the bytes that all entries share with the same bytes of
// key: -1 if all entries are below key for them, 1 if all are above.
func (f *fan) matchShared(s space, key []byte) int {
	var w []uint64
	for i := 0; i < f.skip; i += 8 {
		k := keyWord(key, i)
		var x uint64
		if i < 8*sharedWords {
			x = f.shared[i/8]
		} else {
			if w == nil {
				w = s.node(f.addr[0])
			}
			x = w[keyWords0+i/8]
		}
		if rest := f.skip - i; rest < 8 {
			mask := uint64(math.MaxUint64) << (8 * (8 - rest))
			k &= mask
			x &= mask
		}
		if x != k {
			return cmp.Compare(x, k)
		}
	}
	if len(key) < f.skip {
		return 1 // key is a proper prefix of every entry
	}
	return 0
}

// compareAt compares entry i with key.
func (f *fan) compareAt(s space, i int, key []byte) int {
	if c := f.matchShared(s, key); c != 0 {
		return c
	}
	if c := cmp.Compare(f.prefix[i], keyWord(key, f.skip)); c != 0 {
		return c
	}
	a := f.addr[i]
	return compareKey(s.node(a), s.keyLen(a), key, f.skip)
}

// search returns the index of the first entry of those from index from to
// index to, which are in order, that is not below key, and whether it is key
// itself.
func (f *fan) search(s space, key []byte, from, to int) (int, bool) {
	switch f.matchShared(s, key) {
	case -1:
		return to, false
	case 1:
		return from, false
	}
	x := keyWord(key, f.skip)
	p := f.prefix[:to]
	i := from + lowerBound(p[from:], x)
	if i == to || p[i] != x {
		return i, false
	}
	// Entries with equal prefixes are told apart by the nodes.
	end := i + 1
	if end < to && p[end] == x {
		if x == math.MaxUint64 {
			end = to
		} else {
			end += lowerBound(p[end:], x+1)
		}
	}
	for i < end {
		m := int(uint(i+end) / 2)
		a := f.addr[m]
		switch c := compareKey(s.node(a), s.keyLen(a), key, f.skip); {
		case c == 0:
			return m, true
		case c < 0:
			i = m + 1
		default:
			end = m
		}
	}
	return i, false
}

// lowerBound returns the index of the first element of p that is not below x.
// The loop has no branch that depends on the data.
func lowerBound(p []uint64, x uint64) int {
	lo, n := 0, len(p)
	for n > 1 {
		half := n / 2
		if p[lo+half-1] < x {
			lo += half
		}
		n -= half
	}
	if n == 1 && p[lo] < x {
		lo++
	}
	return lo
}

// child returns the index of the last entry that is not above key, or 0: the
// child that holds key or would receive it.
func (f *fan) child(s space, key []byte) int {
	i, eq := f.search(s, key, 0, len(f.addr))
	if eq || i == 0 {
		return i
	}
	return i - 1
}

// prefixOf returns the prefix of the key in node a for this fan.
func (f *fan) prefixOf(s space, a uint32) uint64 {
	return nodeWord(s.node(a), s.keyLen(a), f.skip)
}

// insert puts entries before index i.
func (f *fan) insert(s space, i int, addrs ...uint32) {
	f.prefix = slices.Grow(f.prefix, len(addrs))
	f.prefix = f.prefix[:len(f.prefix)+len(addrs)]
	copy(f.prefix[i+len(addrs):], f.prefix[i:])
	f.addr = slices.Insert(f.addr, i, addrs...)
	for j, a := range addrs {
		f.prefix[i+j] = f.prefixOf(s, a)
	}
	if i == 0 || i+len(addrs) == len(f.addr) {
		f.fit(s)
	}
}

// replace sets entry i.
func (f *fan) replace(s space, i int, a uint32) {
	f.addr[i] = a
	f.prefix[i] = f.prefixOf(s, a)
	if i == 0 || i == len(f.addr)-1 {
		f.fit(s)
	}
}

// delete removes entries i to j.
func (f *fan) delete(s space, i, j int) {
	f.prefix = slices.Delete(f.prefix, i, j)
	f.addr = slices.Delete(f.addr, i, j)
	if len(f.addr) > 0 && (i == 0 || i == len(f.addr)) {
		f.fit(s)
	}
}

// fit puts skip right after an entry at an edge has changed. No entries are
// loose, so the first and the last share the least.
func (f *fan) fit(s space) {
	n := sharedLen(s, f.addr[0], f.addr[len(f.addr)-1])
	if n < f.skip || n > f.skip+skipWaste {
		f.rebuild(s, n)
	}
}

// rebuild takes all prefixes from the nodes, whose keys share n bytes.
func (f *fan) rebuild(s space, n int) {
	f.skip = max(0, n-skipSlack)
	w := s.node(f.addr[0])
	f.shared = [sharedWords]uint64{}
	for i := 0; i < f.skip && i < 8*sharedWords; i += 8 {
		f.shared[i/8] = w[keyWords0+i/8]
	}
	for i, a := range f.addr {
		f.prefix[i] = f.prefixOf(s, a)
	}
}

// sharedLen returns the length of the longest common prefix of two nodes'
// keys.
func sharedLen(s space, a, b uint32) int {
	wa, wb := s.node(a), s.node(b)
	n := min(s.keyLen(a), s.keyLen(b))
	for i := 0; i < n; i += 8 {
		if x := wa[keyWords0+i/8] ^ wb[keyWords0+i/8]; x != 0 {
			return min(n, i+bits.LeadingZeros64(x)/8)
		}
	}
	return n
}

// bytes returns the memory the fan holds besides itself.
func (f *fan) bytes() int64 { return int64(cap(f.prefix))*8 + int64(cap(f.addr))*4 }
