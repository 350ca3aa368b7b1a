package wal

import (
	"fmt"
	"os"
)

// settle takes up the end of the log: it cuts back to the last batch end, makes what is behind zeros, and writes again
// what was not known to be durable.
func (l *Log) settle(segs []*segment, s *scanned, last mark, stray []string) error {
	seg := segs[s.seg]
	dirty := lastNonZero(s.bytes, int64(s.cur.at-seg.base()))
	end, cur := s.cur.end, s.cur
	if s.cur.open && s.cur.end == 0 {
		return seg.corrupt(s.cur.at, "a batch is open at the end, and its beginning was not scanned", nil)
	}
	l.report.End = end
	l.report.Cut = dirty > 0 || end < s.cur.at
	if l.report.Cut {
		l.report.CutFrom, l.report.CutBytes = end, int64(s.cur.at-end)+dirty
		l.opts.Logger.Warn("torn tail cut", "lsn", end.String(), "bytes", l.report.CutBytes, "reason", s.reason)
	}
	l.report.Clean = !l.report.Cut && l.node.clean == end && l.node.clean != noLSN
	cur.at, cur.digest, cur.open = end, s.cur.endDigest, false
	l.cur = cur
	l.head.Store(uint64(end))
	l.batchEnd.Store(uint64(end))
	l.durable.Store(uint64(end))
	if l.opts.ReadOnly {
		return nil
	}
	if err := l.removeStray(stray); err != nil {
		return err
	}
	if end <= seg.base() { // an open batch that began in an earlier segment
		l.head.Store(uint64(s.cur.at))
		if err := l.cutTo(end, cur); err != nil {
			return err
		}
		return l.rebase(end)
	}
	if err := l.makeDurable(seg, s, last); err != nil {
		return err
	}
	h, err := l.handles.pin(seg)
	if err != nil {
		return err
	}
	l.tip, l.tipFile, l.alloc = seg, h, int64(end-seg.base())
	l.mapped = mappedFrom(end)
	return nil
}

// rebase recomputes the cursor after a cut into an earlier segment.
func (l *Log) rebase(end LSN) error {
	cur, err := l.cursorAt(end)
	if err != nil {
		return err
	}
	l.cur = cur
	return nil
}

// makeDurable erases what is behind the end, and writes again what may be in the page cache alone: after a failed sync
// the system counts such pages as clean. They are dropped first, because ext4 takes their blocks for written too, and would
// not mark them so when the same pages are written again: see [vfs.File].
func (l *Log) makeDurable(seg *segment, s *scanned, last mark) error {
	if l.report.Clean {
		return nil
	}
	off := int64(l.report.End - seg.base())
	f, err := l.opts.FS.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open segment %s: %w", seg.path, err)
	}
	defer func() { _ = f.Close() }() // the sync below says what is on the disk
	from := max(int64(last.durable)-int64(seg.base()), 0)
	l.handles.drop(seg) // the scan may have mapped it, and pages of a map cannot be dropped
	_ = f.Sync()        // nor can dirty ones; what a failure here leaves out is written below
	if err := f.DropCache(min(from, off)); err != nil {
		return fmt.Errorf("drop %s from the page cache: %w", seg.path, err)
	}
	// With nothing to write again, or to erase, either: the erasure of a torn tail may have failed before. Then the last page is one of those, and the
	// disk has what was to be erased.
	if err := f.Truncate(off); err != nil {
		return fmt.Errorf("erase behind the end of %s: %w", seg.path, err)
	}
	if from < off {
		if _, err := f.WriteAt(s.bytes[from:off], from); err != nil {
			return fmt.Errorf("write %s again: %w", seg.path, spaceError(err))
		}
		l.report.Rewritten = off - from
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", seg.path, err)
	}
	return l.opts.FS.SyncDir(l.segDir())
}

// lastNonZero returns how far behind off the last byte stands that is not zero.
func lastNonZero(b []byte, off int64) int64 {
	for i := int64(len(b)); i > off; {
		n := min(i-off, 4096)
		if !allZero(b[i-n : i]) {
			for b[i-1] == 0 {
				i--
			}
			return i - off
		}
		i -= n
	}
	return 0
}
