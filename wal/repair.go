package wal

import (
	"bytes"
	"fmt"
	"slices"
)

// repairBlock is the unit in which a repair compares and writes, in bytes: what a disk loses or mixes up is a multiple of it.
const repairBlock = 4096

// Segments returns the bases of the segments, by rising LSN.
func (l *Log) Segments() []LSN {
	sl := l.segs.Load()
	out := make([]LSN, 0, len(sl.segs))
	for _, s := range sl.segs {
		out = append(out, s.base())
	}
	return out
}

// Scrub verifies the segment that holds an LSN as it is on the disk, up to the durable mark: header, frames, their order, and
// the digest behind them, against the header of the next segment or, of the last one, against what this process knows. The
// system's copy in memory is given up first, as far as the system does that. A [*CorruptError] names the first damage. It allocates the
// segment's size. Safe for concurrent use.
func (l *Log) Scrub(at LSN) error {
	s, err := l.segmentAt(at)
	if err != nil {
		return err
	}
	image, limit, err := l.image(s, true)
	if err != nil {
		return err
	}
	return l.checkImage(s, image, limit)
}

// Repair puts good bytes, a peer's, from the base of a segment on in the place of this log's. They are taken only if with
// them everything of the segment that is durable here validates, up to the digest that is known from elsewhere: then they
// are what was written. It returns how many bytes differed. Durable on return; a crash before leaves the segment no worse than it
// was. Reads go on meanwhile.
func (l *Log) Repair(base LSN, good []byte) (changed int64, err error) {
	s, err := l.segmentAt(base)
	if err != nil {
		return 0, err
	}
	if base != s.base() || len(good) > int(s.header.SegmentSize) {
		return 0, fmt.Errorf("%w: repair from %v, %d bytes: want bytes of one segment from its base on", ErrInvalid, base, len(good))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return 0, err
	}
	image, limit, err := l.image(s, false)
	if err != nil {
		return 0, err
	}
	good = good[:min(len(good), int(limit-base))]
	mended := slices.Clone(image)
	copy(mended, good)
	if err := l.checkImageLocked(s, mended, limit); err != nil {
		return 0, fmt.Errorf("repair of %s: the copy does not fit: %w", s.path, err)
	}
	h, err := l.handles.pin(s)
	if err != nil {
		return 0, err
	}
	defer h.unpin()
	for off := 0; off < len(good); off += repairBlock {
		end := min(off+repairBlock, len(good))
		if bytes.Equal(mended[off:end], image[off:end]) {
			continue
		}
		if _, err := h.file.WriteAt(mended[off:end], int64(off)); err != nil {
			return changed, fmt.Errorf("%w: repair segment %s: %w", ErrIO, s.path, err)
		}
		changed += int64(end - off)
	}
	if err := h.file.Datasync(); err != nil {
		return changed, l.poisonWith(fmt.Errorf("repair segment %s: %w", s.path, err))
	}
	return changed, nil
}

func (l *Log) segmentAt(at LSN) (*segment, error) {
	sl := l.segs.Load()
	switch s := sl.find(at); {
	case len(sl.segs) == 0:
		return nil, ErrNoDatabase
	case s != nil:
		return s, nil
	case at < sl.segs[0].base():
		return nil, fmt.Errorf("%w: %v", ErrTrimmed, at)
	}
	return nil, fmt.Errorf("%w: %v", ErrBeyondEnd, at)
}

// image reads what is durable of a segment, up to limit, into as many bytes as it can have. Blocks that the disk does not give back
// read as zeros.
func (l *Log) image(s *segment, drop bool) (image []byte, limit LSN, err error) {
	limit = min(max(l.Durable(), s.base()), s.end())
	h, err := l.handles.pin(s)
	if err != nil {
		return nil, 0, err
	}
	defer h.unpin()
	if drop {
		if h.m != nil {
			h.m.Release(0, s.header.SegmentSize) // hints, both: what is still in memory is read instead of the disk
		}
		_ = h.file.DropCache(0)
	}
	image = make([]byte, s.header.SegmentSize)
	durable := image[:limit-s.base()]
	if readFull(h.file, durable, 0) == nil {
		return image, limit, nil
	}
	for off := 0; off < len(durable); off += repairBlock {
		p := durable[off:min(off+repairBlock, len(durable))]
		if readFull(h.file, p, int64(off)) != nil {
			clear(p)
		}
	}
	return image, limit, nil
}

func (l *Log) checkImage(s *segment, image []byte, limit LSN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkImageLocked(s, image, limit)
}

// checkImageLocked verifies the bytes of a segment from its base up to limit. l.mu is held.
func (l *Log) checkImageLocked(s *segment, image []byte, limit LSN) error {
	if limit < s.base()+HeaderSize {
		return nil
	}
	var h Header
	if h.Unmarshal(image[:HeaderSize]) != nil || h != s.header {
		return s.corrupt(s.base(), "segment header is not what it was", nil)
	}
	var cur cursor
	cur.begin(&h)
	first := true
	for cur.at < limit {
		var m frameMeta
		rest := image[cur.at-s.base():]
		if first {
			first = false
			if getFrame(rest, &m, binder(h.Salt, cur.at)) {
				cur.open = m.flags&(FlagSeal|FlagFirst) == 0
			}
		}
		if reason := cur.parse(&m, rest, h.Salt, h.SegmentSize); reason != "" {
			return s.corrupt(cur.at, reason, nil)
		}
		if m.flags&FlagSeal != 0 && !allZero(rest[FrameHeaderSize:]) {
			return s.corrupt(cur.at, "bytes behind the seal", nil)
		}
		cur.pass(&m)
	}
	want, known := l.cur.digest, l.cur.at == cur.at
	if next := l.segs.Load().find(s.end()); next != nil && cur.at == s.end() {
		want, known = next.header.Digest, true
	}
	if known && cur.digest != want {
		return s.corrupt(cur.at, fmt.Sprintf("digest is %v, want %v", cur.digest, want), nil)
	}
	return nil
}
