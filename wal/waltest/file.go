package waltest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"

	"shiplog/wal/vfs"
)

var errNegative = errors.New("negative offset")

// file is an open file.
type file struct {
	disk     *Disk
	node     *inode
	name     string
	readOnly bool
	closed   bool
}

// do makes a call on an open file.
func (f *file) do(op string, c Call, act func(limit int64) error) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.closed {
		return pathError(op, f.name, fs.ErrClosed)
	}
	if f.readOnly && c.Op&(OpWrite|OpTruncate|OpAllocate) != 0 {
		return pathError(op, f.name, syscall.EBADF)
	}
	c.Path, c.node = f.name, f.node
	return pathError(op, f.name, f.disk.do(c, act))
}

// ReadAt implements [io.ReaderAt].
func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathError("read", f.name, errNegative)
	}
	err = f.do("read", Call{Op: OpRead, Off: off, Len: int64(len(p))}, func(int64) error {
		b := f.node.visible.b
		if off < int64(len(b)) {
			end := min(off+int64(len(p)), int64(len(b)))
			for _, s := range f.node.bad {
				if s.loads && s.off < end && off < s.end {
					return syscall.EIO
				}
			}
			n = copy(p, b[off:end])
		}
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements [io.WriterAt].
func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathError("write", f.name, errNegative)
	}
	err = f.do("write", Call{Op: OpWrite, Off: off, Len: int64(len(p))}, func(limit int64) error {
		fits := f.disk.reserve(f.node, off, limit)
		if fits > 0 {
			if err := f.disk.grow(f.node, off+fits); err != nil {
				return err
			}
			copy(f.node.visible.b[off:], p[:fits])
			for b := off / blockSize; b <= (off+fits-1)/blockSize; b++ {
				f.node.touched[b] = struct{}{}
			}
		}
		n = int(fits)
		if fits < limit {
			return syscall.ENOSPC
		}
		return nil
	})
	return n, err
}

// Size implements [vfs.File].
func (f *file) Size() (size int64, err error) {
	err = f.do("stat", Call{Op: OpStat}, func(int64) error {
		size = int64(len(f.node.visible.b))
		return nil
	})
	return size, err
}

// Truncate implements [vfs.File].
func (f *file) Truncate(size int64) error {
	if size < 0 {
		return pathError("truncate", f.name, syscall.EINVAL)
	}
	return f.do("truncate", Call{Op: OpTruncate, Off: size}, func(int64) error { return f.disk.resize(f.node, size) })
}

// Allocate implements [vfs.File].
func (f *file) Allocate(off, n int64) error {
	if off < 0 || n <= 0 || off > math.MaxInt64-n {
		return pathError("allocate", f.name, syscall.EINVAL)
	}
	return f.do("allocate", Call{Op: OpAllocate, Off: off, Len: n}, func(int64) error {
		if !f.disk.room(f.node, off, n) {
			return syscall.ENOSPC
		}
		f.disk.reserve(f.node, off, n)
		return f.disk.grow(f.node, off+n)
	})
}

// Datasync implements [vfs.File].
func (f *file) Datasync() error { return f.sync("fdatasync") }

// Sync implements [vfs.File].
func (f *file) Sync() error { return f.sync("fsync") }

func (f *file) sync(op string) error {
	return f.do(op, Call{Op: OpSync}, func(int64) error {
		n := f.node
		for _, b := range n.dirty() {
			n.writeBack(b)
		}
		n.setDurable(int64(len(n.visible.b)))
		clear(n.touched)
		return nil
	})
}

// WriteBack implements [vfs.File]: a hint, that is taken only by a disk that writes back at random.
func (f *file) WriteBack(off, n int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.closed {
		return pathError("sync_file_range", f.name, fs.ErrClosed)
	}
	if f.disk.idle == nil || f.disk.crashed {
		return nil
	}
	for _, b := range f.node.dirty() {
		if b >= off/blockSize && b*blockSize < off+n && f.disk.idle.IntN(2) == 0 {
			f.node.writeBack(b)
		}
	}
	return nil
}

