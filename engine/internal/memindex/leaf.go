package memindex

// Loose entries.
//
// A batch in random order brings few keys to each of many leaves, and all of
// them are cold. Moving half a leaf to put six keys in their places costs some
// 80 cache lines; so the keys go to the end of the leaf first, as loose
// entries in an order of their own, and join the others when there are
// looseMax of them. A scan merges the two orders as it goes.
//
// Loose entries share the leaf's skip bytes, and none is the lowest, so
// neither skip nor the levels above need to know about them. Only leaves have
// any.
const looseMax = 64

// below reports whether all entries are below key, as far as their prefixes
// and the order among them tell without a look at nodes: false is no proof.
func (f *fan) below(s space, key []byte) bool {
	if f.loose > 0 {
		return false
	}
	c := f.matchShared(s, key)
	return c < 0 || c == 0 && f.prefix[len(f.prefix)-1] < keyWord(key, f.skip)
}

// insertLoose adds the keys of es below the fence to leaf as loose entries and
// returns their number. It returns 0, and has done nothing, if they do not fit
// in or do not share what the leaf's keys share.
func (t *tree) insertLoose(s space, leaf, fence *fan, fi int, es []entry) int {
	room := min(looseMax-leaf.loose, leafCap-len(leaf.addr))
	k := 0
	for ; k < len(es); k++ {
		t.key = s.appendKey(t.key[:0], es[k].addr)
		if fence != nil && fence.compareAt(s, fi, t.key) <= 0 {
			break
		}
		if k == room || leaf.matchShared(s, t.key) != 0 {
			t.key = s.appendKey(t.key[:0], es[0].addr) // as it was
			return 0
		}
	}
	before := leaf.bytes()
	at := len(leaf.addr) - leaf.loose
	for _, e := range es[:k] {
		t.key = s.appendKey(t.key[:0], e.addr)
		n := len(leaf.addr)
		at, _ = leaf.search(s, t.key, at, n)
		leaf.prefix = append(leaf.prefix, 0)
		leaf.addr = append(leaf.addr, 0)
		copy(leaf.prefix[at+1:], leaf.prefix[at:n])
		copy(leaf.addr[at+1:], leaf.addr[at:n])
		leaf.prefix[at] = keyWord(t.key, leaf.skip)
		leaf.addr[at] = e.addr
		leaf.loose++
		at++
	}
	t.memory += leaf.bytes() - before
	return k
}

// tidy puts the loose entries in their places.
func (f *fan) tidy(s space) {
	if f.loose == 0 {
		return
	}
	var prefix [looseMax]uint64
	var addr [looseMax]uint32
	n := len(f.addr)
	i, j := n-f.loose, f.loose
	copy(prefix[:], f.prefix[i:])
	copy(addr[:], f.addr[i:])
	for n--; j > 0; n-- {
		p, a := prefix[j-1], addr[j-1]
		if i > 0 && f.after(s, i-1, p, a) {
			i--
			p, a = f.prefix[i], f.addr[i]
		} else {
			j--
		}
		f.prefix[n], f.addr[n] = p, a
	}
	f.loose = 0
}

// after reports whether entry i is above another of this fan with prefix p and
// address a.
func (f *fan) after(s space, i int, p uint64, a uint32) bool {
	if f.prefix[i] != p {
		return f.prefix[i] > p
	}
	return compareNodes(s, f.addr[i], a, f.skip) > 0
}

// span is a range of a leaf's entries: i to iEnd of those in order, j to jEnd
// of the loose ones.
type span struct {
	leaf             *fan
	i, iEnd, j, jEnd int
}

// within returns the entries of a leaf that lie in b.
func (f *fan) within(s space, b *bounds) span {
	n := len(f.addr)
	x := span{f, 0, n - f.loose, n - f.loose, n}
	if len(b.lo) > 0 || b.loOpen {
		x.i = b.from(s, f, x.i, x.iEnd)
		x.j = b.from(s, f, x.j, x.jEnd)
	}
	if b.hi != nil {
		x.iEnd, _ = f.search(s, b.hi, x.i, x.iEnd)
		x.jEnd, _ = f.search(s, b.hi, x.j, x.jEnd)
	}
	return x
}

// from returns the index of the first of some entries that is not below the
// range.
func (b *bounds) from(s space, f *fan, from, to int) int {
	i, eq := f.search(s, b.lo, from, to)
	if eq && b.loOpen {
		i++
	}
	return i
}

func (x *span) empty() bool { return x.i >= x.iEnd && x.j >= x.jEnd }

// ascend takes up to limit entries off the low end of the range, in order. The
// result lies in buf, which has room for limit, or in the leaf.
func (x *span) ascend(s space, buf []uint32, limit int) []uint32 {
	f := x.leaf
	if x.j == x.jEnd {
		n := min(limit, x.iEnd-x.i)
		x.i += n
		return f.addr[x.i-n : x.i]
	}
	n := 0
	for ; n < limit && !x.empty(); n++ {
		if x.j == x.jEnd || x.i < x.iEnd && !f.after(s, x.i, f.prefix[x.j], f.addr[x.j]) {
			buf[n] = f.addr[x.i]
			x.i++
		} else {
			buf[n] = f.addr[x.j]
			x.j++
		}
	}
	return buf[:n]
}

// descend takes up to limit entries off the high end, highest first, into buf.
func (x *span) descend(s space, buf []uint32, limit int) []uint32 {
	f := x.leaf
	n := 0
	for ; n < limit && !x.empty(); n++ {
		if x.j == x.jEnd || x.i < x.iEnd && f.after(s, x.iEnd-1, f.prefix[x.jEnd-1], f.addr[x.jEnd-1]) {
			x.iEnd--
			buf[n] = f.addr[x.iEnd]
		} else {
			x.jEnd--
			buf[n] = f.addr[x.jEnd]
		}
	}
	return buf[:n]
}
