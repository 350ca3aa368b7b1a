package waltest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"

	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// must fails the test at the first error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// create makes a file with these bytes, unsynced.
func create(t *testing.T, fsys vfs.FS, name string, p []byte) vfs.File {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	if len(p) > 0 {
		_, err = f.WriteAt(p, 0)
		must(t, err)
	}
	return f
}

// errno names what callers test errors for.
func errno(err error) string {
	for _, target := range []error{
		fs.ErrNotExist, fs.ErrExist, fs.ErrClosed, syscall.ENOTDIR, syscall.EINVAL, syscall.EBADF, syscall.EACCES, vfs.ErrLocked, io.EOF,
	} {
		if errors.Is(err, target) {
			return target.Error()
		}
	}
	if err != nil {
		return "some error"
	}
	return "ok"
}

// TestSameAsHost does the same on the host's file system and on a simulated one, and compares all answers.
func TestSameAsHost(t *testing.T) {
	host := script(vfs.OS, t.TempDir())
	disk := waltest.NewDisk()
	simulated := script(disk, "/some/where")
	for i := range max(len(host), len(simulated)) {
		if i >= len(host) || i >= len(simulated) || host[i] != simulated[i] {
			t.Fatalf("step %d: host %q, simulated %q", i, host[i:min(i+1, len(host))], simulated[i:min(i+1, len(simulated))])
		}
	}
	if open := disk.Open(); len(open) > 0 {
		t.Fatalf("left open: %q", open)
	}
}

