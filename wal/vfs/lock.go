//go:build unix

package vfs

import (
	"os"
	"syscall"
)

// lock takes a lock that belongs to the open file: closing another descriptor of it, as with POSIX locks, does not
// release it, and a second open in this process is excluded.
func lock(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = conn.Control(func(fd uintptr) {
		for {
			lockErr = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB)
			if lockErr != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if lockErr == syscall.EWOULDBLOCK {
		return ErrLocked
	}
	return lockErr
}
