package memindex

import (
	"bytes"
	"cmp"
	"slices"
	"sync/atomic"
)

// DeleteRange adds a Delete version to each key from start, inclusive, to end,
// exclusive, whose newest version is not one. A nil end means no upper bound.
// Only the writer calls it. Readers at positions up to ref see nothing of it;
// no lock is held for more than a few hundred keys.
func (t *Table) DeleteRange(start, end []byte, ref uint64) {
	if end != nil && bytes.Compare(start, end) >= 0 {
		return
	}
	t.order.Lock()
	t.mergeTo(t.ring.head.Load())
	t.order.Unlock()
	b := bounds{start, end, false}
	for done := false; !done; {
		done = t.liveIn(&b)
		for _, a := range t.addrBuf {
			// Only Deletes are freed by others, so a is still there.
			s := &t.shards[metaShard(atomic.LoadUint64(&t.arena.space.node(a)[1]))]
			s.mu.Lock()
			t.addVersion(a, ref, Delete)
			s.mu.Unlock()
		}
		if t.debt >= pruneBatch {
			t.maintain()
		}
	}
}

// liveIn sets addrBuf to the live nodes among the next entries of b, which it
// advances, and reports whether b is done. Only the writer calls it.
func (t *Table) liveIn(b *bounds) bool {
	t.addrBuf = t.addrBuf[:0]
	sp := t.arena.space
	t.treeLock.RLock()
	defer t.treeLock.RUnlock()
	if len(t.tree.branches) == 0 {
		return true
	}
	p := t.tree.locate(sp, b.lo)
	leaf := t.tree.leaf(p)
	rest := leaf.within(sp, b)
	last := rest.jEnd < len(leaf.addr) || rest.iEnd < len(leaf.addr)-leaf.loose
	for _, part := range [2][]uint32{leaf.addr[rest.i:rest.iEnd], leaf.addr[rest.j:rest.jEnd]} {
		for _, a := range part {
			if metaKind(atomic.LoadUint64(&sp.node(a)[1])) != Delete {
				t.addrBuf = append(t.addrBuf, a)
			}
		}
	}
	p, ok := t.tree.next(p)
	if last || !ok {
		return true
	}
	t.keyBuf = sp.appendKey(t.keyBuf[:0], t.tree.leaf(p).addr[0])
	b.lo, b.loOpen = t.keyBuf, false
	return false
}

// CutFrom drops every version at or above ref, as after the log was truncated
// there, and with them the keys that have no other; older versions that were
// kept become the newest again. Only the writer calls it, and never with a ref
// below the floor. It takes time in proportion to the keys in the table.
// Readers at positions up to ref are not disturbed.
func (t *Table) CutFrom(ref uint64) {
	t.jobs.Wait()
	t.collect()
	t.order.Lock()
	defer t.order.Unlock()
	t.mergeTo(t.ring.head.Load())
	// Tickets are drawn anew from what is left.
	t.queue = queue{}
	var tickets []ticket
	var dead []entry
	for i, b := range t.tree.branches {
		for j := range b.leaves {
			t.treeLock.Lock() // refs fall: scans must not be looking
			for _, a := range t.tree.leaf(place{i, j}).addr {
				if k, left := t.cutNode(a, ref); !left {
					dead = append(dead, entry{addr: a})
				} else if k.addr != 0 {
					tickets = append(tickets, k)
				}
			}
			t.treeLock.Unlock()
		}
	}
	slices.SortFunc(tickets, func(a, b ticket) int { return cmp.Compare(a.ref, b.ref) })
	for _, k := range tickets {
		t.queue.push(k)
	}
	t.unlink(t.arena.space, dead)
	for _, e := range dead {
		w := t.arena.space.node(e.addr)
		t.arena.free.putNode(t.arena.space, metaLen(w[1]), e.addr)
	}
	t.queueBytes.Store(t.queue.bytes())
	if ref < t.settled.Load() {
		t.settled.Store(ref)
	}
	t.lastNew = 0
}

// cutNode drops the versions of a node at or above ref. If none is left, it
// takes the node out of the hash and returns false; else it returns a ticket
// for it if it needs one.
func (t *Table) cutNode(addr uint32, ref uint64) (_ ticket, left bool) {
	sp := t.arena.space
	w := sp.node(addr)
	m := atomic.LoadUint64(&w[1])
	s := &t.shards[metaShard(m)]
	s.mu.Lock()
	defer s.mu.Unlock()
	head, meta := w[0], w[1]
	was := metaKind(meta)
	for head >= ref {
		prev := metaPrev(meta)
		if prev == 0 {
			t.keyBuf = appendKey(t.keyBuf[:0], w, metaLen(m))
			id, tag := split(t.hash(t.keyBuf))
			t.slotBytes.Add(-int64(s.remove(int(id), tag, addr)))
			// Scans meet the node until it has left the tree: its ref stays
			// above them, its versions are free.
			atomic.StoreUint64(&w[1], withPrev(m, 0))
			if was != Delete {
				t.live.Add(-1)
			}
			return ticket{}, false
		}
		vw := sp.node(prev)
		head, meta = vw[0], withKind(withPrev(meta, metaPrev(vw[1])), metaKind(vw[1]))
		t.arena.free.put(sp, 1, prev)
	}
	t.countChange(was, metaKind(meta))
	meta &^= queuedBit
	var k ticket
	if v := metaPrev(meta); metaKind(meta) == Delete || v != 0 && metaPrev(sp.node(v)[1]) != 0 {
		meta |= queuedBit
		k = ticket{head, addr}
	}
	setHead(w, head, meta)
	return k, true
}
