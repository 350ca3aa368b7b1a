package memindex

import "slices"

const (
	leafCap   = 512
	branchCap = 512
)

// tree is a B+tree of fixed height: root, branches, leaves. A branch covers
// some 100,000 keys, so the root of a billion keys has 10,000 entries and its
// insertions, one in 100,000 keys, move 120 KB. No node but an empty tree's
// root is empty.
//
// The tree lock of the table guards it; only the holder of the order mutex
// changes it.
type tree struct {
	fan      // the lowest key of each branch
	branches []*branch
	memory   int64 // bytes of branches and leaves
	pos      []int // scratch of insertRun and removeRun
	key      []byte
	wide     fan // scratch of split
}

type branch struct {
	fan    // the lowest key of each leaf
	leaves []*fan
}

const (
	fanBytes    = 128 // a leaf besides its entries, with its pointer
	branchBytes = 160
)

// place is a leaf's position in the tree.
type place struct{ branch, leaf int }

// locate returns the leaf that holds key or would receive it. The tree is not
// empty.
func (t *tree) locate(s space, key []byte) place {
	b := t.child(s, key)
	return place{b, t.branches[b].child(s, key)}
}

func (t *tree) leaf(p place) *fan { return t.branches[p.branch].leaves[p.leaf] }

// next returns the place behind p; ok is false behind the last.
func (t *tree) next(p place) (_ place, ok bool) {
	if p.leaf+1 < len(t.branches[p.branch].leaves) {
		return place{p.branch, p.leaf + 1}, true
	}
	return place{p.branch + 1, 0}, p.branch+1 < len(t.branches)
}

// prev returns the place before p; ok is false before the first.
func (t *tree) prev(p place) (_ place, ok bool) {
	if p.leaf > 0 {
		return place{p.branch, p.leaf - 1}, true
	}
	if p.branch == 0 {
		return p, false
	}
	return place{p.branch - 1, len(t.branches[p.branch-1].leaves) - 1}, true
}

// last returns the place of the last leaf of a tree that is not empty.
func (t *tree) last() place {
	b := len(t.branches) - 1
	return place{b, len(t.branches[b].leaves) - 1}
}

// fence returns the fan and the index of the lowest key behind the leaf at p,
// or nil if there is none.
func (t *tree) fence(p place) (*fan, int) {
	if b := t.branches[p.branch]; p.leaf+1 < len(b.leaves) {
		return &b.fan, p.leaf + 1
	}
	if p.branch+1 < len(t.branches) {
		return &t.fan, p.branch + 1
	}
	return nil, 0
}

// maxRun bounds the keys that enter one leaf at a time, and so the time that
// scans wait.
const maxRun = 1024

// insertRun inserts the longest prefix of the sorted new keys es that belongs
// to one leaf, up to maxRun, and returns its length.
func (t *tree) insertRun(s space, es []entry) int {
	if len(t.branches) == 0 {
		t.plant(s, es[0].addr)
		return 1
	}
	t.key = s.appendKey(t.key[:0], es[0].addr)
	p := t.locate(s, t.key)
	leaf := t.leaf(p)
	fence, fi := t.fence(p)
	if p != (place{}) && !leaf.below(s, t.key) {
		// Not the first leaf, so no key is the lowest; not behind the leaf's
		// end, where ascending keys belong.
		if k := t.insertLoose(s, leaf, fence, fi, es); k > 0 {
			return k
		}
	}
	leaf.tidy(s)
	n := len(leaf.addr)
	at, _ := leaf.search(s, t.key, 0, n)
	t.pos = append(t.pos[:0], at)
	for k := 1; k < len(es) && k < maxRun; k++ {
		if at == n && fence == nil {
			t.pos = append(t.pos, n)
			continue
		}
		t.key = s.appendKey(t.key[:0], es[k].addr)
		if fence != nil && fence.compareAt(s, fi, t.key) <= 0 {
			break
		}
		if at < n {
			at, _ = leaf.search(s, t.key, at, n)
		}
		t.pos = append(t.pos, at)
	}
	t.enter(s, p, es[:len(t.pos)])
	return len(t.pos)
}

// plant makes a the only key of an empty tree.
func (t *tree) plant(s space, a uint32) {
	leaf, b := new(fan), new(branch)
	leaf.insert(s, 0, a)
	b.insert(s, 0, a)
	b.leaves = append(b.leaves, leaf)
	t.insert(s, 0, a)
	t.branches = append(t.branches, b)
	t.memory += fanBytes + leaf.bytes() + branchBytes + b.bytes()
}

