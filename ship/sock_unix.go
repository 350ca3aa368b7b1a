//go:build unix && !linux

package ship

import (
	"errors"
	"syscall"
)

// tryWrite writes what fits into the socket's buffer: Go's sockets are in non-blocking mode.
func tryWrite(fd uintptr, p []byte, _ bool) (int, error) {
	for {
		n, err := syscall.Write(int(fd), p)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return 0, nil
		}
		return max(n, 0), err
	}
}
