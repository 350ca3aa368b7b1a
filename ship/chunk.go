package ship

import (
	"errors"
	"fmt"

	"shiplog/wal"
)

// This file takes what a receiver has received to the log, in chunks: during a catch-up in a goroutine of its own, while the
// next are received.

const (
	// receiveChunk is how many bytes are gathered before they are checked and written: the page cache takes half a
	// megabyte at a time for a third of what it wants for as much in pieces of 64 KiB, and a call's costs (locks,
	// wake-ups of those who follow the log) are spread.
	receiveChunk = 512 << 10
	// receiveRoom stands before a chunk for the beginning of its first frame, which came with the chunk before.
	receiveRoom = wal.MaxFrameRaw + 4096
	// receiveBuffer is one buffer.
	receiveBuffer = receiveRoom + receiveChunk
	// receiveBuffers is how many of them there are at the most. With two, the receiving and the appending goroutine
	// wait for each other at each chunk.
	receiveBuffers = 8
)

// chunk is received bytes, buf[r:w], on their way to the log. There is receiveRoom before them.
type chunk struct {
	buf  []byte
	r, w int
	at   wal.LSN // of buf[r]
	err  error   // on the way back
}

// hand gives a chunk to the appending goroutine and goes on with another buffer.
func (r *receiver) hand() error {
	if r.first != nil {
		return r.settle()
	}
	r.chunks <- chunk{buf: r.buf, r: r.r, w: r.w, at: r.next - wal.LSN(r.w-r.r)} // there is room
	r.away++
	for r.away > 0 {
		select {
		case c := <-r.appended:
			if err := r.back(c); err != nil {
				return err
			}
			continue
		default:
		}
		break
	}
	if len(r.spare) == 0 && r.made < receiveBuffers {
		r.spare = append(r.spare, make([]byte, receiveBuffer))
		r.made++
	}
	for len(r.spare) == 0 {
		if err := r.back(<-r.appended); err != nil {
			return err
		}
	}
	r.buf, r.spare = r.spare[len(r.spare)-1], r.spare[:len(r.spare)-1]
	r.r, r.w = receiveRoom, receiveRoom
	return nil
}

// back takes a chunk's buffer back from the appending goroutine.
func (r *receiver) back(c chunk) error {
	r.away--
	r.spare = append(r.spare, c.buf)
	return c.err
}

// collect waits for all chunks that are away, and puts what is left of them in front of what was received since.
func (r *receiver) collect() error {
	var err error
	for r.away > 0 {
		if e := r.back(<-r.appended); err == nil {
			err = e
		}
	}
	r.r -= copy(r.buf[r.r-len(r.rest):r.r], r.rest)
	r.rest = r.rest[:0]
	return err
}

// settle appends all whole frames of what was received, in this goroutine.
func (r *receiver) settle() error {
	if err := r.collect(); err != nil {
		return err
	}
	c := chunk{buf: r.buf, r: r.r, w: r.w, at: r.next - wal.LSN(r.w-r.r)}
	if r.first != nil {
		if c.w-c.r < wal.HeaderSize {
			return nil
		}
		if err := r.founds(c.buf[c.r:c.w]); err != nil {
			return err
		}
	}
	r.take(&c)
	r.w = receiveRoom + copy(r.buf[receiveRoom:], r.buf[c.r:c.w])
	r.r = receiveRoom
	if r.first != nil && !r.f.log.Empty() {
		r.first = nil
		r.f.ahead.welcomed()
	}
	return c.err
}

// appends is the goroutine that appends during a catch-up. After an error nothing more is taken.
func (r *receiver) appends() {
	var failed error
	for c := range r.chunks {
		if c.err = failed; failed == nil {
			c.r -= copy(c.buf[c.r-len(r.rest):c.r], r.rest)
			c.at -= wal.LSN(len(r.rest))
			r.take(&c)
			r.rest = append(r.rest[:0], c.buf[c.r:c.w]...)
			failed = c.err
			signal(r.tell)
		}
		r.appended <- c // there is room
	}
}

// take appends the whole frames of a chunk. Nothing that does not validate at its position is written.
func (r *receiver) take(c *chunk) {
	p := c.buf[c.r:c.w]
	stop, ahead := r.f.ahead.stop(c.at)
	if ahead && stop <= c.at+wal.LSN(len(p)) {
		p = p[:stop-c.at]
	}
	n, err := r.f.log.AppendRaw(c.at, p)
	c.r += n
	c.at += wal.LSN(n)
	r.unsynced.Add(int64(n))
	switch {
	case errors.Is(err, wal.ErrInvalid), errors.Is(err, wal.ErrGap), errors.Is(err, wal.ErrEpoch):
		c.err = &Error{Code: CodeCorrupt, LSN: c.at, Text: fmt.Sprintf("at %s", c.at), Err: err}
	case err != nil:
		c.err = fmt.Errorf("ship: append at %s: %w", c.at, err)
	case ahead && c.at == stop:
		c.err = errAhead
	case c.w-c.r > receiveRoom:
		c.err = &Error{Code: CodeCorrupt, LSN: c.at, Text: fmt.Sprintf("no frame at %s ends within %d bytes", c.at, c.w-c.r)}
	}
	if c.err != nil {
		c.w = c.r // of no use any more
	}
}

// founds checks the segment header that an empty log would begin with: what is written there binds this node to a
// database.
func (r *receiver) founds(p []byte) error {
	var h wal.Header
	if err := h.Unmarshal(p); err != nil {
		return &Error{Code: CodeCorrupt, LSN: r.first.Start, Text: "first segment header", Err: err}
	}
	if h.Database != r.first.Database || h.Base != r.first.Start || uint64(h.SegmentSize) != r.first.SegmentSize || h.Digest != r.first.Digest {
		return refuse(CodeProtocol, "the first segment header is not the one of the welcome")
	}
	return nil
}
