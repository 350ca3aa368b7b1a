package main

import (
	"errors"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

type raftLog struct {
	log  *raftwal.WAL
	meta *metadb.BoltMetaDB // WAL.Close leaves it open, and locked
	next raft.Log
	one  []*raft.Log
}

// openRaftWAL takes the defaults. raft-wal always syncs; without, its files get a Sync that does nothing.
func openRaftWAL(c *Config) (LogStore, error) {
	l, err := openRaft(c.Dir, c.Durable)
	return l, err
}

func openRaft(dir string, durable bool) (*raftLog, error) {
	var files types.VFS = fs.New()
	if !durable {
		files = unsynced{files}
	}
	s := &raftLog{meta: &metadb.BoltMetaDB{}, next: raft.Log{Term: 1, Type: raft.LogCommand}}
	s.one = []*raft.Log{&s.next}
	var err error
	s.log, err = raftwal.Open(dir, raftwal.WithSegmentFiler(segment.NewFiler(dir, files)), raftwal.WithMetaStore(s.meta), raftwal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return nil, errors.Join(err, s.meta.Close())
	}
	return s, nil
}

func (s *raftLog) Append(entry []byte) error {
	s.next.Index++
	s.next.Data = entry
	return s.log.StoreLogs(s.one)
}

func (s *raftLog) Close() error { return errors.Join(s.log.Close(), s.meta.Close()) }

func replayRaftWAL(dir string, fn func(entry []byte) bool) error {
	s, err := openRaft(dir, true)
	if err != nil {
		return err
	}
	first, err := s.log.FirstIndex()
	last, err2 := s.log.LastIndex()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	var entry raft.Log
	for i := first; i <= last; i++ {
		if err := s.log.GetLog(i, &entry); err != nil {
			return err
		}
		if !fn(entry.Data) {
			break
		}
	}
	return s.Close()
}

// unsynced is a file system whose files are never synced.
type unsynced struct{ types.VFS }

func (u unsynced) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := u.VFS.Create(dir, name, size)
	return unsyncedFile{f}, err
}

func (u unsynced) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := u.VFS.OpenWriter(dir, name)
	return unsyncedFile{f}, err
}

type unsyncedFile struct{ types.WritableFile }

func (unsyncedFile) Sync() error { return nil }
