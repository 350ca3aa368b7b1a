//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package resp

import "syscall"

// Without non-blocking access to the socket, pipelines are committed read by read, replies are waited for, and a
// client that left is noticed when it is written to.

func tryRead(syscall.RawConn, []byte) int  { return 0 }
func tryWrite(syscall.RawConn, []byte) int { return 0 }
func gone(syscall.RawConn) bool            { return false }
