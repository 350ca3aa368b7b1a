//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package resp

import "syscall"

// tryRead reads what is there, without waiting. What it cannot read, an error too, is left to the next ordinary read.
func tryRead(raw syscall.RawConn, p []byte) (n int) {
	if len(p) == 0 {
		return 0
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, _ = syscall.Read(int(fd), p)
		return true
	})
	return max(n, 0)
}

// tryWrite writes what the kernel takes, without waiting. The rest, and any error, is left to an ordinary write.
func tryWrite(raw syscall.RawConn, p []byte) (n int) {
	_ = raw.Write(func(fd uintptr) bool {
		n, _ = syscall.Write(int(fd), p)
		return true
	})
	return max(n, 0)
}

// gone reports whether the peer has closed the connection, without taking anything from it.
func gone(raw syscall.RawConn) (closed bool) {
	var one [1]byte
	err := raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = (n == 0 && err == nil) || (err != nil && err != syscall.EAGAIN && err != syscall.EINTR)
		return true
	})
	return closed || err != nil
}
