package wal

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendFile sends n bytes of f at off by sendfile(2), which copies no byte through user space and answers a fault of
// the medium with an error. It honours the connection's write deadline.
func sendFile(c *net.TCPConn, f *os.File, off, n int64) (sent int64, err error) {
	dst, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	src, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var inner error
	err = src.Control(func(in uintptr) {
		inner = dst.Write(func(out uintptr) bool {
			for sent < n {
				k, e := unix.Sendfile(int(out), int(in), &off, int(min(n-sent, 1<<30)))
				switch {
				case k > 0:
					sent += int64(k)
				case e == syscall.EINTR:
				case e == syscall.EAGAIN:
					return false
				case e != nil:
					err = fmt.Errorf("sendfile: %w", e)
					return true
				default:
					err = io.ErrUnexpectedEOF
					return true
				}
			}
			return true
		})
	})
	_ = inner
	return sent, err
}
