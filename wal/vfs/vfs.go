// Package vfs is the only way from the log to the disk: open files, shared maps of them, allocation, and the calls
// that make bytes and names durable. [OS] is the real thing; tests put a simulated disk in its place.
//
// Errors of the system are wrapped, never replaced: errors.Is finds fs.ErrNotExist, fs.ErrExist and the errno.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ErrLocked is returned by [FS.Lock] when someone else holds the lock.
var ErrLocked = errors.New("locked by another process")

// FS is a file system. Names are paths of the host's form. All methods may be called concurrently.
//
// Nothing but [File.Sync], [File.Datasync] and [FS.SyncDir] makes anything durable: a new file, a rename and a removal
// survive a loss of power only after SyncDir of the directory that holds the name, whatever was synced in the file.
type FS interface {
	// OpenFile opens a file with the flags of package os (O_RDONLY, O_RDWR, O_CREATE, O_EXCL, O_TRUNC).
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)

	// Remove removes a file or an empty directory. Open files and maps of it stay usable.
	Remove(name string) error

	// Rename moves a name, replacing the target in one step.
	Rename(oldname, newname string) error

	// ReadDir returns the names in a directory, sorted.
	ReadDir(name string) ([]string, error)

	// MkdirAll makes a directory and the missing ones above it.
	MkdirAll(name string, perm fs.FileMode) error

	// SyncDir makes the names in a directory durable: those created, renamed and removed before the call.
	SyncDir(name string) error

	// Lock takes an exclusive lock on a file, which is created if need be, without waiting. The lock ends with Close
	// and with the process, however that ends. It excludes other holders in this process too. The file stays.
	// The error matches [ErrLocked] when it is held.
	Lock(name string) (io.Closer, error)

	// Stat describes a file or directory.
	Stat(name string) (Info, error)
}

// Info describes a file or directory.
type Info struct {
	Size  int64 // bytes
	IsDir bool
	ID    Identity
}

// Identity tells one file or directory from its copy: a copy has another inode or, where the numbers happen to be
// equal, another time of birth. It does not change when the file is renamed, when the file system is mounted
// elsewhere or when the machine restarts. It is comparable.
type Identity struct {
	Inode uint64
	Birth int64 // nanoseconds since 1970; 0 where the file system does not tell
}

// File is an open file. All methods may be called concurrently, Close only once and last.
type File interface {
	io.ReaderAt
	io.WriterAt // a failed write may have stored any part of p
	io.Closer   // makes nothing durable; maps stay usable

	// Size returns the length in bytes.
	Size() (int64, error)

	// Truncate changes the length. What it adds reads as zeros and has no blocks.
	Truncate(size int64) error

	// Allocate gives the bytes [off, off+n) blocks, so that a store there cannot meet a full disk, and makes the file
	// at least off+n long. Bytes inside the old length keep their value; new ones read as zeros. Where the file system
	// refuses to do that, zeros are written behind the old length; holes before it are then not filled.
	// On failure (see [IsNoSpace]) the file has its old length.
	Allocate(off, n int64) error

	// Datasync makes the file's bytes durable, and its length. When it fails, it must not be asked again: pages that
	// were not written may count as clean from then on, and the next call answers without an error. On ext4 even bytes
	// that are then written again into such pages do not get to the disk (blocks that were allocated and never written stay
	// marked so), unless the pages are dropped first: see DropCache.
	Datasync() error

	// Sync is Datasync and makes everything else about the file durable too.
	Sync() error

	// WriteBack asks the system to begin to write the bytes [off, off+n) to the disk, without waiting. It is a hint:
	// success promises nothing, and where it is not supported nothing is done.
	WriteBack(off, n int64) error

	// DropCache asks the system to forget the pages from off on that need not be written, so that the next read and the
	// next write of them meet the disk. It is a hint: pages that are dirty, or mapped by anyone, stay.
	DropCache(off int64) error

	// Map maps the first n bytes, shared with all other maps and writes of the file. It may reach beyond the file's
	// end, but a page wholly beyond the end faults when it is touched, and so does a store into a hole on a full disk
	// and a load from a bad disk: a fault ends the process unless debug.SetPanicOnFault is on in that goroutine.
	Map(n int64, writable bool) (Mapping, error)

	// OSFile returns the file of the host for sendfile and the like, or nil where there is none.
	OSFile() *os.File
}

// Mapping is a part of a file in memory.
type Mapping interface {
	// Bytes returns the mapped bytes. They must not be touched after Close.
	Bytes() []byte

	// Release says that no byte of [off, off+n) will be stored to soon: the system may drop the pages of the map, not of the
	// file. A hint. Stored bytes stay, and the next access finds them again. A page that is in the map dirty costs each
	// sync a message to every processor that runs the process; dropping many at once costs one for all.
	Release(off, n int64)

	// Prefetch asks the system to begin to read those pages of [off, off+n) that it does not hold, and reports whether there were
	// any. It does not wait. A hint: where the system does not tell, it does nothing and answers false.
	Prefetch(off, n int64) (missing bool)

	// Close ends the mapping. Stores that were made through it stay in the file, and are not durable by it.
	Close() error
}

// IsNoSpace reports whether an error says that there is no more room to be had: the disk, or the user's share of it, is full, or a file
// would be larger than the process (RLIMIT_FSIZE) or the file system allows.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// zeroPiece bounds one write of zeros: large enough to be cheap, small enough to take from nobody.
const zeroPiece = 256 << 10

var zeros [zeroPiece]byte

// Target is what [FillZeros] needs of a file.
type Target interface {
	io.WriterAt
	Size() (int64, error)
	Truncate(size int64) error
}

// FillZeros does [File.Allocate] with plain writes, for file systems that cannot allocate. It writes behind the old
// length only, in bounded pieces, and puts the old length back when it fails.
func FillZeros(f Target, off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	for at, end := size, off+n; at < end; {
		piece := min(end-at, zeroPiece-at%zeroPiece)
		if _, err := f.WriteAt(zeros[:piece], at); err != nil {
			return errors.Join(err, restore(f, size))
		}
		at += piece
	}
	return nil
}

// restore cuts a file back to its old length after a failed extension. The blocks go back with it.
func restore(f Target, size int64) error {
	if now, err := f.Size(); err != nil || now <= size {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("cut back after a failed allocation: %w", err)
	}
	return nil
}
