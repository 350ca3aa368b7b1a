package wal

import (
	"errors"
	"fmt"
	"time"
)

// This file is how one segment ends and the next one begins.

// roll seals the tip and begins the next segment. Everything through the seal is durable before the next header is
// written, also where the seal is a peer's that this node has followed until now. mu is held, nothing is packed.
func (l *Log) roll(now int64) error {
	var err error
	switch {
	case l.cur.at < l.tip.end():
		err = l.seal()
	case l.Durable() < l.cur.at:
		err = l.syncHeld()
	}
	if err != nil {
		return err
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
	l.writeGuard.begin()
	err := l.tipFile.file.Datasync()
	l.writeGuard.end()
	if err == nil {
		err = l.Err() // the answer came too late
	}
	if err != nil {
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
	s := &segment{path: p.path, header: *h, inside: l.cur.open}
	var handle *handle
	if err == nil {
		handle, err = l.handles.take(s, p.file)
	}
	if err != nil {
		return l.poisonWith(fmt.Errorf("write segment %s: %w", p.path, errors.Join(err, p.file.Close())))
	}
	l.adopt(s, handle, p.alloc)
	return nil
}

// adopt makes s, whose header is in its file, the tip.
func (l *Log) adopt(s *segment, handle *handle, alloc int64) {
	if l.tipFile != nil {
		l.tipFile.unpin()
	}
	l.tip, l.tipFile, l.alloc, l.begun = s, handle, alloc, time.Now()
	l.cur.begin(&s.header)
	old := l.segs.Load()
	l.segs.Store(&segList{segs: append(old.segs[:len(old.segs):len(old.segs)], s), size: s.header.SegmentSize})
}
