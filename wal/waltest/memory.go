//go:build unix

package waltest

import (
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// memory holds the visible bytes of a file: a plain slice until the file is mapped for the first time, then a nameless
// file of the host that the maps share with b.
type memory struct {
	b      []byte // the file's bytes
	region *region
}

// region is a nameless file and one map of it, which the disk itself reads and writes.
type region struct {
	file *os.File
	view []byte
}

func (m *memory) resize(size int64) error {
	old := len(m.b)
	if m.region == nil {
		if int(size) > old {
			m.b = slices.Grow(m.b, int(size)-old)[:size]
			clear(m.b[old:])
		}
		m.b = m.b[:size]
		return nil
	}
	if int(size) < old {
		clear(m.b[size:]) // the rest of the last page stays mapped
	}
	if err := m.region.file.Truncate(size); err != nil {
		return err
	}
	if int(size) > len(m.region.view) {
		if err := m.region.remap(2 * int(size)); err != nil {
			return err
		}
	}
	m.b = m.region.view[:size]
	return nil
}

func (r *region) remap(n int) error {
	view, err := unix.Mmap(int(r.file.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if r.view != nil {
		_ = unix.Munmap(r.view)
	}
	r.view = view
	return nil
}

// share maps the first n bytes.
func (m *memory) share(n int, writable bool) ([]byte, error) {
	if m.region == nil {
		f, err := nameless()
		if err != nil {
			return nil, err
		}
		r := &region{file: f}
		if err := r.remap(max(n, len(m.b))); err != nil {
			return nil, err
		}
		if err := f.Truncate(int64(len(m.b))); err != nil {
			return nil, err
		}
		copy(r.view, m.b)
		m.b = r.view[:len(m.b)]
		m.region = r
		runtime.AddCleanup(m, func(r *region) { r.close() }, r)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	return unix.Mmap(int(m.region.file.Fd()), 0, n, prot, unix.MAP_SHARED)
}

func (r *region) close() {
	_ = unix.Munmap(r.view)
	_ = r.file.Close()
}

func unshare(b []byte) error { return unix.Munmap(b) }

// access is what a page allows.
type access uint8

const (
	accessNone access = iota
	accessLoad
	accessStore
)

// restrict sets what the pages of a map allow.
func restrict(b []byte, from, to int64, a access) {
	prot := [...]int{accessNone: unix.PROT_NONE, accessLoad: unix.PROT_READ, accessStore: unix.PROT_READ | unix.PROT_WRITE}
	if err := unix.Mprotect(b[from:to], prot[a]); err != nil {
		panic(err)
	}
}
