package vfs

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// fdatasync makes the drive write its cache too, which fsync does not do on this system.
func fdatasync(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_FULLFSYNC, 0)
	if errors.Is(err, errors.ErrUnsupported) || err == unix.ENOTTY {
		return unix.Fsync(fd) // a network or memory file system
	}
	return err
}

func birth(st *syscall.Stat_t) int64 { return st.Birthtimespec.Nano() }
