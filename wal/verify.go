package wal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"shiplog/wal/vfs"
)

// VerifyReport says what Verify has read and found.
type VerifyReport struct {
	Database DatabaseID
	Tail     LSN    // base of the first segment
	End      LSN    // end of the last valid frame or header
	Digest   Digest // at End, if nothing before it is damaged
	Durable  LSN    // the durable mark in the mark file, 0 without a valid one
	Segments int
	Frames   int64 // seals included
	Records  int64
	// TornAt and TornBytes tell of bytes behind End that a writer had not finished, or was writing meanwhile: the next
	// Open cuts them. Zero bytes: there are none.
	TornAt    LSN
	TornBytes int64
	// Damage lists what does not validate, by rising LSN.
	Damage []*CorruptError
}

// OK reports whether everything that was read validates.
func (r *VerifyReport) OK() bool { return len(r.Damage) == 0 }

// Verify reads every byte of the log in dir and checks headers, checksums, order, padding, payloads and the chain of
// digests. It goes on behind damage, as far as frames can be found again. Nothing is written or locked: a directory in
// use is verified up to about where its log ends. Of o only FS and ExpectDatabase matter; nil is the default.
//
// The error says that something could not be read at all; damage is in the report. "Not read" is never "ok".
func Verify(ctx context.Context, dir string, o *Options) (*VerifyReport, error) {
	opts := o.withDefaults()
	return verify(ctx, dir, &opts, noLSN)
}

// Verify is the function Verify on an open log, up to the head as it stands at the call; of a poisoned log, up to the durable mark.
// What a follower has received ahead of its disk is synced first.
func (l *Log) Verify(ctx context.Context) (*VerifyReport, error) {
	end := l.Head()
	if l.Err() != nil {
		end = min(end, l.Durable())
	}
	if err := l.inFiles(end); err != nil {
		return new(VerifyReport), fmt.Errorf("verify %s: %w", l.dir, err)
	}
	return verify(ctx, l.dir, &l.opts, end)
}

// verifier reads segment after segment.
type verifier struct {
	ctx    context.Context
	opts   *Options
	dir    string
	report *VerifyReport
	limit  LSN // nothing at or past it is looked at; noLSN: no bound
	floor  LSN // nothing below it can be torn
	node   *node

	cur     cursor
	chained bool           // cur follows everything before it
	first   *Header        // of the first valid segment
	foreign map[Epoch]bool // epochs that other nodes led
	buf     []byte
	raw     []byte
}

func verify(ctx context.Context, dir string, o *Options, limit LSN) (*VerifyReport, error) {
	v := &verifier{ctx: ctx, opts: o, dir: dir, report: new(VerifyReport), limit: limit, foreign: map[Epoch]bool{}}
	n, _, err := loadNode(o.FS, dir, true)
	if c := (*CorruptError)(nil); errors.As(err, &c) {
		v.report.Damage = append(v.report.Damage, c)
		n = &node{clean: noLSN, cut: noLSN}
	} else if err != nil {
		return v.report, fmt.Errorf("verify %s: %w", dir, err)
	}
	v.node = n
	if n.cut != noLSN {
		v.limit = min(v.limit, n.cut)
	}
	names, err := segmentFiles(o.FS, filepath.Join(dir, "log"))
	if err != nil {
		return v.report, fmt.Errorf("verify %s: %w", dir, err)
	}
	if len(names) == 0 && n.database.IsZero() {
		return v.report, fmt.Errorf("verify %s: %w", dir, ErrNoDatabase)
	}
	if err := v.segments(names); err != nil {
		return v.report, fmt.Errorf("verify %s: %w", dir, err)
	}
	return v.report, nil
}

// segmentFiles lists the files with the name of a segment, in the order of their bases; none where there is no directory.
func segmentFiles(fsys vfs.FS, dir string) ([]string, error) {
	names, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		_, ok := parseSegmentName(n)
		return !ok
	})
	slices.Sort(names)
	return names, nil
}

