package vfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"shiplog/wal/vfs"
)

// ram is a file that stores at most limit bytes, as on a full disk.
type ram struct {
	b      []byte
	limit  int
	pieces []int
}

func (r *ram) Size() (int64, error)      { return int64(len(r.b)), nil }
func (r *ram) Truncate(size int64) error { r.b = r.b[:size]; return nil }

func (r *ram) WriteAt(p []byte, off int64) (int, error) {
	r.pieces = append(r.pieces, len(p))
	n := min(len(p), r.limit-int(off))
	r.b = append(r.b[:off], p[:n]...)
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestFillZeros(t *testing.T) {
	for _, c := range []struct {
		name    string
		old     int
		off, n  int64
		limit   int
		want    int
		noSpace bool
	}{
		{"from nothing", 0, 0, 1000, 1 << 30, 1000, false},
		{"behind the end", 100, 50, 1000, 1 << 30, 1050, false},
		{"a gap is filled", 100, 500, 100, 1 << 30, 600, false},
		{"inside", 1000, 0, 1000, 1 << 30, 1000, false},
		{"in pieces", 100, 0, 1 << 20, 1 << 30, 1 << 20, false},
		{"full", 100, 0, 1 << 20, 600_000, 100, true},
	} {
		r := &ram{b: bytes.Repeat([]byte{7}, c.old), limit: c.limit}
		err := vfs.FillZeros(r, c.off, c.n)
		if vfs.IsNoSpace(err) != c.noSpace || (err != nil) != c.noSpace {
			t.Errorf("%s: got %v", c.name, err)
		}
		if len(r.b) != c.want || bytes.Count(r.b, []byte{7}) != c.old || bytes.Count(r.b, []byte{0}) != c.want-c.old {
			t.Errorf("%s: %d bytes, want %d, old ones kept", c.name, len(r.b), c.want)
		}
		for _, n := range r.pieces {
			if n > 256<<10 {
				t.Errorf("%s: a piece of %d bytes", c.name, n)
			}
		}
	}
}

func TestIdentityOfACopy(t *testing.T) {
	root := t.TempDir()
	id := func(name string) vfs.Identity {
		t.Helper()
		info, err := vfs.OS.Stat(filepath.Join(root, name))
		if err != nil || !info.IsDir {
			t.Fatal(info, err)
		}
		return info.ID
	}
	for _, name := range []string{"a", "b"} {
		if err := vfs.OS.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a := id("a")
	if a == id("b") || a.Inode == 0 {
		t.Errorf("%+v and %+v", a, id("b"))
	}
	if err := vfs.OS.Rename(filepath.Join(root, "a"), filepath.Join(root, "c")); err != nil {
		t.Fatal(err)
	}
	if a != id("c") {
		t.Errorf("%+v became %+v", a, id("c"))
	}
}

func TestAllocateKeepsBytes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("some bytes"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := vfs.OS.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Allocate(4, 1<<20); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil || len(got) != 1<<20+4 || string(got[:10]) != "some bytes" || len(bytes.Trim(got[10:], "\x00")) > 0 {
		t.Fatalf("%d bytes, %q, %v", len(got), got[:10], err)
	}
	if err := f.Allocate(0, 1<<62); err == nil {
		t.Fatal("allocated more than there is in the world")
	}
	if size, err := f.Size(); err != nil || size != 1<<20+4 {
		t.Fatalf("size %d after a failed allocation, %v", size, err)
	}
	if f.OSFile() == nil {
		t.Fatal("no file of the host")
	}
}

func TestLockIsTyped(t *testing.T) {
	name := filepath.Join(t.TempDir(), "LOCK")
	l, err := vfs.OS.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.OS.Lock(name); !errors.Is(err, vfs.ErrLocked) {
		t.Fatalf("got %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = vfs.OS.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
