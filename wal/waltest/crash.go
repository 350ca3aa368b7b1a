package waltest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
)

// powerOff freezes the disk as it is now: stores through maps that come later are not seen.
func (d *Disk) powerOff() {
	d.crashed = true
	for _, n := range d.inodes {
		n.visible = memory{b: bytes.Clone(n.visible.b)}
	}
}

// PowerOff makes every further call answer [ErrCrashed]. See [Disk.Crash].
func (d *Disk) PowerOff() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.crashed {
		d.powerOff()
	}
}

// Crashed reports whether the machine has lost power.
func (d *Disk) Crashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.crashed
}

// Crash returns the disk that the machine finds when power comes back: what was synced, and a part of what was not.
// Seed 0 keeps nothing that was not synced, seed 1 keeps everything, any other a part that depends on the seed alone.
// The receiver is not changed and can be crashed again with another seed. Faults and bounds are not inherited.
func (d *Disk) Crash(seed uint64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &survivors{kind: partly, rng: rand.New(rand.NewPCG(seed, 0))}
	switch seed {
	case 0:
		s.kind = nothing
	case 1:
		s.kind = everything
	default:
		if s.rng.IntN(3) == 0 {
			s.kind = inOrder
		}
	}
	fates := make(map[*fate]bool)
	return d.clone(func(old, n *inode) {
		if old.children == nil {
			n.durable = s.file(old)
			n.visible.b = bytes.Clone(n.durable)
			return
		}
		cut := false
		old.settleInto(n.synced, func(f *fate) bool {
			keep, known := fates[f]
			if !known {
				keep = s.keep(&cut)
				fates[f] = keep
			}
			return keep || f.committed
		})
		for name, to := range n.synced {
			n.children[name] = to
		}
	})
}

// Kill returns the disk that the next process finds after this one was killed: all that was written, synced or not,
// and no lock. The receiver goes on apart from it.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.clone(func(old, n *inode) {
		if old.children != nil {
			for name, to := range old.children {
				n.children[name] = to
			}
			for name, to := range old.synced {
				n.synced[name] = to
			}
			n.changes = slices.Clone(old.changes)
			return
		}
		n.visible.b = bytes.Clone(old.visible.b)
		n.durable = bytes.Clone(old.durable)
		for b := range old.touched {
			n.touched[b] = struct{}{}
		}
		for b, p := range old.gated {
			n.gated[b] = bytes.Clone(p)
		}
		for b := range old.stuck {
			n.stuck[b] = struct{}{}
		}
	})
	c.capacity = d.capacity
	return c
}

// clone copies the tree, each inode by fill, which is given the old one and the new. Links that fill copies as they
// are lead to old inodes; they are replaced.
func (d *Disk) clone(fill func(old, n *inode)) *Disk {
	c := &Disk{counts: make(map[Op]int), nextID: d.nextID}
	twins := make(map[*inode]*inode)
	fates := make(map[*fate]*fate)
	var twin func(old *inode) *inode
	twin = func(old *inode) *inode {
		if old == nil {
			return nil
		}
		if n := twins[old]; n != nil {
			return n
		}
		n := c.newInode(old.children != nil)
		n.id, n.birth = old.id, old.birth
		twins[old] = n
		fill(old, n)
		if old.children == nil {
			for b := int64(0); b*blockSize < int64(len(n.visible.b)); b++ {
				if _, ok := old.blocks[b]; ok || len(bytes.Trim(n.visible.block(b), "\x00")) > 0 {
					n.blocks[b] = struct{}{}
				}
			}
			return n
		}
		for _, links := range []map[string]*inode{n.children, n.synced} {
			names := make([]string, 0, len(links))
			for name := range links {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				links[name] = twin(links[name])
			}
		}
		for i, ch := range n.changes {
			if fates[ch.fate] == nil {
				fates[ch.fate] = &fate{ch.fate.committed}
			}
			n.changes[i] = &change{ch.name, twin(ch.to), fates[ch.fate]}
		}
		return n
	}
	c.root = twin(d.root)
	c.nextID = max(c.nextID, d.nextID)
	c.inodes = nil // those without a name are kept for their directory's sake only
	c.walk(func(_ string, n *inode) {
		n.linked = true
		c.inodes = append(c.inodes, n)
	})
	return c
}

