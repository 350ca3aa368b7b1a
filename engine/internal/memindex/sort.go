package memindex

import (
	"cmp"
	"math"
	"slices"
)

// entry is a key on its way into the tree or out of it. While a batch is
// sorted, prefix holds 8 bytes of the key.
type entry struct {
	prefix uint64
	addr   uint32
}

const (
	radixMin     = 512 // below, comparing beats 8 counting passes
	sortMaxDepth = 8
)

// sortEntries sorts es by key. tmp is scratch of at least the same length. All
// keys share at least their first from bytes.
//
// The 8 bytes behind the shared prefix decide nearly always, so they are
// sorted alone, and only runs of equal ones are looked at again, behind what
// they share.
func sortEntries(s space, es, tmp []entry, from, depth int) {
	if len(es) < 2 {
		return
	}
	if depth > sortMaxDepth {
		slices.SortFunc(es, func(a, b entry) int { return compareNodes(s, a.addr, b.addr, from) })
		return
	}
	skip := math.MaxInt
	for _, e := range es[1:] {
		if skip = min(skip, sharedLen(s, es[0].addr, e.addr)); skip <= from {
			break
		}
	}
	skip = max(skip, from)
	sorted := true
	for i := range es {
		a := es[i].addr
		es[i].prefix = nodeWord(s.node(a), s.keyLen(a), skip)
		if i > 0 && es[i].prefix < es[i-1].prefix {
			sorted = false
		}
	}
	if !sorted {
		sortPrefixes(es, tmp)
	}
	for i := 0; i < len(es); {
		j := i + 1
		for j < len(es) && es[j].prefix == es[i].prefix {
			j++
		}
		if j > i+1 {
			sortTies(s, es[i:j], tmp, skip, depth)
		}
		i = j
	}
}

// sortTies sorts keys whose 8 bytes behind skip are equal, once those that have
// ended were padded with zeros. Behind them the rule is the same: padded words
// first, then lengths.
func sortTies(s space, es, tmp []entry, skip, depth int) {
	if len(es) < 16 {
		slices.SortFunc(es, func(a, b entry) int { return compareNodes(s, a.addr, b.addr, skip) })
		return
	}
	sortEntries(s, es, tmp, skip+8, depth+1)
}

// sortPrefixes sorts es by prefix: least significant byte first, counting,
// without the passes that would move nothing because a byte is the same in
// all.
func sortPrefixes(es, tmp []entry) {
	if len(es) < radixMin {
		slices.SortFunc(es, func(a, b entry) int { return cmp.Compare(a.prefix, b.prefix) })
		return
	}
	var count [8][256]uint32
	for _, e := range es {
		for d := range count {
			count[d][byte(e.prefix>>(8*d))]++
		}
	}
	src, dst := es, tmp[:len(es)]
	for d := range count {
		c := &count[d]
		if c[byte(es[0].prefix>>(8*d))] == uint32(len(es)) {
			continue
		}
		var at uint32
		for i, n := range c {
			c[i] = at
			at += n
		}
		for _, e := range src {
			i := byte(e.prefix >> (8 * d))
			dst[c[i]] = e
			c[i]++
		}
		src, dst = dst, src
	}
	if &src[0] != &es[0] {
		copy(es, src)
	}
}
