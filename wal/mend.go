package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"shiplog/wal/vfs"
)

// This file mends the log of a directory that nobody has open: it decides what is damaged, what to fetch, and what fits.

// mendSuffix ends the names of whole, mended segments that wait to take their place. No segment's name ends so.
const mendSuffix = ".mend"

// MendRequest asks for log bytes from elsewhere, and says what is known of what is before them.
type MendRequest struct {
	Database DatabaseID
	// History is an epoch of the log at From or, where the log does not tell, after it. None: nothing is known.
	History []HistoryEntry
	From    LSN // the base of a segment
	To      LSN
	// Digest of everything before From, if it is known.
	Digest Digest
	Known  bool
}

// MendSource returns the bytes of [From, To), or those from From on that it has: fewer bytes are no error. [ErrTrimmed]: it has given up what is at From.
type MendSource func(ctx context.Context, r *MendRequest) ([]byte, error)

// MendedRange is a part of the log that holds other bytes than before.
type MendedRange struct {
	Path     string // of the segment
	From, To LSN
	Missing  bool // the file was not there
}

// MendReport says what Mend has found and done.
type MendReport struct {
	Segments int           // that the log has, those that were missing included
	Damaged  []LSN         // bases of the segments with damage, rising
	Mended   []MendedRange // by rising LSN
	Bytes    int64         // in Mended
	Gone     error         // not nil: segments at the front are missing, or were damaged and have been removed, and who was asked has given them up too ([ErrTrimmed]): no error
	Left     []error       // what was not mended and why: a *CorruptError for each run of segments, or for what the last look at all of the log has found
}

// Mend repairs the log in dir, which no process may have open ([ErrLocked]), with bytes from fetch: damaged and missing segments, and the
// end of the log as far as it is known to have been durable. Bytes are taken only if with them whole frames lead from the digest before
// to the digest behind, where the log has one, and to nothing that contradicts a frame that is sound here. Segments are replaced whole, each in one step, when all
// up to the next sound header are on the disk: an interrupted call is made again. Where nothing fits, nothing is changed. Damage that the other node cannot mend because
// it has given that part of the log up ([ErrTrimmed]), as all nodes do once its records stand further on, ends what this log has of its front: it begins behind it
// then, as a first copy does, and can be read once it has all that the other one had when it gave it up.
//
// The report is of what was mended, also with an error: that says what was not, and why. Nil error: the log is sound, and durable as it is. Of o, FS, ExpectDatabase and
// Logger matter; nil is the default. It holds three segments in memory.
func Mend(ctx context.Context, dir string, o *Options, fetch MendSource) (*MendReport, error) {
	opts := o.withDefaults()
	m := &mender{ctx: ctx, opts: &opts, dir: filepath.Join(dir, "log"), fetch: fetch, headers: map[LSN]*Header{}, led: map[Epoch]NodeID{}}
	if _, err := opts.FS.Stat(dir); err != nil {
		return &m.report, fmt.Errorf("repair %s: %w", dir, err)
	}
	lock, err := opts.FS.Lock(filepath.Join(dir, "LOCK"))
	if errors.Is(err, vfs.ErrLocked) {
		err = ErrLocked
	}
	if err != nil {
		return &m.report, fmt.Errorf("repair %s: %w", dir, err)
	}
	err = m.run(dir)
	if err == nil {
		err = m.proof(dir)
	}
	slices.SortFunc(m.report.Mended, func(a, b MendedRange) int { return cmp.Compare(a.From, b.From) })
	slices.Sort(m.report.Damaged)
	if err = errors.Join(err, lock.Close()); err != nil {
		err = fmt.Errorf("repair %s: %w", dir, err)
	}
	return &m.report, err
}

