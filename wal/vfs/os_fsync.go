//go:build unix && !linux && !darwin

package vfs

import "golang.org/x/sys/unix"

func fdatasync(fd int) error { return unix.Fsync(fd) }