// segments walks all files. The mark is read before them: what it says was true then.
func (v *verifier) segments(names []string) error {
	headers := make([]*Header, len(names)) // nil: none that is valid
	for i, name := range names {
		path := filepath.Join(v.dir, "log", name)
		b, err := readFile(v.opts.FS, path, HeaderSize)
		if err != nil {
			return fmt.Errorf("read segment header: %w", err)
		}
		h := new(Header)
		if err := h.Unmarshal(b); err == nil {
			headers[i] = h
		} else if errors.Is(err, ErrVersion) {
			return fmt.Errorf("segment %s: %w", path, err)
		}
	}
	i := slices.IndexFunc(headers, func(h *Header) bool { return h != nil })
	if i < 0 {
		v.damage(&CorruptError{Path: filepath.Join(v.dir, "log"), Reason: "no valid segment header"})
		return nil
	}
	v.first = headers[i]
	v.report.Database = v.first.Database
	for _, want := range []DatabaseID{v.opts.ExpectDatabase, v.node.database} {
		if !want.IsZero() && want != v.first.Database {
			return fmt.Errorf("%w: %v, want %v", ErrDatabase, v.first.Database, want)
		}
	}
	if err := v.loadFloor(); err != nil {
		return err
	}
	last := len(headers) - 1
	for last > 0 && headers[last] == nil {
		last--
	}
	for i, name := range names {
		base, _ := parseSegmentName(name)
		if base >= v.limit {
			break
		}
		s := &segment{path: filepath.Join(v.dir, "log", name)}
		s.header.Base = base
		if err := v.segment(s, headers[i], i >= last); err != nil {
			return err
		}
	}
	if v.report.End < min(v.floor, v.limit) && v.report.OK() {
		v.damage(&CorruptError{Path: filepath.Join(v.dir, "log"), LSN: v.report.End, Reason: fmt.Sprintf("the log ends below %v, up to which it was durable", v.floor)})
	}
	return nil
}

func (v *verifier) loadFloor() error {
	m, ok, err := loadMark(v.opts.FS, v.dir, v.first.Database)
	if err != nil {
		return err
	}
	if ok {
		v.report.Durable, v.floor = m.durable, m.durable
	}
	if v.node.clean != noLSN {
		v.floor = max(v.floor, v.node.clean)
	}
	if v.limit != noLSN {
		v.floor = v.limit
	}
	return nil
}

func (v *verifier) damage(c *CorruptError) { v.report.Damage = append(v.report.Damage, c) }

func (v *verifier) bad(s *segment, at LSN, reason string, err error) {
	v.damage(&CorruptError{Path: s.path, LSN: at, Offset: int64(at - s.base()), Reason: reason, Err: err})
}

// segment checks one file. tail says that no later file has a valid header.
func (v *verifier) segment(s *segment, h *Header, tail bool) error {
	base := s.base()
	if v.first.SegmentSize <= 0 {
		return nil
	}
	if err := v.load(s); err != nil {
		return err
	}
	if h == nil {
		s.header = *v.first
		s.header.Base = base
		if v.report.Segments == 0 || !tail || base < v.floor || v.promised(s, 0) != "" {
			v.bad(s, base, "segment header does not validate", nil)
			v.chained = false
			v.frames(s, HeaderSize, false)
		}
		return nil
	}
	s.header = *h
	v.header(s, base)
	v.report.Segments++
	v.frames(s, HeaderSize, tail)
	return v.ctx.Err()
}

