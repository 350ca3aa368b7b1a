package memindex

import "sync/atomic"

// visible returns the newest version below at of the key node addr. The caller
// holds the shard's lock, shared at least.
func (s space) visible(addr uint32, at uint64) (Version, bool) {
	for addr != 0 {
		w := s.node(addr)
		if w[0] < at {
			return Version{Ref: w[0], Kind: metaKind(w[1])}, true
		}
		addr = metaPrev(w[1])
	}
	return Version{}, false
}

// setHead changes a key node's newest version and meta word in an order that a
// scan without the lock cannot misread: a ref that is the same before and
// after it read the kind belongs to that kind.
func setHead(w []uint64, ref, meta uint64) {
	if metaKind(w[1]) == metaKind(meta) {
		atomic.StoreUint64(&w[1], meta)
		atomic.StoreUint64(&w[0], ref)
		return
	}
	atomic.StoreUint64(&w[0], busyRef)
	atomic.StoreUint64(&w[1], meta)
	atomic.StoreUint64(&w[0], ref)
}

// addVersion adds a version to the key node addr. The caller is the writer and
// holds the shard's lock.
//
// The chain is never walked here when the old newest version lies above the
// floor: a key that is written a million times under one snapshot would pay
// for it a million times. Such keys are queued and pruned later.
func (t *Table) addVersion(addr uint32, ref uint64, k Kind) {
	sp := t.arena.space
	w := sp.node(addr)
	oldRef, m := w[0], w[1]
	if ref <= oldRef {
		t.addOlder(w, addr, ref, k)
		return
	}
	t.countChange(metaKind(m), k)
	floor := t.floor.Load()
	old := metaPrev(m)
	if ref < floor {
		// Whoever sees the old version sees the new one.
		t.arena.free.putChain(sp, old)
		old = 0
	} else {
		var v uint32
		switch {
		case oldRef < floor && old != 0:
			// All behind the old newest version is unneeded. Its memory is
			// cold, so it is left for the next overwrite, which touches it
			// early; this one uses what the last one left.
			if m&pairBit == 0 {
				t.arena.free.putChain(sp, metaPrev(sp.node(old)[1]))
			}
			if v = t.reserve; v == 0 {
				v = old
			} else {
				t.reserve = old
			}
			old = 0
		default:
			v = t.newVersion()
			sp = t.arena.space
			if old != 0 {
				m |= t.draw(addr, ref, m)
			}
		}
		if m &^= pairBit; old == 0 {
			m |= pairBit
		}
		vw := sp.node(v)
		vw[0], vw[1] = oldRef, uint64(metaKind(m))<<kindShift|uint64(old)
		old = v
	}
	if k == Delete {
		m |= t.draw(addr, ref, m)
	}
	setHead(w, ref, withKind(withPrev(m, old), k))
}

// touch fetches the reserved version node into the cache. The store is not
// waited for, so the miss overlaps with those of the lookup that follows.
func (t *Table) touch() {
	if t.reserve != 0 {
		t.arena.space.node(t.reserve)[0] = 0
	} else {
		t.reserve = t.newVersion()
	}
}

// newVersion allocates a version node.
func (t *Table) newVersion() uint32 {
	end := t.arena.end
	v := t.arena.alloc(1)
	if t.arena.end != end {
		t.arenaBytes.Add(chunkBytes)
	}
	return v
}

// addOlder puts a version where its ref belongs in the chain of the key node
// addr, whose newest version is not older. The conditions are addVersion's.
func (t *Table) addOlder(w []uint64, addr uint32, ref uint64, k Kind) {
	if w[0] == ref {
		t.countChange(metaKind(w[1]), k)
		m := w[1]
		if k == Delete {
			m |= t.draw(addr, ref, m)
		}
		setHead(w, ref, withKind(m, k))
		return
	}
	v := t.newVersion()
	sp := t.arena.space
	atomic.StoreUint64(&w[1], w[1]&^pairBit|t.draw(addr, w[0], w[1]))
	for newer := w; ; {
		next := metaPrev(newer[1])
		if next != 0 {
			nw := sp.node(next)
			if nw[0] > ref {
				newer = nw
				continue
			}
			if nw[0] == ref {
				nw[1] = withKind(nw[1], k)
				t.arena.free.put(sp, 1, v)
				return
			}
		}
		vw := sp.node(v)
		vw[0], vw[1] = ref, uint64(k)<<kindShift|uint64(next)
		atomic.StoreUint64(&newer[1], withPrev(newer[1], v))
		return
	}
}

// countChange keeps the number of live keys as a newest version replaces
// another.
func (t *Table) countChange(from, to Kind) {
	if (from == Delete) != (to == Delete) {
		if to == Delete {
			t.live.Add(-1)
		} else {
			t.live.Add(1)
		}
	}
}

// cutBelow removes all versions that no reader at floor or above needs from
// the chain of the key node w, and returns the first of them, or 0. The caller
// holds the shard's lock.
func (s space) cutBelow(w []uint64, floor uint64) uint32 {
	for w[0] >= floor {
		next := metaPrev(w[1])
		if next == 0 {
			return 0
		}
		w = s.node(next)
	}
	rest := metaPrev(w[1])
	atomic.StoreUint64(&w[1], withPrev(w[1], 0))
	return rest
}
