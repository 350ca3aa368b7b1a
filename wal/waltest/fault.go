package waltest

import (
	"path/filepath"
	"strings"
	"syscall"
)

// Op is a kind of call, or a set of them.
type Op uint32

// The kinds of calls.
const (
	OpCreate   Op = 1 << iota // OpenFile or Lock that makes a new file
	OpWrite                   // File.WriteAt
	OpTruncate                // File.Truncate, OpenFile with O_TRUNC
	OpAllocate                // File.Allocate
	OpSync                    // File.Sync, File.Datasync
	OpSyncDir                 // FS.SyncDir
	OpRename                  // FS.Rename
	OpRemove                  // FS.Remove
	OpMkdir                   // FS.MkdirAll, for each directory made
	OpOpen                    // OpenFile of a file that exists
	OpRead                    // File.ReadAt
	OpMap                     // File.Map
	OpReadDir                 // FS.ReadDir
	OpStat                    // FS.Stat, File.Size
	OpLock                    // FS.Lock

	// Changes are the calls that change or sync something: the points where a crash makes a difference.
	Changes = OpCreate | OpWrite | OpTruncate | OpAllocate | OpSync | OpSyncDir | OpRename | OpRemove | OpMkdir
)

var opNames = []string{
	"create", "write", "truncate", "allocate", "sync", "syncdir", "rename", "remove", "mkdir", "open", "read", "map",
	"readdir", "stat", "lock",
}

// String names the kinds, joined by "|".
func (o Op) String() string {
	var names []string
	for i, name := range opNames {
		if o&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// Call is one call, as faults and observers see it.
type Call struct {
	Op   Op
	Path string
	Off  int64 // of reads, writes and allocations; the new length of truncations
	Len  int64 // bytes

	node *inode
}

// Forever is a number of times.
const Forever = int(^uint(0) >> 1)

// Fault says which calls go wrong, and how. The zero values of its last fields mean that they fail with EIO.
type Fault struct {
	Op    Op     // kinds of calls; 0: any of [Changes]
	Path  string // pattern (package path/filepath) of the last element of the name; "": any
	Skip  int    // matching calls that are let through first
	Times int    // matching calls that then go wrong; 0: one

	Err   error           // what the call answers; nil: EIO
	Bytes int64           // what a failing write stores first
	Crash bool            // the machine loses power in the middle of the call: it may or may not have taken effect
	Lie   bool            // a sync answers nil and does nothing
	Stall <-chan struct{} // the call waits until this is closed, then goes on as if nothing had happened
}

// Injection is a fault in place.
type Injection struct {
	disk  *Disk
	fault Fault
	seen  int
	hits  int
	over  bool
}

// Inject puts a fault in place. Of several that match a call, the first one injected decides.
func (d *Disk) Inject(f Fault) *Injection {
	if f.Op == 0 {
		f.Op = Changes
	}
	if f.Times == 0 {
		f.Times = 1
	}
	if f.Err == nil {
		f.Err = syscall.EIO
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	in := &Injection{disk: d, fault: f}
	d.faults = append(d.faults, in)
	return in
}

// Hits returns how many calls went wrong by it.
func (in *Injection) Hits() int {
	in.disk.mu.Lock()
	defer in.disk.mu.Unlock()
	return in.hits
}

// End takes the fault away.
func (in *Injection) End() {
	in.disk.mu.Lock()
	defer in.disk.mu.Unlock()
	in.over = true
}

// match counts a call, and reports whether it goes wrong.
func (in *Injection) match(c Call) bool {
	f := &in.fault
	if in.over || f.Op&c.Op == 0 {
		return false
	}
	if f.Path != "" {
		if ok, err := filepath.Match(f.Path, filepath.Base(c.Path)); err != nil || !ok {
			return false
		}
	}
	in.seen++
	if in.seen <= f.Skip || in.seen-f.Skip > f.Times {
		return false
	}
	in.hits++
	return true
}

// Observe calls fn with every call before it is done, under the disk's lock: fn must not call the disk.
func (d *Disk) Observe(fn func(Call)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.observe = fn
}

// Count returns how many calls of these kinds were made, failed ones included.
func (d *Disk) Count(o Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := 0
	for op, n := range d.counts {
		if o&op != 0 {
			sum += n
		}
	}
	return sum
}

// do makes a call: act does it, for a write up to a number of bytes. The lock is held, and given up during a stall.
func (d *Disk) do(c Call, act func(limit int64) error) error {
	if d.crashed {
		return ErrCrashed
	}
	d.counts[c.Op]++
	if d.observe != nil {
		d.observe(c)
	}
	for _, in := range d.faults {
		if !in.match(c) {
			continue
		}
		f := in.fault
		switch {
		case f.Stall != nil:
			d.mu.Unlock()
			<-f.Stall
			d.mu.Lock()
			if d.crashed {
				return ErrCrashed
			}
		case f.Crash:
			if c.Op&(OpSync|OpSyncDir) == 0 {
				_ = act(c.Len) // it is not durable, so crashes find it done and not done
			}
			d.powerOff()
			return ErrCrashed
		case f.Lie:
			return nil
		case c.Op == OpWrite:
			_ = act(min(f.Bytes, c.Len))
			return f.Err
		case c.Op == OpSync:
			c.node.failSync()
			return f.Err
		default:
			return f.Err
		}
		break
	}
	err := act(c.Len)
	d.writeBackSome()
	return err
}

// failSync does to a file what a failed sync does on ext4 and xfs: the dirty pages count as clean, so that the next
// sync succeeds without writing them, and the platter keeps the old bytes. On ext4 that goes on for what is written into
// these pages later, if their blocks were never written before: the system takes them for written then.
func (n *inode) failSync() {
	for _, b := range n.dirty() {
		n.gated[b] = append([]byte(nil), n.visible.block(b)...)
		n.stuck[b] = struct{}{}
	}
	clear(n.touched)
}

// SetCapacity bounds the disk; 0 means no bound. Writes and allocations that need more fail with ENOSPC, in whole for
// an allocation, after what fits for a write. While there is a bound, a store through a map into a hole faults.
func (d *Disk) SetCapacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
	for _, n := range d.inodes {
		d.protect(n)
	}
}

// Used returns how many bytes of the disk hold files.
func (d *Disk) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used()
}

func (d *Disk) used() int64 {
	var blocks int64
	for _, n := range d.inodes {
		blocks += int64(len(n.blocks))
	}
	return blocks * blockSize
}

// FailRange makes the medium lose the bytes [off, off+n) of a file: reads answer EIO, and loads and stores through
// maps fault, by whole pages of memory. With storesOnly, only stores fault. n < 0 means to the end of the file.
func (d *Disk) FailRange(name string, off, n int64, storesOnly bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	node, err := d.lookup(name)
	if err != nil {
		return pathError("fail", name, err)
	}
	end := off + n
	if n < 0 {
		end = 1 << 62
	}
	node.bad = append(node.bad, span{off, end, !storesOnly})
	d.protect(node)
	return nil
}

// HealRange undoes every [Disk.FailRange] of a file.
func (d *Disk) HealRange(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	node, err := d.lookup(name)
	if err != nil {
		return pathError("heal", name, err)
	}
	node.bad = nil
	d.protect(node)
	return nil
}
