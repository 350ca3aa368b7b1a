package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Reset makes the log empty, so that it can be founded anew by AppendRaw at another place: what a follower does whose upstream
// no longer holds what follows its end. Nothing is kept; whether that may be is the caller's to decide. The node's ID and its promise
// stay. It is durable on return; a crash at any point is finished by the next Open. Readers end with an error.
func (l *Log) Reset() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	if l.tip == nil {
		return nil
	}
	if err := l.dropNext(); err != nil {
		return err
	}
	if err := l.intendReset(); err != nil {
		return err
	}
	l.generation.Add(1)
	if l.cache != nil {
		l.cache.cut(0)
	}
	old := l.segs.Load()
	l.head.Store(0)
	l.durable.Store(0)
	l.committed.Store(0)
	l.batchEnd.Store(0)
	l.segs.Store(&segList{size: old.size})
	l.history.Store(&[]HistoryEntry{})
	l.tipFile.unpin()
	l.tip, l.tipFile, l.cur, l.alloc, l.sealed, l.mapped = nil, nil, cursor{}, 0, 0, mapped{}
	l.headless = nil
	for _, s := range old.segs {
		l.handles.remove(s, ErrTrimmed)
	}
	if err := errors.Join(l.keeper.forget(), l.finishReset()); err != nil {
		return l.poisonWith(fmt.Errorf("reset: %w", err))
	}
	l.notify()
	return nil
}

// intendReset records that the log is to become empty.
func (l *Log) intendReset() error {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	old := *l.node
	l.node.cut, l.node.clean, l.node.database = 0, noLSN, DatabaseID{}
	if err := l.node.save(); err != nil {
		*l.node = old
		return err
	}
	return nil
}

// finishReset removes the segments, newest first, and the mark, and clears the intent.
func (l *Log) finishReset() error {
	names, err := segmentFiles(l.opts.FS, l.segDir())
	if err != nil {
		return err
	}
	for i := len(names) - 1; i >= 0; i-- {
		if err := l.opts.FS.Remove(filepath.Join(l.segDir(), names[i])); err != nil {
			return err
		}
	}
	if len(names) > 0 {
		if err := l.opts.FS.SyncDir(l.segDir()); err != nil {
			return err
		}
	}
	if err := l.opts.FS.Remove(filepath.Join(l.dir, markFileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.opts.FS.SyncDir(l.dir); err != nil {
		return err
	}
	return l.setIntent(noLSN)
}
