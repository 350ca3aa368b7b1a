package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"shiplog/wal/vfs"
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

// AppendControl stores a control record in a frame of its own. It may use the space that is held in reserve. Epoch
// records are StartEpoch's.
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
	now := max(l.nowMs(), l.cur.time)
	if err := l.room(int64(frameSize(len(payload))+FrameHeaderSize), true, l.tooLate(now)); err != nil {
		return Range{}, err
	}
	start := l.cur.at
	a := appender{log: l, now: now, sync: sync}
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
	if err == nil && len(payload) > maxFrameRaw(l.SegmentSize()) {
		err = fmt.Errorf("%w: control record of %d bytes, at most %d", ErrTooLarge, len(payload), maxFrameRaw(l.SegmentSize()))
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
	lost := int64(HeaderSize + FrameHeaderSize + frameSize(longest))
	segments := need/(l.SegmentSize()-lost) + 1
	need += segments * lost
	if longest > MaxSmallFrame || need > MaxSmallFrame && l.tip.inside {
		need += min(need, l.SegmentSize()) // what makeClean gives up
	}
	return need, urgent, nil
}

// appender packs one group. The log's mutex is held.
type appender struct {
	log   *Log
	now   int64 // log time
	sync  bool
	start LSN // of buf in the log
	open  bool
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
	if !l.tip.inside || int64(n) < int64(l.tip.end()-l.cur.at)-int64(n/MaxSmallFrame+2)*(FrameHeaderSize+frameAlign) {
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

// fit makes sure that a frame of n payload bytes fits the tip, sealing it if not.
func (a *appender) fit(n int) error {
	l := a.log
	left := int64(l.tip.end() - l.cur.at)
	if int64(frameSize(n))+FrameHeaderSize <= left && !l.tooLate(a.now) {
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	return l.roll(a.now)
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
	m.time = uint32(a.now - l.cur.segTime)
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

// room makes sure that need bytes behind the cursor have blocks, and the reserve behind them unless urgent; late, that they have them
// behind a seal at the cursor. On a full disk nothing has changed.
func (l *Log) room(need int64, urgent, late bool) error {
	if !urgent {
		need += reserve(l.SegmentSize())
	}
	size := l.SegmentSize()
	off := int64(l.cur.at - l.tip.base())
	have, left := l.alloc-off, size-off
	if late && left > 0 { // of the tip only the seal is still written
		if have < FrameHeaderSize {
			if err := l.allocate(off + FrameHeaderSize); err != nil {
				return err
			}
		}
		have, left = 0, 0
	}
	if have >= need {
		return nil
	}
	if have < left {
		if err := l.allocate(min(left, need) + off); err != nil {
			return err
		}
		if need <= l.alloc-off {
			return nil
		}
	}
	need -= left
	l.takeAhead()
	for base := l.tip.end(); need > 0; base += LSN(size) {
		if l.next == nil {
			p, err := prepare(l.opts.FS, l.segDir(), base, min(need+HeaderSize, size))
			if err != nil {
				return err
			}
			l.next = p
		} else if err := l.next.extend(l.opts.FS, l.segDir(), base, min(need+HeaderSize, size)); err != nil {
			return err
		}
		need -= size - HeaderSize
	}
	return nil
}

// reserve is the allocated space that ordinary batches leave for deletes, reclaim and control records, so that a full
// disk can be cleared.
func reserve(segmentSize int64) int64 { return max(segmentSize/64, 4<<10) }

// allocate gives the tip blocks up to the offset end at least, in steps that grow with the segment.
func (l *Log) allocate(end int64) error {
	step := min(max(l.alloc, 256<<10), 16<<20)
	to := min(max(end, l.alloc+step), l.SegmentSize())
	err := l.tipFile.file.Allocate(l.alloc, to-l.alloc)
	if err != nil && to > end && vfs.IsNoSpace(err) {
		to = end
		err = l.tipFile.file.Allocate(l.alloc, to-l.alloc)
	}
	if err != nil {
		return fmt.Errorf("allocate segment %s: %w", l.tip.path, spaceError(err))
	}
	l.alloc = to
	return nil
}

// prepared is a run of segment files that have blocks and no header yet: not segments, until they are.
type prepared struct {
	base  LSN
	path  string
	file  vfs.File
	alloc int64
	more  *prepared // the one behind it
}

// prepare makes the file of the segment at base. Its name is durable on return.
func prepare(fsys vfs.FS, dir string, base LSN, alloc int64) (*prepared, error) {
	path := filepath.Join(dir, segmentName(base))
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return nil, fmt.Errorf("make segment %s: %w", path, spaceError(err))
	}
	p := &prepared{base: base, path: path, file: f, alloc: alloc}
	if err = f.Allocate(0, alloc); err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		_ = p.discard(fsys)
		return nil, fmt.Errorf("make segment %s: %w", path, spaceError(err))
	}
	return p, nil
}

// extend makes sure that the file at base, in p's run, exists and has alloc bytes.
func (p *prepared) extend(fsys vfs.FS, dir string, base LSN, alloc int64) error {
	for ; p.base != base; p = p.more {
		if p.more == nil {
			more, err := prepare(fsys, dir, base, alloc)
			p.more = more
			return err
		}
	}
	if p.alloc >= alloc {
		return nil
	}
	if err := p.file.Allocate(p.alloc, alloc-p.alloc); err != nil {
		return fmt.Errorf("allocate segment %s: %w", p.path, spaceError(err))
	}
	p.alloc = alloc
	return nil
}

// discard removes the run's files.
func (p *prepared) discard(fsys vfs.FS) error {
	var err error
	if p.more != nil {
		err = p.more.discard(fsys)
	}
	if e := p.file.Close(); err == nil {
		err = e
	}
	if e := fsys.Remove(p.path); err == nil {
		err = e
	}
	return err
}

// preparation is a next segment in the making, outside of the appender's mutex.
type preparation struct {
	done chan struct{} // closed when the two below are set
	p    *prepared
	err  error
}

// prepareAhead makes the next segment's file once the tip is half full. It is called by the keeper.
func (l *Log) prepareAhead() {
	l.mu.Lock()
	if l.writable() != nil || l.tip == nil || l.next != nil || l.ahead != nil || int64(l.cur.at-l.tip.base()) <= l.SegmentSize()/2 {
		l.mu.Unlock()
		return
	}
	job := &preparation{done: make(chan struct{})}
	l.ahead = job
	base, alloc := l.tip.end(), min(l.SegmentSize(), 4<<20)
	if time.Since(l.begun) < fastFill {
		alloc = l.SegmentSize() // all of it will be wanted soon: not while an appender waits
	}
	l.mu.Unlock()
	job.p, job.err = prepare(l.opts.FS, l.segDir(), base, alloc)
	close(job.done)
}

// fastFill is how soon the tip is half full where the next segment gets all of its blocks ahead.
const fastFill = 500 * time.Millisecond

// takeAhead waits for a preparation that is under way and takes what it made. mu is held.
func (l *Log) takeAhead() {
	if l.ahead == nil {
		return
	}
	<-l.ahead.done
	if l.ahead.err == nil {
		l.next = l.ahead.p
	}
	l.ahead = nil
}

// dropNext removes the files that are prepared behind the tip. mu is held.
func (l *Log) dropNext() error {
	l.takeAhead()
	p := l.next
	l.next = nil
	if p == nil {
		return nil
	}
	return p.discard(l.opts.FS)
}

// roll seals the tip and begins the next segment. Everything through the seal is durable before the next header is
// written. mu is held, nothing is packed.
func (l *Log) roll(now int64) error {
	if l.cur.at < l.tip.end() {
		if err := l.seal(); err != nil {
			return err
		}
	}
	h := l.nextHeader(now)
	return l.beginSegment(&h)
}

// seal writes the seal frame and syncs the tip.
func (l *Log) seal() error {
	left := int64(l.tip.end() - l.cur.at)
	m := frameMeta{stored: uint32(left - FrameHeaderSize), epoch: l.cur.epoch, flags: FlagSeal, distance: noPromise}
	m.time = uint32(min(l.cur.time-l.cur.segTime, maxFrameTime))
	frame := sealFrame(&m, binder(l.tip.header.Salt, l.cur.at))
	if err := l.writeSeal(frame[:]); err != nil {
		return err
	}
	l.tipFile.release(l.takeStored())
	if err := l.tipFile.file.Datasync(); err != nil {
		return l.poisonWith(fmt.Errorf("seal segment %s: %w", l.tip.path, err))
	}
	l.cur.pass(&m)
	l.raiseDurable(min(l.cur.end, l.Head()))
	return nil
}

// writeSeal writes a seal's header at the cursor and lets the file reach the segment's end.
func (l *Log) writeSeal(frame []byte) error {
	f := l.tipFile.file
	_, err := f.WriteAt(frame, int64(l.cur.at-l.tip.base()))
	if err == nil {
		err = f.Truncate(l.SegmentSize())
	}
	if err != nil {
		return l.poisonWith(fmt.Errorf("seal segment %s: %w", l.tip.path, err))
	}
	return nil
}

func (l *Log) nextHeader(now int64) Header {
	old := l.tip.header
	last := (*l.history.Load())[len(*l.history.Load())-1]
	return Header{
		Database: old.Database, Salt: old.Salt, Base: l.tip.end(), SegmentSize: old.SegmentSize, Epoch: l.cur.epoch,
		Leader: last.Leader, History: last.ID, Time: max(now, l.cur.time), Digest: l.cur.digest,
	}
}

// beginSegment makes the segment of h the tip. Its name is durable, its header is with the next sync.
func (l *Log) beginSegment(h *Header) error { return l.placeSegment(h, true) }

// placeSegment is beginSegment; without write the header does not get into the file yet.
func (l *Log) placeSegment(h *Header, write bool) error {
	l.takeAhead()
	p := l.next
	if p == nil {
		var err error
		if p, err = prepare(l.opts.FS, l.segDir(), h.Base, min(h.SegmentSize, 256<<10)); err != nil {
			if l.tip == nil {
				return err
			}
			return l.poisonWith(err) // the batch in hand was to go there: room makes this impossible on a full disk
		}
	}
	l.next = p.more
	var err error
	if write {
		b := h.Marshal()
		_, err = p.file.WriteAt(b[:], 0)
	}
	if err = errors.Join(err, p.file.Close()); err != nil {
		return l.poisonWith(fmt.Errorf("write segment %s: %w", p.path, err))
	}
	s := &segment{path: p.path, header: *h, inside: l.cur.open}
	return l.adopt(s, p.alloc)
}

// adopt makes s, whose header is in its file, the tip.
func (l *Log) adopt(s *segment, alloc int64) error {
	handle, err := l.handles.pin(s)
	if err != nil {
		return l.poisonWith(err)
	}
	if l.tipFile != nil {
		l.tipFile.unpin()
	}
	l.tip, l.tipFile, l.alloc, l.begun = s, handle, alloc, time.Now()
	l.cur.begin(&s.header)
	old := l.segs.Load()
	l.segs.Store(&segList{segs: append(old.segs[:len(old.segs):len(old.segs)], s), size: s.header.SegmentSize})
	return nil
}
