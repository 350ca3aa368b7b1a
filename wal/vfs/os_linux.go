package vfs

import (
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fallocate gives blocks without writing them. ENOTSUP (which matches errors.ErrUnsupported) comes from FUSE, NFS
// before 4.2, and file systems that copy on write.
func fallocate(fd int, off, n int64) error { return unix.Fallocate(fd, 0, off, n) }

// fdatasync spares the journal when the length and the blocks have not changed.
func fdatasync(fd int) error { return unix.Fdatasync(fd) }

// writeBack begins to write dirty pages. It waits for a full device queue only, and reports no error of the medium:
// those stay for fdatasync.
func writeBack(fd int, off, n int64) error {
	return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// release takes the pages out of the map of a file; they stay in the cache, dirty if they were.
func release(b []byte) { _ = unix.Madvise(b, unix.MADV_DONTNEED) }

// prefetch begins to read pages that are not in the cache. b is aligned to pages and not longer than maxPrefetch.
func prefetch(b []byte) (missing bool) {
	var resident [maxPrefetch / 4096]byte // of pages: none is smaller
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(unsafe.Pointer(&resident)))
	page := os.Getpagesize()
	for i := 0; i < len(b) && errno == 0; i += page {
		missing = missing || resident[i/page]&1 == 0
	}
	if missing {
		_ = unix.Madvise(b, unix.MADV_WILLNEED)
	}
	return missing
}

// MajorFaults is how often this process has waited for the disk because of a page that was not in memory; 0 where the system does not
// tell.
func MajorFaults() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return int64(u.Majflt) //nolint:unconvert // 32 bits on some machines
}

// dropCache forgets the clean pages from off on.
func dropCache(fd int, off int64) error { return unix.Fadvise(fd, off, 0, unix.FADV_DONTNEED) }

func identity(name string, fi fs.FileInfo) (Identity, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, name, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		// An old kernel, or a filter of system calls: the inode alone has to do.
		return Identity{Inode: fi.Sys().(*syscall.Stat_t).Ino}, nil //nolint:nilerr // the file was there: fi is of it
	}
	id := Identity{Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, nil
}
