//go:build !linux

package wal

import (
	"io"
	"net"
	"os"
)

// sendFile copies n bytes of f at off to c; io.ErrUnexpectedEOF: f ends before.
func sendFile(c *net.TCPConn, f *os.File, off, n int64) (int64, error) {
	sent, err := io.Copy(c, io.NewSectionReader(f, off, n))
	if err == nil && sent < n {
		err = io.ErrUnexpectedEOF
	}
	return sent, err
}
