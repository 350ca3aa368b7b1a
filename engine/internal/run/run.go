package run

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
	"shiplog/wal/vfs"
)

// Run is an open run. All methods but Close may be called concurrently.
//
// Every block is verified against its checksum when it is touched for the first time after Open. A block that does not
// validate, then or later, is reported as a [*CorruptError], a failure of the medium under the map as [wal.ErrIO].
type Run struct {
	path   string
	m      vfs.Mapping
	data   []byte // of m
	foot   footer
	base   uint64 // lowest ref
	root   uint32 // first page of the root
	end    uint32 // page behind the root: the blocks that a search may touch
	filter int    // where the filter begins, in bytes
	info   Info
	bounds bounds

	verified []atomic.Uint32 // a bit for each page: a block that begins there has been verified
}

// Open maps a run and verifies its footer, the root of its index, and its range deletes: a few neighbouring pages, however
// long it is. It allocates a bit for each page and what the range deletes take.
func Open(fsys vfs.FS, path string) (_ *Run, err error) {
	file, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	size, err := file.Size()
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	if size < pageSize || size%pageSize != 0 || size/pageSize > maxPages || size > math.MaxInt {
		return nil, &CorruptError{Path: path, Reason: fmt.Sprintf("length %d", size)}
	}
	m, err := file.Map(size, false)
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	r := &Run{path: path, m: m, data: m.Bytes()}
	if err := r.open(); err != nil {
		_ = m.Close() // nothing was stored
		return nil, err
	}
	return r, nil
}

func (r *Run) open() (err error) {
	defer r.leave(enter(), &err)
	pages := uint32(len(r.data) / pageSize)
	last := r.data[len(r.data)-pageSize:]
	switch reason, version := r.foot.decode(last, pages); {
	case reason != "":
		return r.corrupt(pages-1, reason)
	case version != formatVersion:
		return &wal.VersionError{What: "run format", Have: formatVersion, Need: version}
	}
	f := &r.foot
	r.verified = make([]atomic.Uint32, (pages+31)/32)
	r.base = baseRef(f.from)
	r.filter = int(f.data) * pageSize
	r.root = f.rootPage()
	r.end = r.root + f.root
	r.info = f.info(last)
	if _, err := r.block(r.root); err != nil {
		return err
	}
	b := r.data[int(r.end)*pageSize : len(r.data)-pageSize]
	if !sealed(b, f.id, r.end) {
		return r.corrupt(r.end, "checksum of the bounds")
	}
	var ok bool
	if r.bounds, ok = decodeBounds(b, f.ranges); !ok {
		return r.corrupt(r.end, "bounds")
	}
	return nil
}

// Close ends the map. The caller guarantees that no method is running and that no iterator is used afterwards.
func (r *Run) Close() error {
	r.data = nil
	return r.m.Close()
}

// Path returns the name that the run was opened by.
func (r *Run) Path() string { return r.path }

// Info returns what the run says about itself.
func (r *Run) Info() Info { return r.info }

// RangeDeletes returns the range deletes in the order in which they were added. They must not be changed.
func (r *Run) RangeDeletes() []RangeDelete { return r.bounds.ranges }

// Smallest returns the first key, which must not be changed. Without entries there is none: see Info.
func (r *Run) Smallest() []byte { return r.bounds.smallest }

// Largest returns the last key, which must not be changed.
func (r *Run) Largest() []byte { return r.bounds.largest }

func (r *Run) corrupt(page uint32, reason string) error {
	return &CorruptError{Path: r.path, Offset: int64(page) * pageSize, Reason: reason}
}

// enter lets faults of this goroutine come as panics. The result is for leave.
func enter() bool { return debug.SetPanicOnFault(true) }

// leave ends an access to the map that began with enter. It must be deferred directly. It turns a fault inside the map
// into an error, and lets every other panic pass.
func (r *Run) leave(old bool, err *error) {
	debug.SetPanicOnFault(old)
	if x := recover(); x != nil {
		r.fault(x, err)
	}
}

func (r *Run) fault(x any, err *error) {
	e, ok := x.(interface {
		error
		Addr() uintptr
	})
	if ok && len(r.data) > 0 {
		start := uintptr(unsafe.Pointer(unsafe.SliceData(r.data)))
		if a := e.Addr(); a >= start && a-start < uintptr(len(r.data)) {
			*err = fmt.Errorf("%w: run %s offset %d: map fault: the disk has not given a page of the file, or the file is shorter than it was", wal.ErrIO, r.path, a-start)
			return
		}
	}
	panic(x)
}

func (r *Run) isVerified(page uint32) bool { return r.verified[page/32].Load()>>(page%32)&1 != 0 }

// block returns the block that begins at a page, verified once.
func (r *Run) block(page uint32) ([]byte, error) {
	if page >= r.end {
		return nil, r.corrupt(r.root, fmt.Sprintf("page %d in the index", page))
	}
	b := r.data[int(page)*pageSize:]
	n := le.Uint32(b[4:])
	if n == 0 || n > r.end-page {
		return nil, r.corrupt(page, "length of the block")
	}
	b = b[:int(n)*pageSize]
	if !r.isVerified(page) {
		if !sealed(b, r.foot.id, page) {
			return nil, r.corrupt(page, "checksum of the block")
		}
		r.verified[page/32].Or(1 << (page % 32))
	}
	return b, nil
}

