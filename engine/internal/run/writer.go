package run

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"

	"shiplog/engine/internal/memindex"
	"shiplog/wal/vfs"
)

// Info describes a run: what is to be recorded of it elsewhere.
type Info struct {
	From, To       uint64 // range [From, To) of the LSNs whose records it indexes
	Entries        uint64 // versions
	Keys           uint64 // distinct keys
	Deletes        uint64 // entries of kind Delete
	RangeDeletes   int
	Size           int64  // bytes of the file
	Checksum       uint64 // of the footer: tells this run from every other one
	MinRef, MaxRef uint64 // of the entries; 0 if there are none
}

// WriterOptions describe a run to be written.
type WriterOptions struct {
	// From and To are the range [From, To) of LSNs whose records the run indexes. They are recorded, and Refs are
	// stored as distances from the lowest one of From.
	From, To uint64
	// Expected is how many distinct keys will come. The filter is made for it, of 10 bits a key, and kept in memory
	// until Finish: with fewer keys it is shrunk then, with more it lets more misses through.
	Expected uint64
	// WriteBack is after how many bytes the system is asked to begin to write them to the disk, so that the sync at the
	// end has little left to do; 0 and everything below: 2 MiB, which are written at once.
	WriteBack int64
	// ID seeds the checksums; 0: a random one.
	ID uint64
}

// writeSize is how many bytes are written at once, at a multiple of themselves. Linux then keeps the file in pages of this
// size in its cache, and maps them as such, which makes a look-up in a large run a third faster: each touches three
// pages that the processor does not know where to find.
const writeSize = 2 << 20

// Writer writes a run. It keeps a few buffers and the filter in memory, however long the run gets. It belongs to one
// goroutine. After a method has failed, all but Abort fail with the same error.
type Writer struct {
	fs   vfs.FS
	path string
	file vfs.File
	o    WriterOptions
	err  error // of the first call that failed; ErrFinished at the end

	out   []byte // not written yet
	page  uint32 // that out begins with
	begun int64  // up to where writing to the disk was begun

	block     blockBuilder
	continues bool // the block begins with the key that the one before it ends with
	separator []byte
	levels    []indexBuilder
	filter    *filterBuilder

	prev     []byte // key of the last entry
	ref      uint64 // of the last entry
	smallest []byte
	ranges   []RangeDelete
	foot     footer
	info     Info
}

// NewWriter creates the file of a run, which must not exist.
func NewWriter(fsys vfs.FS, path string, o WriterOptions) (*Writer, error) {
	for o.ID == 0 {
		o.ID = rand.Uint64()
	}
	file, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create run: %w", err)
	}
	w := &Writer{fs: fsys, path: path, file: file, o: o, out: make([]byte, 0, 64<<10), filter: newFilter(o.Expected)}
	w.block.base = baseRef(o.From)
	w.levels = make([]indexBuilder, 1)
	w.foot = footer{id: o.ID, from: o.From, to: o.To}
	return w, nil
}

// Add adds a version of a key. Keys must ascend, and the Refs of one key descend ([ErrOrder]); a Ref of
// math.MaxUint64 is none. It keeps no reference to key.
func (w *Writer) Add(key []byte, v memindex.Version) error {
	if w.err != nil {
		return w.err
	}
	if len(key) > memindex.MaxKeyLen || v.Kind > 3 || v.Ref == math.MaxUint64 {
		return w.fail(fmt.Errorf("%w: key of %d bytes, kind %d, ref %d", ErrTooLarge, len(key), v.Kind, v.Ref))
	}
	shared := commonPrefix(w.prev, key)
	same := false
	switch first := w.foot.entries == 0; {
	case first:
		w.smallest = bytes.Clone(key)
		w.foot.minRef = v.Ref
	case shared < len(key) && (shared == len(w.prev) || key[shared] > w.prev[shared]):
	case shared == len(key) && shared == len(w.prev) && v.Ref < w.ref:
		same = true
	default:
		return w.fail(fmt.Errorf("%w: %.64q at %d behind %.64q at %d", ErrOrder, key, v.Ref, w.prev, w.ref))
	}
	if !same {
		w.filter.add(Hash(key))
		w.foot.keys++
	}
	if w.block.n == 0 || !w.block.add(key, shared, v) {
		if err := w.begin(key, shared, same, v); err != nil {
			return err
		}
	}
	w.prev = append(w.prev[:shared], key[shared:]...)
	w.ref = v.Ref
	w.foot.entries++
	if v.Kind == memindex.Delete {
		w.foot.deletes++
	}
	w.foot.minRef, w.foot.maxRef = min(w.foot.minRef, v.Ref), max(w.foot.maxRef, v.Ref)
	return nil
}

// begin writes the block, if there is one, and begins the next one with an entry.
func (w *Writer) begin(key []byte, shared int, same bool, v memindex.Version) error {
	if w.block.n > 0 {
		if err := w.endBlock(); err != nil {
			return err
		}
		// The shortest string above the last key and not above this one.
		w.separator = append(w.separator[:0], key[:min(shared+1, len(key))]...)
	} else {
		w.separator = append(w.separator[:0], key...)
	}
	w.continues = same
	w.block.reset()
	w.block.add(key, 0, v)
	return nil
}

// endBlock writes the data block and enters it into the index.
func (w *Writer) endBlock() error {
	page, b, err := w.alloc(w.block.size())
	if err != nil {
		return err
	}
	w.block.finish(b, w.prev)
	seal(b, w.o.ID, page)
	if w.continues {
		page |= continues
	}
	return w.enter(0, w.separator, page)
}

