package wal

import (
	"fmt"
	"slices"
)

// digestMark is the digest of everything before an LSN that is the boundary of a frame.
type digestMark struct {
	at     LSN
	digest Digest
}

// digestEvery is the distance between the digests that a segment remembers: what DigestAt walks at the most.
const digestEvery = 64 << 10

// noteDigest remembers the digest at a boundary, if the last one is far enough behind.
func (s *segment) noteDigest(at LSN, d Digest) {
	if uint64(at) < s.digestNext.Load() {
		return
	}
	s.digestMu.Lock()
	defer s.digestMu.Unlock()
	if next := s.nextDigest(); at >= next {
		s.digests = append(s.digests, digestMark{at, d})
	}
	s.digestNext.Store(uint64(s.nextDigest()))
}

// nextDigest returns the lowest LSN whose digest is worth remembering. digestMu is held.
func (s *segment) nextDigest() LSN {
	last := s.base() + HeaderSize
	if n := len(s.digests); n > 0 {
		last = s.digests[n-1].at
	}
	return last + digestEvery
}

// dropDigests forgets those above at.
func (s *segment) dropDigests(at LSN) {
	s.digestMu.Lock()
	defer s.digestMu.Unlock()
	for n := len(s.digests); n > 0 && s.digests[n-1].at > at; n-- {
		s.digests = s.digests[:n-1]
	}
	s.digestNext.Store(uint64(s.nextDigest()))
}

// digestNear returns the last remembered boundary at or below at.
func (s *segment) digestNear(at LSN) digestMark {
	s.digestMu.Lock()
	defer s.digestMu.Unlock()
	i, found := slices.BinarySearchFunc(s.digests, at, func(m digestMark, at LSN) int {
		if m.at < at {
			return -1
		}
		if m.at > at {
			return 1
		}
		return 0
	})
	if found {
		return s.digests[i]
	}
	if i > 0 {
		return s.digests[i-1]
	}
	return digestMark{s.base() + HeaderSize, s.header.Digest.step(s.header.Checksum)}
}

// DigestAt returns the digest of everything before end, which must be the end of a frame or header, or the base of a
// segment: else [ErrNotBoundary]. It costs little at the head and at segment bases; elsewhere at most digestEvery bytes
// of frames are walked, on a segment that this process wrote, and the whole segment once on others. They are verified: a damaged one
// is a [*CorruptError], and no digest of it is given or remembered.
func (l *Log) DigestAt(end LSN) (Digest, error) {
	if l.Empty() {
		return 0, ErrNoDatabase
	}
	if end == l.Head() {
		l.mu.Lock()
		at, d := l.cur.at, l.cur.digest
		l.mu.Unlock()
		if at == end {
			return d, nil
		}
	}
	sl := l.segs.Load()
	if end < sl.segs[0].base() {
		return 0, ErrTrimmed
	}
	if end > l.Head() {
		return 0, ErrBeyondEnd
	}
	s := sl.find(end)
	if s == nil { // the end of a sealed last segment
		s = sl.last()
	} else if end == s.base() {
		return s.header.Digest, nil
	}
	m := s.digestNear(end)
	var scratch []byte
	for m.at < end {
		meta, err := l.soundFrame(s, m.at, &scratch)
		if err != nil && l.repaired(m.at, err) {
			meta, err = l.soundFrame(s, m.at, &scratch)
		}
		if err != nil {
			return 0, err
		}
		m.digest = m.digest.step(meta.checksum)
		m.at += LSN(frameSize(int(meta.stored)))
		s.noteDigest(m.at, m.digest)
	}
	if m.at != end {
		return 0, fmt.Errorf("%w: %v", ErrNotBoundary, end)
	}
	return m.digest, nil
}

// soundFrame verifies the frame at a boundary and returns its header.
func (l *Log) soundFrame(s *segment, at LSN, scratch *[]byte) (m frameMeta, err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return m, err
	}
	defer h.leave(enter(), &err)
	_, err = s.validate(h, at, &m, scratch)
	return m, err
}

// frameHeader reads the header of the frame at a boundary. Only its head check is verified.
func (l *Log) frameHeader(s *segment, at LSN) (m frameMeta, err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return m, err
	}
	defer h.leave(enter(), &err)
	var b [FrameHeaderSize]byte
	off := int64(at - s.base())
	if h.data != nil {
		copy(b[:], h.data[off:])
	} else if err := h.read(b[:], off); err != nil {
		return m, err
	}
	if !getFrame(b[:], &m, binder(s.header.Salt, at)) {
		return m, s.corrupt(at, "frame header does not validate", nil)
	}
	if reason := m.layout(int64(s.end()-at), s.header.SegmentSize); reason != "" {
		return m, s.corrupt(at, reason, nil)
	}
	return m, nil
}

// corrupt names damage in the segment.
func (s *segment) corrupt(at LSN, reason string, err error) error {
	return &CorruptError{Path: s.path, LSN: at, Offset: int64(at - s.base()), Reason: reason, Err: err}
}
