package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"shiplog/wal/vfs"
)

// ReadCut reads a file of a log's diverged/ directory: what was cut from the log because another history had taken its
// place. fn is called for each frame but seals, verified, in order; raw is its unpacked payload, valid during the call. The
// LSNs are those that the bytes had; another node's log holds other bytes there. A nil fsys is the operating system's. Damage is a
// *[CorruptError], a codec that this build does not know a *[VersionError].
func ReadCut(fsys vfs.FS, path string, fn func(f Frame, raw []byte) error) error {
	if fsys == nil {
		fsys = vfs.OS
	}
	from, end, err := cutBounds(path)
	if err != nil {
		return err
	}
	file, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return &IOError{Path: path, Err: err}
	}
	defer file.Close() //nolint:errcheck // opened for reading
	size, err := file.Size()
	if err != nil {
		return &IOError{Path: path, Err: err}
	}
	bad := func(at LSN, reason string) error {
		return &CorruptError{Path: path, LSN: at, Offset: HeaderSize + int64(at-from), Reason: reason}
	}
	if size != HeaderSize+int64(end-from) {
		return bad(from, fmt.Sprintf("%d bytes, the name says %d", size, HeaderSize+int64(end-from)))
	}
	read := func(n int, off int64) ([]byte, error) {
		p := make([]byte, n)
		if err := readFull(file, p, off); err != nil {
			return nil, &IOError{Path: path, LSN: from + LSN(max(off-HeaderSize, 0)), Offset: off, Err: err}
		}
		return p, nil
	}
	var h Header
	b, err := read(HeaderSize, 0)
	if err != nil {
		return err
	}
	if h.Unmarshal(b) != nil || h.Base != (from-1)&^LSN(h.SegmentSize-1) {
		return bad(from, "segment header does not validate")
	}
	var raw []byte
	for at := from; at < end; {
		base := at &^ LSN(h.SegmentSize-1)
		piece, err := read(int(min(end, base+LSN(h.SegmentSize))-at), HeaderSize+int64(at-from)) // the rest of a segment
		if err != nil {
			return err
		}
		if at == base {
			old := h
			if len(piece) < HeaderSize || h.Unmarshal(piece[:HeaderSize]) != nil || h.Base != base ||
				h.Database != old.Database || h.Salt != old.Salt || h.SegmentSize != old.SegmentSize {
				return bad(at, "segment header does not validate")
			}
			piece, at = piece[HeaderSize:], at+HeaderSize
		}
		for len(piece) > 0 {
			var m frameMeta
			bind := binder(h.Salt, at)
			if len(piece) < FrameHeaderSize || !getFrame(piece, &m, bind) {
				return bad(at, "frame header does not validate")
			}
			if reason := m.layout(int64(base)+h.SegmentSize-int64(at), h.SegmentSize); reason != "" {
				return bad(at, reason)
			}
			n := frameSize(int(m.stored))
			if n > len(piece) || !m.checkPayload(piece[:n], bind) {
				return bad(at, "frame checksum or padding does not hold")
			}
			if m.flags&FlagSeal != 0 {
				piece, at = piece[n:], at+LSN(n)
				continue
			}
			if raw, err = unpack(raw, piece[FrameHeaderSize:FrameHeaderSize+int(m.stored)], m.codec, int(m.raw)); err != nil {
				if errors.Is(err, ErrVersion) {
					return fmt.Errorf("frame at %v: %w", at, err)
				}
				return bad(at, "payload does not unpack")
			}
			if err := fn(m.frame(at, h.Time), raw); err != nil {
				return err
			}
			piece, at = piece[n:], at+LSN(n)
		}
	}
	return nil
}

// cutBounds reads the LSNs in the name of a file of diverged/: epoch, first LSN, end.
func cutBounds(path string) (from, end LSN, err error) {
	name, ok := strings.CutSuffix(filepath.Base(path), ".cut")
	part := strings.Split(name, "-")
	if ok && len(part) == 3 {
		if from, err = ParseLSN(part[1]); err == nil {
			end, err = ParseLSN(part[2])
		}
	}
	if !ok || len(part) != 3 || err != nil || end < from {
		return 0, 0, fmt.Errorf("%w: %s is not named EPOCH-FROM-END.cut, as files in diverged/ are", ErrInvalid, path)
	}
	return from, end, nil
}
