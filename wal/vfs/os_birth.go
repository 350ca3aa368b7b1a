//go:build freebsd || netbsd

package vfs

import "syscall"

func birth(st *syscall.Stat_t) int64 { return syscall.TimespecToNsec(st.Birthtimespec) }
