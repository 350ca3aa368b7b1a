package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cespare/xxhash/v2"

	"shiplog/wal/vfs"
)

// node is what this directory knows for certain of itself. Every change is written to a new file, synced, renamed and
// synced again, so the file is whole and never derived from anything else.
//
//	 0        8    12   16               32       40       48   52   56
//	+--------+----+----+----------------+--------+--------+----+----+
//	| magic  |ver | 0  |    node ID     | inode  | birth  |prom|led |
//	+--------+----+----+----------------+--------+--------+----+----+
//	 56       64       72               88               120      128
//	+--------+--------+----------------+----------------+--------+
//	| clean  |  cut   |  database ID   |       0        |checksum|
//	+--------+--------+----------------+----------------+--------+
type node struct {
	fs  vfs.FS
	dir string

	id       NodeID
	identity vfs.Identity // of the directory: a copy of it is another node
	promised Epoch
	led      Epoch // no epoch above it was led from here; 0: not known, neverLed: none was
	clean    LSN   // end of the log at a clean close; noLSN: not closed cleanly
	cut      LSN   // the log is being cut back to here; noLSN: it is not
	database DatabaseID

	closed   bool // the directory may be another process's by now
	readOnly bool // it may be anyway
}

const (
	nodeFile     = "node"
	nodeTemp     = "node.tmp"
	nodeSize     = 128
	noLSN    LSN = 1<<64 - 1
	neverLed     = Epoch(1) // below every epoch that there is
	filePerm     = 0o600    // what is stored is for the node's user alone
	dirPerm      = 0o700
)

var nodeMagic = [8]byte{'S', 'H', 'I', 'P', 'N', 'O', 'D', 'E'}

func (n *node) marshal() []byte {
	b := make([]byte, nodeSize)
	copy(b, nodeMagic[:])
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], n.id[:])
	binary.LittleEndian.PutUint64(b[32:], n.identity.Inode)
	binary.LittleEndian.PutUint64(b[40:], uint64(n.identity.Birth))
	binary.LittleEndian.PutUint32(b[48:], uint32(n.promised))
	binary.LittleEndian.PutUint32(b[52:], uint32(n.led))
	binary.LittleEndian.PutUint64(b[56:], uint64(n.clean))
	binary.LittleEndian.PutUint64(b[64:], uint64(n.cut))
	copy(b[72:], n.database[:])
	binary.LittleEndian.PutUint64(b[120:], xxhash.Sum64(b[:120]))
	return b
}

func (n *node) unmarshal(b []byte) error {
	if len(b) != nodeSize || [8]byte(b[:8]) != nodeMagic {
		return fmt.Errorf("%w: not a node file", ErrInvalid)
	}
	if xxhash.Sum64(b[:120]) != binary.LittleEndian.Uint64(b[120:]) {
		return fmt.Errorf("%w: node file checksum", ErrInvalid)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return &VersionError{What: "node file", Have: formatVersion, Need: v}
	}
	n.id = NodeID(b[16:32])
	n.identity = vfs.Identity{Inode: binary.LittleEndian.Uint64(b[32:]), Birth: int64(binary.LittleEndian.Uint64(b[40:]))}
	n.promised, n.led = Epoch(binary.LittleEndian.Uint32(b[48:])), Epoch(binary.LittleEndian.Uint32(b[52:]))
	n.clean, n.cut = LSN(binary.LittleEndian.Uint64(b[56:])), LSN(binary.LittleEndian.Uint64(b[64:]))
	n.database = DatabaseID(b[72:88])
	return nil
}

