package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"

	"shiplog/wal/vfs"
)

// mark is what was known to be durable and committed some time ago: never ahead of the truth, often behind it.
//
//	 0        8        16               32       40       48   52   56       64       72       80       88
//	+--------+--------+----------------+--------+--------+----+----+--------+--------+--------+--------+
//	| magic  |sequence|  database ID   |durable |commit'd|epoc| 0  |  end   | digest |  time  |checksum|
//	+--------+--------+----------------+--------+--------+----+----+--------+--------+--------+--------+
//
// End, digest and log time are those of the log at a clean close, and zero else.
type mark struct {
	seq       uint64
	database  DatabaseID
	durable   LSN
	committed LSN
	epoch     Epoch
	end       LSN
	digest    Digest
	time      int64
}

const (
	markFileName = "mark"
	markSize     = 88
	markSpacing  = 4096 // the two slots never share a block that can be torn as one
)

var markMagic = [8]byte{'S', 'H', 'I', 'P', 'M', 'A', 'R', 'K'}

func (m *mark) marshal() []byte {
	b := make([]byte, markSize)
	copy(b, markMagic[:])
	binary.LittleEndian.PutUint64(b[8:], m.seq)
	copy(b[16:], m.database[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(m.durable))
	binary.LittleEndian.PutUint64(b[40:], uint64(m.committed))
	binary.LittleEndian.PutUint32(b[48:], uint32(m.epoch))
	binary.LittleEndian.PutUint64(b[56:], uint64(m.end))
	binary.LittleEndian.PutUint64(b[64:], uint64(m.digest))
	binary.LittleEndian.PutUint64(b[72:], uint64(m.time))
	binary.LittleEndian.PutUint64(b[80:], xxhash.Sum64(b[:80]))
	return b
}

func (m *mark) unmarshal(b []byte) bool {
	if len(b) < markSize || [8]byte(b[:8]) != markMagic || xxhash.Sum64(b[:80]) != binary.LittleEndian.Uint64(b[80:]) {
		return false
	}
	*m = mark{
		seq: binary.LittleEndian.Uint64(b[8:]), database: DatabaseID(b[16:32]),
		durable: LSN(binary.LittleEndian.Uint64(b[32:])), committed: LSN(binary.LittleEndian.Uint64(b[40:])),
		epoch: Epoch(binary.LittleEndian.Uint32(b[48:])), end: LSN(binary.LittleEndian.Uint64(b[56:])),
		digest: Digest(binary.LittleEndian.Uint64(b[64:])), time: int64(binary.LittleEndian.Uint64(b[72:])),
	}
	return true
}

// markFile holds two slots that are written in turn. One goroutine at a time uses it.
type markFile struct {
	f    vfs.File
	last mark
}

// loadMark reads the newest valid slot; ok is false where there is none, or none of this database.
func loadMark(fsys vfs.FS, dir string, database DatabaseID) (m mark, ok bool, err error) {
	b, err := readFile(fsys, filepath.Join(dir, markFileName), markSpacing+markSize)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("read mark file: %w", err)
	}
	for _, at := range []int{0, markSpacing} {
		var s mark
		if at < len(b) && s.unmarshal(b[at:]) && s.database == database && (!ok || s.seq > m.seq) {
			m, ok = s, true
		}
	}
	return m, ok, nil
}

func openMark(fsys vfs.FS, dir string, last mark) (*markFile, error) {
	name := filepath.Join(dir, markFileName)
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, filePerm)
	if err != nil {
		return nil, fmt.Errorf("open mark file: %w", spaceError(err))
	}
	if err := f.DropCache(0); err != nil { // a sync of it may have failed before: see vfs.File
		return nil, errors.Join(fmt.Errorf("open mark file: %w", err), f.Close())
	}
	if size, err := f.Size(); err != nil || size < markSpacing+markSize {
		if err == nil {
			err = f.Allocate(0, 2*markSpacing)
		}
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = fsys.SyncDir(dir)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make mark file: %w", spaceError(err)), f.Close())
		}
	}
	return &markFile{f: f, last: last}, nil
}

// write stores m durably in the slot that holds the older mark. The values must be true already.
func (f *markFile) write(m mark) error {
	m.seq = f.last.seq + 1
	if _, err := f.f.WriteAt(m.marshal(), int64(m.seq%2)*markSpacing); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	if err := f.f.Datasync(); err != nil {
		return errors.Join(fmt.Errorf("sync mark: %w", err), f.f.DropCache(0)) // the next one must get to the disk: see vfs.File
	}
	f.last = m
	return nil
}
