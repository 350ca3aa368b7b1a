package main

import (
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

type etcdLog struct {
	log   *wal.WAL
	state raftpb.HardState
	index uint64
	term  uint64
	entry raftpb.Entry
	one   []*raftpb.Entry
}

// etcdDir is where the log goes: etcd makes the directory itself.
func etcdDir(dir string) string { return filepath.Join(dir, "wal") }

// openEtcdWAL takes the defaults, and without sync what etcd calls --unsafe-no-fsync.
func openEtcdWAL(c *Config) (LogStore, error) {
	l, err := wal.Create(zap.NewNop(), etcdDir(c.Dir), nil)
	if err != nil {
		return nil, err
	}
	if !c.Durable {
		l.SetUnsafeNoFsync()
	}
	s := &etcdLog{log: l, term: 1}
	s.entry.Index, s.entry.Term, s.entry.Type = &s.index, &s.term, raftpb.EntryNormal.Enum()
	s.one = []*raftpb.Entry{&s.entry}
	return s, nil
}

func (s *etcdLog) Append(entry []byte) error {
	s.index++
	s.entry.Data = entry
	return s.log.Save(&s.state, s.one)
}

func (s *etcdLog) Close() error { return s.log.Close() }

func replayEtcdWAL(dir string, fn func(entry []byte) bool) error {
	l, err := wal.Open(zap.NewNop(), etcdDir(dir), &walpb.Snapshot{})
	if err != nil {
		return err
	}
	_, _, entries, err := l.ReadAll()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !fn(e.GetData()) {
			break
		}
	}
	return l.Close()
}
