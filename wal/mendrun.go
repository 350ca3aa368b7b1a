package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// This file is how Mend makes a run of damaged segments good: fetched one by one, staged, and put in place together.

// mendRun mends the segments of [from, to), all of which are damaged or missing, together: only what leads to the next sound header is known to fit.
func (m *mender) mendRun(from, to LSN) error {
	var err error
	for at := from; at < to; at = m.end(at) {
		m.report.Damaged = append(m.report.Damaged, at)
	}
	for at := from; at < to && err == nil; at = m.end(at) {
		if err = m.ctx.Err(); err == nil {
			err = m.mend(at)
		}
	}
	return m.place(err)
}

// front fetches the segments from the newest tail record's on, where the files begin behind it. A log whose first copy was not finished
// looks the same and lacks nothing: if who is asked has given them up too, that is no error.
func (m *mender) front() {
	from, to := m.tail&^(m.size()-1), m.first
	if from >= to {
		return
	}
	m.sound = false
	damaged := len(m.report.Damaged)
	err := m.mendRun(from, to)
	switch {
	case err == nil:
		m.report.Segments += int(uint64(to-from) / uint64(m.size()))
	case errors.Is(err, ErrTrimmed):
		m.report.Damaged = m.report.Damaged[:damaged]
		m.report.Gone = m.bad(from, from, fmt.Sprintf("the log begins at %v, though no record says so", to), err)
	default:
		m.report.Left = append(m.report.Left, err)
	}
}

// mend fetches a segment, and stages it if it fits.
func (m *mender) mend(base LSN) error {
	own, err := m.read(base)
	if err != nil {
		return err
	}
	reason := m.why(base, own)
	good, err := m.fetch(m.ctx, m.request(base))
	if err != nil {
		return m.bad(base, base, reason, err)
	}
	h, err := m.header(base, good)
	if err != nil {
		return m.bad(base, base, reason, err)
	}
	mended, err := m.merge(base, h, own, good)
	if err != nil {
		return m.bad(base, base, reason, err)
	}
	cur, entry, stop := m.walk(h, mended)
	if stop = m.reached(base, &cur, stop); stop == "" && cur.epoch > m.epoch {
		stop = fmt.Sprintf("epoch %v is later than all that this log has seen: the histories differ", cur.epoch)
	}
	if stop != "" {
		return m.bad(base, base, reason, fmt.Errorf("the bytes fetched, which end at %v, do not mend it: at %v: %s", base+LSN(len(good)), cur.at, stop))
	}
	if err := m.stage(base, own, mended, int(cur.at-base)); err != nil {
		return err
	}
	m.cur, m.sound, m.entry = cur, true, entry
	return nil
}

// why says what is wrong with a segment, for people.
func (m *mender) why(base LSN, own []byte) string {
	if _, err := m.opts.FS.Stat(m.path(base)); errors.Is(err, fs.ErrNotExist) {
		return "the segment is missing"
	}
	cur, sound, entry, tail := m.cur, m.sound, m.entry, m.tail
	defer func() { m.cur, m.sound, m.entry, m.tail = cur, sound, entry, tail }()
	return m.check(base, own)
}

// request is for the bytes of a segment.
func (m *mender) request(base LSN) *MendRequest {
	r := &MendRequest{Database: m.ref.Database, From: base, To: m.end(base)}
	h := m.headers[base]
	switch {
	case m.sound:
		r.Digest, r.Known, r.History = m.cur.digest, true, []HistoryEntry{m.entry}
		return r
	case h != nil:
		r.Digest, r.Known = h.Digest, true
	case base == 0:
		r.Known = true
	}
	for at := base; h == nil && at <= m.last; at = m.end(at) {
		h = m.headers[at]
	}
	if h != nil {
		r.History = []HistoryEntry{{Epoch: h.Epoch, Start: h.Base, ID: h.History, Leader: h.Leader}}
	}
	return r
}

// header is the segment's header, from the bytes that were fetched; one that is sound here must be the same.
func (m *mender) header(base LSN, good []byte) (*Header, error) {
	h := new(Header)
	if err := h.Unmarshal(good); err != nil {
		return nil, err
	}
	own, next := m.headers[base], m.cur
	switch {
	case own != nil && *own != *h:
		return nil, fmt.Errorf("%w: another segment header there: the histories differ", ErrInvalid)
	case h.Base != base || h.Database != m.ref.Database || h.Salt != m.ref.Salt || h.SegmentSize != m.ref.SegmentSize:
		return nil, fmt.Errorf("%w: segment header of another log", ErrInvalid)
	case m.sound:
		return h, next.header(h)
	}
	return h, nil
}

