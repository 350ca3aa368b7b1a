package wal_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// These tests take from a running log what a system may run short of: descriptors, maps, the right to write, a sane clock.

// TestNoDescriptors has each call that opens or maps a file fail, once or for a while, as they do where descriptors, maps or memory have run out:
// what cannot be done without is refused with nothing written, the log is not poisoned, what is open is read, and once there are descriptors again it goes on.
func TestNoDescriptors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENOMEM} {
		for _, times := range []int{1, waltest.Forever} {
			t.Run(fmt.Sprintf("%v %d times", errno, times), func(t *testing.T) {
				refused := 0
				for k := 0; ; k++ {
					hits, n, err := withoutDescriptors(waltest.Fault{
						Op: waltest.OpCreate | waltest.OpOpen | waltest.OpMap | waltest.OpLock, Skip: k, Times: times, Err: errno,
					})
					if err != nil {
						t.Fatalf("call %d: %v", k, err)
					}
					if refused += n; hits == 0 {
						break
					}
				}
				if refused == 0 {
					t.Error("nothing was refused: was anything opened?")
				}
			})
		}
	}
}

// withoutDescriptors writes three segments, with a fault, and returns how often it hit, and how many appends were refused.
func withoutDescriptors(f waltest.Fault) (hits, refused int, err error) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	for _, step := range []func() error{w.open, w.create, func() error { return w.append(true, []int{100}) }, w.close, w.open} {
		if err := step(); err != nil {
			return 0, 0, err
		}
	}
	in := d.Inject(f)
	for i := 0; w.log.Head() < 3*wal.MinSegmentSize; i++ {
		head := w.log.Head()
		err := w.append(i%3 == 0, []int{9000})
		if err == nil {
			continue
		}
		if !errors.Is(err, f.Err) || w.log.Err() != nil || w.log.Head() != head {
			return 0, 0, fmt.Errorf("the head went from %v to %v: %w; the log: %w", head, w.log.Head(), err, w.log.Err())
		}
		w.drop()
		if _, _, err := w.log.ReadFrame(w.items[len(w.items)-1].start, nil); err != nil { // its segment is written to, and so stays open
			return 0, 0, fmt.Errorf("read of what is open: %w", err)
		}
		if refused++; refused > 3 {
			in.End()
		}
	}
	hits = in.Hits()
	in.End()
	if err := w.append(true, []int{100}); err != nil {
		return 0, 0, fmt.Errorf("with descriptors again: %w", err)
	}
	if got, err := contents(w.log); err != nil || !equalItems(got, w.items) {
		return 0, 0, fmt.Errorf("%d items of %d: %w", len(got), len(w.items), err)
	}
	if err := w.close(); err != nil {
		return 0, 0, err
	}
	return hits, refused, survive(w, d.Crash(0))
}

// TestQuota: a user's share of a disk that is used up is a full disk, and no more.
func TestQuota(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) })
	in := d.Inject(waltest.Fault{Op: waltest.OpAllocate | waltest.OpCreate, Err: syscall.EDQUOT, Times: waltest.Forever})
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = w.append(i%4 == 0, []int{3000})
	}
	if !errors.Is(err, wal.ErrNoSpace) || !errors.Is(err, syscall.EDQUOT) || w.log.Err() != nil {
		t.Fatalf("%v; the log: %v", err, w.log.Err())
	}
	in.End()
	steps(t, func() error { return w.append(true, repeat(50, 3000)...) }, func() error { return w.check(w.log) }, w.close)
}

