//go:build unix && !linux

package vfs

import (
	"errors"
	"io/fs"
	"syscall"
)

func fallocate(int, int64, int64) error { return errors.ErrUnsupported }

func writeBack(int, int64, int64) error { return errors.ErrUnsupported }

func release([]byte) {}

func prefetch([]byte) bool { return false }

// MajorFaults is how often this process has waited for the disk because of a page that was not in memory; 0 where the system does not
// tell.
func MajorFaults() int64 { return 0 }

func dropCache(int, int64) error { return errors.ErrUnsupported }

func identity(_ string, fi fs.FileInfo) (Identity, error) {
	st := fi.Sys().(*syscall.Stat_t)
	return Identity{Inode: uint64(st.Ino), Birth: birth(st)}, nil
}
