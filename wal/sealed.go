package wal

import (
	"errors"
	"fmt"
	"io"
)

// sealedBuffer is how much of a segment VerifySegment holds at once: more than the longest frame.
const sealedBuffer = 1 << 20

// VerifySegment verifies the bytes of one whole, sealed segment, wherever they come from: header, frames and their order, seal, zeros. It
// returns the header, which says what must be before the segment, and the digest of everything up to its end, if that is true. [ErrInvalid]: the
// bytes are none. Payloads are not unpacked. It holds 1 MiB.
func VerifySegment(r io.ReaderAt) (*Header, Digest, error) {
	buf := make([]byte, sealedBuffer)
	h := new(Header)
	if _, err := readSome(r, buf[:HeaderSize], 0); err != nil {
		return nil, 0, err
	}
	if err := h.Unmarshal(buf); err != nil {
		return nil, 0, err
	}
	var cur cursor
	cur.begin(h)
	end, first := h.Base+LSN(h.SegmentSize), true
	for {
		off := int64(cur.at - h.Base)
		n, err := readSome(r, buf[:min(int64(len(buf)), h.SegmentSize-off)], off)
		if err != nil {
			return nil, 0, err
		}
		for rest := buf[:n]; ; {
			var m frameMeta
			size, reason := cur.sealedFrame(&m, rest, h, first)
			switch {
			case reason != "":
				return nil, 0, fmt.Errorf("%w: %v: %s", ErrInvalid, cur.at, reason)
			case size == 0 && len(rest) == n:
				return nil, 0, fmt.Errorf("%w: %v: the segment ends inside a frame", ErrInvalid, cur.at)
			}
			if size == 0 {
				break
			}
			first = false
			if m.flags&FlagSeal != 0 {
				if err := zerosUpTo(r, buf, int64(cur.at-h.Base)+FrameHeaderSize, h.SegmentSize); err != nil {
					return nil, 0, err
				}
				cur.pass(&m)
				return h, cur.digest, nil
			}
			cur.pass(&m)
			rest = rest[size:]
		}
		if cur.at >= end {
			return nil, 0, fmt.Errorf("%w: %v: no seal", ErrInvalid, cur.at)
		}
	}
}

// sealedFrame judges the frame at the cursor in bytes that may end inside it: then its size is 0. Of a seal only the header is looked at.
func (c *cursor) sealedFrame(m *frameMeta, b []byte, h *Header, first bool) (size int, reason string) {
	if len(b) < FrameHeaderSize {
		return 0, ""
	}
	bind := binder(h.Salt, c.at)
	if !getFrame(b, m, bind) {
		return 0, "frame header does not validate"
	}
	if first {
		c.open = m.flags&(FlagSeal|FlagFirst) == 0
	}
	if reason := m.layout(int64(h.Base)+h.SegmentSize-int64(c.at), h.SegmentSize); reason != "" {
		return 0, reason
	}
	size = frameSize(int(m.stored))
	switch {
	case m.flags&FlagSeal != 0:
		if sealSum(b[8:FrameHeaderSize], int(m.stored))^bind != m.checksum {
			return 0, "seal checksum does not hold"
		}
	case len(b) < size:
		return 0, ""
	case !m.checkPayload(b, bind):
		return 0, "frame checksum or padding does not hold"
	}
	return size, c.check(m)
}

// zerosUpTo expects zeros from an offset on.
func zerosUpTo(r io.ReaderAt, buf []byte, off, end int64) error {
	for off < end {
		n, err := readSome(r, buf[:min(int64(len(buf)), end-off)], off)
		if err != nil {
			return err
		}
		if !allZero(buf[:n]) {
			return fmt.Errorf("%w: seal is not followed by zeros", ErrInvalid)
		}
		off += int64(n)
	}
	return nil
}

// readSome fills p, or says that there is less.
func readSome(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("%w: the segment ends at its byte %d", ErrInvalid, off+int64(n))
	}
	return n, err
}