// settleInto puts what is durable of a directory, and the changes that keep allows, into names.
func (dir *inode) settleInto(names map[string]*inode, keep func(*fate) bool) {
	for name, to := range dir.synced {
		names[name] = to
	}
	for _, c := range dir.changes {
		switch {
		case !keep(c.fate):
		case c.to == nil:
			delete(names, c.name)
		default:
			names[c.name] = c.to
		}
	}
}

// survivors decides what survives a crash.
type survivors struct {
	kind int
	rng  *rand.Rand
}

const (
	nothing    = iota // that was not synced
	everything        // as if it had been synced
	partly            // any part
	inOrder           // what came before a point in each file and directory
)

// keep decides about one change of a directory.
func (s *survivors) keep(cut *bool) bool {
	switch s.kind {
	case nothing:
		return false
	case everything:
		return true
	case inOrder:
		*cut = *cut || s.rng.IntN(3) == 0
		return !*cut
	}
	return s.rng.IntN(2) == 0
}

// file returns the bytes of a file that survive.
func (s *survivors) file(n *inode) []byte {
	now := n.visible.b
	switch s.kind {
	case nothing:
		return bytes.Clone(n.durable)
	case everything:
		return s.everything(n)
	}
	dirty := n.dirty()
	size := s.size(int64(len(n.durable)), int64(len(now)))
	out := make([]byte, max(size, int64(len(now)), int64(len(n.durable))))
	copy(out, n.durable)
	cut := len(dirty)
	if s.kind == inOrder {
		cut = s.rng.IntN(len(dirty) + 1)
	}
	for i, b := range dirty {
		switch {
		case s.kind == inOrder && i < cut, s.kind == partly && s.rng.IntN(3) == 0:
			copy(out[b*blockSize:], n.visible.block(b))
		case s.kind == inOrder && i > cut, s.kind == partly && s.rng.IntN(2) == 0:
		default:
			s.tear(out, now, b)
		}
	}
	return out[:size]
}

// everything is what a sync would have left: blocks that count as clean are not written.
func (s *survivors) everything(n *inode) []byte {
	c := &inode{visible: n.visible, durable: bytes.Clone(n.durable), touched: map[int64]struct{}{}, gated: map[int64][]byte{}, stuck: n.stuck}
	for _, b := range n.dirty() {
		c.writeBack(b)
	}
	c.setDurable(int64(len(n.visible.b)))
	return c.durable
}

// tear writes some sectors of a block: the first few, or any.
func (s *survivors) tear(out, now []byte, b int64) {
	first := s.rng.IntN(blockSize/sectorSize + 1)
	scattered := s.rng.IntN(2) == 0
	for i := range blockSize / sectorSize {
		from := int(b)*blockSize + i*sectorSize
		if from >= len(now) {
			return
		}
		if scattered && s.rng.IntN(2) == 0 || !scattered && i < first {
			copy(out[from:], now[from:min(from+sectorSize, len(now))])
		}
	}
}

// size chooses a length between the durable one and the visible one.
func (s *survivors) size(old, now int64) int64 {
	switch s.rng.IntN(3) {
	case 0:
		return old
	case 1:
		return now
	}
	if now <= old {
		return now // a truncation happens in one step
	}
	size := old + s.rng.Int64N(now-old+1)
	if s.rng.IntN(2) == 0 {
		size = max(old, size/blockSize*blockSize)
	}
	return size
}

// DropCache forgets what need not be written: pages that count as clean are read from the platter again. After a
// failed sync that brings the old bytes back.
func (d *Disk) DropCache() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.inodes {
		n.dropCache(0)
	}
}

