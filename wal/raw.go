package wal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// sealFrame encodes the header of a seal; its payload is zeros.
func sealFrame(m *frameMeta, bind uint64) [FrameHeaderSize]byte {
	var b [FrameHeaderSize]byte
	a, w, c := m.words()
	m.check = headCheck(bind, a, w, c)
	binary.LittleEndian.PutUint64(b[8:], a)
	binary.LittleEndian.PutUint64(b[16:], w)
	binary.LittleEndian.PutUint64(b[24:], c|uint64(m.check)<<56)
	m.checksum = sealSum(b[8:], int(m.stored)) ^ bind
	binary.LittleEndian.PutUint64(b[:], m.checksum)
	return b
}

// sealSum is the checksum of a seal's header words and of n zeros, without the zeros in memory.
func sealSum(head []byte, n int) uint64 {
	var zeros [4096]byte
	d := xxhash.New()
	_, _ = d.Write(head)
	for ; n > 0; n -= len(zeros) {
		_, _ = d.Write(zeros[:min(n, len(zeros))])
	}
	return d.Sum64()
}

// AppendRaw appends bytes of the log as another node has them. They must continue the log at at: the Head, or, while the
// zeros of a long seal are coming in, the Head and the bytes that were taken since ([ErrGap] otherwise). Everything is
// verified before it is written. It returns how many bytes of p it has taken: whole frames and headers, so p
// may end inside one, which is then to be offered again from its beginning; zeros of a seal are taken as they
// come. After [ErrInvalid], what was before the offending frame has been taken. Nothing is synced. On an
// empty log, the header of any segment founds the database; see Options.ExpectDatabase.
//
// Control records are taken note of; whether an epoch may be followed is the caller's to decide before.
func (l *Log) AppendRaw(at LSN, p []byte) (taken int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return 0, err
	}
	if err := l.dirty(); err != nil {
		return 0, err
	}
	switch {
	case l.tip == nil:
	case at == l.cur.at:
		l.sealed = 0
	case l.sealed == 0 || at != l.cur.at+LSN(l.sealed):
		return 0, fmt.Errorf("%w: %v offered, the head is %v", ErrGap, at, l.cur.at)
	}
	defer l.publishRaw(l.cur.at)
	for taken < len(p) {
		n, err := l.takeRaw(p[taken:])
		taken += n
		if err != nil {
			return taken, err
		}
		if n == 0 {
			break
		}
	}
	return taken, nil
}

func (l *Log) publishRaw(before LSN) {
	if l.tip != nil && l.cur.at != before {
		l.publish()
	}
}

// takeRaw takes a header, a run of frames, or a part of a seal from the front of p; 0: p holds none completely.
func (l *Log) takeRaw(p []byte) (int, error) {
	switch {
	case l.sealed > 0:
		return l.takeSeal(p)
	case l.tip == nil || l.cur.at == l.tip.end():
		return l.takeHeader(p)
	}
	return l.takeFrames(p)
}

func (l *Log) takeHeader(p []byte) (int, error) {
	if len(p) < HeaderSize {
		return 0, nil
	}
	var h Header
	if err := h.Unmarshal(p); err != nil {
		return 0, fmt.Errorf("segment header at %v: %w", l.cur.at, err)
	}
	if l.tip == nil {
		if want := l.opts.ExpectDatabase; !want.IsZero() && want != h.Database {
			return 0, fmt.Errorf("%w: %v, want %v", ErrDatabase, h.Database, want)
		}
		return HeaderSize, l.found(&h)
	}
	old := &l.tip.header
	if h.Database != old.Database || h.Salt != old.Salt || h.SegmentSize != old.SegmentSize {
		return 0, fmt.Errorf("%w: segment header at %v", ErrDatabase, l.cur.at)
	}
	next := l.cur
	if err := next.header(&h); err != nil {
		return 0, err
	}
	if err := l.room(HeaderSize, true, false); err != nil {
		return 0, err
	}
	return HeaderSize, l.beginRaw(&h)
}

// takeFrames validates as many whole frames as p holds, up to the end of the segment, and writes them with one call.
func (l *Log) takeFrames(p []byte) (int, error) {
	salt, size := l.tip.header.Salt, l.SegmentSize()
	cur, n := l.cur, 0
	var bad error
	var records []EpochRecord
	sealAt := -1
	for sealAt < 0 {
		var m frameMeta
		rest := p[n:]
		if len(rest) < FrameHeaderSize {
			break
		}
		bind := binder(salt, cur.at)
		var reason string
		if !getFrame(rest, &m, bind) {
			reason = "frame header does not validate"
		} else if reason = m.layout(int64(l.tip.end()-cur.at), size); reason == "" {
			if m.flags&FlagSeal != 0 {
				sealAt = n
				break
			}
			if len(rest) < frameSize(int(m.stored)) {
				break
			}
			if !m.checkPayload(rest, bind) {
				reason = "frame checksum or padding does not hold"
			} else {
				reason = cur.check(&m)
			}
		}
		if reason != "" {
			bad = fmt.Errorf("%w: %v: %s", ErrInvalid, cur.at, reason)
			break
		}
		if m.flags&FlagControl != 0 {
			if c, err := DecodeControl(rest[FrameHeaderSize : FrameHeaderSize+int(m.stored)]); err == nil {
				if e, ok := c.(*EpochRecord); ok {
					records = append(records, *e)
				}
			}
		}
		l.tip.noteDigest(cur.at, cur.digest)
		cur.pass(&m)
		n += frameSize(int(m.stored))
	}
	if n > 0 {
		if err := l.writeRaw(p[:n], cur, records); err != nil {
			return 0, err
		}
	}
	if bad != nil || sealAt < 0 {
		return n, bad
	}
	taken, err := l.takeSeal(p[n:])
	return n + taken, err
}

