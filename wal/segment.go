package wal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"shiplog/wal/vfs"
)

// segment is one file of the log. All fields but the handle are immutable once the segment is in a segList.
type segment struct {
	path   string
	header Header
	inside bool // it was begun inside a batch; known only of those that this process has begun

	h       atomic.Pointer[handle] // open file and map, or nil
	gone    error                  // why it is not of the log any more; nil: it is. Guarded by handles.mu
	lastUse atomic.Uint64          // tick of the last use, for eviction

	digestNext atomic.Uint64 // below it noteDigest has nothing to do
	digestMu   sync.Mutex    // guards digests, and changes of digestNext
	digests    []digestMark  // rising; not more often than digestEvery
}

func (s *segment) base() LSN { return s.header.Base }
func (s *segment) end() LSN  { return s.header.Base + LSN(s.header.SegmentSize) }

func segmentName(base LSN) string { return base.String() + ".seg" }

// parseSegmentName returns the base LSN of a segment file's name.
func parseSegmentName(name string) (LSN, bool) {
	if len(name) != 20 || filepath.Ext(name) != ".seg" {
		return 0, false
	}
	base, err := ParseLSN(name[:16])
	return base, err == nil && segmentName(base) == name
}

// segList is an immutable list of adjacent segments. The log's current one is replaced, never changed, so readers
// need no lock.
type segList struct {
	segs []*segment
	size int64 // of each segment
}

// find returns the segment that holds at, or nil.
func (sl *segList) find(at LSN) *segment {
	if len(sl.segs) == 0 || at < sl.segs[0].base() {
		return nil
	}
	i := uint64(at-sl.segs[0].base()) / uint64(sl.size)
	if i >= uint64(len(sl.segs)) {
		return nil
	}
	return sl.segs[i]
}

func (sl *segList) last() *segment {
	if len(sl.segs) == 0 {
		return nil
	}
	return sl.segs[len(sl.segs)-1]
}

// handle is an open segment file with its map. Who uses it holds a pin; an unpinned handle may be closed at any time
// to make room for another. A closed one keeps a pin count so far below zero that no pin is mistaken for success.
type handle struct {
	pins    atomic.Int64
	retired atomic.Bool // close when the last pin goes
	seg     *segment    // whose file it is; nil: a probe's
	file    vfs.File
	m       vfs.Mapping // nil: not mapped, use pread
	data    []byte      // of m
}

const pinsClosed = -1 << 40

func (h *handle) unpin() {
	if h.pins.Add(-1) == 0 && h.retired.Load() {
		h.tryClose()
	}
}

// tryClose closes the handle if nobody has a pin.
func (h *handle) tryClose() bool {
	if !h.pins.CompareAndSwap(0, pinsClosed) {
		return false
	}
	if h.m != nil {
		_ = h.m.Close() // nothing depends on it: stores through the map belong to the file
	}
	_ = h.file.Close() // what was to be durable has been synced
	return true
}

// leave ends a guarded access that began with enter. It must be deferred directly. It turns a fault inside the
// handle's map into an error, and lets every other panic pass.
func (h *handle) leave(old bool, err *error) {
	debug.SetPanicOnFault(old)
	r := recover()
	if r != nil {
		if e := h.fault(r); e != nil {
			*err, r = e, nil
		}
	}
	h.unpin()
	if r != nil {
		panic(r)
	}
}

// leavePinned is leave for an access under a pin that outlives it.
func (h *handle) leavePinned(old bool, err *error) {
	debug.SetPanicOnFault(old)
	if r := recover(); r != nil {
		e := h.fault(r)
		if e == nil {
			panic(r)
		}
		*err = e
	}
}

// errMapFault says what a fault means. The runtime's own words, "invalid memory address", would be taken for an error of the program.
var errMapFault = errors.New("map fault: the disk has not given a page of the file, or the file is shorter than it was")

// enter lets faults of this goroutine come as panics. The result is for leave.
func enter() bool { return debug.SetPanicOnFault(true) }

// fault returns an error if r is a memory fault inside the handle's map, and nil if it is anything else.
func (h *handle) fault(r any) error {
	e, ok := r.(interface {
		error
		Addr() uintptr
	})
	if !ok || len(h.data) == 0 {
		return nil
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(h.data)))
	if a := e.Addr(); a < start || a-start >= uintptr(len(h.data)) {
		return nil
	}
	off := int64(e.Addr() - start)
	if h.seg == nil {
		return fmt.Errorf("%w: offset %d: %w", ErrIO, off, errMapFault)
	}
	return h.seg.ioError(off, errMapFault)
}

// read reads len(p) bytes of the segment at off, without the map.
func (h *handle) read(p []byte, off int64) error {
	if err := readFull(h.file, p, off); err != nil {
		return h.seg.ioError(off, err)
	}
	return nil
}

