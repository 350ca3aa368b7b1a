package run

import (
	"math"
	"slices"

	"shiplog/engine/internal/memindex"
)

// Iter walks the pairs of a run, each a key and one version of it: keys ascend, versions of one key descend. It copies
// a group of entries at a time out of the map. The zero value is ready for Init. It belongs to one goroutine.
type Iter struct {
	r    *Run
	path path

	groups, group int    // in the block, and the one that is decoded
	first         []byte // first key of the block
	b             []byte // bytes of the group, and some more

	i, n    int // the entry where the iterator stands, and how many there are
	entries [groupSize]entry
	key     []byte
	valid   bool
	err     error
}

// NewIter returns an iterator that stands nowhere.
func (r *Run) NewIter() *Iter {
	it := &Iter{}
	it.Init(r)
	return it
}

// Init makes the iterator one of r that stands nowhere. Its buffers are used again.
func (it *Iter) Init(r *Run) {
	it.r, it.valid, it.err = r, false, nil
}

// Valid reports whether the iterator stands on a pair.
func (it *Iter) Valid() bool { return it.valid }

// Key returns the key. It is valid until the next move.
func (it *Iter) Key() []byte { return it.key }

// Version returns the version.
func (it *Iter) Version() memindex.Version {
	e := &it.entries[it.i]
	return memindex.Version{Ref: e.ref, Kind: e.kind}
}

// Err returns the error that ended the last move, or nil.
func (it *Iter) Err() error { return it.err }

// First goes to the first pair.
func (it *Iter) First() bool {
	return it.enter(&target{w: toFirst}) && it.settle(0, 0)
}

// Last goes to the last pair.
func (it *Iter) Last() bool {
	return it.enter(&target{w: toLast}) && it.settle(it.n-1, 0)
}

// SeekGE goes to the first pair whose key is not below key.
func (it *Iter) SeekGE(key []byte) bool {
	if !it.enter(&target{byKey, key, math.MaxUint64}) {
		return false
	}
	if it.i == it.n {
		return it.nextGroup()
	}
	return it.settle(it.i, 0)
}

// SeekLT goes to the last pair whose key is below key.
func (it *Iter) SeekLT(key []byte) bool {
	if !it.enter(&target{byKey, key, math.MaxUint64}) {
		return false
	}
	if it.i == 0 {
		return it.prevGroup()
	}
	return it.settle(it.i-1, 0)
}

// Next goes to the next pair.
func (it *Iter) Next() bool {
	if !it.valid {
		return false
	}
	if it.i+1 == it.n {
		return it.nextGroup()
	}
	it.i++
	e := &it.entries[it.i]
	it.key = append(it.key[:e.shared], it.b[e.at:e.at+e.rest()]...)
	return true
}

// Prev goes to the pair before.
func (it *Iter) Prev() bool {
	if !it.valid {
		return false
	}
	if it.i == 0 {
		return it.prevGroup()
	}
	return it.settle(it.i-1, it.entries[it.i].shared)
}

// enter goes from the root to a data block and decodes the group that has the target, or ends before it. In the latter
// case i is n, else it is the first entry not before the target; for the ends, i is of no meaning.
func (it *Iter) enter(to *target) bool {
	it.valid, it.err = false, nil
	if it.r.foot.entries == 0 {
		return false
	}
	if err := it.descend(to); err != nil {
		return it.fail(err)
	}
	return true
}

func (it *Iter) descend(to *target) (err error) {
	defer it.r.leave(enter(), &err)
	if err := it.r.descend(&it.path, 0, it.r.root, to); err != nil {
		return err
	}
	return it.load(to)
}

// move goes to the group before (by -1) or behind (by 1). At the end it returns false without an error.
func (it *Iter) move(by int) (ok bool, err error) {
	defer it.r.leave(enter(), &err)
	if g := it.group + by; g >= 0 && g < it.groups {
		var d dataBlock
		if err := it.open(&d); err != nil {
			return false, err
		}
		return true, it.decode(&d, g)
	}
	if ok, err = it.r.move(&it.path, by); !ok {
		return false, err
	}
	to := target{w: toFirst}
	if by < 0 {
		to.w = toLast
	}
	return true, it.load(&to)
}

// open makes d the block that path leads to.
func (it *Iter) open(d *dataBlock) error {
	b, err := it.r.block(it.path.page)
	if err != nil {
		return err
	}
	if !d.parse(b) {
		return it.corrupt("data block")
	}
	return nil
}

// load enters the block that path leads to.
func (it *Iter) load(to *target) error {
	var d dataBlock
	if err := it.open(&d); err != nil {
		return err
	}
	if !d.readFirst() {
		return it.corrupt("first entry")
	}
	it.groups = d.groups
	it.first = append(it.first[:0], d.first...)
	g, known := 0, 0
	switch to.w {
	case toLast:
		g = d.groups - 1
	case byKey:
		var ok bool
		if g, known, ok = d.find(to.key, to.ref, it.r.base); !ok {
			return it.corrupt("entries")
		}
	}
	if err := it.decode(&d, g); err != nil {
		return err
	}
	if to.w == byKey {
		if g == 0 {
			known = 0
		}
		it.i = it.place(to, known)
	}
	return nil
}

// place returns the first entry of the group that is not before the target, given how many bytes its key shares with
// the first key of the block.
func (it *Iter) place(to *target, known int) int {
	for i := range it.n {
		var c int
		if c, known = it.entries[i].compare(it.b, to.key, known); c > 0 || c == 0 && it.entries[i].ref < to.ref {
			return i
		}
	}
	return it.n
}

// decode copies a group out of the map and decodes its entries.
func (it *Iter) decode(d *dataBlock, g int) error {
	from, to := int(d.offset(g)), d.end(g)
	if from > to {
		return it.corrupt("offset of a group")
	}
	it.b = append(it.b[:0], d.b[from:to+checksumSize]...)
	it.group, it.n = g, d.count(g)
	before, at := &entry{ref: it.r.base, size: uint32(len(it.first))}, uint32(0)
	for i := range it.n {
		e := &it.entries[i]
		e.ref, e.shared, e.size = before.ref, before.shared, before.size
		if at = e.decode(it.b, at, it.r.base); at == 0 {
			return it.corrupt("entry")
		}
		before = e
	}
	return nil
}

// fail ends a move.
func (it *Iter) fail(err error) bool {
	it.valid, it.err = false, err
	return false
}

func (it *Iter) corrupt(reason string) error { return it.r.corrupt(it.path.page, reason) }

// settle puts the iterator on entry i of the group, given that have bytes of key are right already.
func (it *Iter) settle(i int, have uint32) bool {
	e := &it.entries[i]
	key := slices.Grow(it.key[:have], int(e.size-have))[:e.size]
	copy(key[e.shared:], it.b[e.at:e.at+e.rest()])
	need := e.shared // bytes before it are missing, those before have are not
	for j := i - 1; j >= 0 && need > have; j-- {
		if e := &it.entries[j]; e.shared < need {
			copy(key[e.shared:need], it.b[e.at:])
			need = e.shared
		}
	}
	if need > have {
		copy(key[:need], it.first)
	}
	it.key, it.i, it.valid = key, i, true
	return true
}

// nextGroup goes to the first entry of the next group.
func (it *Iter) nextGroup() bool {
	if ok, err := it.move(1); !ok || err != nil {
		return it.fail(err)
	}
	return it.settle(0, 0)
}

// prevGroup goes to the last entry of the group before.
func (it *Iter) prevGroup() bool {
	if ok, err := it.move(-1); !ok || err != nil {
		return it.fail(err)
	}
	return it.settle(it.n-1, 0)
}
