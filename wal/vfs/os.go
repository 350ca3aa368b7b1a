//go:build unix

package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS is the host's file system.
var OS FS = osFS{}

// Descriptors is how many files, sockets included, this process may have open at once (RLIMIT_NOFILE).
func Descriptors() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxInt
	}
	return int(min(uint64(l.Cur), math.MaxInt)) //nolint:unconvert // signed on some systems
}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f}, nil
}

func (osFS) Remove(name string) error { return os.Remove(name) }

func (osFS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

func (osFS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }

func (osFS) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) {
		err = nil // the file system has no such call for directories: names are durable by its own means
	}
	return errors.Join(err, d.Close())
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		_ = f.Close() // nothing was written
		return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	return f, nil
}

func (osFS) Stat(name string) (Info, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return Info{}, err
	}
	id, err := identity(name, fi)
	if err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return Info{Size: fi.Size(), IsDir: fi.IsDir(), ID: id}, nil
}

type osFile struct{ f *os.File }

func (f *osFile) ReadAt(p []byte, off int64) (int, error)  { return f.f.ReadAt(p, off) }
func (f *osFile) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }
func (f *osFile) Truncate(size int64) error                { return f.f.Truncate(size) }
func (f *osFile) Sync() error                              { return f.f.Sync() }
func (f *osFile) Close() error                             { return f.f.Close() }
func (f *osFile) OSFile() *os.File                         { return f.f }

func (f *osFile) Size() (int64, error) {
	fi, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f *osFile) Allocate(off, n int64) error {
	if off < 0 || n <= 0 || off > math.MaxInt64-n {
		return &fs.PathError{Op: "allocate", Path: f.f.Name(), Err: syscall.EINVAL}
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	err = f.control(func(fd int) error { return fallocate(fd, off, n) })
	if err == nil {
		return nil
	}
	if errors.Is(err, errors.ErrUnsupported) {
		err = FillZeros(f, off, n)
	} else {
		err = errors.Join(err, restore(f, size))
	}
	if err != nil {
		return fmt.Errorf("allocate %d bytes at %d of %s: %w", n, off, f.f.Name(), err)
	}
	return nil
}

func (f *osFile) Datasync() error {
	if err := f.control(fdatasync); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) WriteBack(off, n int64) error {
	err := f.control(func(fd int) error { return writeBack(fd, off, n) })
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return &fs.PathError{Op: "sync_file_range", Path: f.f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) DropCache(off int64) error {
	off -= off % int64(os.Getpagesize()) // the system keeps pages that are named in part
	err := f.control(func(fd int) error { return dropCache(fd, off) })
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return &fs.PathError{Op: "fadvise", Path: f.f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) Map(n int64, writable bool) (Mapping, error) {
	if n <= 0 || n > math.MaxInt {
		return nil, &fs.PathError{Op: "mmap", Path: f.f.Name(), Err: syscall.EINVAL}
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	var m osMapping
	err := f.control(func(fd int) (err error) {
		m.b, err = unix.Mmap(fd, 0, int(n), prot, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: f.f.Name(), Err: err}
	}
	return &m, nil
}

// control runs a system call on the descriptor, which cannot be closed meanwhile, again for as long as a signal
// interrupts it.
func (f *osFile) control(call func(fd int) error) error {
	conn, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		for {
			callErr = call(int(fd))
			if !errors.Is(callErr, syscall.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return callErr
}

type osMapping struct{ b []byte }

func (m *osMapping) Bytes() []byte { return m.b }

// Release does so for whole pages.
func (m *osMapping) Release(off, n int64) {
	page := int64(os.Getpagesize())
	end := min(off+n, int64(len(m.b))) &^ (page - 1)
	if off = (off + page - 1) &^ (page - 1); off < end {
		release(m.b[off:end])
	}
}

// maxPrefetch is how many bytes Prefetch asks for at once.
const maxPrefetch = 256 << 10

// Prefetch does so for at most maxPrefetch bytes.
func (m *osMapping) Prefetch(off, n int64) bool {
	page := int64(os.Getpagesize())
	end := min((off+n+page-1)&^(page-1), int64(len(m.b)))
	off &^= page - 1
	return off < end && prefetch(m.b[off:min(end, off+maxPrefetch)])
}

func (m *osMapping) Close() error {
	if m.b == nil {
		return nil
	}
	b := m.b
	m.b = nil
	return os.NewSyscallError("munmap", unix.Munmap(b))
}
