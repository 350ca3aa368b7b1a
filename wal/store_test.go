package wal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"shiplog/wal"
	"shiplog/wal/vfs"
)

// mapWatch is a file system that notes what is done with the maps of segments. released[i] counts the releases of page i
// of the first segment since its last sync, and written the bytes that went there by pwrite.
type mapWatch struct {
	vfs.FS
	mu       sync.Mutex // guards the three below
	released map[int64]int
	written  int64
	synced   func()
}

func (w *mapWatch) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := w.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.HasSuffix(name, filepath.Join("log", "0000000000000000.seg")) {
		return f, err
	}
	return watchedFile{f, w}, nil
}

type watchedFile struct {
	vfs.File
	w *mapWatch
}

func (f watchedFile) WriteAt(p []byte, off int64) (int, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.written += int64(len(p))
	return f.File.WriteAt(p, off)
}

func (f watchedFile) Datasync() error {
	f.w.mu.Lock()
	if f.w.synced != nil {
		f.w.synced()
	}
	f.w.mu.Unlock()
	return f.File.Datasync()
}

func (f watchedFile) Map(n int64, writable bool) (vfs.Mapping, error) {
	m, err := f.File.Map(n, writable)
	return watchedMap{m, f.w}, err
}

type watchedMap struct {
	vfs.Mapping
	w *mapWatch
}

func (m watchedMap) Release(off, n int64) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	page := int64(os.Getpagesize())
	for p := (off + page - 1) / page; (p+1)*page <= off+n; p++ {
		m.w.released[p]++
	}
	m.Mapping.Release(off, n)
}

// TestStoredPagesAreReleasedBeforeASync stores through the map for some pages at a time, and looks at what each sync finds:
// every full page that was stored to since the sync before is out of the map, once, and the one being filled is not.
func TestStoredPagesAreReleasedBeforeASync(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	w := &mapWatch{FS: vfs.OS, released: map[int64]int{}}
	l, err := wal.Open(t.TempDir(), &wal.Options{
		FS: w, Inline: true, Compression: wal.NoCompression, Now: func() time.Time { now = now.Add(time.Second); return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	fill := func(bytes int64) {
		t.Helper()
		for end := int64(l.Head()) + bytes; int64(l.Head()) < end; {
			if _, err := l.Append([]*wal.Batch{one(150)}, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	sync := func(from int64) {
		t.Helper()
		seen := false
		w.synced = func() {
			seen = true
			head := int64(l.Head()) / page
			for p := range head + 2 {
				want := 0
				if p >= from/page && p < head {
					want = 1
				}
				if w.released[p] != want {
					t.Errorf("page %d of [%d, %d) was released %d times before the sync, want %d", p, from/page, head, w.released[p], want)
				}
			}
			clear(w.released)
		}
		if _, err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if w.synced = nil; !seen {
			t.Error("nothing was synced")
		}
	}
	w.written = 0
	from := int64(l.Head())
	fill(3 * page)
	sync(from)
	for _, n := range []int64{page / 8, page / 8, 2 * page, 7 * page} {
		from = int64(l.Head())
		fill(n)
		sync(from)
	}
	if w.written != 0 {
		t.Errorf("%d bytes were written by pwrite", w.written)
	}

	// After a cut the same pages are stored to again.
	from = int64(l.Head())
	fill(5 * page)
	sync(from)
	if err := l.Truncate(wal.LSN(from)); err != nil {
		t.Fatal(err)
	}
	fill(2 * page)
	sync(from)
}