// ioError names a failure of the medium in the segment's file.
func (s *segment) ioError(off int64, err error) error {
	return &IOError{Path: s.path, LSN: s.base() + LSN(off), Offset: off, Err: err}
}

// handles opens segment files on first use and keeps at most max of them open. It is shared by all segments of a log.
type handles struct {
	fs       vfs.FS
	max      int
	readOnly bool
	noMap    bool // the file system is not coherent: maps do not see writes

	tick   atomic.Uint64 // rises with each handle opened
	mu     sync.Mutex    // guards open, and opening and closing
	open   []*segment
	closed bool
}

// pin returns the segment's handle, opened if need be. The caller must unpin it.
func (c *handles) pin(s *segment) (*handle, error) {
	if h := s.h.Load(); h != nil {
		if h.pins.Add(1) > 0 {
			if t := c.tick.Load(); s.lastUse.Load() != t {
				s.lastUse.Store(t)
			}
			return h, nil
		}
		h.pins.Add(-1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := s.h.Load(); h != nil { // only evict, under mu, closes one that is still in its segment
		h.pins.Add(1)
		return h, nil
	}
	return c.openLocked(s)
}

// openLocked opens file and map, evicting as needed. Where the map is refused it goes on without; where the file is
// refused for want of descriptors it evicts all that it can, and tries again.
func (c *handles) openLocked(s *segment) (*handle, error) {
	switch {
	case c.closed:
		return nil, ErrClosed
	case s.gone != nil: // whoever asks has found it in an older list of segments
		return nil, fmt.Errorf("%w: segment %v", s.gone, s.base())
	}
	for len(c.open) >= c.max && c.evictLocked() {
	}
	flag := os.O_RDWR
	if c.readOnly {
		flag = os.O_RDONLY
	}
	f, err := c.fs.OpenFile(s.path, flag, 0)
	for err != nil && !errors.Is(err, fs.ErrNotExist) && c.evictLocked() {
		f, err = c.fs.OpenFile(s.path, flag, 0)
	}
	if err != nil {
		return nil, s.ioError(0, err)
	}
	return c.handleLocked(s, f), nil
}

// take is pin for a segment that is new, whose file is open: it becomes the handle's. A second descriptor may not be had any more, and then the log could not go on.
func (c *handles) take(s *segment, f vfs.File) (*handle, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	for len(c.open) >= c.max && c.evictLocked() {
	}
	return c.handleLocked(s, f), nil
}

// handleLocked makes a handle of an open file, with a map where that can be had, and pins it.
func (c *handles) handleLocked(s *segment, f vfs.File) *handle {
	h := &handle{seg: s, file: f}
	if !c.noMap && len(c.open) < c.max {
		m, err := f.Map(s.header.SegmentSize, !c.readOnly)
		for err != nil && c.evictLocked() {
			m, err = f.Map(s.header.SegmentSize, !c.readOnly)
		}
		if err == nil {
			h.m, h.data = m, m.Bytes()
		}
	}
	h.pins.Store(1)
	s.lastUse.Store(c.tick.Add(1))
	s.h.Store(h)
	c.open = append(c.open, s)
	return h
}

// evictLocked closes the least recently used handle that has no pins.
func (c *handles) evictLocked() bool {
	for {
		var victim *segment
		at := -1
		for i, s := range c.open {
			if s.h.Load().pins.Load() == 0 && (victim == nil || s.lastUse.Load() < victim.lastUse.Load()) {
				victim, at = s, i
			}
		}
		if victim == nil {
			return false
		}
		if h := victim.h.Load(); h.tryClose() {
			victim.h.Store(nil)
			c.open[at] = c.open[len(c.open)-1]
			c.open = c.open[:len(c.open)-1]
			return true
		}
	}
}

// remove is drop for a segment that leaves the log: its file is not opened any more, and whoever asks for it gets why.
func (c *handles) remove(s *segment, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.gone = why
	c.dropLocked(s)
}

// drop takes a segment's handle out; it is closed when the last pin goes.
func (c *handles) drop(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(s)
}

func (c *handles) dropLocked(s *segment) {
	for i, o := range c.open {
		if o == s {
			c.open[i] = c.open[len(c.open)-1]
			c.open = c.open[:len(c.open)-1]
			break
		}
	}
	if h := s.h.Swap(nil); h != nil {
		h.retired.Store(true)
		h.tryClose()
	}
}

// closeAll drops every handle.
func (c *handles) closeAll() {
	c.mu.Lock()
	c.closed = true
	open := append([]*segment(nil), c.open...)
	c.mu.Unlock()
	for _, s := range open {
		c.drop(s)
	}
}

// readFull reads len(p) bytes at off; what lies past the end of the file reads as zeros, as it does in the log.
func readFull(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n < len(p) && errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	if n < len(p) {
		return err
	}
	return nil
}