// TestFileSizeLimit writes under a limit of the size of files (RLIMIT_FSIZE), in a process of its own: that is a full disk, and no more.
func TestFileSizeLimit(t *testing.T) {
	const env = "SHIPLOG_TEST_FSIZE"
	if dir := os.Getenv(env); dir != "" {
		if err := underFileSizeLimit(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash, whose ulimit sets the limit")
	}
	cmd := exec.Command(bash, "-c", `ulimit -S -f 300 && exec "$0" -test.run='^TestFileSizeLimit$'`, os.Args[0]) // blocks of 1 KiB
	cmd.Env = append(os.Environ(), env+"="+filepath.Join(t.TempDir(), "db"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func underFileSizeLimit(dir string) error {
	w := newWorld(vfs.OS, dir)
	w.opts.SegmentSize = 1 << 20
	for _, step := range []func() error{w.open, w.create} {
		if err := step(); err != nil {
			return err
		}
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = w.append(i%4 == 0, []int{5000})
	}
	if !errors.Is(err, wal.ErrNoSpace) || !errors.Is(err, syscall.EFBIG) || w.log.Err() != nil {
		return fmt.Errorf("want a full disk, got %w; the log: %w", err, w.log.Err())
	}
	w.drop()
	if got, err := contents(w.log); err != nil || !equalItems(got, w.items) {
		return fmt.Errorf("read under the limit: %d items of %d: %w", len(got), len(w.items), err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	for _, step := range []func() error{func() error { return w.append(true, repeat(100, 5000)...) }, w.close, w.open, func() error { return w.check(w.log) }, w.close} {
		if err := step(); err != nil {
			return fmt.Errorf("without the limit: %w", err)
		}
	}
	return nil
}

// TestReadOnlyMount has ext4 make itself read-only under a running log, as it does when it finds an error of its own: the write that meets this is not
// acknowledged and neither is any later one, reads go on, and so does opening for reading and verifying; once it is mounted anew all that was acknowledged is there.
func TestReadOnlyMount(t *testing.T) {
	m := waltest.NewMount(t, "ext4", 32<<20)
	w := newWorld(vfs.OS, filepath.Join(m.Dir, "db"))
	t.Cleanup(func() {
		if w.log != nil {
			_ = w.log.Close()
		}
	})
	steps(t, w.open, w.create, func() error { return w.append(true, repeat(20, 1000)...) })
	m.MakeReadOnly(t)
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = w.append(true, []int{5000})
	}
	if err == nil {
		t.Fatal("the log goes on on a file system that is read-only")
	}
	if w.log.Err() == nil && !errors.Is(err, syscall.EROFS) {
		t.Errorf("refused with %v", err)
	}
	durable := w.log.Durable()
	for range 3 {
		if err := w.append(true, []int{10}); err == nil || w.log.Durable() != durable {
			t.Fatalf("a later append: %v, durable %v, was %v", err, w.log.Durable(), durable)
		}
	}
	for _, it := range w.items[:w.synced] {
		if _, _, err := w.log.ReadFrame(it.start, nil); err != nil {
			t.Fatalf("item at %v: %v", it.start, err)
		}
	}
	_ = w.log.Close() // whatever it says
	if l, err := wal.Open(w.dir, &w.opts); err == nil {
		t.Error("it opens for writing on a file system that is read-only")
		_ = l.Close()
	} else if !errors.Is(err, syscall.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	o := w.opts
	o.ReadOnly = true
	l, err := wal.Open(w.dir, &o)
	if err != nil {
		t.Fatalf("open for reading: %v", err)
	}
	got, err := contents(l)
	if err != nil || len(got) < w.synced {
		t.Errorf("opened for reading: %d items, %d were acknowledged: %v", len(got), w.synced, err)
	}
	if r, err := wal.Verify(t.Context(), w.dir, &o); err != nil || !r.OK() {
		t.Errorf("verify: %+v, %v", r, err)
	}
	steps(t, l.Close, m.Restart)
	w.log = nil
	steps(t, w.open, func() error { return w.check(w.log) }, func() error { w.items, w.unsure = nil, 0; return w.close() })
}

// TestClocks has the clock of log time go anywhere between two appends: back and forth by years, before 1970 and beyond what a time in nanoseconds can hold.
// Log time never falls, nothing panics, and the log is the same after a reopen.
func TestClocks(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	now := time.UnixMilli(1_700_000_000_000)
	w.opts.Now = func() time.Time { return now }
	steps(t, w.open, w.create)
	times := []time.Time{
		time.UnixMilli(1_600_000_000_000),
		{},
		time.Unix(0, 0), time.Date(-3000, 1, 1, 0, 0, 0, 0, time.UTC), time.UnixMilli(1_700_000_000_500),
		time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0), time.Date(292_000_000, 1, 1, 0, 0, 0, 0, time.UTC), time.UnixMilli(math.MinInt64), time.UnixMilli(1_800_000_000_000),
	}
	for _, now = range times {
		steps(t, func() error { return w.append(true, []int{10}) }, func() error { return w.append(false, []int{10}) }, w.epoch)
	}
	last := int64(0)
	r := w.log.NewReader(0)
	for r.Next() {
		if f := r.Frame(); f.Time < last {
			t.Errorf("log time falls from %d to %d at %v", last, f.Time, f.LSN)
		} else {
			last = f.Time
		}
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
	if err := survive(w, d.Crash(0)); err != nil {
		t.Error(err)
	}
	steps(t, w.close, w.open, func() error { return w.check(w.log) }, w.close)
}

// TestNewerFiles: a directory in which a file has a format of a later version is refused, with both versions named, and no byte of it is changed.
func TestNewerFiles(t *testing.T) {
	for _, name := range []string{"node", "log/0000000000000000.seg"} {
		d := waltest.NewDisk()
		w := newWorld(d, dbDir)
		steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) }, w.close)
		path := filepath.Join(dbDir, name)
		p, err := d.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p[8]++ // in each of them
		if name == "node" {
			binary.LittleEndian.PutUint64(p[120:], xxhash.Sum64(p[:120]))
		} else {
			resum(p)
		}
		steps(t, func() error { return d.WriteFile(path, p) })
		before := d.Files()
		_, err = wal.Open(dbDir, &w.opts)
		if !errors.Is(err, wal.ErrVersion) || !strings.Contains(err.Error(), "version 2") || !strings.Contains(err.Error(), "up to 1") {
			t.Errorf("%s: %v", name, err)
		}
		after := d.Files()
		for file := range before {
			if !slices.Equal(before[file], after[file]) {
				t.Errorf("%s: %s was changed", name, file)
			}
		}
		if len(after) != len(before) {
			t.Errorf("%s: %d files became %d", name, len(before), len(after))
		}
	}
}
