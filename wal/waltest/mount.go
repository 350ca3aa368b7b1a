package waltest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Mount is a real file system on a loop device or in memory, that a test has to itself. It needs root and Linux;
// where those are missing the test is skipped, with the reason.
type Mount struct {
	// Dir is where the file system is mounted.
	Dir string

	kind  string
	image string
	up    bool
}

// NewMount makes a file system of a kind that mkfs knows, or "tmpfs", of at least size bytes (xfs: 300 MiB at the
// least; the image is sparse). It is unmounted when the test ends, by when every file and map in it must be closed.
func NewMount(t testing.TB, kind string, size int64) *Mount {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("mounting %s needs root", kind)
	}
	if kind == "xfs" {
		size = max(size, 300<<20)
	}
	root := t.TempDir()
	m := &Mount{Dir: filepath.Join(root, "mnt"), kind: kind, image: filepath.Join(root, "image")}
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if kind == "tmpfs" {
		if err := run("mount", "-t", "tmpfs", "-o", "size="+strconv.FormatInt(size, 10), "waltest", m.Dir); err != nil {
			t.Skipf("this machine cannot mount tmpfs: %v", err)
		}
		m.up = true
	} else {
		if err := m.format(size); err != nil {
			t.Skipf("this machine cannot make %s: %v", kind, err)
		}
		if err := m.mount(); err != nil {
			t.Skipf("this machine cannot mount %s: %v", kind, err)
		}
	}
	t.Cleanup(func() {
		if err := m.unmount(); err != nil {
			t.Errorf("something in %s is still open: %v", m.Dir, err)
			_ = run("umount", "-l", m.Dir)
		}
	})
	return m
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
	}
	return run("mkfs."+m.kind, args...)
}

func (m *Mount) mount() error {
	err := run("mount", "-o", "loop", m.image, m.Dir)
	m.up = err == nil
	return err
}

func (m *Mount) unmount() error {
	if !m.up {
		return nil
	}
	err := run("umount", m.Dir)
	m.up = err != nil
	return err
}

// Shutdown cuts the power: from now on nothing reaches the disk, not even what the file system's own log has gathered,
// and every call answers EIO. Close all files and maps, then call [Mount.Restart].
func (m *Mount) Shutdown() error { return shutdown(m.Dir) }

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