// script makes calls of every kind, legal and illegal, and returns what they answered.
func script(fsys vfs.FS, root string) (log []string) {
	say := func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }
	path := func(name string) string { return filepath.Join(root, name) }
	open := func(name string, flag int) vfs.File {
		f, err := fsys.OpenFile(path(name), flag, 0o644)
		say("open %s %#x: %s", name, flag, errno(err))
		return f
	}
	write := func(f vfs.File, off int64, s string) {
		n, err := f.WriteAt([]byte(s), off)
		say("write %d at %d: %d %s", len(s), off, n, errno(err))
	}
	read := func(f vfs.File, off int64, size int) {
		p := make([]byte, size)
		n, err := f.ReadAt(p, off)
		say("read %d at %d: %d %q %s", size, off, n, p[:n], errno(err))
	}
	size := func(f vfs.File) {
		n, err := f.Size()
		say("size %d %s", n, errno(err))
	}
	list := func(name string) {
		names, err := fsys.ReadDir(path(name))
		say("list %s: %q %s", name, names, errno(err))
	}
	do := func(what string, err error) { say("%s: %s", what, errno(err)) }

	do("mkdir", fsys.MkdirAll(path("a/b"), 0o755))
	do("mkdir again", fsys.MkdirAll(path("a/b"), 0o755))
	list("a")
	list("none")
	open("none", os.O_RDWR)
	open("none/f", os.O_RDWR|os.O_CREATE)
	f := open("a/f", os.O_RDWR|os.O_CREATE)
	open("a/f", os.O_RDWR|os.O_CREATE|os.O_EXCL)
	do("mkdir over a file", fsys.MkdirAll(path("a/f/g"), 0o755))
	list("a/f")
	write(f, 0, "hello")
	write(f, 9000, "far")
	write(f, -1, "x")
	read(f, 0, 8)
	read(f, 8998, 5)
	read(f, 8998, 6)
	read(f, 10000, 1)
	read(f, 9003, 0)
	size(f)
	do("truncate", f.Truncate(3))
	do("truncate up", f.Truncate(6))
	do("truncate below", f.Truncate(-1))
	read(f, 0, 6)
	do("allocate", f.Allocate(2, 100))
	do("allocate less", f.Allocate(0, 10))
	do("allocate nothing", f.Allocate(0, 0))
	size(f)
	read(f, 0, 6)
	do("sync", f.Sync())
	do("datasync", f.Datasync())
	do("write back", f.WriteBack(0, 100))
	do("sync dir", fsys.SyncDir(path("a")))
	do("sync no dir", fsys.SyncDir(path("none")))

	m, err := f.Map(100_000, true)
	do("map", err)
	copy(m.Bytes()[3:], "map")
	read(f, 0, 8)
	write(f, 1, "E")
	say("mapped %q", m.Bytes()[:8])
	do("grow under the map", f.Truncate(100_000))
	write(f, 99_990, "end of map")
	say("mapped %q", m.Bytes()[99_990:])
	r, err := f.Map(4096, false)
	do("map again", err)
	m.Bytes()[7] = '7'
	say("mapped %q", r.Bytes()[:8])
	say("store through a map for loads: %t", faults(func() { r.Bytes()[0] = 1 }))
	do("shrink under the map", f.Truncate(10_000))
	say("beyond the end: %t", faults(func() { sink = m.Bytes()[99_990] }))
	do("unmap", m.Close())
	do("unmap again", m.Close())
	_, err = f.Map(0, false)
	do("map nothing", err)

	ro := open("a/f", os.O_RDONLY)
	_, err = ro.WriteAt([]byte("x"), 0)
	do("write read-only", err)
	_, err = ro.Map(4096, true)
	do("map read-only for stores", err)
	do("close", ro.Close())
	do("close again", ro.Close())
	_, err = ro.ReadAt(make([]byte, 1), 0)
	do("read closed", err)

	info, err := fsys.Stat(path("a/f"))
	say("stat %d %t %s", info.Size, info.IsDir, errno(err))
	do("rename", fsys.Rename(path("a/f"), path("a/b/g")))
	moved, err := fsys.Stat(path("a/b/g"))
	say("same %t %s", info.ID == moved.ID, errno(err))
	do("rename none", fsys.Rename(path("a/f"), path("a/h")))
	g := open("a/g", os.O_RDWR|os.O_CREATE)
	write(g, 0, "new")
	do("replace", fsys.Rename(path("a/g"), path("a/b/g")))
	other, err := fsys.Stat(path("a/b/g"))
	say("same %t %s", info.ID == other.ID, errno(err))
	read(f, 0, 8) // lives without a name
	do("remove full", fsys.Remove(path("a/b")))
	do("remove", fsys.Remove(path("a/b/g")))
	do("remove again", fsys.Remove(path("a/b/g")))
	do("remove dir", fsys.Remove(path("a/b")))
	list("a")
	say("mapped %q", r.Bytes()[:8])
	do("unmap", r.Close())
	do("close", f.Close())
	do("close", g.Close())
	h := open("a/h", os.O_RDWR|os.O_CREATE)
	write(h, 0, "some")
	do("close", h.Close())
	h = open("a/h", os.O_RDWR|os.O_TRUNC)
	size(h)
	do("close", h.Close())

	l, err := fsys.Lock(path("LOCK"))
	do("lock", err)
	_, err = fsys.Lock(path("LOCK"))
	do("lock twice", err)
	do("unlock", l.Close())
	do("unlock again", l.Close())
	l, err = fsys.Lock(path("LOCK"))
	do("lock", err)
	do("unlock", l.Close())
	return log
}

var sink byte // keeps loads alive

// faults reports whether fn touches memory that it must not.
func faults(fn func()) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(interface{ Addr() uintptr }); !ok {
				panic(r)
			}
			fault = true
		}
	}()
	fn()
	return false
}

func TestCrashKeepsWhatWasSynced(t *testing.T) {
	synced := bytes.Repeat([]byte("s"), 10_000)
	unsynced := bytes.Repeat([]byte("u"), 30_000)
	old, all, torn, partial := 0, 0, 0, 0
	for seed := range uint64(300) {
		d := waltest.NewDisk()
		f := create(t, d, "/f", synced)
		must(t, f.Datasync())
		must(t, d.SyncDir("/"))
		_, err := f.WriteAt(unsynced, 10_000)
		must(t, err)
		got, err := d.Crash(seed).ReadFile("/f")
		must(t, err)
		switch {
		case len(got) < 10_000 || len(got) > 40_000 || !bytes.Equal(got[:10_000], synced):
			t.Fatalf("seed %d: synced bytes were lost: %d bytes", seed, len(got))
		case len(got) == 10_000:
			old++
		case bytes.Equal(got[10_000:], unsynced):
			all++
		}
		for i := 10_240; i+512 <= len(got); i += 512 {
			u := bytes.Count(got[i:i+512], []byte("u"))
			if u != 0 && u != 512 {
				t.Fatalf("seed %d: a sector is torn at %d", seed, i)
			}
			if i%4096 != 0 && (got[i] == 'u') != (got[i-512] == 'u') {
				torn++
			}
			if i%4096 == 0 && got[i-512] == 0 && got[i] == 'u' {
				partial++
			}
		}
	}
	if old == 0 || all == 0 || torn == 0 || partial == 0 {
		t.Fatalf("old %d, all %d, torn %d, later without earlier %d: each must happen", old, all, torn, partial)
	}
}

