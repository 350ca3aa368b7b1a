package waltest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"shiplog/wal/vfs"
)

// Mount is a real file system on a loop device or in memory, that a test has to itself. It needs root and Linux;
// where those are missing the test is skipped, with the reason.
type Mount struct {
	// Dir is where the file system is mounted.
	Dir string

	kind  string
	image string
	below *Mount // that holds image, of a failing device; or nil
	up    bool
	limit string       // of the size of requests to a failing device: a file of the system
	usual []byte       // what that holds for others
	syncs sync.RWMutex // held by the syncs of FS, and by Shutdown against them
}

// PowerCuts is how many power cuts a test is to make: long, or with -short short; SHIPLOG_POWER_CUTS sets another number.
func PowerCuts(t testing.TB, long, short int) int {
	t.Helper()
	if s := os.Getenv("SHIPLOG_POWER_CUTS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if testing.Short() {
		return short
	}
	return long
}

// NewMount makes a file system of a kind that mkfs knows, or "tmpfs", of at least size bytes (xfs: 300 MiB at the
// least; the image is sparse). It is unmounted when the test ends, by when every file and map in it must be closed.
func NewMount(t testing.TB, kind string, size int64) *Mount {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("mounting %s needs root", kind)
	}
	root := t.TempDir()
	m := &Mount{Dir: filepath.Join(root, "mnt"), kind: kind, image: filepath.Join(root, "image")}
	m.start(t, size)
	return m
}

// NewFailingMount is NewMount on a device that can fail: see [Mount.FailDevice].
func NewFailingMount(t testing.TB, kind string, size int64) *Mount {
	t.Helper()
	const memory = 96 << 20 // no test writes so much to its image
	below := NewMount(t, "tmpfs", memory)
	m := &Mount{Dir: filepath.Join(t.TempDir(), "mnt"), kind: kind, image: filepath.Join(below.Dir, "image"), below: below}
	m.start(t, size)
	return m
}

// start makes the file system and mounts it.
func (m *Mount) start(t testing.TB, size int64) {
	t.Helper()
	if m.kind == "xfs" {
		size = max(size, 300<<20)
	}
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if m.kind == "tmpfs" {
		if err := run("mount", "-t", "tmpfs", "-o", "size="+strconv.FormatInt(size, 10), "waltest", m.Dir); err != nil {
			t.Skipf("this machine cannot mount tmpfs: %v", err)
		}
		m.up = true
	} else {
		if err := m.format(size); err != nil {
			t.Skipf("this machine cannot make %s: %v", m.kind, err)
		}
		if err := m.mount(); err != nil {
			t.Skipf("this machine cannot mount %s: %v", m.kind, err)
		}
	}
	t.Cleanup(func() {
		if err := m.unmount(); err != nil {
			t.Errorf("something in %s is still open: %v", m.Dir, err)
			_ = run("umount", "-l", m.Dir)
		}
	})
}

func (m *Mount) format(size int64) error {
	f, err := os.Create(m.image)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	args := []string{"-q", m.image}
	if m.kind == "ext4" {
		args = []string{"-q", "-F", m.image}
		if m.below != nil {
			args = append(args[:2:2], "-b", "4096", m.image) // see honest
		}
	}
	return run("mkfs."+m.kind, args...)
}

func (m *Mount) mount() error {
	err := run("mount", "-o", "loop", m.image, m.Dir)
	m.up = err == nil
	if err == nil && m.below != nil {
		err = m.honest()
	}
	return err
}

// honest keeps the requests to the loop device so small that each is stored in whole or refused. Of a larger one the
// first blocks may be stored and the rest be refused, which the loop device counts as success: a disk that lies.
func (m *Mount) honest() error {
	dev, err := m.device()
	if err != nil {
		return err
	}
	m.limit = filepath.Join("/sys/block", dev, "queue/max_sectors_kb")
	if m.usual, err = os.ReadFile(m.limit); err != nil {
		return err
	}
	return os.WriteFile(m.limit, []byte("4"), 0)
}

