package vfs

import (
	"errors"
	"os"
	"path/filepath"
)

// ReplaceFile puts text in the place of a file: all of it or nothing, durable on return. A file of the name with ".new" behind
// it may stay after a crash; the next call overwrites it.
func ReplaceFile(fs FS, path string, text []byte) error {
	f, err := fs.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(path+".new", path); err != nil {
		return err
	}
	return fs.SyncDir(filepath.Dir(path))
}
