package vfs_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"shiplog/wal/vfs"
)

// present reports which of the pages of b are in this process's map, by the system's own account.
func present(t *testing.T, b []byte) []bool {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	page := os.Getpagesize()
	words := make([]byte, 8*len(b)/page)
	if _, err := f.ReadAt(words, int64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))/int64(page)*8); err != nil {
		t.Fatal(err)
	}
	in := make([]bool, len(b)/page)
	for i := range in {
		in[i] = binary.LittleEndian.Uint64(words[8*i:])>>63 != 0
	}
	return in
}

func TestReleaseTakesWholePagesOutOfTheMap(t *testing.T) {
	page := os.Getpagesize()
	f, err := vfs.OS.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const pages = 6
	if err := f.Allocate(0, int64(pages*page)); err != nil {
		t.Fatal(err)
	}
	m, err := f.Map(int64(pages*page), true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b := m.Bytes()
	for i := range b {
		b[i] = byte(i%251) + 1
	}
	want := bytes.Clone(b)
	m.Release(int64(page)+1, int64(3*page))         // pages 2 and 3
	m.Release(int64(5*page)-8, 8)                   // less than a page
	m.Release(int64(5*page), int64(pages*page)*100) // page 5, and behind the end
	for i, in := range present(t, b) {
		if out := i == 2 || i == 3 || i == 5; in == out {
			t.Errorf("page %d is in the map: %v", i, in)
		}
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatal("the file has lost what was stored", err)
	}
	if !bytes.Equal(b, want) {
		t.Fatal("the map has lost what was stored")
	}
	b[2*page] = 0
	if _, err := f.ReadAt(got, 0); err != nil || got[2*page] != 0 {
		t.Fatal("a store after the release is not in the file", err)
	}
}

// TestPrefetch: pages that the system has forgotten are missing, those that it holds are not, and what was asked for comes.
func TestPrefetch(t *testing.T) {
	page := os.Getpagesize()
	f, err := vfs.OS.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const pages = 64
	want := bytes.Repeat([]byte("prefetch"), pages*page/8)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	m, err := f.Map(int64(len(want)), true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b := m.Bytes()
	if m.Prefetch(0, int64(len(b))) {
		t.Error("pages are missing that were just written")
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.DropCache(0); err != nil {
		t.Fatal(err)
	}
	resident := make([]byte, pages)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&resident[0]))); errno != 0 || bytes.Count(resident, []byte{0}) != pages {
		t.Skip("this file system keeps its pages in memory: ", errno)
	}
	for _, c := range []struct{ off, n int64 }{{int64(3*page) - 8, 16}, {int64(pages*page) - 1, 100}, {0, 1 << 30}} {
		if err := f.DropCache(0); err != nil {
			t.Fatal(err)
		}
		if !m.Prefetch(c.off, c.n) {
			t.Errorf("Prefetch(%d, %d): nothing is missing", c.off, c.n)
		}
	}
	for _, off := range []int64{int64(len(b)), 1 << 40} {
		if m.Prefetch(off, 1) {
			t.Errorf("Prefetch at %d, behind the end: pages are missing", off)
		}
	}
	if !bytes.Equal(b, want) {
		t.Error("the file has changed")
	}
	if m.Prefetch(0, int64(len(b))) {
		t.Error("pages are missing that were just read")
	}
}