func TestCrashExtremes(t *testing.T) {
	d := waltest.NewDisk()
	f := create(t, d, "/f", []byte("old"))
	must(t, f.Sync())
	must(t, d.SyncDir("/"))
	_, err := f.WriteAt([]byte("newer"), 0)
	must(t, err)
	g := create(t, d, "/g", []byte("g"))
	must(t, g.Sync())
	for seed, want := range []string{"map[/f:old]", "map[/f:newer /g:g]"} {
		for range 2 {
			got := d.Crash(uint64(seed)).Files()
			text := map[string]string{}
			for name, p := range got {
				text[name] = string(p)
			}
			if fmt.Sprint(text) != want {
				t.Errorf("seed %d: got %v, want %s", seed, text, want)
			}
		}
	}
	if a, b := d.Crash(77).Files(), d.Crash(77).Files(); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("one seed, two outcomes: %q, %q", a, b)
	}
}

func TestCrashLosesNames(t *testing.T) {
	lost := map[string]bool{}
	for seed := range uint64(100) {
		d := waltest.NewDisk()
		must(t, d.MkdirAll("/d", 0o755))
		must(t, d.SyncDir("/"))
		must(t, create(t, d, "/d/gone", nil).Sync())
		must(t, create(t, d, "/d/target", []byte("old")).Sync())
		must(t, d.SyncDir("/d"))
		must(t, create(t, d, "/d/created", nil).Sync())
		must(t, create(t, d, "/d/tmp", []byte("new")).Sync())
		must(t, d.Rename("/d/tmp", "/d/target"))
		must(t, d.Remove("/d/gone"))
		c := d.Crash(seed)
		names, err := c.ReadDir("/d")
		must(t, err)
		target, err := c.ReadFile("/d/target")
		must(t, err)
		if string(target) == "new" && slices.Contains(names, "tmp") {
			t.Fatalf("seed %d: half of a rename: %q", seed, names)
		}
		lost["gone is back"] = lost["gone is back"] || slices.Contains(names, "gone")
		lost["created is lost"] = lost["created is lost"] || !slices.Contains(names, "created")
		lost["rename is lost"] = lost["rename is lost"] || string(target) == "old"
		lost["rename is kept"] = lost["rename is kept"] || string(target) == "new"
		must(t, d.SyncDir("/d"))
		names, err = d.Crash(seed).ReadDir("/d")
		must(t, err)
		if got, want := fmt.Sprint(names), "[created target]"; got != want {
			t.Fatalf("seed %d: after the sync: got %s, want %s", seed, got, want)
		}
	}
	if len(lost) != 4 || !lost["gone is back"] || !lost["created is lost"] || !lost["rename is lost"] || !lost["rename is kept"] {
		t.Fatalf("each must happen: %v", lost)
	}
}

func TestStoresThroughMapsAreUnsynced(t *testing.T) {
	d := waltest.NewDisk()
	f := create(t, d, "/f", nil)
	must(t, f.Allocate(0, 8192))
	must(t, f.Datasync())
	must(t, d.SyncDir("/"))
	m, err := f.Map(8192, true)
	must(t, err)
	m.Bytes()[5000] = 'x'
	if got, _ := d.Crash(0).ReadFile("/f"); got[5000] != 0 {
		t.Error("a store was durable by itself")
	}
	if got, _ := d.Crash(1).ReadFile("/f"); got[5000] != 'x' {
		t.Error("a store did not survive seed 1")
	}
	if clean, err := d.Clean("/f"); err != nil || clean {
		t.Errorf("clean %t, %v", clean, err)
	}
	must(t, f.Datasync())
	if got, _ := d.Crash(0).ReadFile("/f"); got[5000] != 'x' {
		t.Error("a synced store was lost")
	}
	d.PowerOff()
	m.Bytes()[5001] = 'y'
	if got, _ := d.Crash(1).ReadFile("/f"); got[5001] != 0 {
		t.Error("a store was seen after the crash")
	}
	must(t, m.Close())
}