// save makes the node file durable. The caller serialises. The temporary file is left from the save before, with its
// block, so that a full disk does not keep a log from taking deletes.
func (n *node) save() error {
	switch {
	case n.closed:
		return ErrClosed
	case n.readOnly:
		return ErrReadOnly
	}
	temp := filepath.Join(n.dir, nodeTemp)
	f, err := n.spare(temp)
	if err == nil {
		_, err = f.WriteAt(n.marshal(), 0)
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = n.fs.Rename(temp, filepath.Join(n.dir, nodeFile))
	}
	if err == nil {
		err = n.fs.SyncDir(n.dir)
	}
	if err != nil {
		return fmt.Errorf("write node file: %w", spaceError(err))
	}
	if f, err := n.spare(temp); err == nil { // for the next time; without it that needs room
		_ = f.Close()
	}
	return nil
}

// spare opens the temporary file and gives it a block and its length.
func (n *node) spare(temp string) (vfs.File, error) {
	f, err := n.fs.OpenFile(temp, os.O_RDWR|os.O_CREATE, filePerm)
	if err != nil {
		return nil, err
	}
	err = f.DropCache(0) // a sync of it may have failed: see vfs.File
	size, e := f.Size()
	if err = errors.Join(err, e); err == nil && size > nodeSize {
		err = f.Truncate(nodeSize)
	}
	if err == nil && size != nodeSize {
		err = f.Allocate(0, nodeSize)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// loadNode reads the node file. A directory without one, or a copy of another node's, gets a fresh ID. The copy keeps
// the promise, which can only be too careful, but not the note of a clean close: nobody knows that its bytes are on disk.
func loadNode(f vfs.FS, dir string, readOnly bool) (n *node, previous NodeID, err error) {
	n = &node{fs: f, dir: dir, led: neverLed, clean: noLSN, cut: noLSN, readOnly: readOnly}
	info, err := f.Stat(dir)
	if err != nil {
		return nil, previous, fmt.Errorf("stat directory: %w", err)
	}
	b, err := readFile(f, filepath.Join(dir, nodeFile), nodeSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, syscall.ENOTDIR):
		return nil, previous, syscall.ENOTDIR // dir is a file: nothing is damaged
	case err != nil:
		return nil, previous, err
	default:
		if err := n.unmarshal(b); err != nil {
			if errors.Is(err, ErrVersion) {
				return nil, previous, err
			}
			return nil, previous, &CorruptError{Path: filepath.Join(dir, nodeFile), Reason: "node file does not validate", Err: err}
		}
		if n.identity == info.ID || readOnly {
			return n, previous, nil
		}
		previous = n.id
	}
	if readOnly {
		return n, previous, nil
	}
	n.identity, n.clean = info.ID, noLSN
	if _, err := rand.Read(n.id[:]); err != nil {
		return nil, previous, fmt.Errorf("make node ID: %w", err)
	}
	if err := n.save(); err != nil {
		return nil, previous, err
	}
	return n, previous, syncAbove(f, dir)
}

// syncAbove makes the names of a new directory and of those above it durable, up to the first that this user may not
// open: one that was there before.
func syncAbove(fsys vfs.FS, dir string) error {
	for at := filepath.Clean(dir); ; {
		above := filepath.Dir(at)
		if above == at {
			return nil
		}
		err := fsys.SyncDir(above)
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sync directory %s: %w", above, spaceError(err))
		}
		at = above
	}
}

// readFile reads a small file; one longer than limit is cut there. A file that is not there, or that this user may not read, is
// said as the system says it; all else is an [IOError].
func readFile(fsys vfs.FS, name string, limit int) (b []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	if err == nil {
		defer func() { _ = f.Close() }() // opened to be read only
		var size int64
		if size, err = f.Size(); err == nil {
			b = make([]byte, min(size, int64(limit)))
			err = readFull(f, b, 0)
		}
	}
	if err != nil {
		base, _ := parseSegmentName(filepath.Base(name))
		return nil, &IOError{Path: name, LSN: base, Err: err}
	}
	return b, nil
}

// spaceError makes a full disk known by ErrNoSpace.
func spaceError(err error) error {
	if err != nil && vfs.IsNoSpace(err) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
