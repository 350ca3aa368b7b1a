package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"shiplog/wal/vfs"
)

// open runs the recovery of FORMAT.md; the steps are numbered as there. It returns the newest mark.
func (l *Log) open() (last mark, err error) {
	// 1. Lock, node file.
	if err := l.enterDir(); err != nil {
		return last, err
	}
	// 2. A cut that was interrupted is finished.
	if err := l.finishCut(); err != nil {
		return last, err
	}
	// 3. Segments: names, headers, adjacency.
	segs, stray, err := l.listSegments()
	if err != nil {
		return last, err
	}
	if len(segs) == 0 {
		return last, l.openEmpty(stray)
	}
	founded := !l.node.database.IsZero()
	if err := l.bindDatabase(segs[0].header.Database); err != nil {
		return last, err
	}
	size := segs[0].header.SegmentSize
	l.segs.Store(&segList{segs: segs, size: size})
	l.head.Store(uint64(segs[len(segs)-1].end())) // for reads during recovery
	segs = l.leaveHeadless(segs)
	// 4. The newest mark.
	last, marked, err := loadMark(l.opts.FS, l.dir, segs[0].header.Database)
	if err != nil {
		return last, err
	}
	l.report.MarkLost = !marked && l.node.clean == noLSN && !l.opts.ReadOnly && (founded || !l.young(segs))
	s := l.cleanEnd(segs, stray, last)
	if s == nil {
		// 5. Scan from the segment that holds the mark to the first frame that does not validate.
		if s = l.scan(segs, last.durable); s.err != nil {
			return last, s.err
		}
		// 6. Torn or corrupt.
		if err := l.judge(segs, stray, s, last); err != nil {
			return last, err
		}
	}
	if err := l.loadHistory(segs, s); err != nil {
		return last, err
	}
	// 7. to 9. Cut, erase, rewrite.
	if err := l.settle(segs, s, last, stray); err != nil {
		return last, err
	}
	l.committed.Store(uint64(min(last.committed, l.Durable(), l.BatchEnd())))
	return last, nil
}

// enterDir takes the lock and reads the node file.
func (l *Log) enterDir() error {
	o := l.opts
	if !o.ReadOnly {
		if err := o.FS.MkdirAll(l.dir, dirPerm); err != nil {
			return fmt.Errorf("make directory: %w", spaceError(err))
		}
		lock, err := o.FS.Lock(filepath.Join(l.dir, "LOCK"))
		if errors.Is(err, vfs.ErrLocked) {
			return ErrLocked
		}
		if err != nil {
			return fmt.Errorf("lock directory: %w", spaceError(err))
		}
		l.lock = lock
	}
	n, previous, err := loadNode(o.FS, l.dir, o.ReadOnly)
	if err != nil {
		return err
	}
	l.node, l.report.PreviousNode = n, previous
	if l.comp, err = newCompressor(o.Compression); err != nil {
		return fmt.Errorf("start compressor: %w", err)
	}
	if !o.ReadOnly {
		l.useMap, err = coherent(o.FS, l.dir)
		l.handles.noMap = !l.useMap
	}
	return err
}

// coherent reports whether a map sees what is written to its file, and the file what is stored through the map.
func coherent(fsys vfs.FS, dir string) (ok bool, err error) {
	name := filepath.Join(dir, "probe.tmp")
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err == nil {
		ok, err = coherentFile(f)
		err = errors.Join(err, f.Close(), fsys.Remove(name))
	}
	if vfs.IsNoSpace(err) {
		return false, nil // a full disk must open: pread and pwrite do all
	}
	if err != nil {
		return false, fmt.Errorf("probe file system: %w", err)
	}
	return ok, nil
}

func coherentFile(f vfs.File) (ok bool, err error) {
	const n = 4096
	if err := f.Allocate(0, n); err != nil {
		return false, err
	}
	m, err := f.Map(n, true)
	if err != nil {
		return false, nil //nolint:nilerr // no shared maps here: that is the answer
	}
	h := &handle{file: f, m: m, data: m.Bytes()}
	h.pins.Store(1)
	ok, err = probe(h)
	return ok, errors.Join(err, m.Close())
}

