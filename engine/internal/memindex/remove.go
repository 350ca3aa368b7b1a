package memindex

import "slices"

// removeRun removes the longest prefix of the sorted keys es that lies in one
// leaf, up to maxRun, and returns its length. All are in the tree.
func (t *tree) removeRun(s space, es []entry) int {
	t.key = s.appendKey(t.key[:0], es[0].addr)
	p := t.locate(s, t.key)
	leaf := t.leaf(p)
	leaf.tidy(s)
	t.pos = t.pos[:0]
	at := 0
	for k := 0; k < len(es) && k < maxRun; k++ {
		t.key = s.appendKey(t.key[:0], es[k].addr)
		i, ok := leaf.search(s, t.key, at, len(leaf.addr))
		if !ok || leaf.addr[i] != es[k].addr {
			break
		}
		t.pos = append(t.pos, i)
		at = i + 1
	}
	if len(t.pos) == 0 {
		panic("memindex: node missing from the tree")
	}
	t.leave(s, p, t.pos)
	return len(t.pos)
}

// leave removes the entries at the ascending indices pos from the leaf at p,
// and the leaf, or its branch, if nothing is left.
func (t *tree) leave(s space, p place, pos []int) {
	leaf := t.leaf(p)
	n, w := len(leaf.addr), pos[0]
	for k, i := range pos {
		end := n
		if k+1 < len(pos) {
			end = pos[k+1]
		}
		copy(leaf.prefix[w:], leaf.prefix[i+1:end])
		w += copy(leaf.addr[w:], leaf.addr[i+1:end])
	}
	leaf.prefix, leaf.addr = leaf.prefix[:w], leaf.addr[:w]
	if w == 0 {
		t.drop(s, p)
		return
	}
	if pos[0] == 0 || pos[len(pos)-1] == n-1 {
		leaf.fit(s)
	}
	if pos[0] == 0 {
		t.lowest(s, p)
	}
	if w < leafCap/4 {
		t.join(s, p)
	}
}

// drop removes the empty leaf at p.
func (t *tree) drop(s space, p place) {
	b := t.branches[p.branch]
	t.memory -= fanBytes + b.leaves[p.leaf].bytes()
	if len(b.leaves) == 1 {
		t.memory -= branchBytes + b.bytes()
		t.branches = slices.Delete(t.branches, p.branch, p.branch+1)
		t.fan.delete(s, p.branch, p.branch+1)
		return
	}
	b.leaves = slices.Delete(b.leaves, p.leaf, p.leaf+1)
	b.fan.delete(s, p.leaf, p.leaf+1)
	if p.leaf == 0 {
		t.replace(s, p.branch, b.addr[0])
	}
}

// join merges the leaf at p with a neighbour in its branch if the two leave
// room, and then the branch with its neighbour likewise. Without it, deleting
// all but a few keys everywhere would leave as many leaves as there were.
func (t *tree) join(s space, p place) {
	b := t.branches[p.branch]
	for _, l := range [2]int{p.leaf, p.leaf - 1} {
		if l < 0 || l+1 >= len(b.leaves) {
			continue
		}
		x, y := b.leaves[l], b.leaves[l+1]
		if len(x.addr)+len(y.addr) > leafCap/2 {
			continue
		}
		x.tidy(s)
		y.tidy(s)
		before := x.bytes()
		x.absorb(s, y)
		t.memory += x.bytes() - before
		t.drop(s, place{p.branch, l + 1})
		break
	}
	if len(b.leaves) >= branchCap/4 {
		return
	}
	for _, i := range [2]int{p.branch, p.branch - 1} {
		if i < 0 || i+1 >= len(t.branches) {
			continue
		}
		x, y := t.branches[i], t.branches[i+1]
		if len(x.leaves)+len(y.leaves) > branchCap/2 {
			continue
		}
		before := x.bytes() + y.bytes()
		x.absorb(s, &y.fan)
		x.leaves = append(x.leaves, y.leaves...)
		t.memory += x.bytes() - before - branchBytes
		t.branches = slices.Delete(t.branches, i+1, i+2)
		t.fan.delete(s, i+1, i+2)
		return
	}
}

// absorb appends the entries of g, which lie behind those of f.
func (f *fan) absorb(s space, g *fan) {
	f.prefix = append(f.prefix, g.prefix...)
	f.addr = append(f.addr, g.addr...)
	f.rebuild(s, sharedLen(s, f.addr[0], f.addr[len(f.addr)-1]))
}
