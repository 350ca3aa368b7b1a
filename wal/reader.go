package wal

import (
	"context"
	"errors"
	"fmt"
	"io"

	"shiplog/wal/prefetch"
)

// Buffer is scratch memory for reads, and remembers the last frame that was unpacked into it, so that reading its
// neighbours verifies and unpacks nothing again. The zero value is ready. It is not safe for concurrent use.
type Buffer struct {
	log        *Log
	generation uint64
	lsn        LSN
	meta       frameMeta
	valid      bool
	hit        LSN // of the frame that was found in the cache last

	stored []byte // bytes of a frame, where there is no map
	raw    []byte // the unpacked frame
	joined []byte // a record of several frames
}

// maxKept is the largest memory that Trim lets a Buffer keep.
const maxKept = 1 << 20

// Trim gives large memory back. Call it before a Buffer waits for its next use.
func (b *Buffer) Trim() {
	if cap(b.joined) > maxKept {
		b.joined = nil
	}
}

// position finds the segment of the frame at an LSN, which must be below the head.
func (l *Log) position(at LSN) (*segment, error) {
	if at >= l.Head() {
		return nil, fmt.Errorf("%w: %v", ErrBeyondEnd, at)
	}
	sl := l.segs.Load()
	s := sl.find(at)
	switch {
	case len(sl.segs) == 0:
		return nil, ErrNoDatabase
	case s == nil:
		return nil, fmt.Errorf("%w: %v", ErrTrimmed, at)
	case at < s.base()+HeaderSize || at%frameAlign != 0:
		return nil, fmt.Errorf("%w: %v", ErrNotBoundary, at)
	}
	return s, nil
}

// validate checks the frame at an offset of the segment, whose bytes from there on are in data or can be read from h.
// It returns the stored payload.
func (s *segment) validate(h *handle, at LSN, m *frameMeta, scratch *[]byte) ([]byte, error) {
	off := int64(at - s.base())
	room := s.header.SegmentSize - off
	bind := binder(s.header.Salt, at)
	var data []byte
	if h.data != nil {
		data = h.data[off:]
	} else {
		*scratch = sized(*scratch, FrameHeaderSize)
		if err := h.read(*scratch, off); err != nil {
			return nil, err
		}
		data = *scratch
	}
	if int64(FrameHeaderSize) > room || !getFrame(data, m, bind) {
		return nil, s.corrupt(at, "frame header does not validate", nil)
	}
	if reason := m.layout(room, s.header.SegmentSize); reason != "" {
		return nil, s.corrupt(at, reason, nil)
	}
	if m.flags&FlagSeal != 0 {
		return nil, nil
	}
	size := frameSize(int(m.stored))
	if h.data == nil {
		*scratch = sized(*scratch, size)
		if err := h.read(*scratch, off); err != nil {
			return nil, err
		}
		data = *scratch
	}
	if !m.checkPayload(data[:size], bind) {
		return nil, s.corrupt(at, "frame checksum or padding does not hold", nil)
	}
	return data[FrameHeaderSize : FrameHeaderSize+int(m.stored)], nil
}

// ViewFrame calls fn with the frame at an LSN and its stored payload, verified. The payload is the log's own memory: it
// must not be changed or kept. Seals are not shown: [ErrNotBoundary]. A damaged frame is looked at once more, if it could be repaired
// ([Log.SetRepair]); fn is called at most once.
func (l *Log) ViewFrame(at LSN, fn func(f Frame, stored []byte) error) error {
	called, err := l.viewFrame(at, fn)
	if err != nil && !called && l.repaired(at, err) {
		_, err = l.viewFrame(at, fn)
	}
	return err
}

func (l *Log) viewFrame(at LSN, fn func(f Frame, stored []byte) error) (called bool, err error) {
	s, err := l.position(at)
	if err != nil {
		return false, err
	}
	h, err := l.handles.pin(s)
	if err != nil {
		return false, err
	}
	defer h.leave(enter(), &err)
	var m frameMeta
	var scratch []byte
	stored, err := s.validate(h, at, &m, &scratch)
	if err != nil {
		return false, err
	}
	if m.flags&FlagSeal != 0 {
		return false, fmt.Errorf("%w: a seal stands at %v", ErrNotBoundary, at)
	}
	called = true
	return called, fn(m.frame(at, s.header.Time), stored)
}

// load verifies the frame at an LSN and unpacks it into b; a damaged one once more, if it could be repaired.
func (l *Log) load(at LSN, b *Buffer) error {
	err := l.loadOnce(at, b)
	if err != nil && l.repaired(at, err) {
		err = l.loadOnce(at, b)
	}
	return err
}