// Clean reports whether nothing is left to sync in a file.
func (d *Disk) Clean(name string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if err != nil {
		return false, pathError("clean", name, err)
	}
	return len(n.dirty()) == 0 && len(n.durable) == len(n.visible.b), nil
}

// Open returns what is still open: a description of each file, map and lock.
func (d *Disk) Open() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var open []string
	d.walk(func(name string, n *inode) {
		if n.opens > 0 || len(n.maps) > 0 || n.locked {
			open = append(open, fmt.Sprintf("%s: %d files, %d maps, locked %t", name, n.opens, len(n.maps), n.locked))
		}
	})
	return open
}

// walk calls fn for everything that has a name, in order.
func (d *Disk) walk(fn func(name string, n *inode)) {
	var visit func(name string, n *inode)
	visit = func(name string, n *inode) {
		fn(name, n)
		names := make([]string, 0, len(n.children))
		for base := range n.children {
			names = append(names, base)
		}
		slices.Sort(names)
		for _, base := range names {
			visit(filepath.Join(name, base), n.children[base])
		}
	}
	visit("/", d.root)
}

// edit finds a file and changes it behind everybody's back: what is on the platter and what users see become the same.
func (d *Disk) edit(name string, fn func(n *inode) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if err == nil && n.children != nil {
		err = syscall.EISDIR
	}
	if err == nil {
		err = fn(n)
	}
	if err != nil {
		return pathError("edit", name, err)
	}
	n.durable = bytes.Clone(n.visible.b)
	clear(n.touched)
	clear(n.gated)
	clear(n.stuck)
	return nil
}

// Flip inverts bits of one byte, on the platter and in memory.
func (d *Disk) Flip(name string, off int64, mask byte) error {
	return d.edit(name, func(n *inode) error {
		if off < 0 || off >= int64(len(n.visible.b)) {
			return syscall.EINVAL
		}
		n.visible.b[off] ^= mask
		return nil
	})
}

// Overwrite puts bytes into a file, on the platter and in memory. The length grows as needed.
func (d *Disk) Overwrite(name string, off int64, p []byte) error {
	return d.edit(name, func(n *inode) error {
		d.reserve(n, off, int64(len(p)))
		if err := d.grow(n, off+int64(len(p))); err != nil {
			return err
		}
		copy(n.visible.b[off:], p)
		return nil
	})
}

// TruncateFile sets a file's length, on the platter and in memory.
func (d *Disk) TruncateFile(name string, size int64) error {
	return d.edit(name, func(n *inode) error { return d.resize(n, size) })
}

// WriteFile makes or replaces a file, name and bytes durable. Its directory must exist.
func (d *Disk) WriteFile(name string, p []byte) error {
	d.mu.Lock()
	dir, base, err := d.parent(name)
	if err == nil && dir.children[base] == nil {
		n := d.newInode(false)
		n.linked = true
		dir.children[base] = n
		dir.synced[base] = n
	}
	d.mu.Unlock()
	if err != nil {
		return pathError("write", name, err)
	}
	return d.edit(name, func(n *inode) error {
		if err := d.resize(n, int64(len(p))); err != nil {
			return err
		}
		d.reserve(n, 0, int64(len(p)))
		copy(n.visible.b, p)
		return nil
	})
}

// ReadFile returns the visible bytes of a file, whatever faults are in place.
func (d *Disk) ReadFile(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if err == nil && n.children != nil {
		err = syscall.EISDIR
	}
	if err != nil {
		return nil, pathError("read", name, err)
	}
	return bytes.Clone(n.visible.b), nil
}

// Files returns the visible bytes of every file by name, whatever faults are in place.
func (d *Disk) Files() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := make(map[string][]byte)
	d.walk(func(name string, n *inode) {
		if n.children == nil {
			files[name] = bytes.Clone(n.visible.b)
		}
	})
	return files
}
