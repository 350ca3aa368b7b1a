package wal

import (
	"fmt"
	"os"
	"path/filepath"
)

// This file finds where the log ends at recovery, and decides whether what ended it is a torn tail or damage. recover.go has
// the steps before, settle.go those behind.

// scanned is where the scan of recovery has ended.
type scanned struct {
	cur    cursor
	seg    int    // index of the segment that the scan ended in
	reason string // why it ended there
	err    error  // damage that is plain already
	epochs []EpochRecord
	from   LSN // where the scan began
	bytes  []byte
}

// cleanTail is how much of the log is looked at in front of an end that a clean close has noted.
const cleanTail = 1 << 20

// cleanEnd takes a clean close's word for the end of the log, where the last frames lead there; nil if there is no such
// word, or anything speaks against it: then the whole segment is scanned.
func (l *Log) cleanEnd(segs []*segment, stray []string, last mark) *scanned {
	end, seg := last.end, segs[len(segs)-1]
	if l.opts.ReadOnly || l.node.clean == noLSN || l.node.clean != end || last.durable != end || len(stray) > 0 ||
		end < seg.base()+HeaderSize || end > seg.end() || seg.header.Epoch != last.epoch {
		return nil
	}
	if err := l.leadsTo(seg, end); err != nil {
		return nil
	}
	seg.noteDigest(end, last.digest)
	cur := cursor{at: end, digest: last.digest, epoch: last.epoch, time: last.time, segTime: seg.header.Time}
	cur.settle()
	return &scanned{seg: len(segs) - 1, from: end, cur: cur}
}

// leadsTo checks that the last frames of a segment are valid, follow each other and end at end.
func (l *Log) leadsTo(s *segment, end LSN) (err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return err
	}
	defer h.leave(enter(), &err)
	if h.data == nil {
		return ErrNotBoundary
	}
	off := HeaderSize
	if at := int(end - s.base()); at > HeaderSize+cleanTail {
		var m frameMeta
		if off = nextFrame(s, h.data, at-cleanTail, at, 0, &m); off < 0 {
			return ErrNotBoundary
		}
	}
	for at := s.base() + LSN(off); at != end; {
		var m frameMeta
		var scratch []byte
		if at > end {
			return ErrNotBoundary
		}
		if _, err := s.validate(h, at, &m, &scratch); err != nil {
			return err
		}
		at += LSN(frameSize(int(m.stored)))
	}
	return nil
}

// scan validates everything from the segment of the mark on. All segments but the last must be whole: the next one's
// header was written only after they were.
func (l *Log) scan(segs []*segment, from LSN) *scanned {
	i := len(segs) - 1
	for i > 0 && segs[i].base() > from {
		i--
	}
	s := &scanned{seg: i, from: segs[i].base()}
	s.cur.open = i > 0 && l.openAt(segs[i])
	s.cur.begin(&segs[i].header)
	if s.cur.open {
		s.cur.end = 0
	}
	for ; ; i++ {
		seg := segs[i]
		s.seg = i
		if s.bytes, s.err = l.segmentBytes(seg); s.err != nil {
			return s
		}
		s.reason = s.walk(seg)
		if i == len(segs)-1 {
			return s
		}
		if s.cur.at != seg.end() {
			s.err = seg.corrupt(s.cur.at, s.reason+", and a later segment is valid", nil)
			return s
		}
		if err := s.cur.header(&segs[i+1].header); err != nil {
			s.err = segs[i+1].corrupt(segs[i+1].base(), "segment header does not follow", err)
			return s
		}
	}
}

// walk moves the cursor over the valid frames of a segment and returns why it stopped; "" at the end.
func (s *scanned) walk(seg *segment) string {
	for s.cur.at < seg.end() {
		var m frameMeta
		data := s.bytes[s.cur.at-seg.base():]
		if reason := s.cur.parse(&m, data, seg.header.Salt, seg.header.SegmentSize); reason != "" {
			return reason
		}
		if m.flags&FlagControl != 0 {
			if c, err := DecodeControl(data[FrameHeaderSize : FrameHeaderSize+int(m.stored)]); err == nil {
				if e, ok := c.(*EpochRecord); ok {
					s.epochs = append(s.epochs, *e)
				}
			}
		}
		seg.noteDigest(s.cur.at, s.cur.digest)
		s.cur.pass(&m)
	}
	return ""
}

