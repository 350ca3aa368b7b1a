package main

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// TestFilesAreForOneUser: nobody but the node's user can read what is stored, whatever the umask.
func TestFilesAreForOneUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := newNode(t, dir, "--segment-size", "131072", "--commit", "replicated:1", "--too-few", "degrade", "--degrade-after", "1ms", "--index-memory", "1048576")
	p.relaunch()
	startNode(t, filepath.Join(t.TempDir(), "f"), "--follow", p.ship, "--name", "f").stop() // leaves a slot
	pipe := p.client().Pipeline()
	for i := range 20_000 {
		pipe.Set(context.Background(), fmt.Sprint("key", i), strings.Repeat("v", 20), 0)
	}
	if _, err := pipe.Exec(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.stop()
	seen := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			t.Errorf("%s has mode %v", path, mode)
		}
		seen[filepath.Ext(path)] = true
		return nil
	})
	if err != nil || !seen[".seg"] || !seen[".run"] {
		t.Fatal(err, seen)
	}
}
