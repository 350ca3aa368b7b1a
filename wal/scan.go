package wal

import (
	"fmt"
)

// cursor is what the next element of the log is checked against: the state behind everything before it. It is a pure
// value; recovery, verification, AppendRaw and the appender itself move it the same way.
type cursor struct {
	at     LSN    // where the next element stands
	digest Digest // of everything before at
	epoch  Epoch
	time   int64 // log time, unix ms
	open   bool  // a batch has begun and not ended

	end       LSN // the last place at which no batch was open
	endDigest Digest
	segTime   int64 // log time of the segment's header
}

// header moves over a segment header, which has validated by itself.
func (c *cursor) header(h *Header) error {
	switch {
	case h.Base != c.at:
		return fmt.Errorf("%w: segment header for LSN %v at %v", ErrInvalid, h.Base, c.at)
	case h.Digest != c.digest:
		return fmt.Errorf("%w: segment header has digest %v of what is before it, want %v", ErrInvalid, h.Digest, c.digest)
	case h.Epoch < c.epoch:
		return fmt.Errorf("%w: segment header of epoch %v behind epoch %v", ErrInvalid, h.Epoch, c.epoch)
	case h.Time < c.time:
		return fmt.Errorf("%w: log time falls at a segment header", ErrInvalid)
	}
	c.begin(h)
	return nil
}

// begin enters the segment of h, taking the header's word for what is before it.
func (c *cursor) begin(h *Header) {
	c.digest = h.Digest.step(h.Checksum)
	c.epoch, c.time, c.segTime = h.Epoch, h.Time, h.Time
	c.at = h.Base + HeaderSize
	c.settle()
}

// check gives the reason why a frame whose layout and checksum hold cannot stand here, or "".
func (c *cursor) check(m *frameMeta) string {
	first, last := m.flags&FlagFirst != 0, m.flags&FlagLast != 0
	switch {
	case m.epoch < c.epoch:
		return "epoch falls"
	case c.segTime+int64(m.time) < c.time:
		return "log time falls"
	case m.flags&FlagSeal != 0:
		return ""
	case first == c.open:
		return "batch begins inside another, or goes on without a beginning"
	case m.flags&FlagContinuation != 0 && !c.open:
		return "continuation outside of a batch"
	case m.epoch != c.epoch && !(first && last && m.flags&FlagControl != 0):
		return "epoch changes without a record of it"
	}
	return ""
}

// pass moves over a frame that has passed check.
func (c *cursor) pass(m *frameMeta) {
	c.digest = c.digest.step(m.checksum)
	c.epoch, c.time = m.epoch, c.segTime+int64(m.time)
	c.at += LSN(frameSize(int(m.stored)))
	if m.flags&FlagSeal == 0 {
		c.open = m.flags&FlagLast == 0
	}
	c.settle()
}

func (c *cursor) settle() {
	if !c.open {
		c.end, c.endDigest = c.at, c.digest
	}
}

// parse validates the frame at the cursor in data, which begins at the cursor and ends with the segment. It returns the
// reason why there is none, or "". Nothing is allocated, and no more than the frame's own bytes are looked at.
func (c *cursor) parse(m *frameMeta, data []byte, salt uint64, segmentSize int64) string {
	if len(data) < FrameHeaderSize {
		return "no room for a frame header"
	}
	bind := binder(salt, c.at)
	if !getFrame(data, m, bind) {
		if allZero(data[:FrameHeaderSize]) {
			return "zeros"
		}
		return "frame header does not validate"
	}
	if reason := m.layout(int64(len(data)), segmentSize); reason != "" {
		return reason
	}
	if !m.checkPayload(data, bind) {
		return "frame checksum or padding does not hold"
	}
	return c.check(m)
}