func probe(h *handle) (ok bool, err error) {
	h.pins.Add(1)
	defer h.leave(enter(), &err)
	var b [1]byte
	if _, err := h.file.WriteAt([]byte{1}, 0); err != nil {
		return false, err
	}
	seen := h.data[0] == 1
	h.data[1] = 2
	if _, err := h.file.ReadAt(b[:], 1); err != nil {
		return false, err
	}
	return seen && b[0] == 2, nil
}

// finishCut does what is left of a cut whose intent is recorded.
func (l *Log) finishCut() error {
	to := l.node.cut
	if to == noLSN || l.opts.ReadOnly {
		return nil
	}
	if to == 0 {
		l.report.Resumed = true
		if err := l.finishReset(); err != nil {
			return fmt.Errorf("finish a reset: %w", err)
		}
		return nil
	}
	names, err := segmentFiles(l.opts.FS, l.segDir())
	if err != nil {
		return err
	}
	for i := len(names) - 1; i >= 0; i-- {
		base, _ := parseSegmentName(names[i])
		path := filepath.Join(l.segDir(), names[i])
		if base < to {
			if err := eraseTailAgain(l.opts, path, int64(to-base)); err != nil {
				return fmt.Errorf("finish a cut: %w", err)
			}
			break
		}
		if err := l.opts.FS.Remove(path); err != nil {
			return fmt.Errorf("finish a cut: %w", err)
		}
		if err := l.opts.FS.SyncDir(l.segDir()); err != nil {
			return fmt.Errorf("finish a cut: %w", err)
		}
	}
	l.report.Resumed = true
	if err := l.lowerMark(to); err != nil {
		return fmt.Errorf("finish a cut: %w", err)
	}
	return l.setIntent(noLSN)
}

// lowerMark brings the mark in the file down to where a cut went.
func (l *Log) lowerMark(to LSN) error {
	m, ok, err := loadMark(l.opts.FS, l.dir, l.node.database)
	if err != nil || !ok || m.durable <= to {
		return err
	}
	f, err := openMark(l.opts.FS, l.dir, m)
	if err != nil {
		return err
	}
	m.durable, m.committed = to, min(m.committed, to)
	return errors.Join(f.write(m), f.f.Close())
}

// listSegments reads all headers. Files without a valid header behind the last segment are none: they come back as
// strays. Anywhere else they are damage, as is a gap.
func (l *Log) listSegments() (segs []*segment, stray []string, err error) {
	names, err := segmentFiles(l.opts.FS, l.segDir())
	if err != nil {
		return nil, nil, err
	}
	var bad error
	for _, name := range names {
		path := filepath.Join(l.segDir(), name)
		base, _ := parseSegmentName(name)
		s := &segment{path: path}
		b, err := readFile(l.opts.FS, path, HeaderSize)
		if err != nil {
			return nil, nil, fmt.Errorf("read segment header: %w", err)
		}
		if err := s.header.Unmarshal(b); err != nil {
			if errors.Is(err, ErrVersion) {
				return nil, nil, fmt.Errorf("segment %s: %w", path, err)
			}
			stray = append(stray, path)
			if bad == nil {
				bad = &CorruptError{Path: path, LSN: base, Reason: "segment header does not validate, and a later segment is valid", Err: err}
			}
			continue
		}
		if err := l.fits(s, base, segs); err != nil {
			return nil, nil, err
		}
		if bad != nil {
			return nil, nil, bad
		}
		segs = append(segs, s)
	}
	return segs, stray, nil
}

// fits checks a valid header against its file's name and the segments before it.
func (l *Log) fits(s *segment, base LSN, before []*segment) error {
	h := &s.header
	for _, want := range []DatabaseID{l.opts.ExpectDatabase, l.node.database} {
		if !want.IsZero() && h.Database != want {
			return fmt.Errorf("%w: segment %s is of database %v, want %v", ErrDatabase, s.path, h.Database, want)
		}
	}
	if h.Base != base {
		return &CorruptError{Path: s.path, LSN: base, Reason: fmt.Sprintf("the header is that of segment %v", h.Base)}
	}
	if len(before) == 0 {
		return nil
	}
	last := before[len(before)-1]
	switch {
	case h.Database != last.header.Database:
		return fmt.Errorf("%w: segment %s is of database %v, the others of %v", ErrDatabase, s.path, h.Database, last.header.Database)
	case h.SegmentSize != last.header.SegmentSize || h.Salt != last.header.Salt:
		return &CorruptError{Path: s.path, LSN: base, Reason: "segment size or salt differs from that of the segments before"}
	case base != last.end():
		return &CorruptError{Path: last.path, LSN: last.end(), Reason: fmt.Sprintf("segments are missing from here to %v", base)}
	}
	return nil
}