func TestFailedSyncCountsAsClean(t *testing.T) {
	d := waltest.NewDisk()
	f := create(t, d, "/f", []byte("old"))
	must(t, f.Sync())
	must(t, d.SyncDir("/"))
	_, err := f.WriteAt([]byte("new"), 0)
	must(t, err)
	in := d.Inject(waltest.Fault{Op: waltest.OpSync})
	if err := f.Datasync(); !errors.Is(err, syscall.EIO) || in.Hits() != 1 {
		t.Fatalf("got %v", err)
	}
	must(t, f.Datasync()) // a lie of the kernel's
	if got, _ := d.ReadFile("/f"); string(got) != "new" {
		t.Errorf("cache %q", got)
	}
	for seed := range uint64(10) {
		if got, _ := d.Crash(seed).ReadFile("/f"); string(got) != "old" {
			t.Errorf("platter %q", got)
		}
	}
	k := d.Kill()
	k.DropCache()
	if got, _ := k.ReadFile("/f"); string(got) != "old" {
		t.Errorf("after the cache was dropped: %q", got)
	}
	for _, c := range []struct {
		drop bool
		want string
	}{{false, "old"}, {true, "new"}} {
		k = d.Kill()
		f, err = k.OpenFile("/f", os.O_RDWR, 0)
		must(t, err)
		if c.drop {
			must(t, f.DropCache(0))
		}
		_, err = f.WriteAt([]byte("new"), 0)
		must(t, err)
		must(t, f.Datasync())
		if got, _ := k.Crash(0).ReadFile("/f"); string(got) != c.want {
			t.Errorf("rewritten and synced, cache dropped %v: %q", c.drop, got)
		}
	}
}

func TestFaults(t *testing.T) {
	d := waltest.NewDisk()
	f := create(t, d, "/f", make([]byte, 8192))
	write := func(p string) (int, error) { return f.WriteAt([]byte(p), 0) }

	in := d.Inject(waltest.Fault{Op: waltest.OpWrite, Skip: 1, Bytes: 2, Err: syscall.ENOSPC})
	for i, want := range []string{"3 ok", "2 some error", "3 ok"} {
		n, err := write("abc")
		if got := fmt.Sprint(n, " ", errno(err)); got != want {
			t.Errorf("write %d: got %s, want %s", i, got, want)
		}
	}
	if in.Hits() != 1 {
		t.Errorf("%d hits", in.Hits())
	}
	in = d.Inject(waltest.Fault{Op: waltest.OpRead, Path: "f*", Times: waltest.Forever})
	for range 3 {
		if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v", err)
		}
	}
	in.End()
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
	must(t, d.SyncDir("/"))
	must(t, f.Sync())
	_, err := write("lie")
	must(t, err)
	d.Inject(waltest.Fault{Op: waltest.OpSync, Lie: true})
	must(t, f.Sync())
	if got, _ := d.Crash(0).ReadFile("/f"); string(got[:3]) != "abc" {
		t.Errorf("a sync that lies made %q durable", got[:3])
	}
	must(t, f.Sync())
	if got, _ := d.Crash(0).ReadFile("/f"); string(got[:3]) != "lie" {
		t.Errorf("a sync made %q durable", got[:3])
	}

	stall, done := make(chan struct{}), make(chan struct{})
	in = d.Inject(waltest.Fault{Op: waltest.OpSync, Stall: stall})
	go func() {
		defer close(done)
		_ = f.Sync()
	}()
	for in.Hits() == 0 {
		_, _ = f.Size() // others go on
	}
	select {
	case <-done:
		t.Error("did not stall")
	default:
	}
	close(stall)
	<-done

	before := d.Count(waltest.Changes)
	d.Inject(waltest.Fault{Skip: 1, Crash: true})
	_, err = write("one")
	must(t, err)
	if _, err := write("two"); !errors.Is(err, waltest.ErrCrashed) {
		t.Errorf("got %v", err)
	}
	if err := f.Sync(); !errors.Is(err, waltest.ErrCrashed) || !d.Crashed() {
		t.Errorf("got %v", err)
	}
	if got := d.Count(waltest.Changes) - before; got != 2 {
		t.Errorf("%d changes counted", got)
	}
	for seed, want := range []string{"lie", "two"} {
		if got, _ := d.Crash(uint64(seed)).ReadFile("/f"); string(got[:3]) != want {
			t.Errorf("seed %d: got %q, want %q", seed, got[:3], want)
		}
	}
}