// mender is one call of Mend.
type mender struct {
	ctx    context.Context
	opts   *Options
	dir    string // of the segments
	fetch  MendSource
	report MendReport

	node    *node
	mark    mark
	ref     Header          // database, salt and segment size of the log
	headers map[LSN]*Header // those that are sound
	files   []LSN           // bases by the names of the files, rising
	first   LSN             // base of the first segment
	gone    LSN             // from here on the log is to be kept, where that is above first
	last    LSN             // base of the last
	floor   LSN             // up to here the log is known to have been durable
	epoch   Epoch           // no frame of the log is of a later one, as far as is known
	led     map[Epoch]NodeID
	tail    LSN // newest tail record

	cur    cursor // behind the segments that were looked at
	sound  bool   // cur holds
	entry  HistoryEntry
	staged []string // paths of the segments that the files beside them are to replace
	ranges []MendedRange
}

func (m *mender) run(dir string) error {
	if err := m.inspect(dir); err != nil {
		return err
	}
	for base := m.first; base <= m.last; base = m.end(base) {
		if err := m.ctx.Err(); err != nil {
			return errors.Join(append(m.report.Left, err)...)
		}
		image, err := m.read(base)
		if err != nil {
			return errors.Join(append(m.report.Left, err)...)
		}
		if m.check(base, image) == "" {
			continue
		}
		next := m.end(base)
		for next <= m.last && m.headers[next] == nil {
			next = m.end(next)
		}
		damaged := len(m.report.Damaged)
		err = m.mendRun(base, next)
		switch {
		case err == nil:
			base = next - m.size()
		case errors.Is(err, ErrTrimmed) && m.end(base) <= m.last:
			m.report.Damaged = append(m.report.Damaged[:damaged], base)
			m.gone, m.sound = m.end(base), false
			m.report.Gone = m.bad(base, base, fmt.Sprintf("damaged, and the log up to %v is to be had nowhere any more", m.gone), err)
		default:
			m.report.Left = append(m.report.Left, err)
			m.sound = false
			base = next - m.size()
		}
	}
	m.report.Segments = int(uint64(m.last-m.first)/uint64(m.size())) + 1
	if len(m.report.Left) == 0 {
		if err := m.giveUp(); err != nil {
			return err
		}
		m.front()
	}
	return errors.Join(m.report.Left...)
}

// giveUp removes the segments in front of what is to be kept, the oldest first, so that the log has no hole however far it comes.
func (m *mender) giveUp() error {
	for ; m.first < m.gone; m.first = m.end(m.first) {
		err := m.opts.FS.Remove(m.path(m.first))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = m.opts.FS.SyncDir(m.dir)
		}
		if err != nil {
			return fmt.Errorf("give segment %s up: %w", m.path(m.first), err)
		}
	}
	return nil
}

func (m *mender) size() LSN        { return LSN(m.ref.SegmentSize) }
func (m *mender) end(base LSN) LSN { return base + m.size() }
func (m *mender) path(base LSN) string {
	return filepath.Join(m.dir, segmentName(base))
}

func (m *mender) bad(base, at LSN, reason string, err error) error {
	return &CorruptError{Path: m.path(base), LSN: at, Offset: int64(at - base), Reason: reason, Err: err}
}

// inspect reads what the directory says of its log: node file, mark, names and headers.
func (m *mender) inspect(dir string) (err error) {
	if m.node, _, err = loadNode(m.opts.FS, dir, true); err != nil {
		return fmt.Errorf("%w: only the log can be mended", err)
	}
	names, err := m.opts.FS.ReadDir(m.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if base, ok := parseSegmentName(name); ok {
			m.files = append(m.files, base)
		} else if strings.HasSuffix(name, mendSuffix) { // from a call that was interrupted
			if err := m.opts.FS.Remove(filepath.Join(m.dir, name)); err != nil {
				return err
			}
		}
	}
	if len(m.files) == 0 {
		if m.node.database.IsZero() {
			return ErrNoDatabase
		}
		return fmt.Errorf("%w: no file of the log is left; a node with an empty directory copies all of it", ErrNoDatabase)
	}
	slices.Sort(m.files)
	if err := m.readHeaders(); err != nil {
		return err
	}
	for _, want := range []DatabaseID{m.opts.ExpectDatabase, m.node.database} {
		if !want.IsZero() && want != m.ref.Database {
			return fmt.Errorf("%w: %v, want %v", ErrDatabase, m.ref.Database, want)
		}
	}
	mark, marked, err := loadMark(m.opts.FS, dir, m.ref.Database)
	if err != nil {
		return err
	}
	if marked {
		m.mark, m.floor, m.epoch = mark, mark.durable, max(m.epoch, mark.epoch)
	}
	if m.node.clean != noLSN {
		m.floor = m.node.clean
	}
	return m.bounds()
}