// segmentBytes reads a whole segment into memory, so that a fault of the medium is an error here and nothing later can
// change under recovery. What is past the end of the file reads as zeros.
func (l *Log) segmentBytes(s *segment) ([]byte, error) {
	f, err := l.opts.FS.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, s.ioError(0, err)
	}
	defer func() { _ = f.Close() }() // opened to be read only
	b := make([]byte, s.header.SegmentSize)
	if err := readFull(f, b, 0); err != nil {
		return nil, s.ioError(0, err)
	}
	return b, nil
}

// judge decides whether what ends the log is a torn tail or damage to what was durable.
func (l *Log) judge(segs []*segment, stray []string, s *scanned, last mark) error {
	seg := segs[s.seg]
	x := s.cur.at
	if x < last.durable {
		return seg.corrupt(x, fmt.Sprintf("%s, below the durable mark %v", s.reason, last.durable), nil)
	}
	if clean := l.node.clean; clean != noLSN && x < clean {
		return seg.corrupt(x, fmt.Sprintf("%s, below the end %v at the clean close", s.reason, clean), nil)
	}
	own := l.own(segs, s)
	if at, promise, found := s.laterPromise(seg, x, s.bytes[x-seg.base():], own); found {
		return seg.corrupt(x, fmt.Sprintf("%s, but the frame at %v says that everything up to %v was durable", s.reason, at, promise), nil)
	}
	return l.judgeStray(stray, s, seg, own)
}

// judgeStray looks for promises in files behind the end whose header does not validate: with one, it is the header that is
// damaged, and the file is a segment.
func (l *Log) judgeStray(stray []string, s *scanned, last *segment, own func(Epoch) bool) error {
	for _, path := range stray {
		base, _ := parseSegmentName(filepath.Base(path))
		if base < last.end() {
			continue // before the first segment: not of this log
		}
		seg := &segment{path: path, header: last.header}
		seg.header.Base = base
		b, err := l.segmentBytes(seg)
		if err != nil {
			return err
		}
		at, promise, found := s.laterPromise(seg, base, b, own)
		switch {
		case !found:
		case s.cur.at < last.end():
			return last.corrupt(s.cur.at, fmt.Sprintf("%s, but the frame at %v says that everything up to %v was durable", s.reason, at, promise), nil)
		default:
			return seg.corrupt(base, fmt.Sprintf("segment header does not validate, but the frame at %v says that everything up to %v was durable", at, promise), nil)
		}
	}
	return nil
}

// own tells the epochs that this node led from those of others. An epoch whose record was not seen counts as its own,
// unless it is above all that this node has led: doubt never cuts.
func (l *Log) own(segs []*segment, s *scanned) func(Epoch) bool {
	foreign := map[Epoch]bool{}
	for _, seg := range segs {
		foreign[seg.header.Epoch] = seg.header.Leader != l.node.id
	}
	for _, e := range s.epochs {
		foreign[e.Epoch] = e.Leader != l.node.id
	}
	led := l.node.led
	return func(e Epoch) bool { return !foreign[e] && (led == 0 || e <= led) }
}

// laterPromise looks in the bytes of a segment from an LSN on for a valid frame of this node that was written when
// bytes past the end of the log were durable. Frames may begin at any multiple of 8. Each place is tried, and the head
// check, which who does not know the salt passes one time in 256, stands before the hashing of a payload; so the
// search is linear whatever the bytes are.
func (s *scanned) laterPromise(seg *segment, from LSN, rest []byte, own func(Epoch) bool) (at, promise LSN, found bool) {
	for off := 0; off+FrameHeaderSize <= len(rest); off += frameAlign {
		var m frameMeta
		p := rest[off:]
		if allZero(p[8:16]) { // no frame has neither length nor codec
			continue
		}
		at := from + LSN(off)
		bind := binder(seg.header.Salt, at)
		if !getFrame(p, &m, bind) || m.layout(int64(len(p)), seg.header.SegmentSize) != "" || m.epoch < s.cur.epoch {
			continue
		}
		f := m.frame(at, seg.header.Time)
		if !f.HasPromise || f.Promise <= s.cur.at || !own(m.epoch) || !m.checkPayload(p, bind) {
			continue
		}
		return at, f.Promise, true
	}
	return 0, 0, false
}