func (l *Log) loadOnce(at LSN, b *Buffer) (err error) {
	generation := l.generation.Load()
	if b.valid && b.lsn == at && b.log == l && b.generation == generation {
		return nil
	}
	b.valid = false
	s, err := l.position(at)
	if err != nil {
		return err
	}
	h, err := l.handles.pin(s)
	if err != nil {
		return err
	}
	defer h.leave(enter(), &err)
	stored, err := s.validate(h, at, &b.meta, &b.stored)
	if err != nil {
		return err
	}
	if b.meta.flags&FlagSeal == 0 {
		if b.raw, err = unpack(b.raw, stored, b.meta.codec, int(b.meta.raw)); err != nil {
			b.raw = nil
			if errors.Is(err, ErrVersion) {
				return fmt.Errorf("frame at %v: %w", at, err)
			}
			return s.corrupt(at, "payload does not unpack", err)
		}
	}
	b.log, b.lsn, b.generation, b.valid = l, at, generation, true
	return nil
}

// ReadFrame verifies the frame at an LSN and unpacks it into dst's memory.
func (l *Log) ReadFrame(at LSN, dst []byte) (Frame, []byte, error) {
	b := Buffer{raw: dst[:cap(dst)]}
	if err := l.load(at, &b); err != nil {
		return Frame{}, nil, err
	}
	s, err := l.position(at)
	if err != nil {
		return Frame{}, nil, err
	}
	return b.meta.frame(at, s.header.Time), b.raw[:b.meta.raw], nil
}

// ReadRecord calls fn with the bytes of a record, verified: from its beginning to the end of its frame, or, for one
// that is longer than a frame, all of it. The bytes are valid during the call. ref must come from this log.
func (l *Log) ReadRecord(ref Ref, b *Buffer, fn func(rec []byte) error) error {
	if l.cache != nil && (b.lsn != ref.LSN() || !b.valid) {
		generation := l.generation.Load()
		if slot, raw := l.cache.get(ref.LSN()); slot != nil {
			defer slot.release()
			if off := ref.Offset(); off < len(raw) && !(slot.goesOn && off == 0) {
				if b.hit == ref.LSN() && !slot.goesOn {
					b.adopt(l, generation, ref.LSN(), raw)
				}
				b.hit = ref.LSN()
				return fn(raw[off:])
			}
		}
	}
	if err := l.load(ref.LSN(), b); err != nil {
		return err
	}
	if l.cache != nil && b.meta.codec != CodecNone && b.meta.flags&(FlagSeal|FlagControl) == 0 {
		generation := b.generation
		l.cache.put(b.lsn, &b.meta, b.raw, func() bool { return l.generation.Load() == generation })
	}
	if b.meta.flags&(FlagSeal|FlagControl) != 0 || ref.Offset() >= len(b.raw) {
		return fmt.Errorf("%w: no record at %v", ErrNotBoundary, ref)
	}
	if b.meta.mayGoOn(ref.Offset()) {
		long, err := l.join(ref.LSN(), b)
		if err != nil {
			return err
		}
		if long {
			return fn(b.joined)
		}
	}
	return fn(b.raw[ref.Offset():])
}

// Prefetch asks the system to begin to read the frame of a record, as far as small frames reach, if it is not in memory, and reports whether
// it was not. It does not wait for the disk. A hint: where there is no map, or no record at ref, it does nothing.
func (l *Log) Prefetch(ref Ref) (missing bool) {
	s, err := l.position(ref.LSN())
	if err != nil {
		return false
	}
	h, err := l.handles.pin(s)
	if err != nil {
		return false
	}
	defer h.unpin()
	return h.m != nil && h.m.Prefetch(int64(ref.LSN()-s.base()), MaxSmallFrame)
}

// Near has the processor load, for all of refs at once, what ReadRecord will look at where their frames are in the cache: who is about to
// read many records in no order waits for memory once, not for each. A hint: nothing changes, nothing is waited for.
func (l *Log) Near(refs []Ref) {
	if l.cache != nil && prefetch.Works {
		l.cache.near(refs)
	}
}

// adopt copies a frame from the cache that is read for the second time in a row: its next records need no look-up.
func (b *Buffer) adopt(l *Log, generation uint64, at LSN, raw []byte) {
	b.raw = append(b.raw[:0], raw...)
	b.meta = frameMeta{flags: FlagLast, codec: CodecNone, count: 2} // whole records, and nothing for the cache
	b.log, b.lsn, b.generation, b.valid = l, at, generation, true
}

// mayGoOn reports whether the record at an offset of a frame may be a long one whose rest is in the frames behind.
func (m *frameMeta) mayGoOn(off int) bool { return m.flags&FlagLast == 0 && m.count == 1 && off == 0 }