// device is the name of the loop device.
func (m *Mount) device() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == m.Dir {
			return filepath.Base(f[0]), nil
		}
	}
	return "", fmt.Errorf("%s is not mounted", m.Dir)
}

func (m *Mount) unmount() error {
	if !m.up {
		return nil
	}
	var err error
	if m.usual != nil { // the next user of the loop device would have it too
		err = os.WriteFile(m.limit, m.usual, 0)
		m.usual = nil
	}
	if e := run("umount", m.Dir); e != nil {
		return errors.Join(err, e)
	}
	m.up = false
	return err
}

// Shutdown cuts the power: from now on nothing reaches the disk, not even what the file system's own log has gathered,
// and every call answers EIO. Close all files and maps, then call [Mount.Restart].
//
// The cut takes a moment, and a sync inside that moment may succeed without having reached the disk, which no loss of
// power does. Users that sync meanwhile must go through [Mount.FS], whose syncs come before the cut or fail after it.
func (m *Mount) Shutdown() error {
	m.syncs.Lock()
	defer m.syncs.Unlock()
	return shutdown(m.Dir)
}

// MakeReadOnly has ext4 come upon an error of its own and allow no change any more, as its option errors=remount-ro has it do: calls that
// change something answer EROFS from now on, also of files that are open. [Mount.Restart] mounts it anew. The test is skipped where the system cannot do that.
func (m *Mount) MakeReadOnly(t testing.TB) {
	t.Helper()
	dev, err := m.device()
	if err == nil {
		err = run("mount", "-o", "remount,errors=remount-ro", m.Dir)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join("/sys/fs/ext4", dev, "trigger_fs_error"), []byte("a test"), 0)
	}
	if err != nil {
		t.Skipf("%s cannot be made to fail here: %v", m.kind, err)
	}
}

// FailDevice makes the device under the file system refuse what is written to blocks that it has not stored yet, as a
// bad disk does: writes into the page cache succeed, and the sync that comes upon them fails.
func (m *Mount) FailDevice() error {
	if m.below == nil {
		return fmt.Errorf("the device of %s is a good one", m.Dir)
	}
	f, err := vfs.OS.OpenFile(m.ballast(), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	size := int64(0)
	for step := int64(4 << 20); step >= 4<<10 && err == nil; {
		switch e := f.Allocate(size, step); {
		case e == nil:
			size += step
		case vfs.IsNoSpace(e):
			step /= 2
		default:
			err = e
		}
	}
	return errors.Join(err, f.Close())
}

// HealDevice makes the device work again. What was refused is lost, whatever the page cache shows.
func (m *Mount) HealDevice() error { return os.Remove(m.ballast()) }

func (m *Mount) ballast() string { return filepath.Join(m.below.Dir, "ballast") }

// FS is the host's file system, with syncs that [Mount.Shutdown] does not run into.
func (m *Mount) FS() vfs.FS { return mountFS{vfs.OS, m} }

type mountFS struct {
	vfs.FS
	mount *Mount
}

func (f mountFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return mountFile{file, f.mount}, nil
}

func (f mountFS) SyncDir(name string) error {
	f.mount.syncs.RLock()
	defer f.mount.syncs.RUnlock()
	return f.FS.SyncDir(name)
}

type mountFile struct {
	vfs.File
	mount *Mount
}

func (f mountFile) Sync() error {
	f.mount.syncs.RLock()
	defer f.mount.syncs.RUnlock()
	return f.File.Sync()
}

func (f mountFile) Datasync() error {
	f.mount.syncs.RLock()
	defer f.mount.syncs.RUnlock()
	return f.File.Datasync()
}

// Restart mounts the file system again as it is found after [Mount.Shutdown]: its own log is replayed.
func (m *Mount) Restart() error {
	if err := m.unmount(); err != nil {
		return err
	}
	return m.mount()
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