// merge puts the bytes fetched in the place of this log's. In the last segment, whose end no later header proves, those behind what was durable
// here are taken only as far as they agree with it, are of no later epoch, and nothing was closed there cleanly.
func (m *mender) merge(base LSN, h *Header, own, good []byte) ([]byte, error) {
	must := int(min(max(m.floor, base), m.end(base)) - base)
	if base < m.last {
		must = len(own)
	}
	n := min(len(good), len(own))
	if differ := m.differs(base, own, good[:n]); differ < must {
		return nil, fmt.Errorf("%w: the frame at %v is sound here, and another there: the histories differ", ErrInvalid, base+LSN(differ))
	} else if differ < n {
		n = must
	}
	mended := bytes.Clone(own)
	copy(mended, good[:n])
	switch {
	case base < m.last:
	case m.node.clean != noLSN:
		copy(mended[min(n, must):], own[min(n, must):])
		clear(mended[must:])
	default:
		to := m.agrees(base, h, mended, n)
		copy(mended[to:], own[to:])
	}
	return mended, nil
}

// differs returns the offset of the first frame that is sound in own and not the same in good; past its end there is none.
func (m *mender) differs(base LSN, own, good []byte) int {
	for f := range frames(m.segment(base), own) {
		off := int(f.at - base)
		if off+len(f.b) > len(good) {
			break
		}
		if !bytes.Equal(f.b, good[off:off+len(f.b)]) {
			return off
		}
	}
	return len(own) + 1
}

// agrees returns up to which offset, n at the most, a segment's bytes are whole frames of no later epoch than this log has seen.
func (m *mender) agrees(base LSN, h *Header, image []byte, n int) int {
	at := HeaderSize
	for f := range frames(&segment{header: *h}, image) {
		if f.meta.epoch > m.epoch || int(f.at-base) != at || at+len(f.b) > n {
			break
		}
		at += len(f.b)
	}
	return at
}

// read reads a segment file; what the disk does not give back, and a file that is not there, read as zeros.
func (m *mender) read(base LSN) ([]byte, error) {
	image := make([]byte, m.size())
	f, err := m.opts.FS.OpenFile(m.path(base), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return image, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened to be read only
	_ = f.DropCache(0)               // a hint: what is on the disk counts
	if readFull(f, image, 0) == nil {
		return image, nil
	}
	for off := 0; off < len(image); off += repairBlock {
		p := image[off:min(off+repairBlock, len(image))]
		if readFull(f, p, int64(off)) != nil {
			clear(p)
		}
	}
	return image, nil
}

// stage writes a mended segment beside its place, durably. Its log ends at, or goes beyond, its first n bytes.
func (m *mender) stage(base LSN, own, mended []byte, n int) error {
	path := m.path(base)
	info, err := m.opts.FS.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	n = max(n, int(min(info.Size, int64(len(mended)))))
	f, err := m.opts.FS.OpenFile(path+mendSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return fmt.Errorf("stage segment %s: %w", path, spaceError(err))
	}
	m.staged = append(m.staged, path)
	if err = f.Allocate(0, int64(n)); err == nil {
		_, err = f.WriteAt(mended[:n], 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("stage segment %s: %w", path, spaceError(err))
	}
	if missing {
		m.ranges = append(m.ranges, MendedRange{Path: path, From: base, To: base + LSN(n), Missing: true})
		return nil
	}
	for off := 0; off < n; off += repairBlock {
		end := min(off+repairBlock, n)
		if int64(end) <= info.Size && bytes.Equal(own[off:end], mended[off:end]) {
			continue
		}
		if k := len(m.ranges) - 1; k >= 0 && m.ranges[k].Path == path && m.ranges[k].To == base+LSN(off) {
			m.ranges[k].To = base + LSN(end)
			continue
		}
		m.ranges = append(m.ranges, MendedRange{Path: path, From: base + LSN(off), To: base + LSN(end)})
	}
	return nil
}

// place puts the staged segments in their places, or removes them after an error. Each of them makes the log better by itself.
func (m *mender) place(err error) error {
	staged, ranges := m.staged, m.ranges
	m.staged, m.ranges = nil, nil
	if err != nil {
		for _, path := range staged {
			err = errors.Join(err, m.opts.FS.Remove(path+mendSuffix))
		}
		return err
	}
	for _, path := range staged {
		if err := m.opts.FS.Rename(path+mendSuffix, path); err != nil {
			return fmt.Errorf("put segment %s in place: %w", path, err)
		}
	}
	if err := m.opts.FS.SyncDir(m.dir); err != nil {
		return fmt.Errorf("put segments in place: %w", err)
	}
	m.report.Mended = append(m.report.Mended, ranges...)
	for _, r := range ranges {
		m.report.Bytes += int64(r.To - r.From)
	}
	return nil
}
