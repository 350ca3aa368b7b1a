package run

import (
	"slices"

	"shiplog/engine/internal/memindex"
)

// Iter walks the pairs of a run, each a key and one version of it: keys ascend, versions of one key descend. It copies
// a block at a time out of the map. The zero value is ready for Init. It belongs to one goroutine.
type Iter struct {
	r     *Run
	path  path
	block []byte
	data  dataBlock
	first []byte // first key of the block, in block

	group   uint32
	i       int
	entries [groupSize]entry // of the group
	n       int
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
	it.r, it.valid, it.err, it.data = r, false, nil, dataBlock{}
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
	return it.enter(toFirst, nil) && it.toGroup(0) && it.settle(0, 0)
}

// Last goes to the last pair.
func (it *Iter) Last() bool {
	return it.enter(toLast, nil) && it.toEnd()
}

// SeekGE goes to the first pair whose key is not below key.
func (it *Iter) SeekGE(key []byte) bool {
	if !it.seek(key) {
		return false
	}
	if it.i == it.n {
		return it.nextGroup()
	}
	return it.settle(it.i, 0)
}

// SeekLT goes to the last pair whose key is below key.
func (it *Iter) SeekLT(key []byte) bool {
	if !it.seek(key) {
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
	it.key = append(it.key[:e.shared], it.block[e.at:e.at+e.rest()]...)
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

// fail ends a move.
func (it *Iter) fail(err error) bool {
	it.valid, it.err = false, err
	return false
}

// enter goes from the root to a data block.
func (it *Iter) enter(w way, key []byte) bool {
	it.valid, it.err = false, nil
	if it.r.foot.entries == 0 {
		return false
	}
	if err := it.descend(w, key); err != nil {
		return it.fail(err)
	}
	return true
}

func (it *Iter) descend(w way, key []byte) (err error) {
	defer it.r.leave(enter(), &err)
	if err := it.r.descend(&it.path, 0, it.r.foot.root.page, w, key); err != nil {
		return err
	}
	return it.load()
}

// move loads the block before (by -1) or behind (by 1). At the end it returns false without an error.
func (it *Iter) move(by int) (ok bool, err error) {
	defer it.r.leave(enter(), &err)
	if ok, err = it.r.move(&it.path, by); !ok {
		return false, err
	}
	return true, it.load()
}

// load copies the block that path leads to. What is read from here on cannot fault.
func (it *Iter) load() error {
	b, err := it.r.block(it.path.page)
	if err != nil {
		return err
	}
	it.block = append(it.block[:0], b...)
	var ok bool
	if it.data, ok = parseData(it.block); !ok {
		return it.corrupt("data block")
	}
	e, ok := it.data.first(it.r.base)
	if !ok {
		return it.corrupt("first entry")
	}
	it.first = it.block[e.at : e.at+e.size]
	return nil
}

func (it *Iter) corrupt(reason string) error { return it.r.corrupt(it.path.page, reason) }

// toGroup decodes the entries of a group.
func (it *Iter) toGroup(g uint32) bool {
	it.group, it.n = g, it.data.count(g)
	e := entry{ref: it.r.base, size: uint32(len(it.first))}
	next := it.data.offset(g)
	for i := range it.n {
		if next = e.decode(it.block, next, it.r.base); next == 0 {
			return it.fail(it.corrupt("entry"))
		}
		it.entries[i] = e
	}
	return true
}

// settle puts the iterator on entry i of the group, given that have bytes of key are right already.
func (it *Iter) settle(i int, have uint32) bool {
	e := &it.entries[i]
	key := slices.Grow(it.key[:have], int(e.size-have))[:e.size]
	copy(key[e.shared:], it.block[e.at:e.at+e.rest()])
	need := e.shared // bytes before it are missing, those before have are not
	for j := i - 1; j >= 0 && need > have; j-- {
		if e := &it.entries[j]; e.shared < need {
			copy(key[e.shared:need], it.block[e.at:])
			need = e.shared
		}
	}
	if need > have {
		copy(key[:need], it.first)
	}
	it.key, it.i, it.valid = key, i, true
	return true
}

// seek finds the group that has the last pair below key and leaves in i the first entry of it that is not, which may
// be the one behind its last.
func (it *Iter) seek(key []byte) bool {
	if !it.enter(byKey, key) {
		return false
	}
	g, known, ok := it.data.group(key, it.first, it.r.base)
	if !ok {
		return it.fail(it.corrupt("group"))
	}
	if !it.toGroup(g) {
		return false
	}
	if g == 0 {
		known = 0
	}
	for it.i = 0; it.i < it.n; it.i++ {
		var c int
		if c, known = it.data.step(&it.entries[it.i], key, known); c >= 0 {
			break
		}
	}
	return true
}

// nextGroup goes to the first entry of the next group.
func (it *Iter) nextGroup() bool {
	if it.group+1 < it.data.groups {
		return it.toGroup(it.group+1) && it.settle(0, 0)
	}
	if ok, err := it.move(1); !ok || err != nil {
		return it.fail(err)
	}
	return it.toGroup(0) && it.settle(0, 0)
}

// prevGroup goes to the last entry of the group before.
func (it *Iter) prevGroup() bool {
	if it.group > 0 {
		return it.toGroup(it.group-1) && it.settle(it.n-1, 0)
	}
	if ok, err := it.move(-1); !ok || err != nil {
		return it.fail(err)
	}
	return it.toEnd()
}

// toEnd goes to the last entry of the block.
func (it *Iter) toEnd() bool { return it.toGroup(it.data.groups-1) && it.settle(it.n-1, 0) }
