// Package waltest holds what tests of the log, and of what is built on it, need of a disk: [Disk], a simulated file
// system in memory that loses power on demand, and real file systems on loop devices that do the same ([Mount]).
//
// A Disk keeps, for each file, the bytes that its users see and the bytes on the platter, and for each directory the
// names that its users see and the changes not yet synced. [Disk.Crash] makes the disk that a machine would find after
// it lost power: synced bytes are kept, of all others a part survives. [Disk.Kill] makes the one that the next process
// finds after this one was killed. [Disk.Inject] makes a chosen call fail, crash, stall, or lie.
//
// The model is harsher than common file systems where those differ: a name is durable by SyncDir of its directory
// alone; unsynced changes of one directory may survive in any combination (a rename as a whole or not at all);
// unsynced blocks of 4 KiB survive in any combination, torn at any sector of 512 bytes; of an unsynced extension any
// part of the length may survive, and bytes never written there read as zeros.
//
// Maps are real shared maps, so a page beyond the end of a file faults, and so does what [Disk.FailRange] names.
// Stores through maps are found by comparison, at syncs and crashes. One thing differs for that reason: a store of
// the value that was there already does not make a page dirty.
package waltest

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"shiplog/wal/vfs"
)

// ErrCrashed is what every call answers after the simulated machine has lost power.
var ErrCrashed = errors.New("waltest: the machine has lost power")

const (
	blockSize  = 4096 // bytes that the system caches and writes back as one
	sectorSize = 512  // bytes that the device writes in one piece
	maxFile    = 1<<31 - 1
)

// Disk is a simulated file system. It implements [vfs.FS]; all methods may be called concurrently. Use [NewDisk].
type Disk struct {
	mu       sync.Mutex
	root     *inode
	inodes   []*inode // every file in use, in order of birth
	nextID   uint64
	capacity int64 // bytes; 0: no bound
	crashed  bool
	faults   []*Injection
	observe  func(Call)
	counts   map[Op]int
	idle     *rand.Rand // writes back at random; nil: never
}

// NewDisk returns an empty disk.
func NewDisk() *Disk {
	d := &Disk{counts: make(map[Op]int)}
	d.root = d.newInode(true)
	return d
}

// inode is a file or a directory.
type inode struct {
	id    uint64
	birth int64

	// A directory.
	children map[string]*inode // what users see; nil for a file
	synced   map[string]*inode // what is on the platter
	changes  []*change         // the difference, in order; each belongs to one name here

	// A file.
	visible memory
	durable []byte
	touched map[int64]struct{} // blocks written by calls since they were last written back
	gated   map[int64][]byte   // blocks that count as clean with these bytes, though the platter has others
	stuck   map[int64]struct{} // blocks whose write failed: what is written there again stays in the cache until that is dropped
	blocks  map[int64]struct{} // blocks that have room on the disk
	bad     []span
	maps    []*mapping
	opens   int
	linked  bool
	locked  bool
}

// change is an unsynced change of one name. The two halves of a rename share fate.
type change struct {
	name string
	to   *inode // nil: the name is removed
	fate *fate
}

// fate of a change: committed once any directory that it touches was synced.
type fate struct{ committed bool }

// span is a range of bytes in a file that the medium has lost.
type span struct {
	off, end int64
	loads    bool // loads fail too, not only stores
}

func (d *Disk) newInode(dir bool) *inode {
	d.nextID++
	n := &inode{id: d.nextID, birth: 1_700_000_000_000_000_000 + int64(d.nextID)}
	if dir {
		n.children = make(map[string]*inode)
		n.synced = make(map[string]*inode)
	} else {
		n.touched = make(map[int64]struct{})
		n.gated = make(map[int64][]byte)
		n.stuck = make(map[int64]struct{})
		n.blocks = make(map[int64]struct{})
	}
	d.inodes = append(d.inodes, n)
	return n
}

// drop forgets an inode that nobody can reach.
func (d *Disk) drop(n *inode) {
	if n.linked || n.opens > 0 || len(n.maps) > 0 {
		return
	}
	if i := slices.Index(d.inodes, n); i >= 0 {
		d.inodes = slices.Delete(d.inodes, i, i+1)
	}
}

// parts splits a name; the working directory is the root.
func parts(name string) []string {
	clean := filepath.ToSlash(filepath.Clean("/" + name))
	return strings.FieldsFunc(clean, func(r rune) bool { return r == '/' })
}

