package wal

import (
	"fmt"
)

// slot is a record in the frame being packed.
type slot struct {
	batch *Batch
	from  int // first of its records in this frame
	to    int // behind the last
	off   int // raw offset of the first
}

// Append stores batches, in order, and gives each its refs. All of them or none are stored: an error other than
// [ErrPoisoned] leaves the log as it was. On return they are readable and can be shipped; nothing is durable before Sync.
//
// sync says that the caller calls Sync next: the bytes then go out in one pwrite, which a sync finds in
// better shape than pages stored through the map; without it they are stored through the map, which costs
// no system call. Small batches share frames; a Batch may be Reset and used again after the call.
func (l *Log) Append(batches []*Batch, sync bool) (Range, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.prepareAppend(); err != nil {
		return Range{}, err
	}
	need, urgent, err := l.measure(batches)
	if err != nil {
		return Range{}, err
	}
	now := max(l.nowMs(), l.cur.time)
	if err := l.room(need, urgent, l.tooLate(now)); err != nil {
		return Range{}, err
	}
	start := l.cur.at
	a := appender{log: l, now: now, sync: sync}
	for _, b := range batches {
		b.refs = b.refs[:0]
		if len(b.ends) == 0 {
			continue
		}
		b.Buf[b.start(len(b.ends)-1)] |= recordLast
		if err := a.batch(b); err != nil {
			return Range{}, err
		}
	}
	if err := a.finish(); err != nil {
		return Range{}, err
	}
	return Range{Start: start, End: l.cur.at}, nil
}