// load reads a whole segment file into the buffer.
func (v *verifier) load(s *segment) error {
	f, err := v.opts.FS.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return s.ioError(0, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	v.buf = sized(v.buf, int(v.first.SegmentSize))
	if err := readFull(f, v.buf, 0); err != nil {
		return s.ioError(0, err)
	}
	return nil
}

// header checks a valid header against its name and what is before it.
func (v *verifier) header(s *segment, base LSN) {
	h := &s.header
	v.foreign[h.Epoch] = h.Leader != v.node.id
	switch {
	case h.Base != base:
		v.bad(s, base, fmt.Sprintf("the header is that of segment %v", h.Base), nil)
		s.header.Base = base
		v.chained = false
	case h.Database != v.first.Database || h.Salt != v.first.Salt || h.SegmentSize != v.first.SegmentSize:
		v.bad(s, base, "database, salt or segment size differs from that of the first segment", nil)
		v.chained = false
	case v.report.Segments == 0:
		v.report.Tail = base
	case !v.chained:
	case v.cur.at != base:
		v.bad(s, v.cur.at, fmt.Sprintf("segments are missing from here to %v", base), nil)
		v.chained = false
	default:
		next := v.cur
		if err := next.header(h); err != nil {
			v.bad(s, base, "segment header does not follow", err)
		}
	}
	open := v.chained && v.cur.open
	v.cur.open = open
	v.cur.begin(h)
	if !v.chained {
		v.cur.open = !v.startsBatch(s)
	}
	v.chained = true
	v.report.End, v.report.Digest = v.cur.at, v.cur.digest
}

// startsBatch reports whether the first frame of a segment begins a batch, or says nothing of one.
func (v *verifier) startsBatch(s *segment) bool {
	var m frameMeta
	if !getFrame(v.buf[HeaderSize:], &m, binder(s.header.Salt, s.base()+HeaderSize)) {
		return true
	}
	return m.flags&(FlagFirst|FlagSeal) != 0
}

// frames walks the frames of the segment in the buffer from an offset on, and over damage to the next valid one.
func (v *verifier) frames(s *segment, off int, tail bool) {
	if !v.chained {
		if off = v.resync(s, off); off < 0 {
			return
		}
	}
	for v.cur.at < s.end() && v.cur.at < v.limit {
		off = int(v.cur.at - s.base())
		var m frameMeta
		reason := v.cur.parse(&m, v.buf[off:], s.header.Salt, s.header.SegmentSize)
		if reason == "" {
			v.frame(s, &m, off)
			continue
		}
		if tail && v.torn(s, off) {
			return
		}
		v.bad(s, v.cur.at, reason, nil)
		if off = v.resync(s, off+frameAlign); off < 0 {
			return
		}
	}
}

// frame takes in a valid frame.
func (v *verifier) frame(s *segment, m *frameMeta, off int) {
	payload := v.buf[off+FrameHeaderSize : off+FrameHeaderSize+int(m.stored)]
	switch {
	case m.flags&FlagControl != 0:
		c, err := DecodeControl(payload)
		if e, ok := c.(*EpochRecord); ok && err == nil {
			v.foreign[e.Epoch] = e.Leader != v.node.id
		}
		if err != nil && !errors.Is(err, ErrVersion) {
			v.bad(s, v.cur.at, "control record does not decode", err)
		}
	case m.flags&FlagSeal == 0:
		raw, err := unpack(v.raw, payload, m.codec, int(m.raw))
		if err == nil {
			v.raw = raw
		} else if !errors.Is(err, ErrVersion) {
			v.bad(s, v.cur.at, "payload does not unpack", err)
		}
	}
	v.cur.pass(m)
	v.report.Frames++
	v.report.Records += int64(m.count)
	v.report.End, v.report.Digest = v.cur.at, v.cur.digest
}

// torn decides whether the log ends at an offset of the last segment, by the rule of recovery, and notes what is behind.
func (v *verifier) torn(s *segment, off int) bool {
	if v.cur.at < v.floor || v.promised(s, off) != "" {
		return false
	}
	if n := lastNonZero(v.buf, int64(off)); n > 0 {
		v.report.TornAt, v.report.TornBytes = v.cur.at, n
	}
	return true
}

// promised looks behind an offset for a valid frame of this node that says that more was durable than is valid.
func (v *verifier) promised(s *segment, off int) string {
	for {
		var m frameMeta
		if off = nextFrame(s, v.buf, off, len(v.buf), v.cur.epoch, &m); off < 0 {
			return ""
		}
		f := m.frame(s.base()+LSN(off), s.header.Time)
		if f.HasPromise && f.Promise > v.cur.at && !v.foreign[m.epoch] {
			return fmt.Sprintf("the frame at %v promises %v", f.LSN, f.Promise)
		}
		off += frameAlign
	}
}

// resync finds the next valid frame and puts the cursor there; -1 when there is none. What is before it stays unknown.
func (v *verifier) resync(s *segment, off int) int {
	v.chained = false
	var m frameMeta
	if off = nextFrame(s, v.buf, off, len(v.buf), 0, &m); off < 0 {
		return -1
	}
	v.cur = cursor{
		at: s.base() + LSN(off), epoch: m.epoch, time: s.header.Time, segTime: s.header.Time,
		open: m.flags&(FlagFirst|FlagSeal) == 0,
	}
	return off
}

// nextFrame finds the next frame in a segment's bytes whose checksum holds and whose header ends at or below end, at
// any multiple of 8; -1: there is none. The head check stands before the hashing of a payload, so the search is linear whatever the bytes are.
func nextFrame(s *segment, b []byte, off, end int, epoch Epoch, m *frameMeta) int {
	for ; off+FrameHeaderSize <= end; off += frameAlign {
		p := b[off:]
		if allZero(p[8:16]) { // no frame has neither length nor codec
			continue
		}
		bind := binder(s.header.Salt, s.base()+LSN(off))
		if getFrame(p, m, bind) && m.layout(int64(len(p)), s.header.SegmentSize) == "" && m.epoch >= epoch && m.checkPayload(p, bind) {
			return off
		}
	}
	return -1
}