// enter adds a child to the index block of a level. A full one is written first.
func (w *Writer) enter(level int, separator []byte, page uint32) error {
	if level == len(w.levels) {
		if level == maxLevels {
			return w.fail(fmt.Errorf("%w: more than %d levels", ErrTooLarge, maxLevels))
		}
		w.levels = append(w.levels, indexBuilder{})
	}
	if w.levels[level].full(level) {
		if err := w.endIndex(level); err != nil {
			return err
		}
	}
	w.levels[level].add(separator, page)
	return nil
}

// endIndex writes the index block of a level and enters it into the one above.
func (w *Writer) endIndex(level int) error {
	page, err := w.writeIndex(level)
	if err != nil {
		return err
	}
	x := &w.levels[level]
	page |= x.pages[0] & continues
	separator := bytes.Clone(x.key(0))
	x.reset()
	return w.enter(level+1, separator, page)
}

func (w *Writer) writeIndex(level int) (page uint32, err error) {
	x := &w.levels[level]
	page, b, err := w.alloc(pagesFor(x.size()) * pageSize)
	if err != nil {
		return 0, err
	}
	x.finish(b)
	seal(b, w.o.ID, page)
	return page, nil
}

// next returns the number of the next page.
func (w *Writer) next() uint32 { return w.page + uint32(len(w.out)/pageSize) }

// alloc returns n zero bytes, whole pages, that will be written as they are left, and the number of the first page.
func (w *Writer) alloc(n int) (page uint32, b []byte, err error) {
	for len(w.out) >= writeSize {
		if err := w.write(writeSize); err != nil {
			return 0, nil, err
		}
	}
	page = w.next()
	if uint64(page)+uint64(n/pageSize) > maxPages {
		return 0, nil, w.fail(fmt.Errorf("%w: more than %d pages", ErrTooLarge, maxPages))
	}
	at := len(w.out)
	w.out = slices.Grow(w.out, n)[:at+n]
	b = w.out[at:]
	clear(b)
	return page, b, nil
}

// write writes the first n bytes of what is gathered, whole pages.
func (w *Writer) write(n int) error {
	if _, err := w.file.WriteAt(w.out[:n], int64(w.page)*pageSize); err != nil {
		return w.fail(fmt.Errorf("write run: %w", err))
	}
	w.page += uint32(n / pageSize)
	w.out = w.out[:copy(w.out, w.out[n:])]
	if end := int64(w.page) * pageSize; end-w.begun >= w.o.WriteBack {
		_ = w.file.WriteBack(w.begun, end-w.begun) // a hint: errors of the disk come from the sync
		w.begun = end
	}
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}

// AddRangeDelete adds a range delete, in any order. It keeps no reference to the bounds.
func (w *Writer) AddRangeDelete(d RangeDelete) error {
	if w.err != nil {
		return w.err
	}
	if max(len(d.Start), len(d.End)) > 2*memindex.MaxKeyLen {
		return w.fail(fmt.Errorf("%w: bound of %d bytes", ErrTooLarge, max(len(d.Start), len(d.End))))
	}
	d.Start, d.End = bytes.Clone(d.Start), bytes.Clone(d.End)
	w.ranges = append(w.ranges, d)
	return nil
}

// Finish completes the run and makes its bytes durable; its name is durable once the caller has synced the directory.
// On failure the file is of no use: Abort removes it.
func (w *Writer) Finish() (Info, error) {
	if w.err != nil {
		return Info{}, w.err
	}
	if err := w.finish(); err != nil {
		return Info{}, err
	}
	if err := w.file.Sync(); err != nil {
		return Info{}, w.fail(fmt.Errorf("sync run: %w", err))
	}
	_ = w.file.Close() // all that it could tell is about bytes that are synced
	w.file, w.err = nil, ErrFinished
	return w.info, nil
}

// finish writes everything behind the last entry.
func (w *Writer) finish() error {
	if w.block.n > 0 {
		if err := w.endBlock(); err != nil {
			return err
		}
	}
	level := 0
	for ; level < len(w.levels)-1; level++ {
		if err := w.endIndex(level); err != nil {
			return err
		}
	}
	f := &w.foot
	f.levels = uint32(len(w.levels))
	f.data = w.next()
	if err := w.endFilter(); err != nil {
		return err
	}
	if _, err := w.writeIndex(level); err != nil {
		return err
	}
	f.root = w.next() - f.rootPage()
	if err := w.endBounds(); err != nil {
		return err
	}
	page, b, err := w.alloc(pageSize)
	if err != nil {
		return err
	}
	f.pages = uint64(page) + 1
	copy(b, f.encode())
	w.info = f.info(b)
	for len(w.out) > 0 {
		if err := w.write(min(len(w.out), writeSize)); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) endFilter() error {
	w.filter.fold(w.foot.keys)
	w.foot.filterLines = w.filter.lines
	for rest := w.filter.pages; len(rest) > 0; rest = rest[pageSize:] {
		page, b, err := w.alloc(pageSize)
		if err != nil {
			return err
		}
		copy(b, rest[:pageSize])
		seal(b, w.o.ID, page)
	}
	return nil
}

func (w *Writer) endBounds() error {
	f := &w.foot
	f.ranges = uint32(len(w.ranges))
	block := encodeBounds(w.smallest, w.prev, w.ranges)
	page, b, err := w.alloc(len(block))
	if err != nil {
		return err
	}
	copy(b, block)
	seal(b, w.o.ID, page)
	f.bounds = uint32(len(b) / pageSize)
	return nil
}

// Abort removes the file, unless Finish has succeeded. It may be called at any time and more than once.
func (w *Writer) Abort() {
	if w.file == nil {
		return
	}
	_ = w.file.Close() // nothing of it is wanted
	w.file = nil
	if w.err == nil {
		w.err = ErrFinished
	}
	_ = w.fs.Remove(w.path) // what stays is an orphan, which nothing refers to
}
