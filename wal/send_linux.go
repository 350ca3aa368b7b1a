package wal

import (
	"errors"
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
	var failed, waited error
	err = src.Control(func(in uintptr) {
		waited = dst.Write(func(out uintptr) bool {
			for sent < n {
				k, e := unix.Sendfile(int(out), int(in), &off, int(min(n-sent, 1<<30)))
				switch {
				case k > 0:
					sent += int64(k)
				case errors.Is(e, syscall.EINTR):
				case errors.Is(e, syscall.EAGAIN):
					return false
				case e != nil:
					failed = fmt.Errorf("sendfile: %w", e)
					return true
				default:
					failed = io.ErrUnexpectedEOF
					return true
				}
			}
			return true
		})
	})
	return sent, errors.Join(err, waited, failed)
}
