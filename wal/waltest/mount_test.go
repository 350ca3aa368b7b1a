package waltest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// TestShutdownLosesWhatIsNotSynced shows that a cut is one: synced bytes are there, unsynced ones are not.
func TestShutdownLosesWhatIsNotSynced(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewMount(t, kind, 32<<20)
			name := filepath.Join(m.Dir, "f")
			f := create(t, vfs.OS, name, []byte("synced"))
			must(t, f.Sync())
			must(t, vfs.OS.SyncDir(m.Dir))
			_, err := f.WriteAt([]byte("unsynced"), 6)
			must(t, err)
			must(t, create(t, vfs.OS, filepath.Join(m.Dir, "g"), nil).Close())
			must(t, m.Shutdown())
			if err := f.Datasync(); err == nil {
				t.Error("a sync succeeded without power")
			}
			_ = f.Close()
			must(t, m.Restart())
			if got, err := os.ReadFile(name); err != nil || string(got) != "synced" {
				t.Errorf("got %q, %v", got, err)
			}
			if _, err := os.Stat(filepath.Join(m.Dir, "g")); err == nil {
				t.Error("a name survived without a sync")
			}
		})
	}
}

// TestIdentityAcrossMounts shows that a directory is the same one after a restart of the machine.
func TestIdentityAcrossMounts(t *testing.T) {
	m := waltest.NewMount(t, "ext4", 32<<20)
	dir := filepath.Join(m.Dir, "dir")
	must(t, vfs.OS.MkdirAll(dir, 0o755))
	must(t, vfs.OS.SyncDir(m.Dir))
	before, err := vfs.OS.Stat(dir)
	must(t, err)
	must(t, m.Restart())
	after, err := vfs.OS.Stat(dir)
	must(t, err)
	if before.ID != after.ID || before.ID.Birth == 0 {
		t.Errorf("%+v became %+v", before.ID, after.ID)
	}
}

// TestDeviceFails shows what a bad disk does: a failed sync, and then one that succeeds although the bytes are lost.
// What is written again gets to the disk if the cache was dropped before.
func TestDeviceFails(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewFailingMount(t, kind, 64<<20)
			name := filepath.Join(m.Dir, "f")
			f := create(t, vfs.OS, name, []byte("old"))
			must(t, f.Allocate(0, 4<<20))
			must(t, f.Sync())
			must(t, vfs.OS.SyncDir(m.Dir))
			for i := range int64(1000) { // the file system's log comes round: its blocks are stored, and will not fail
				must(t, f.Truncate(4<<20+i%2))
				must(t, f.Sync())
			}
			must(t, m.FailDevice())
			p := bytes.Repeat([]byte("new"), 1<<20)
			_, err := f.WriteAt(p, 1)
			must(t, err)
			if err := f.Datasync(); err == nil {
				t.Error("a sync of a failing device succeeded")
			}
			must(t, m.HealDevice())
			t.Log("the next sync:", f.Datasync())
			must(t, f.DropCache(1))
			_, err = f.WriteAt(p, 1)
			must(t, err)
			must(t, f.Datasync())
			must(t, m.Shutdown())
			must(t, f.Close())
			must(t, m.Restart())
			if got, err := os.ReadFile(name); err != nil || len(got) <= len(p) || !bytes.Equal(got[:1+len(p)], append([]byte("o"), p...)) {
				t.Errorf("of %d bytes that were written again the disk does not have all, %v", len(p), err)
			}
		})
	}
}

// TestFailedAllocation: what a full disk refuses leaves a file as long as it was.
func TestFailedAllocation(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewMount(t, kind, 16<<20)
			f := create(t, vfs.OS, filepath.Join(m.Dir, "f"), []byte("12345"))
			if err := f.Allocate(0, 1<<30); !vfs.IsNoSpace(err) {
				t.Errorf("a gigabyte: %v", err)
			}
			if n, err := f.Size(); n != 5 || err != nil {
				t.Errorf("%d bytes after that, %v", n, err)
			}
			must(t, f.Close())
		})
	}
}