// readHeaders finds the sound headers. Where there is none, the first is asked for.
func (m *mender) readHeaders() error {
	for _, base := range m.files {
		h := new(Header)
		b, err := readFile(m.opts.FS, m.path(base), HeaderSize)
		if io := (*IOError)(nil); err != nil && !errors.As(err, &io) {
			return err
		}
		if err := h.Unmarshal(b); errors.Is(err, ErrVersion) {
			return fmt.Errorf("segment %s: %w", m.path(base), err)
		} else if err != nil || h.Base != base || !m.ofLog(h) {
			continue
		}
		if len(m.headers) == 0 {
			m.ref = *h
		}
		m.headers[base], m.led[h.Epoch], m.epoch = h, h.Leader, max(m.epoch, h.Epoch)
	}
	if len(m.headers) > 0 {
		return nil
	}
	base := m.files[0]
	r := &MendRequest{Database: m.node.database, From: base, To: base + HeaderSize, Known: base == 0}
	p, err := m.fetch(m.ctx, r)
	if err == nil {
		err = m.ref.Unmarshal(p)
	}
	if err == nil && (m.ref.Base != base || m.ref.Database != m.node.database) {
		err = ErrDatabase
	}
	if err != nil {
		return m.bad(base, base, "no segment header of the log is sound", err)
	}
	return nil
}

// ofLog reports whether a header is of this log, as far as is known.
func (m *mender) ofLog(h *Header) bool {
	if id := m.node.database; !id.IsZero() && h.Database != id {
		return false
	}
	return len(m.headers) == 0 || h.Database == m.ref.Database && h.Salt == m.ref.Salt && h.SegmentSize == m.ref.SegmentSize
}

// bounds decides where the log begins and ends. What follows the last sound header counts if the marks, or a frame that this node wrote, say that it was durable.
func (m *mender) bounds() error {
	m.first, m.last = m.files[0], m.files[0]
	for base := range m.headers {
		m.last = max(m.last, base)
	}
	limit := noLSN
	if m.node.cut != noLSN { // what is behind it will be cut by the next start
		limit = m.node.cut
	}
	for _, base := range m.files {
		if base < m.last || base >= limit {
			continue
		}
		image, err := m.read(base)
		if err != nil {
			return err
		}
		m.promises(base, image, limit)
	}
	m.floor = min(m.floor, limit)
	if m.floor > m.first {
		m.last = max(m.last, (m.floor-1)&^(m.size()-1))
	}
	if limit != noLSN {
		m.last = min(m.last, max(limit-1, m.first)&^(m.size()-1))
	}
	return nil
}

// promises raises the floor to what the sound frames of a segment say of this node's disk.
func (m *mender) promises(base LSN, image []byte, limit LSN) {
	for f := range frames(m.segment(base), image) {
		if f.at >= limit {
			return
		}
		m.epoch = max(m.epoch, f.meta.epoch)
		if e, ok := f.control().(*EpochRecord); ok {
			m.led[e.Epoch] = e.Leader
		}
		leader, known := m.led[f.meta.epoch]
		if g := f.meta.frame(f.at, 0); g.HasPromise && (!known || leader == m.node.id) {
			m.floor = max(m.floor, g.Promise)
		}
	}
}

func (m *mender) segment(base LSN) *segment {
	s := &segment{path: m.path(base), header: m.ref}
	s.header.Base = base
	return s
}

// soundFrame is a frame that is sound by itself, in a segment that need not be.
type soundFrame struct {
	at   LSN
	meta frameMeta
	b    []byte // header to padding
}

