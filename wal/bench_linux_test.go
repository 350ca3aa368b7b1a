package wal_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// bareSync writes and syncs pieces one behind the other in an allocated file.
func bareSync(b *testing.B, f *os.File, size int) {
	b.Helper()
	const alloc = 256 << 20
	if err := unix.Fallocate(int(f.Fd()), 0, 0, alloc); err != nil {
		b.Skip(err)
	}
	p := make([]byte, size)
	b.SetBytes(int64(size))
	off := int64(0)
	for b.Loop() {
		if _, err := f.WriteAt(p, off%alloc); err != nil {
			b.Fatal(err)
		}
		off += int64(size)
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
}