func TestBadMedium(t *testing.T) {
	d := waltest.NewDisk()
	f := create(t, d, "/f", make([]byte, 16384))
	m, err := f.Map(16384, true)
	must(t, err)
	must(t, d.FailRange("/f", 4096, 10, false))
	must(t, d.FailRange("/f", 8192, -1, true))
	for off, want := range map[int64]string{0: "", 4096: "ls", 8192: "s"} {
		got := ""
		if faults(func() { sink = m.Bytes()[off] }) {
			got += "l"
		}
		if faults(func() { m.Bytes()[off] = 1 }) {
			got += "s"
		}
		if got != want {
			t.Errorf("at %d: faults %q, want %q", off, got, want)
		}
		if _, err := f.ReadAt(make([]byte, 2), max(0, off-1)); (err != nil) != (off == 4096) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	must(t, d.HealRange("/f"))
	m.Bytes()[4096] = 1
	must(t, m.Close())
	must(t, f.Close())
}

func TestCapacity(t *testing.T) {
	d := waltest.NewDisk()
	d.SetCapacity(5 * 4096)
	f := create(t, d, "/f", nil)
	must(t, f.Truncate(20*4096))
	m, err := f.Map(20*4096, true)
	must(t, err)
	if !faults(func() { m.Bytes()[4096] = 1 }) {
		t.Error("a store into a hole must fault")
	}
	must(t, f.Allocate(4096, 2*4096))
	m.Bytes()[4096] = 1
	if err := f.Allocate(0, 6*4096); !vfs.IsNoSpace(err) || d.Used() != 2*4096 {
		t.Errorf("got %v, %d used", err, d.Used())
	}
	if n, err := f.WriteAt(make([]byte, 10*4096), 100); n != 5*4096-100 || !vfs.IsNoSpace(err) {
		t.Errorf("got %d, %v", n, err)
	}
	g := create(t, d, "/g", nil)
	if n, err := g.WriteAt([]byte("x"), 0); n != 0 || !vfs.IsNoSpace(err) {
		t.Errorf("got %d, %v", n, err)
	}
	must(t, f.Truncate(0))
	if d.Used() != 0 {
		t.Errorf("%d used", d.Used())
	}
	if _, err := g.WriteAt([]byte("x"), 0); err != nil {
		t.Error(err)
	}
	must(t, m.Close())
}

func TestEdit(t *testing.T) {
	d := waltest.NewDisk()
	must(t, d.WriteFile("/f", []byte("abc")))
	must(t, d.Flip("/f", 1, 3))
	must(t, d.Overwrite("/f", 2, []byte("xyz")))
	for _, d := range []*waltest.Disk{d, d.Crash(0), d.Kill()} {
		if got, err := d.ReadFile("/f"); err != nil || string(got) != "aaxyz" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	must(t, d.TruncateFile("/f", 1))
	if got := d.Files(); len(got) != 1 || string(got["/f"]) != "a" {
		t.Errorf("got %q", got)
	}
	if err := d.Flip("/none", 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestWriteBackAtRandom(t *testing.T) {
	between := 0
	for seed := range uint64(50) {
		d := waltest.NewDisk()
		d.WriteBackAtRandom(seed)
		f := create(t, d, "/f", []byte("0"))
		must(t, d.SyncDir("/"))
		for i := range 9 {
			_, err := f.WriteAt([]byte{'1' + byte(i)}, 0)
			must(t, err)
		}
		got, err := d.Crash(0).ReadFile("/f")
		must(t, err)
		if len(got) == 1 && got[0] < '9' {
			between++
		}
	}
	if between == 0 {
		t.Error("no crash found bytes that were overwritten since")
	}
}