// index makes x the index block that begins at a page.
func (r *Run) index(page uint32, x *indexBlock) error {
	b, err := r.block(page)
	if err != nil {
		return err
	}
	if !x.parse(b) {
		return r.corrupt(page, "index block")
	}
	return nil
}

// mayHold asks the filter.
func (r *Run) mayHold(h uint64) (bool, error) {
	at := r.filter + lineOffset(h, r.foot.filterLines)
	if page := uint32(at / pageSize); !r.isVerified(page) {
		if !sealed(r.data[int(page)*pageSize:][:pageSize], r.foot.id, page) {
			return false, r.corrupt(page, "checksum of the filter")
		}
		r.verified[page/32].Or(1 << (page % 32))
	}
	return inLine((*[lineSize]byte)(r.data[at:]), h), nil
}

// path leads from the root to a data block.
type path struct {
	page uint32            // of the data block
	step [maxLevels]onPath // from the root on
}

type onPath struct {
	page  uint32
	child int32
}

// target is where a descent goes: to the pairs of a key from a version below ref on, or if w says so to one of the ends.
type target struct {
	w   way
	key []byte
	ref uint64
}

// way says which child a descent takes.
type way int8

const (
	byKey way = iota
	toFirst
	toLast
)

// descend goes from an index block of a level down to the first data block that may have the target, or to the one
// before it.
func (r *Run) descend(p *path, level int, page uint32, to *target) error {
	var x indexBlock
	for ; level < int(r.foot.levels); level++ {
		if err := r.index(page, &x); err != nil {
			return err
		}
		i := 0
		switch to.w {
		case byKey:
			if i = x.find(to.key); i+1 < x.n && x.continued(i+1, to.key) {
				var err error
				if i, err = r.skip(&x, i, level, to); err != nil {
					return err
				}
			}
		case toLast:
			i = x.n - 1
		}
		p.step[level] = onPath{page, int32(i)}
		page, _ = x.child(i)
	}
	p.page = page
	return nil
}

// skip returns the last child from i on that begins with the pairs before the target: i itself does, those behind it
// may do so with versions of its key that are too new.
func (r *Run) skip(x *indexBlock, i, level int, to *target) (int, error) {
	lo, hi := i, x.n
	for hi-lo > 1 {
		mid := int(uint(lo+hi) / 2)
		before := false
		if x.continued(mid, to.key) {
			page, _ := x.child(mid)
			ref, err := r.firstRef(level+1, page)
			if err != nil {
				return 0, err
			}
			before = ref >= to.ref
		}
		if before {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// firstRef returns the ref of the first entry below an index block of a level, or of the data block below the last.
func (r *Run) firstRef(level int, page uint32) (uint64, error) {
	var p path
	if err := r.descend(&p, level, page, &target{w: toFirst}); err != nil {
		return 0, err
	}
	b, err := r.block(p.page)
	if err != nil {
		return 0, err
	}
	var d dataBlock
	e := entry{ref: r.base}
	if !d.parse(b) || e.decode(b, d.offset(0), r.base) == 0 {
		return 0, r.corrupt(p.page, "first entry")
	}
	return e.ref, nil
}

// move leads to the data block before (by -1) or behind (by 1) the one where p is. At the end it returns false and
// leaves p as it is.
func (r *Run) move(p *path, by int) (bool, error) {
	for level := int(r.foot.levels) - 1; level >= 0; level-- {
		at := &p.step[level]
		var x indexBlock
		if err := r.index(at.page, &x); err != nil {
			return false, err
		}
		i := int(at.child) + by
		if i < 0 || i >= x.n {
			continue
		}
		at.child = int32(i)
		page, _ := x.child(i)
		to := target{w: toFirst}
		if by < 0 {
			to.w = toLast
		}
		return true, r.descend(p, level+1, page, &to)
	}
	return false, nil
}

// Get returns the newest version of key below at. It may be a Delete, and range deletes are not considered. It does
// not allocate.
func (r *Run) Get(key []byte, at uint64) (v memindex.Version, ok bool, err error) {
	return r.GetHashed(key, Hash(key), at)
}

// GetHashed is Get for callers that ask several runs and have the [Hash] of the key.
func (r *Run) GetHashed(key []byte, hash, at uint64) (v memindex.Version, ok bool, err error) {
	defer r.leave(enter(), &err)
	if may, err := r.mayHold(hash); !may {
		return v, false, err
	}
	return r.get(key, at)
}

func (r *Run) get(key []byte, at uint64) (v memindex.Version, ok bool, err error) {
	if r.foot.entries == 0 {
		return v, false, nil
	}
	var p path
	if err := r.descend(&p, 0, r.root, &target{byKey, key, at}); err != nil {
		return v, false, err
	}
	for {
		b, err := r.block(p.page)
		if err != nil {
			return v, false, err
		}
		var d dataBlock
		if !d.parse(b) || !d.readFirst() {
			return v, false, r.corrupt(p.page, "data block")
		}
		v, o := d.get(key, at, r.base)
		switch o {
		case found, absent:
			return v, o == found, nil
		case damaged:
			return v, false, r.corrupt(p.page, "entries")
		}
		if ok, err := r.move(&p, 1); !ok {
			return v, false, err
		}
	}
}

// MayHold reports whether the run may have a version of the key with this [Hash]: false is certain, true is wrong for
// about one key in a hundred.
func (r *Run) MayHold(hash uint64) (may bool, err error) {
	defer r.leave(enter(), &err)
	return r.mayHold(hash)
}