// enter inserts es into the leaf at p before the indices t.pos.
func (t *tree) enter(s space, p place, es []entry) {
	leaf := t.leaf(p)
	n, m := len(leaf.addr), len(es)
	edge := t.pos[0] == 0 || t.pos[m-1] == n
	dst := leaf
	before := leaf.bytes()
	if n+m > leafCap {
		dst = &t.wide
		dst.skip, dst.shared = leaf.skip, leaf.shared
		dst.prefix = append(dst.prefix[:0], leaf.prefix...)
		dst.addr = append(dst.addr[:0], leaf.addr...)
	}
	dst.prefix = slices.Grow(dst.prefix, m)[:n+m]
	dst.addr = slices.Grow(dst.addr, m)[:n+m]
	for k, end := m-1, n; k >= 0; k-- {
		i := t.pos[k]
		copy(dst.prefix[i+k+1:], dst.prefix[i:end])
		copy(dst.addr[i+k+1:], dst.addr[i:end])
		dst.prefix[i+k] = dst.prefixOf(s, es[k].addr)
		dst.addr[i+k] = es[k].addr
		end = i
	}
	if edge {
		dst.fit(s)
	}
	if dst != leaf {
		t.spread(s, p, t.pos[0] == n)
	}
	t.memory += leaf.bytes() - before
	if t.pos[0] == 0 {
		t.lowest(s, p)
	}
}

// lowest passes a changed first entry of the leaf at p on to the levels above.
func (t *tree) lowest(s space, p place) {
	b := t.branches[p.branch]
	b.replace(s, p.leaf, b.leaves[p.leaf].addr[0])
	if p.leaf == 0 {
		t.replace(s, p.branch, b.addr[0])
	}
}

// spread distributes the entries of t.wide over the leaf at p and new ones
// behind it. Entries that were appended leave full leaves, because an
// ascending load never comes back; others leave room.
func (t *tree) spread(s space, p place, appended bool) {
	w, b := &t.wide, t.branches[p.branch]
	before := b.bytes()
	size := leafCap
	if !appended {
		pieces := (len(w.addr) + leafCap*3/4 - 1) / (leafCap * 3 / 4)
		size = (len(w.addr) + pieces - 1) / pieces
	}
	leaf := b.leaves[p.leaf]
	fill(s, leaf, w, 0, size)
	var leaves []*fan
	var addrs []uint32
	for i := size; i < len(w.addr); i += size {
		f := new(fan)
		fill(s, f, w, i, min(i+size, len(w.addr)))
		t.memory += fanBytes + f.bytes()
		leaves = append(leaves, f)
		addrs = append(addrs, f.addr[0])
	}
	b.leaves = slices.Insert(b.leaves, p.leaf+1, leaves...)
	b.insert(s, p.leaf+1, addrs...)
	t.memory += b.bytes() - before
	if len(b.leaves) > branchCap {
		t.splitBranch(s, p.branch, appended && p.leaf+1+len(leaves) == len(b.leaves))
	}
}

// fill makes f the entries i to j of w.
func fill(s space, f, w *fan, i, j int) {
	if f.prefix == nil {
		f.prefix, f.addr = make([]uint64, 0, leafCap), make([]uint32, 0, leafCap)
	}
	f.skip, f.shared = w.skip, w.shared
	f.prefix = append(f.prefix[:0], w.prefix[i:j]...)
	f.addr = append(f.addr[:0], w.addr[i:j]...)
	f.fit(s)
}

// splitBranch moves part of branch i into a new one behind it: half, or as
// little as possible if leaves are being appended.
func (t *tree) splitBranch(s space, i int, appended bool) {
	b := t.branches[i]
	before := b.bytes()
	at := len(b.leaves) / 2
	if appended {
		at = branchCap
	}
	c := &branch{leaves: slices.Clone(b.leaves[at:])}
	c.skip, c.shared = b.skip, b.shared
	c.prefix, c.addr = slices.Clone(b.prefix[at:]), slices.Clone(b.addr[at:])
	c.fit(s)
	clear(b.leaves[at:])
	b.leaves = b.leaves[:at]
	b.fan.delete(s, at, len(b.addr))
	t.memory += branchBytes + c.bytes() + b.bytes() - before
	t.insert(s, i+1, c.addr[0])
	t.branches = slices.Insert(t.branches, i+1, c)
}