// lookup finds a file or directory.
func (d *Disk) lookup(name string) (*inode, error) {
	n := d.root
	for _, part := range parts(name) {
		if n.children == nil {
			return nil, syscall.ENOTDIR
		}
		if n = n.children[part]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

// parent finds the directory of a name.
func (d *Disk) parent(name string) (dir *inode, base string, err error) {
	p := parts(name)
	if len(p) == 0 {
		return nil, "", syscall.EINVAL
	}
	dir, err = d.lookup(strings.Join(p[:len(p)-1], "/"))
	if err == nil && dir.children == nil {
		err = syscall.ENOTDIR
	}
	return dir, p[len(p)-1], err
}

// link changes one name for its users; it is durable only when fate says so.
func (dir *inode) link(name string, to *inode, f *fate) {
	if to == nil {
		delete(dir.children, name)
	} else {
		dir.children[name] = to
		to.linked = true
	}
	dir.changes = append(dir.changes, &change{name, to, f})
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// OpenFile implements [vfs.FS].
func (d *Disk) OpenFile(name string, flag int, _ fs.FileMode) (vfs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.open(name, flag)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	n.opens++
	return &file{disk: d, node: n, name: filepath.Clean(name), readOnly: flag&(os.O_RDWR|os.O_WRONLY) == 0}, nil
}

func (d *Disk) open(name string, flag int) (*inode, error) {
	n, err := d.lookup(name)
	switch {
	case err == nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, syscall.EEXIST
	case err == nil && n.children != nil:
		return nil, syscall.EISDIR
	case err == nil:
		err = d.do(Call{Op: OpOpen, Path: name}, func(int64) error { return nil })
		if err == nil && flag&os.O_TRUNC != 0 {
			err = d.do(Call{Op: OpTruncate, Path: name}, func(int64) error { return d.resize(n, 0) })
		}
		return n, err
	case errors.Is(err, syscall.ENOENT) && flag&os.O_CREATE != 0:
		return d.create(name)
	}
	return nil, err
}

func (d *Disk) create(name string) (*inode, error) {
	dir, base, err := d.parent(name)
	if err != nil {
		return nil, err
	}
	var n *inode
	err = d.do(Call{Op: OpCreate, Path: name}, func(int64) error {
		n = d.newInode(false)
		dir.link(base, n, new(fate))
		return nil
	})
	return n, err
}

// Remove implements [vfs.FS].
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, base, err := d.parent(name)
	if err == nil {
		switch n := dir.children[base]; {
		case n == nil:
			err = syscall.ENOENT
		case len(n.children) > 0:
			err = syscall.ENOTEMPTY
		default:
			err = d.do(Call{Op: OpRemove, Path: name}, func(int64) error {
				dir.link(base, nil, new(fate))
				n.linked = false
				d.drop(n)
				return nil
			})
		}
	}
	return pathError("remove", name, err)
}

// Rename implements [vfs.FS].
func (d *Disk) Rename(oldname, newname string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	from, oldbase, err := d.parent(oldname)
	if err != nil {
		return pathError("rename", oldname, err)
	}
	to, newbase, err := d.parent(newname)
	if err != nil {
		return pathError("rename", newname, err)
	}
	n := from.children[oldbase]
	if n == nil {
		return pathError("rename", oldname, syscall.ENOENT)
	}
	target := to.children[newbase]
	if target == n {
		return nil
	}
	if target != nil && (target.children != nil) != (n.children != nil) {
		return pathError("rename", newname, syscall.EEXIST)
	}
	if target != nil && len(target.children) > 0 {
		return pathError("rename", newname, syscall.ENOTEMPTY)
	}
	err = d.do(Call{Op: OpRename, Path: newname}, func(int64) error {
		f := new(fate)
		from.link(oldbase, nil, f)
		to.link(newbase, n, f)
		if target != nil {
			target.linked = false
			d.drop(target)
		}
		return nil
	})
	return pathError("rename", oldname, err)
}

// ReadDir implements [vfs.FS].
func (d *Disk) ReadDir(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if err == nil && n.children == nil {
		err = syscall.ENOTDIR
	}
	if err == nil {
		err = d.do(Call{Op: OpReadDir, Path: name}, func(int64) error { return nil })
	}
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	names := make([]string, 0, len(n.children))
	for base := range n.children {
		names = append(names, base)
	}
	slices.Sort(names)
	return names, nil
}

// MkdirAll implements [vfs.FS].
func (d *Disk) MkdirAll(name string, _ fs.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, at := d.root, ""
	for _, part := range parts(name) {
		at += "/" + part
		next := n.children[part]
		if next == nil {
			err := d.do(Call{Op: OpMkdir, Path: at}, func(int64) error {
				next = d.newInode(true)
				n.link(part, next, new(fate))
				return nil
			})
			if err != nil {
				return pathError("mkdir", at, err)
			}
		}
		if next.children == nil {
			return pathError("mkdir", at, syscall.ENOTDIR)
		}
		n = next
	}
	return nil
}

// SyncDir implements [vfs.FS].
func (d *Disk) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if err == nil && n.children == nil {
		err = syscall.ENOTDIR
	}
	if err == nil {
		err = d.do(Call{Op: OpSyncDir, Path: name}, func(int64) error {
			for _, c := range n.changes {
				c.fate.committed = true
			}
			n.settle(func(*fate) bool { return true })
			return nil
		})
	}
	return pathError("fsync", name, err)
}

// settle makes the changes that keep allows durable, and forgets the rest.
func (dir *inode) settle(keep func(*fate) bool) {
	for _, c := range dir.changes {
		switch {
		case !keep(c.fate):
		case c.to == nil:
			delete(dir.synced, c.name)
		default:
			dir.synced[c.name] = c.to
		}
	}
	dir.changes = nil
}

// Lock implements [vfs.FS].
func (d *Disk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if errors.Is(err, syscall.ENOENT) {
		n, err = d.create(name)
	}
	if err == nil {
		err = d.do(Call{Op: OpLock, Path: name}, func(int64) error {
			if n.locked {
				return vfs.ErrLocked
			}
			n.locked = true
			return nil
		})
	}
	if err != nil {
		return nil, pathError("lock", name, err)
	}
	return &held{disk: d, node: n}, nil
}

// held is a lock of a file.
type held struct {
	disk *Disk
	node *inode
}

// Close releases the lock.
func (h *held) Close() error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if !h.node.locked {
		return fs.ErrClosed
	}
	h.node.locked = false
	return nil
}

// Stat implements [vfs.FS].
func (d *Disk) Stat(name string) (vfs.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.lookup(name)
	if err == nil {
		err = d.do(Call{Op: OpStat, Path: name}, func(int64) error { return nil })
	}
	if err != nil {
		return vfs.Info{}, pathError("stat", name, err)
	}
	return vfs.Info{
		Size:  int64(len(n.visible.b)),
		IsDir: n.children != nil,
		ID:    vfs.Identity{Inode: n.id, Birth: n.birth},
	}, nil
}