// leaveHeadless leaves the segments at the front out of the log that begin inside a batch whose beginning is gone: a removal was
// interrupted between them. Their files stay until TrimBefore is called again, in case that they were lost in another way.
func (l *Log) leaveHeadless(segs []*segment) []*segment {
	n := 0
	for n < len(segs) && segs[n].base() > 0 && l.openAt(segs[n]) {
		n++
	}
	if n == 0 || n == len(segs) {
		return segs
	}
	for _, s := range segs[:n] {
		l.headless = append(l.headless, s.path)
		l.handles.drop(s)
	}
	l.opts.Logger.Warn("segments begin inside a batch whose beginning is gone: they are left out", "from_lsn", segs[0].base().String(), "tail_lsn", segs[n].base().String())
	l.segs.Store(&segList{segs: segs[n:], size: segs[n].header.SegmentSize})
	return segs[n:]
}

// bindDatabase notes in the node file whose log the directory holds.
func (l *Log) bindDatabase(id DatabaseID) error {
	if l.opts.ReadOnly || l.node.database == id {
		return nil
	}
	old := l.node.database
	l.node.database = id
	if err := l.node.save(); err != nil {
		l.node.database = old
		return err
	}
	return nil
}

// openEmpty opens a directory that has no segments. A mark or a node file that says otherwise is the trace of lost ones:
// the first header is durable before the node file names the database.
func (l *Log) openEmpty(stray []string) error {
	if m, ok, err := loadMark(l.opts.FS, l.dir, l.node.database); err != nil {
		return err
	} else if ok && m.durable > 0 {
		return &CorruptError{Path: l.segDir(), LSN: 0, Reason: fmt.Sprintf("no segments, but the log was durable up to %v", m.durable)}
	}
	if l.node.clean != noLSN && l.node.clean > 0 {
		return &CorruptError{Path: l.segDir(), LSN: 0, Reason: fmt.Sprintf("no segments, but the log was closed at %v", l.node.clean)}
	}
	if id := l.node.database; !id.IsZero() {
		path := l.segDir()
		if len(stray) > 0 {
			path = stray[0]
		}
		base, _ := parseSegmentName(filepath.Base(path))
		return &CorruptError{Path: path, LSN: base, Reason: fmt.Sprintf("no valid segment header, but there was a log of database %v", id)}
	}
	return l.removeStray(stray)
}

func (l *Log) removeStray(stray []string) error {
	if l.opts.ReadOnly {
		return nil
	}
	for _, path := range stray {
		if err := l.opts.FS.Remove(path); err != nil {
			return fmt.Errorf("remove what is not a segment: %w", err)
		}
	}
	return nil
}

// young reports whether the log may never have been founded to the end, and have no mark for that reason.
func (l *Log) young(segs []*segment) bool { return len(segs) == 1 && segs[0].base() == 0 }

// loadHistory collects the epochs: from the headers where they differ, exactly from the records in the segments between.
func (l *Log) loadHistory(segs []*segment, s *scanned) error {
	first := &segs[0].header
	l.history.Store(&[]HistoryEntry{{Epoch: first.Epoch, Start: first.Base, ID: first.History, Leader: first.Leader}})
	l.head.Store(uint64(s.cur.at))
	for i := 0; i+1 < len(segs) && segs[i].base() < s.from; i++ {
		if segs[i].header.Epoch == segs[i+1].header.Epoch {
			continue
		}
		r := l.NewReader(segs[i].base())
		for r.Next() && r.Frame().LSN < segs[i].end() {
			if !r.Frame().Control() {
				continue
			}
			if c, err := DecodeControl(r.Raw()); err == nil {
				if e, ok := c.(*EpochRecord); ok {
					l.learnEpoch(*e)
				}
			}
		}
		if r.Err() != nil {
			return r.Err()
		}
	}
	for _, e := range s.epochs {
		if e.Start < s.cur.end {
			l.learnEpoch(e)
		}
	}
	return nil
}