// join puts a record that goes on in the frames behind together; false if it does not go on.
func (l *Log) join(at LSN, b *Buffer) (bool, error) {
	b.joined = append(b.joined[:0], b.raw...)
	var next Buffer
	end := at + LSN(frameSize(int(b.meta.stored)))
	for more := false; ; {
		if err := l.load(l.skip(end), &next); err != nil {
			return false, err
		}
		end = next.lsn + LSN(frameSize(int(next.meta.stored)))
		switch {
		case next.meta.flags&FlagSeal != 0:
			continue
		case next.meta.flags&FlagContinuation == 0:
			return more, nil
		}
		b.joined, more = append(b.joined, next.raw...), true
		if next.meta.flags&FlagLast != 0 {
			return true, nil
		}
	}
}

// skip steps from a segment's base over its header.
func (l *Log) skip(at LSN) LSN {
	if uint64(at)%uint64(l.SegmentSize()) == 0 {
		at += HeaderSize
	}
	return at
}

// Reader walks the frames of a log in order, verified and unpacked, over segment headers and seals. It stops at
// the head, and goes on from there once the head has moved. It is not safe for concurrent use.
type Reader struct {
	log   *Log
	at    LSN
	buf   Buffer
	frame Frame
	err   error
	moved chan struct{}
	stop  func()
}

// NewReader returns a reader whose first frame is the one at from: the tail, or the end of a frame.
func (l *Log) NewReader(from LSN) *Reader { return &Reader{log: l, at: from} }

// Next moves to the next frame; false at the head and after an error.
func (r *Reader) Next() bool {
	if r.err != nil {
		return false
	}
	l := r.log
	for {
		at := l.skip(r.at)
		if at >= l.Head() {
			return false
		}
		if r.at < l.Tail() {
			r.err = fmt.Errorf("%w: %v", ErrTrimmed, r.at)
			return false
		}
		if r.err = l.load(at, &r.buf); r.err != nil {
			return false
		}
		r.at = at + LSN(frameSize(int(r.buf.meta.stored)))
		if r.buf.meta.flags&FlagSeal != 0 {
			continue
		}
		s, err := l.position(at)
		if err != nil {
			r.err = err
			return false
		}
		r.frame = r.buf.meta.frame(at, s.header.Time)
		return true
	}
}

// Frame describes the current frame.
func (r *Reader) Frame() Frame { return r.frame }

// Raw returns the current frame's payload, valid until the next call of Next.
func (r *Reader) Raw() []byte { return r.buf.raw[:r.buf.meta.raw] }

// End returns where the reader stands: the end of the current frame.
func (r *Reader) End() LSN { return r.at }

// Err returns what stopped the reader; nil at the head.
func (r *Reader) Err() error { return r.err }

// Wait returns once there may be more to read, woken by appends, or when ctx ends.
func (r *Reader) Wait(ctx context.Context) error {
	if r.moved == nil {
		r.moved = make(chan struct{}, 1)
		r.stop = r.log.Notify(r.moved)
	}
	for {
		if r.log.skip(r.at) < r.log.Head() {
			return nil
		}
		if r.log.isClosed() {
			return ErrClosed
		}
		select {
		case <-r.moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends the reader's registration. A reader that never waited needs no Close.
func (r *Reader) Close() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
}

func (l *Log) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// ReadAt copies raw bytes of the log, headers and seals included, from [at, Head). They are not verified. It returns
// io.EOF with fewer bytes than asked for where the head is nearer. Above the durable mark a poisoned log gives none.
func (l *Log) ReadAt(p []byte, at LSN) (n int, err error) {
	end := l.Head() // before the segments: what is below it has one in the list
	sl := l.segs.Load()
	if err := l.Err(); err != nil {
		end = min(end, l.Durable())
	}
	if err := l.inFiles(min(end, at+LSN(len(p)))); err != nil {
		return 0, err
	}
	for n < len(p) && at < end {
		s := sl.find(at)
		if s == nil {
			return n, fmt.Errorf("%w: %v", ErrTrimmed, at)
		}
		part := p[n:]
		part = part[:min(int64(len(part)), int64(s.end()-at), int64(end-at))]
		if err := l.readSegment(s, part, int64(at-s.base())); err != nil {
			return n, err
		}
		n += len(part)
		at += LSN(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *Log) readSegment(s *segment, p []byte, off int64) (err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return err
	}
	defer h.leave(enter(), &err)
	if h.data != nil {
		copy(p, h.data[off:])
		return nil
	}
	return h.read(p, off)
}