// AppendControl stores a control record in a frame of its own; like what Append stores it is not durable before Sync, and sync says
// that it comes next. It may use the space that is held in reserve. Epoch records are StartEpoch's.
func (l *Log) AppendControl(c Control, sync bool) (Range, error) {
	if _, ok := c.(*EpochRecord); ok {
		return Range{}, fmt.Errorf("%w: epoch records are written by StartEpoch", ErrInvalid)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.prepareAppend(); err != nil {
		return Range{}, err
	}
	return l.appendControl(c, l.cur.epoch, sync)
}

func (l *Log) appendControl(c Control, epoch Epoch, sync bool) (Range, error) {
	payload, err := l.encodeControl(c)
	if err != nil {
		return Range{}, err
	}
	start := l.cur.at
	a := appender{log: l, now: max(l.nowMs(), l.cur.time), sync: sync}
	_, a.begins = c.(*EpochRecord)
	if err := l.room(int64(frameSize(len(payload))+FrameHeaderSize), true, !a.fits(len(payload))); err != nil {
		return Range{}, err
	}
	if err := a.control(c, payload, epoch); err != nil {
		return Range{}, err
	}
	if err := a.finish(); err != nil {
		return Range{}, err
	}
	return Range{Start: start, End: l.cur.at}, nil
}

// encodeControl encodes a control record, which must fit a frame.
func (l *Log) encodeControl(c Control) ([]byte, error) {
	payload, err := AppendControl(nil, c)
	if limit := maxControlSize(c, l.SegmentSize()); err == nil && len(payload) > limit {
		err = fmt.Errorf("%w: control record of %d bytes, at most %d", ErrTooLarge, len(payload), limit)
	}
	return payload, err
}

// storable says why a control record cannot be stored in this log.
func (l *Log) storable(c Control) error {
	_, err := l.encodeControl(c)
	return err
}

// prepareAppend checks that the log takes appends and erases the note of a clean close. mu is held.
func (l *Log) prepareAppend() error {
	if err := l.writable(); err != nil {
		return err
	}
	if l.tip == nil {
		return ErrNoDatabase
	}
	if l.cur.open {
		return fmt.Errorf("%w: the log ends inside a batch of its leader", ErrInvalid)
	}
	if l.cur.at >= MaxRefLSN-2*MaxBatch {
		return fmt.Errorf("%w: the log has reached LSN %v", ErrTooLarge, l.cur.at)
	}
	if err := l.releaseAll(); err != nil { // of a follower that begins to write
		return err
	}
	return l.dirty()
}

// measure checks the limits and returns a bound of the bytes that the batches take in the log. urgent: all of them may
// use the reserve.
func (l *Log) measure(batches []*Batch) (need int64, urgent bool, err error) {
	urgent = true
	limit, longest := maxFrameRaw(l.SegmentSize()), MaxSmallFrame
	for _, b := range batches {
		n := len(b.Buf)
		if n != b.ended() {
			return 0, false, fmt.Errorf("%w: a record was not ended", ErrInvalid)
		}
		if n > MaxBatch {
			return 0, false, fmt.Errorf("%w: batch of %d bytes, at most %d", ErrTooLarge, n, MaxBatch)
		}
		large := 0
		if n > MaxSmallFrame {
			for i := range b.ends {
				size := b.ends[i] - b.start(i)
				if size > MaxRecord {
					return 0, false, fmt.Errorf("%w: record of %d bytes, at most %d", ErrTooLarge, size, MaxRecord)
				}
				if size > MaxSmallFrame {
					large += 2 + size/limit
					longest = max(longest, min(size, limit))
				}
			}
		}
		urgent = urgent && b.Urgent
		// Two frames of whole small records that follow each other hold more than MaxSmallFrame together.
		need += int64(n) + int64(2*(n/MaxSmallFrame)+2+large)*(FrameHeaderSize+frameAlign)
	}
	// What is left of a segment when a frame does not fit is lost to its seal.
	lost := HeaderSize + FrameHeaderSize + int64(frameSize(longest)) + epochRoom(l.SegmentSize())
	segments := need/(l.SegmentSize()-lost) + 1
	need += segments * lost
	if longest > MaxSmallFrame || need > MaxSmallFrame && l.tip.inside {
		need += min(need, l.SegmentSize()) // what makeClean gives up
	}
	return need, urgent, nil
}

// appender packs one group. The log's mutex is held.
type appender struct {
	log    *Log
	now    int64 // log time
	sync   bool
	begins bool // what is packed begins an epoch
	start  LSN  // of buf in the log
	open   bool
}

// batch packs b, sharing a frame with what came before if it fits whole.
func (a *appender) batch(b *Batch) error {
	l := a.log
	size := len(b.Buf)
	if len(l.payload)+size > MaxSmallFrame {
		if err := a.frame(FlagFirst | FlagLast); err != nil {
			return err
		}
	}
	if size <= MaxSmallFrame {
		l.slots = append(l.slots, slot{b, 0, len(b.ends), len(l.payload)})
		l.payload = append(l.payload, b.Buf...)
		return nil
	}
	return a.span(b)
}

// makeClean seals a tip that begins inside a batch, if another batch of n bytes would go on behind its end. So of two
// neighbours one at least begins with a batch, and can become the tail.
func (a *appender) makeClean(n int) error {
	l := a.log
	if !l.tip.inside || int64(n) < int64(l.tip.end()-l.cur.at)-epochRoom(l.SegmentSize())-int64(n/MaxSmallFrame+2)*(FrameHeaderSize+frameAlign) {
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	return l.roll(a.now)
}

// span packs a batch that takes frames of its own.
func (a *appender) span(b *Batch) error {
	l := a.log
	if err := a.makeClean(len(b.Buf)); err != nil {
		return err
	}
	first := FlagFirst
	flags := func(last bool) Flags {
		f := first
		first = 0
		if last {
			f |= FlagLast
		}
		return f
	}
	n := len(b.ends)
	for i := 0; i < n; i++ {
		rec := b.Record(i)
		if len(l.payload) > 0 && len(l.payload)+len(rec) > MaxSmallFrame {
			if err := a.frame(flags(false)); err != nil {
				return err
			}
		}
		if len(rec) <= MaxSmallFrame {
			if k := len(l.slots) - 1; k >= 0 {
				l.slots[k].to++
			} else {
				l.slots = append(l.slots, slot{b, i, i + 1, 0})
			}
			l.payload = append(l.payload, rec...)
			continue
		}
		if err := a.split(b, i, rec, flags); err != nil {
			return err
		}
	}
	if len(l.payload) == 0 {
		return nil // a long record was the last
	}
	return a.frame(flags(true))
}

// split packs one long record into frames of its own.
func (a *appender) split(b *Batch, i int, rec []byte, flags func(last bool) Flags) error {
	l := a.log
	limit := maxFrameRaw(l.SegmentSize())
	l.slots = append(l.slots, slot{b, i, i + 1, 0})
	for more := Flags(0); len(rec) > 0; more = FlagContinuation {
		part := rec[:min(len(rec), limit)]
		rec = rec[len(part):]
		last := len(rec) == 0 && i == len(b.ends)-1
		if err := a.emit(part, flags(last)|more, l.cur.epoch); err != nil {
			return err
		}
	}
	return nil
}

// frame ends the frame being packed. One without payload is not written.
func (a *appender) frame(flags Flags) error {
	l := a.log
	if len(l.payload) == 0 {
		return nil
	}
	err := a.emit(l.payload, flags, l.cur.epoch)
	l.payload = l.payload[:0]
	return err
}

func (a *appender) control(c Control, payload []byte, epoch Epoch) error {
	if e, ok := c.(*EpochRecord); ok {
		if err := a.fit(len(payload)); err != nil {
			return err
		}
		e.Start = a.log.cur.at // the record says where it stands
		var err error
		if payload, err = AppendControl(payload[:0], e); err != nil {
			return err
		}
	}
	return a.emit(payload, FlagControl|FlagFirst|FlagLast, epoch)
}

// fits reports whether a frame of n payload bytes may stand in the tip. What begins an epoch may stand where nothing else may, and it does not
// go behind a seal to be told the right time: a leader of the epoch before may have gone on at the same place, and its log
// must part from this one where the new epoch begins.
func (a *appender) fits(n int) bool {
	l := a.log
	need := int64(frameSize(n)) + FrameHeaderSize
	if !a.begins {
		need += epochRoom(l.SegmentSize())
	}
	return need <= int64(l.tip.end()-l.cur.at) && (a.begins || !l.tooLate(a.now))
}

// fit makes sure that a frame of n payload bytes fits the tip, sealing it if not.
func (a *appender) fit(n int) error {
	if a.fits(n) {
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	return a.log.roll(a.now)
}

// tooLate reports whether the tip's frames cannot hold a log time any more: the next one goes behind a seal.
func (l *Log) tooLate(now int64) bool { return now-l.cur.segTime > maxFrameTime }

// emit packs one frame into the buffer.
func (a *appender) emit(payload []byte, flags Flags, epoch Epoch) error {
	l := a.log
	bound := len(payload)
	if flags&FlagControl == 0 {
		bound = l.comp.bound(len(payload))
	}
	if err := a.fit(len(payload)); err != nil {
		return err
	}
	if !a.open {
		a.open, a.start = true, l.cur.at
		l.buf = l.buf[:0]
	}
	at := len(l.buf)
	l.buf = grow(l.buf, FrameHeaderSize+bound+frameAlign)
	dst := l.buf[at:]
	m := frameMeta{raw: uint32(len(payload)), epoch: epoch, flags: flags, distance: noPromise}
	m.time = uint32(min(a.now-l.cur.segTime, maxFrameTime))
	var stored int
	if flags&FlagControl != 0 {
		stored = copy(dst[FrameHeaderSize:], payload)
		m.count = 1
	} else {
		stored, m.codec = l.comp.compress(dst[FrameHeaderSize:], payload)
		for _, s := range l.slots {
			m.count += uint16(s.to - s.from)
			s.batch.setRefs(l.cur.at, s.off, s.from, s.to)
		}
		l.slots = l.slots[:0]
	}
	m.stored = uint32(stored)
	if d := uint64(l.cur.at) - min(l.durable.Load(), uint64(l.cur.at)); d < noPromise {
		m.distance = uint32(d)
	}
	putFrame(dst, &m, binder(l.tip.header.Salt, l.cur.at))
	l.buf = l.buf[:at+frameSize(stored)]
	l.tip.noteDigest(l.cur.at, l.cur.digest)
	l.cur.pass(&m)
	if len(l.buf) >= maxBuffer {
		return a.flush()
	}
	return nil
}

// maxBuffer bounds the memory of a group being packed; a larger one is written in pieces.
const maxBuffer = 1 << 20

// grow returns b with n more bytes behind its length, whatever is in them.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	return append(b, make([]byte, n)...)
}

// flush writes what is packed. Readers do not see it before finish.
func (a *appender) flush() error {
	if !a.open {
		return nil
	}
	a.open = false
	return a.log.write(a.start, a.log.buf, a.sync)
}

// finish ends the last frame, writes and publishes.
func (a *appender) finish() error {
	l := a.log
	if err := a.frame(FlagFirst | FlagLast); err != nil {
		return err
	}
	if err := a.flush(); err != nil {
		return err
	}
	if a.sync {
		l.synced = a.now
	}
	l.publish()
	return nil
}

// publish makes everything up to the cursor visible to readers.
func (l *Log) publish() {
	if end := uint64(l.cur.end); end > l.batchEnd.Load() { // also when what came behind it has opened another
		l.batchEnd.Store(end)
	}
	l.head.Store(uint64(l.cur.at))
	l.notify()
	if int64(l.cur.at-l.tip.base()) > l.tip.header.SegmentSize/2 && l.next == nil && l.ahead == nil {
		l.keeper.kick()
	}
}
