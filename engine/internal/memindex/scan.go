package memindex

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
)

const (
	// scanBlock is the number of nodes looked at together.
	scanBlock = 256
	// scanHold is the number of entries looked at under one hold of the tree
	// lock, visible or not: some 50 us, the longest that a merge waits.
	scanHold = 1024
	// chunkKeys is the number of key bytes at which a chunk is full. With the
	// longest keys it is passed by less than two of them.
	chunkKeys = 1 << 20
)

// Scan fills dst with the next entries of the range from lo to hi that are
// visible at position at, in ascending order of keys or, if reverse is set, in
// descending. The range includes lo unless loOpen is set, and excludes hi; a
// nil hi means no upper bound, a nil lo the empty key. Deletes and keys
// without a version below at are left out.
//
// At most limit entries are returned, fewer if their keys are large, but at
// least one if there is one and limit is not 0; [Chunk.More] tells whether to go
// on, with the last key as lo and loOpen set or, in reverse, as hi.
//
// All chunks of a scan show the same state, whatever the writer does in
// between, as long as at is not below the floor, and above no version still to
// be inserted. No lock is held when Scan returns.
func (t *Table) Scan(dst *Chunk, lo, hi []byte, loOpen bool, at uint64, reverse bool, limit int) {
	dst.Reset()
	if limit <= 0 {
		return
	}
	t.settle(at)
	b := bounds{lo, hi, loOpen}
	for done := false; !done && !dst.more; {
		t.treeLock.RLock()
		sp := *t.arena.published.Load()
		if reverse {
			done = t.scanBack(sp, dst, &b, at, limit)
		} else {
			done = t.scanOn(sp, dst, &b, at, limit)
		}
		t.treeLock.RUnlock()
	}
}

// bounds is what is left of a scan's range.
type bounds struct {
	lo, hi []byte
	loOpen bool
}

// scanOn looks at up to scanHold entries, moves b.lo behind them and reports
// whether the range is done. The caller holds the tree lock, shared.
func (t *Table) scanOn(sp space, dst *Chunk, b *bounds, at uint64, limit int) bool {
	if len(t.tree.branches) == 0 {
		return true
	}
	p := t.tree.locate(sp, b.lo)
	for seen := 0; ; {
		leaf := t.tree.leaf(p)
		rest := leaf.within(sp, b)
		last := rest.jEnd < len(leaf.addr) || rest.iEnd < len(leaf.addr)-leaf.loose
		for !rest.empty() {
			block := rest.ascend(sp, dst.block[:], min(scanBlock, limit-len(dst.versions)))
			t.take(sp, dst, block, at)
			seen += len(block)
			if dst.full(limit) {
				return true
			}
			if seen >= scanHold {
				dst.at = sp.appendKey(dst.at[:0], block[len(block)-1])
				b.lo, b.loOpen = dst.at, true
				return false
			}
		}
		var ok bool
		if p, ok = t.tree.next(p); last || !ok {
			return true
		}
	}
}

// scanBack is scanOn for a descending scan; it moves b.hi.
func (t *Table) scanBack(sp space, dst *Chunk, b *bounds, at uint64, limit int) bool {
	if len(t.tree.branches) == 0 {
		return true
	}
	p := t.tree.last()
	if b.hi != nil {
		p = t.tree.locate(sp, b.hi)
	}
	for seen := 0; ; {
		leaf := t.tree.leaf(p)
		rest := leaf.within(sp, b)
		last := rest.i > 0 // the lowest entry is never loose
		for !rest.empty() {
			block := rest.descend(sp, dst.block[:], min(scanBlock, limit-len(dst.versions)))
			t.take(sp, dst, block, at)
			seen += len(block)
			if dst.full(limit) {
				return true
			}
			if seen >= scanHold {
				dst.at = sp.appendKey(dst.at[:0], block[len(block)-1])
				b.hi = dst.at
				return false
			}
		}
		var ok bool
		if p, ok = t.tree.prev(p); last || !ok {
			return true
		}
	}
}

// full reports whether nothing more goes into the chunk, and notes it.
func (c *Chunk) full(limit int) bool {
	c.more = len(c.versions) >= limit || len(c.keys) >= chunkKeys
	return c.more
}

// take appends the visible ones of up to scanBlock nodes to dst, until its
// keys are too many. The caller holds the tree lock, shared, so none of the
// nodes is freed; versions may change.
func (t *Table) take(sp space, dst *Chunk, addrs []uint32, at uint64) {
	// The nodes of neighbours lie far apart. This loop does nothing but load,
	// so that many cache misses are under way at once.
	for i, a := range addrs {
		w := sp.node(a)
		ref := atomic.LoadUint64(&w[0])
		m := atomic.LoadUint64(&w[1])
		if atomic.LoadUint64(&w[0]) != ref {
			ref = busyRef
		}
		dst.refs[i], dst.metas[i] = ref, m
	}
	for i, a := range addrs {
		ref, m := dst.refs[i], dst.metas[i]
		kind := metaKind(m)
		if ref >= at {
			v, ok := t.visibleOf(a, metaShard(m), at)
			if !ok {
				continue
			}
			ref, kind = v.Ref, v.Kind
		}
		if kind == Delete && !dst.Deletes {
			continue
		}
		dst.add(sp.node(a), metaLen(m), Version{ref, kind})
		if len(dst.keys) >= chunkKeys {
			return
		}
	}
}

// visibleOf finds the version of a node visible at at under the shard's lock:
// for nodes whose newest version is too new, or being replaced.
func (t *Table) visibleOf(addr uint32, shard uint8, at uint64) (Version, bool) {
	s := &t.shards[shard]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return (*t.arena.published.Load()).visible(addr, at)
}

// add appends an entry with the key of n bytes in the node w.
func (c *Chunk) add(w []uint64, n int, v Version) {
	at := len(c.keys)
	if cap(c.keys)-at < n+8 {
		c.keys = slices.Grow(c.keys, n+8)
	}
	// Whole words, the last one's padding included: it is cut off, or
	// overwritten by the next key.
	room := c.keys[at : at+n+8]
	for i := 0; i < n; i += 8 {
		binary.BigEndian.PutUint64(room[i:], w[keyWords0+i/8])
	}
	c.keys = c.keys[:at+n]
	c.ends = append(c.ends, at+n)
	c.versions = append(c.versions, v)
}