// control decodes a control record; nil: it is none.
func (f *soundFrame) control() any {
	if f.meta.flags&FlagControl == 0 {
		return nil
	}
	c, err := DecodeControl(f.b[FrameHeaderSize : FrameHeaderSize+int(f.meta.stored)])
	if err != nil {
		return nil
	}
	return c
}

// frames yields the frames of a whole segment's bytes that are sound by themselves, whatever is between them.
func frames(s *segment, image []byte) func(yield func(*soundFrame) bool) {
	return func(yield func(*soundFrame) bool) {
		for off := HeaderSize; ; {
			f := soundFrame{}
			if off = nextFrame(s, image, off, len(image), 0, &f.meta); off < 0 {
				return
			}
			f.at, f.b = s.base()+LSN(off), image[off:off+frameSize(int(f.meta.stored))]
			if !yield(&f) {
				return
			}
			off += len(f.b)
		}
	}
}

// check judges a segment behind those that were judged, and moves over it if it is sound: else it says why not.
func (m *mender) check(base LSN, image []byte) (reason string) {
	h := m.headers[base]
	if h == nil {
		return "segment header does not validate"
	}
	if info, err := m.opts.FS.Stat(m.path(base)); base < m.last && (err != nil || info.Size < m.ref.SegmentSize) {
		return "the file is shorter than its segment" // though zeros that are not there read as zeros
	}
	next := m.cur
	if m.sound && next.header(h) != nil {
		return "segment header does not follow"
	}
	cur, entry, reason := m.walk(h, image)
	if reason = m.reached(base, &cur, reason); reason != "" {
		return reason
	}
	m.cur, m.sound, m.entry = cur, true, entry
	return ""
}

// reached decides whether a walk over a segment came as far as it must, and to the digest that it must come to.
func (m *mender) reached(base LSN, cur *cursor, reason string) string {
	switch next := m.headers[m.end(base)]; {
	case cur.at < min(m.end(base), m.floor):
		return reason
	case base < m.last && cur.at < m.end(base):
		return reason
	case next != nil && base < m.last && cur.digest != next.Digest:
		return fmt.Sprintf("digest at %v is %v, want %v", cur.at, cur.digest, next.Digest)
	}
	return ""
}

// walk moves over the frames of a segment, up to the first that cannot stand where it stands.
func (m *mender) walk(h *Header, image []byte) (cur cursor, entry HistoryEntry, reason string) {
	entry = HistoryEntry{Epoch: h.Epoch, Start: h.Base, ID: h.History, Leader: h.Leader}
	cur.begin(h)
	var meta frameMeta
	if getFrame(image[HeaderSize:], &meta, binder(h.Salt, cur.at)) {
		cur.open = meta.flags&(FlagSeal|FlagFirst) == 0
	}
	clean := m.node.clean != noLSN && m.mark.end == m.node.clean && m.mark.end != 0
	for end := m.end(h.Base); cur.at < end; {
		f := soundFrame{at: cur.at}
		rest := image[cur.at-h.Base:]
		if reason := cur.parse(&f.meta, rest, h.Salt, h.SegmentSize); reason != "" {
			return cur, entry, reason
		}
		f.b = rest[:frameSize(int(f.meta.stored))]
		switch c := f.control().(type) {
		case *EpochRecord:
			entry = HistoryEntry{Epoch: c.Epoch, Start: c.Start, ID: c.History, Leader: c.Leader}
		case *TailRecord:
			m.tail = max(m.tail, c.Tail)
		}
		before := cur
		if cur.pass(&f.meta); clean && cur.at == m.mark.end && cur.digest != m.mark.digest {
			return before, entry, fmt.Sprintf("digest at %v is %v, at the clean close it was %v", cur.at, cur.digest, m.mark.digest)
		}
	}
	return cur, entry, ""
}

// proof verifies all of the log as it is on the disk now.
func (m *mender) proof(dir string) error {
	r, err := verify(m.ctx, dir, m.opts, noLSN)
	for _, c := range r.Damage {
		m.report.Left = append(m.report.Left, c)
	}
	return errors.Join(append(m.report.Left, err)...)
}
