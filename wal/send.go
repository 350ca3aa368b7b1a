package wal

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// sendPiece is how much SendTo copies at a time where the system cannot send from the file.
const sendPiece = 64 << 10

// SendTo sends the raw bytes [from, to) to c, unverified: the receiver checks them. On a plain TCP connection they go
// from the page cache to the socket without a copy in this process. It returns how many bytes were sent, and
// honours c's write deadline. A poisoned log sends nothing above its durable mark ([ErrPoisoned]); what the medium does not give back is
// an [*IOError].
func (l *Log) SendTo(c net.Conn, from, to LSN) (sent int64, err error) {
	if to > l.Head() {
		return 0, fmt.Errorf("%w: %v", ErrBeyondEnd, to)
	}
	if err := l.Err(); err != nil && to > l.Durable() {
		return 0, err
	}
	if err := l.inFiles(to); err != nil {
		return 0, err
	}
	sl := l.segs.Load()
	for from < to {
		s := sl.find(from)
		if s == nil {
			return sent, fmt.Errorf("%w: %v", ErrTrimmed, from)
		}
		end := min(to, s.end())
		n, err := l.sendSegment(c, s, from, end)
		sent += n
		if err != nil {
			return sent, err
		}
		from = end
	}
	return sent, nil
}

func (l *Log) sendSegment(c net.Conn, s *segment, from, to LSN) (sent int64, err error) {
	h, err := l.handles.pin(s)
	if err != nil {
		return 0, err
	}
	defer h.unpin()
	off, n := int64(from-s.base()), int64(to-from)
	if tcp, ok := c.(*net.TCPConn); ok {
		if f := h.file.OSFile(); f != nil {
			sent, err = sendFile(tcp, f, off, n)
			switch {
			case errors.Is(err, syscall.EIO): // no socket answers that
				return sent, s.ioError(off+sent, err)
			case !errors.Is(err, io.ErrUnexpectedEOF):
				return sent, err
			} // else the file is shorter than the segment: zeros
		}
	}
	buf := make([]byte, min(n-sent, sendPiece))
	for sent < n {
		p := buf[:min(n-sent, sendPiece)]
		if err := h.read(p, off+sent); err != nil {
			return sent, err
		}
		k, err := c.Write(p)
		sent += int64(k)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
