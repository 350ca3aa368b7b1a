package wal

import (
	"bytes"
	"errors"
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

// Scrub verifies the segment that holds an LSN as it is on the disk, up to the head at the time of the call: header, frames, their order,
// and the digest behind them, against the header of the next segment or, of the last one, against what this process knows. The
// system's copy in memory is given up first, as far as the system does that. A [*CorruptError] names the first damage. It allocates the
// segment's size. Safe for concurrent use; appends do not wait for it.
func (l *Log) Scrub(at LSN) error {
	for {
		s, err := l.segmentAt(at)
		if err != nil {
			return err
		}
		k := l.known(s)
		image, err := l.image(s, k.end, true)
		if err != nil {
			return err
		}
		if err = s.checkImage(image, k); err == nil || l.generation.Load() == k.generation {
			return err
		} // else it was cut back meanwhile
	}
}

// Repair puts good bytes, a peer's, from the base of a segment on in the place of this log's, as far as those are durable. They are taken
// only if with them the whole segment validates, up to the digest that is known from elsewhere: then they
// are what was written. It returns how many bytes differed. Durable on return; a crash before leaves the segment no worse than it
// was. Reads go on meanwhile; appends wait while what differs is written.
func (l *Log) Repair(base LSN, good []byte) (changed int64, err error) {
	s, err := l.segmentAt(base)
	if err != nil {
		return 0, err
	}
	if base != s.base() || len(good) > int(s.header.SegmentSize) {
		return 0, fmt.Errorf("%w: repair from %v, %d bytes: want bytes of one segment from its base on", ErrInvalid, base, len(good))
	}
	k := l.known(s)
	image, err := l.image(s, k.end, false)
	if err != nil {
		return 0, err
	}
	good = good[:min(len(good), int(min(max(l.Durable(), base), k.end)-base))]
	mended := slices.Clone(image)
	copy(mended, good)
	if err := s.checkImage(mended, k); err != nil {
		return 0, fmt.Errorf("repair of %s: the copy does not fit: %w", s.path, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return 0, err
	}
	if l.generation.Load() != k.generation {
		return 0, fmt.Errorf("%w: repair of %s: the log was cut back meanwhile", ErrInvalid, s.path)
	}
	return l.replace(s, image, mended, len(good))
}

// replace writes the blocks in the first n bytes of a segment that are to be others, and syncs. mu is held: no cut comes between.
func (l *Log) replace(s *segment, image, mended []byte, n int) (changed int64, err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return 0, err
	}
	defer h.unpin()
	for off := 0; off < n; off += repairBlock {
		end := min(off+repairBlock, n)
		if bytes.Equal(mended[off:end], image[off:end]) {
			continue
		}
		if _, err := h.file.WriteAt(mended[off:end], int64(off)); err != nil {
			return changed, fmt.Errorf("repair: %w", s.ioError(int64(off), err))
		}
		changed += int64(end - off)
	}
	if err := h.file.Datasync(); err != nil {
		return changed, l.poisonWith(fmt.Errorf("repair segment %s: %w", s.path, err))
	}
	return changed, nil
}

// known is what this process knows of a segment, whatever its file holds: the digest of everything before end.
type known struct {
	end        LSN
	digest     Digest
	generation uint64
}

// known returns what must hold for a segment. Of one that is not on the disk at all, its header perhaps withheld, that is nothing.
func (l *Log) known(s *segment) known {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := known{end: s.end(), generation: l.generation.Load()}
	next := l.segs.Load().find(s.end())
	switch {
	case l.Durable() < s.base()+HeaderSize:
		k.end = s.base()
	case next != nil:
		k.digest = next.header.Digest
	default:
		k.end, k.digest = l.cur.at, l.cur.digest
	}
	return k
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

// image reads a segment up to limit, into as many bytes as it can have. Blocks that the disk does not give back read as zeros.
func (l *Log) image(s *segment, limit LSN, drop bool) (image []byte, err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return nil, err
	}
	defer h.unpin()
	if drop {
		if h.m != nil {
			h.m.Release(0, s.header.SegmentSize) // hints, both: what is still in memory is read instead of the disk
		}
		_ = h.file.DropCache(0)
	}
	image = make([]byte, s.header.SegmentSize)
	held := image[:limit-s.base()]
	if h.read(held, 0) == nil {
		return image, nil
	}
	for off := 0; off < len(held); off += repairBlock {
		p := held[off:min(off+repairBlock, len(held))]
		if h.read(p, int64(off)) != nil {
			clear(p)
		}
	}
	return image, nil
}

// checkImage verifies the bytes of a segment from its base on against what is known.
func (s *segment) checkImage(image []byte, k known) error {
	if k.end < s.base()+HeaderSize {
		return nil
	}
	var h Header
	if h.Unmarshal(image[:HeaderSize]) != nil || h != s.header {
		return s.corrupt(s.base(), "segment header is not what it was", nil)
	}
	var cur cursor
	cur.begin(&h)
	first := true
	for cur.at < k.end {
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
	if cur.digest != k.digest {
		return s.corrupt(cur.at, fmt.Sprintf("digest is %v, want %v", cur.digest, k.digest), nil)
	}
	return nil
}

// SetRepair has damage that a read meets repaired: fn is told of the frame, and if it returns true the read is made once more. fn runs in
// the reader's goroutine and must not read the log by anything but [Log.Scrub] and [Log.Repair]. Nil ends that.
func (l *Log) SetRepair(fn func(at LSN, err error) bool) {
	if fn == nil {
		l.repairer.Store(nil)
		return
	}
	l.repairer.Store(&fn)
}

// repaired asks for the repair of damage that a read of the frame at an LSN has met.
func (l *Log) repaired(at LSN, err error) bool {
	fn := l.repairer.Load()
	if fn == nil || !errors.Is(err, ErrIO) && !isCorrupt(err) || l.isClosed() {
		return false
	}
	return (*fn)(at, err)
}

func isCorrupt(err error) bool {
	c := (*CorruptError)(nil)
	return errors.As(err, &c)
}