// writeRaw writes verified frames behind the cursor and moves it to cur.
func (l *Log) writeRaw(p []byte, cur cursor, records []EpochRecord) error {
	if err := l.room(int64(len(p))+FrameHeaderSize, true, false); err != nil {
		l.tip.dropDigests(l.cur.at)
		return err
	}
	if err := l.pwrite(p, int64(l.cur.at-l.tip.base())); err != nil {
		return l.poisonWith(fmt.Errorf("write segment %s: %w", l.tip.path, spaceError(err)))
	}
	l.cur = cur
	if cur.at-l.mapped.flushed >= writeBackEvery {
		l.keeper.kick() // it calls writeBehind
	}
	for i := range records {
		l.learnEpoch(records[i])
	}
	return nil
}

// takeSeal takes a seal's header, verified with the zeros that must follow it, and then these zeros as they come.
func (l *Log) takeSeal(p []byte) (int, error) {
	left := int64(l.tip.end() - l.cur.at)
	n := 0
	if l.sealed == 0 {
		if len(p) < FrameHeaderSize {
			return 0, nil
		}
		if _, reason := l.sealHeader(p); reason != "" {
			return 0, fmt.Errorf("%w: %v: %s", ErrInvalid, l.cur.at, reason)
		}
		copy(l.seal32[:], p)
		n, l.sealed = FrameHeaderSize, FrameHeaderSize
	}
	zeros := p[n:min(int64(len(p)), int64(n)+left-l.sealed)]
	if !allZero(zeros) {
		l.sealed = 0
		return 0, fmt.Errorf("%w: %v: seal is not followed by zeros", ErrInvalid, l.cur.at)
	}
	n += len(zeros)
	if l.sealed += int64(len(zeros)); l.sealed < left {
		return n, nil
	}
	m, _ := l.sealHeader(l.seal32[:])
	l.sealed = 0
	if err := l.writeSeal(l.seal32[:]); err != nil {
		return 0, err
	}
	l.cur.pass(&m)
	if !l.cur.open {
		l.batchEnd.Store(uint64(l.cur.at))
	}
	l.head.Store(uint64(l.cur.at))
	return n, nil
}

// sealHeader validates a seal at the cursor by its header.
func (l *Log) sealHeader(p []byte) (m frameMeta, reason string) {
	bind := binder(l.tip.header.Salt, l.cur.at)
	switch {
	case !getFrame(p, &m, bind):
		return m, "frame header does not validate"
	case m.flags != FlagSeal:
		return m, "no seal"
	case sealSum(p[8:FrameHeaderSize], int(m.stored))^bind != m.checksum:
		return m, "seal checksum does not hold"
	}
	return m, l.cur.check(&m)
}

// found begins an empty log with the segment of h.
func (l *Log) found(h *Header) error {
	if h.SegmentSize != l.SegmentSize() {
		l.segs.Store(&segList{size: h.SegmentSize})
	}
	if err := l.opts.FS.MkdirAll(l.segDir(), dirPerm); err != nil {
		return fmt.Errorf("make log directory: %w", spaceError(err))
	}
	if err := errors.Join(l.opts.FS.SyncDir(l.dir), syncAbove(l.opts.FS, l.dir)); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	if err := l.keeper.makeFile(); err != nil { // while there is room
		return err
	}
	l.cur = cursor{at: h.Base, digest: h.Digest}
	l.history.Store(&[]HistoryEntry{{Epoch: h.Epoch, Start: h.Base, ID: h.History, Leader: h.Leader}})
	if err := l.beginSegment(h); err != nil {
		return err
	}
	// The header first, then a mark: a node file that names a database says that both are there.
	if err := l.tipFile.file.Datasync(); err != nil {
		return l.poisonWith(fmt.Errorf("sync segment: %w", err))
	}
	l.durable.Store(uint64(h.Base))
	err := l.keeper.writeMark()
	if err == nil {
		l.nodeMu.Lock()
		err = l.bindDatabase(h.Database)
		l.nodeMu.Unlock()
	}
	if err != nil {
		return errors.Join(err, l.unfound())
	}
	return nil
}

// unfound makes the log empty again after its founding failed, on a full disk for one.
func (l *Log) unfound() error {
	s := l.tip
	l.tipFile.unpin()
	l.tip, l.tipFile, l.cur = nil, nil, cursor{}
	l.durable.Store(0)
	l.segs.Store(&segList{size: s.header.SegmentSize})
	l.history.Store(&[]HistoryEntry{})
	l.handles.drop(s)
	if err := errors.Join(l.opts.FS.Remove(s.path), l.opts.FS.SyncDir(l.segDir())); err != nil {
		return l.poisonWith(err)
	}
	return nil
}

// learnEpoch adds an epoch that a record in the log has begun.
func (l *Log) learnEpoch(e EpochRecord) {
	h := *l.history.Load()
	if n := len(h); n > 0 && h[n-1].Epoch >= e.Epoch {
		return
	}
	next := append(h[:len(h):len(h)], HistoryEntry{Epoch: e.Epoch, Start: e.Start, ID: e.History, Leader: e.Leader})
	l.history.Store(&next)
}
