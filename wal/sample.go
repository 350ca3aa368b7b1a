package wal

import "fmt"

// FrameFrom returns where the first frame begins at or above an LSN, in the same segment; seals count. It is how a place in the middle of
// a log is entered: for an estimate over the log, say. What it finds validates, so it is a frame, but
// bytes in front of it may be damaged. [ErrBeyondEnd]: there is none below the head, or the segment's end.
func (l *Log) FrameFrom(at LSN) (_ LSN, err error) {
	head := l.Head()
	at = (at + frameAlign - 1) &^ (frameAlign - 1)
	at = max(at, l.skip(at&^LSN(l.SegmentSize()-1)))
	if at >= head {
		return 0, fmt.Errorf("%w: %v", ErrBeyondEnd, at)
	}
	s, err := l.position(at)
	if err != nil {
		return 0, err
	}
	h, err := l.handles.pin(s)
	if err != nil {
		return 0, err
	}
	defer h.leave(enter(), &err)
	end := min(s.header.SegmentSize, int64(head-s.base()))
	off := int64(at - s.base())
	data := h.data
	if data == nil {
		data = make([]byte, s.header.SegmentSize)
		if err := h.read(data[off:end], off); err != nil {
			return 0, err
		}
	}
	var m frameMeta
	if found := nextFrame(s, data, int(off), int(end), 0, &m); found >= 0 {
		return s.base() + LSN(found), nil
	}
	return 0, fmt.Errorf("%w: no frame at or above %v in its segment", ErrBeyondEnd, at)
}

// FrameAt describes the frame or seal at an LSN, or behind the segment header there, without reading its payload: what it says holds
// only as far as the header's own check does.
func (l *Log) FrameAt(at LSN) (Frame, error) {
	at = l.skip(at)
	s, err := l.position(at)
	if err != nil {
		return Frame{}, err
	}
	m, err := l.frameHeader(s, at)
	if err != nil {
		return Frame{}, err
	}
	return m.frame(at, s.header.Time), nil
}

// TailBelow returns the highest LSN at or below at that can be the tail of the log: the base of a segment that does not begin inside
// a batch, so that what is kept can be read without what is removed. It is the tail itself where there is no other.
func (l *Log) TailBelow(at LSN) LSN {
	segs := l.segs.Load().segs
	for i := len(segs) - 1; i > 0; i-- {
		if base := segs[i].base(); base <= at && l.cleanAt(segs[i]) {
			return base
		}
	}
	return l.Tail()
}

// cleanAt reports whether no batch of an earlier segment goes on in s. What cannot be read is no place to begin.
func (l *Log) cleanAt(s *segment) bool {
	var b Buffer
	at := s.base() + HeaderSize
	if at >= l.Head() {
		return false
	}
	if err := l.load(at, &b); err != nil {
		return false
	}
	return b.meta.flags&(FlagSeal|FlagFirst) != 0
}
