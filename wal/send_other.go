//go:build !linux

package wal

import (
	"io"
	"net"
	"os"
)

// sendFile copies n bytes of f at off to c.
func sendFile(c *net.TCPConn, f *os.File, off, n int64) (int64, error) {
	return io.Copy(c, io.NewSectionReader(f, off, n))
}