// DropCache implements [vfs.File].
func (f *file) DropCache(off int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.closed {
		return pathError("fadvise", f.name, fs.ErrClosed)
	}
	if len(f.node.maps) == 0 && !f.disk.crashed {
		f.node.dropCache(off / blockSize)
	}
	return nil
}

// Map implements [vfs.File].
func (f *file) Map(n int64, writable bool) (vfs.Mapping, error) {
	if n <= 0 || n > math.MaxInt {
		return nil, pathError("mmap", f.name, syscall.EINVAL)
	}
	if writable && f.readOnly {
		return nil, pathError("mmap", f.name, syscall.EACCES)
	}
	var m *mapping
	err := f.do("mmap", Call{Op: OpMap, Len: n}, func(int64) error {
		b, err := f.node.visible.share(int(n), writable)
		if err != nil {
			return err
		}
		m = &mapping{disk: f.disk, node: f.node, b: b, writable: writable}
		f.node.maps = append(f.node.maps, m)
		f.disk.protect(f.node)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// OSFile implements [vfs.File].
func (f *file) OSFile() *os.File { return nil }

// Close implements [io.Closer].
func (f *file) Close() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.closed {
		return pathError("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	f.node.opens--
	f.disk.drop(f.node)
	return nil
}

// mapping is a map of a file.
type mapping struct {
	disk     *Disk
	node     *inode
	b        []byte
	writable bool
}

// Bytes implements [vfs.Mapping].
func (m *mapping) Bytes() []byte { return m.b }

// Release implements [vfs.Mapping]: it does nothing.
func (m *mapping) Release(int64, int64) {}

// Prefetch implements [vfs.Mapping]: all is in memory.
func (m *mapping) Prefetch(int64, int64) bool { return false }

// Close implements [vfs.Mapping].
func (m *mapping) Close() error {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	i := slices.Index(m.node.maps, m)
	if i < 0 {
		return nil
	}
	m.node.maps = slices.Delete(m.node.maps, i, i+1)
	b := m.b
	m.b = nil
	m.disk.drop(m.node)
	return unshare(b)
}

// protect sets what loads and stores through the maps of a file do, page by page.
func (d *Disk) protect(n *inode) {
	page := int64(os.Getpagesize())
	for _, m := range n.maps {
		access := func(p int64) access {
			a := accessLoad
			if m.writable {
				a = accessStore
			}
			for _, s := range n.bad {
				if s.off < (p+1)*page && p*page < s.end {
					if s.loads {
						return accessNone
					}
					a = accessLoad
				}
			}
			if d.capacity > 0 {
				if _, ok := n.blocks[p*page/blockSize]; !ok {
					a = accessLoad
				}
			}
			return a
		}
		pages := (int64(len(m.b)) + page - 1) / page
		for from := int64(0); from < pages; {
			to := from + 1
			for to < pages && access(to) == access(from) {
				to++
			}
			restrict(m.b, from*page, min(to*page, int64(len(m.b))), access(from))
			from = to
		}
	}
}

// reserve gives blocks to [off, off+n) and returns how many bytes of that have room now.
func (d *Disk) reserve(n *inode, off, size int64) int64 {
	if size <= 0 {
		return 0
	}
	free := int64(math.MaxInt64)
	if d.capacity > 0 {
		free = (d.capacity - d.used()) / blockSize
	}
	fits, before := size, len(n.blocks)
	for b := off / blockSize; b <= (off+size-1)/blockSize; b++ {
		if _, ok := n.blocks[b]; ok {
			continue
		}
		if free <= 0 {
			fits = max(0, b*blockSize-off)
			break
		}
		free--
		n.blocks[b] = struct{}{}
	}
	if d.capacity > 0 && len(n.blocks) != before {
		d.protect(n)
	}
	return fits
}

// room reports whether the whole of [off, off+n) has blocks or can be given some.
func (d *Disk) room(n *inode, off, size int64) bool {
	if d.capacity == 0 {
		return true
	}
	need := int64(0)
	for b := off / blockSize; b <= (off+size-1)/blockSize; b++ {
		if _, ok := n.blocks[b]; !ok {
			need++
		}
	}
	return need*blockSize <= d.capacity-d.used()
}

// grow makes a file at least size long.
func (d *Disk) grow(n *inode, size int64) error {
	if size <= int64(len(n.visible.b)) {
		return nil
	}
	if size > maxFile {
		return syscall.EFBIG
	}
	return n.visible.resize(size)
}

// resize makes a file exactly size long.
func (d *Disk) resize(n *inode, size int64) error {
	if size > maxFile {
		return syscall.EFBIG
	}
	if size < int64(len(n.visible.b)) {
		for b := range n.blocks {
			if b*blockSize >= size {
				delete(n.blocks, b)
				delete(n.touched, b)
				delete(n.gated, b)
				delete(n.stuck, b)
			}
		}
		if size%blockSize != 0 {
			n.touched[size/blockSize] = struct{}{}
		}
	}
	if err := n.visible.resize(size); err != nil {
		return err
	}
	if d.capacity > 0 {
		d.protect(n)
	}
	return nil
}

// block returns the bytes of a block; the last may be short.
func (m *memory) block(b int64) []byte {
	return m.b[min(b*blockSize, int64(len(m.b))):min((b+1)*blockSize, int64(len(m.b)))]
}

// dirty returns the blocks that a sync would write, in order.
func (n *inode) dirty() []int64 {
	var dirty []int64
	for b := int64(0); b*blockSize < int64(len(n.visible.b)); b++ {
		now := n.visible.block(b)
		_, dirt := n.touched[b]
		if !dirt {
			clean, gated := n.gated[b]
			if !gated {
				clean = n.durable[min(b*blockSize, int64(len(n.durable))):min((b+1)*blockSize, int64(len(n.durable)))]
			}
			dirt = !equalPadded(now, clean)
		}
		if dirt {
			dirty = append(dirty, b)
		}
	}
	return dirty
}

// equalPadded compares two blocks of which one may lack zeros at its end.
func equalPadded(a, b []byte) bool {
	if len(a) < len(b) {
		a, b = b, a
	}
	return bytes.Equal(a[:len(b)], b) && len(bytes.TrimRight(a[len(b):], "\x00")) == 0
}

// writeBack puts a block on the platter, which grows as far as needed.
func (n *inode) writeBack(b int64) {
	now := n.visible.block(b)
	if _, stuck := n.stuck[b]; stuck {
		n.gated[b] = bytes.Clone(now)
		delete(n.touched, b)
		return
	}
	if end := b*blockSize + int64(len(now)); end > int64(len(n.durable)) {
		n.setDurable(end)
	}
	copy(n.durable[b*blockSize:], now)
	delete(n.touched, b)
	delete(n.gated, b)
}

// dropCache forgets blocks that count as clean, from a block on.
func (n *inode) dropCache(from int64) {
	dirty := n.dirty()
	for b := range n.gated {
		if b < from || slices.Contains(dirty, b) {
			continue
		}
		p := n.visible.block(b)
		clear(p)
		copy(p, n.durable[min(b*blockSize, int64(len(n.durable))):])
		delete(n.gated, b)
		delete(n.stuck, b)
	}
}

// setDurable sets the length on the platter.
func (n *inode) setDurable(size int64) {
	if size <= int64(len(n.durable)) {
		clear(n.durable[size:])
		n.durable = n.durable[:size]
		return
	}
	n.durable = slices.Grow(n.durable, int(size)-len(n.durable))
	old := len(n.durable)
	n.durable = n.durable[:size]
	clear(n.durable[old:])
}

// WriteBackAtRandom makes the disk write back some dirty blocks after some calls, as the system does when it pleases,
// so that a crash may find bytes that were overwritten since.
func (d *Disk) WriteBackAtRandom(seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = rand.New(rand.NewPCG(seed, 1))
}

func (d *Disk) writeBackSome() {
	if d.idle == nil || d.idle.IntN(4) != 0 {
		return
	}
	n := d.inodes[d.idle.IntN(len(d.inodes))]
	if n.children != nil {
		return
	}
	for _, b := range n.dirty() {
		if d.idle.IntN(2) == 0 {
			n.writeBack(b)
		}
	}
}
