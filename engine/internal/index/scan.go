package index

import (
	"bytes"
	"sync"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
)

// Scan fills dst with the next entries of a range that are visible at position at, as [memindex.Table.Scan] does, from
// all layers. An error says that a run is damaged; dst is then of no use.
func (x *Index) Scan(dst *memindex.Chunk, lo, hi []byte, loOpen bool, at uint64, reverse bool, limit int) error {
	s := x.acquire()
	defer s.release()
	tail := x.tail.Load()
	if len(s.tables) == 1 && len(s.runs) == 0 && tail == 0 {
		s.tables[0].Scan(dst, lo, hi, loOpen, at, reverse, limit)
		return nil
	}
	if lo == nil {
		lo = []byte{}
	}
	if loOpen {
		lo = append(bytes.Clone(lo), 0)
	}
	return s.scan(dst, lo, hi, reverse, at, tail, false, limit)
}

// chunkBytes is the number of key bytes at which a chunk is full.
const chunkBytes = 1 << 20

// scan merges the layers' entries in [lo, hi) into dst. Deletes are left out unless all is set.
func (s *state) scan(dst *memindex.Chunk, lo, hi []byte, reverse bool, at, tail uint64, all bool, limit int) error {
	dst.Reset()
	if limit <= 0 || hi != nil && bytes.Compare(lo, hi) >= 0 {
		return nil
	}
	m := mergers.Get().(*merger)
	defer m.release()
	m.begin(s, lo, hi, reverse, at, min(limit, firstFetch))
	for m.next() {
		v := m.version
		if v.Ref < tail || v.Kind == memindex.Delete && !all || m.hidden() {
			continue
		}
		if dst.Append(m.key, v); dst.Len() >= limit || dst.KeyBytes() >= chunkBytes {
			dst.SetMore()
			break
		}
	}
	return m.err
}

// source gives out the visible version of each key of one layer, in order. The key is valid until the next move.
type source interface {
	move() bool // to the first entry, then to the next
	entry() ([]byte, memindex.Version)
	err() error
}

// merger merges layers, newest first: of equal keys the newest layer's wins.
type merger struct {
	reverse bool
	live    []head // sources that have an entry; in the order of their layers
	started bool
	covers  []cover
	key     []byte
	version memindex.Version
	layer   int
	err     error
	tables  []tableSource
	runs    []runSource
}

// mergers keeps what sources decode into, some ten kilobytes each: a seek would spend a fifth of its time on that memory.
var mergers = sync.Pool{New: func() any { return new(merger) }}

// begin makes m one over all layers of s, in [lo, hi). size is how many entries of a table are fetched at first.
func (m *merger) begin(s *state, lo, hi []byte, reverse bool, at uint64, size int) {
	m.reverse, m.started, m.err, m.key = reverse, false, nil, nil
	m.live, m.covers = m.live[:0], m.covers[:0]
	m.tables = grown(m.tables, len(s.tables))
	for i, t := range s.tables {
		m.tables[i].begin(t.Table, lo, hi, reverse, at, size)
		m.cover(i, t.deletes(), lo, hi, at)
	}
	m.runs = grown(m.runs, len(s.runs))
	for i, r := range s.runs {
		m.runs[i].begin(r, lo, hi, reverse, at)
		m.cover(len(s.tables)+i, r.RangeDeletes(), lo, hi, at)
	}
}

// grown returns s with n elements, those that it had with their memory.
func grown[T any](s []T, n int) []T {
	s = s[:cap(s)]
	for len(s) < n {
		var zero T
		s = append(s, zero)
	}
	return s[:n]
}

// release gives m back, without what it had to do with the layers.
func (m *merger) release() {
	for i := range m.tables {
		m.tables[i].end()
	}
	for i := range m.runs {
		m.runs[i].end()
	}
	clear(m.live[:cap(m.live)])
	clear(m.covers[:cap(m.covers)])
	m.key = nil
	mergers.Put(m)
}

type head struct {
	src     source
	layer   int
	key     []byte
	version memindex.Version
}

// cover is a range delete of a layer: it hides what older layers hold.
type cover struct {
	layer int
	del   run.RangeDelete
}

func (m *merger) cover(layer int, dels []run.RangeDelete, lo, hi []byte, at uint64) {
	for _, d := range dels {
		if d.Ref < at && (hi == nil || bytes.Compare(d.Start, hi) < 0) && (d.End == nil || bytes.Compare(lo, d.End) < 0) {
			m.covers = append(m.covers, cover{layer, d})
		}
	}
}

// hidden reports whether a newer layer's range delete covers the current entry.
func (m *merger) hidden() bool {
	for i := range m.covers {
		c := &m.covers[i]
		if c.layer < m.layer && bytes.Compare(m.key, c.del.Start) >= 0 && (c.del.End == nil || bytes.Compare(m.key, c.del.End) < 0) {
			return true
		}
	}
	return false
}

// advance moves the source at i of live on, and takes it out if it has ended.
func (m *merger) advance(i int) bool {
	h := &m.live[i]
	if h.src.move() {
		h.key, h.version = h.src.entry()
		return true
	}
	if err := h.src.err(); err != nil && m.err == nil {
		m.err = err
	}
	m.live = append(m.live[:i], m.live[i+1:]...)
	return false
}

// next moves to the next key. The entry stands in key, version and layer.
func (m *merger) next() bool {
	if !m.started {
		m.started = true
		for i := range m.tables {
			m.live = append(m.live, head{src: &m.tables[i], layer: i})
			m.advance(len(m.live) - 1)
		}
		for i := range m.runs {
			m.live = append(m.live, head{src: &m.runs[i], layer: len(m.tables) + i})
			m.advance(len(m.live) - 1)
		}
	} else {
		m.pass()
	}
	if len(m.live) == 0 || m.err != nil {
		return false
	}
	best := 0
	for i := 1; i < len(m.live); i++ {
		if c := bytes.Compare(m.live[i].key, m.live[best].key); c < 0 && !m.reverse || c > 0 && m.reverse {
			best = i
		}
	}
	h := &m.live[best]
	m.key, m.version, m.layer = h.key, h.version, h.layer
	return true
}

// pass moves every source on that stands at the current key: older layers' versions of it are hidden.
func (m *merger) pass() {
	if len(m.live) == 1 {
		m.advance(0)
		return
	}
	self := -1
	for i := 0; i < len(m.live); {
		switch h := &m.live[i]; {
		case h.layer == m.layer:
			self = i // last: the key is its memory
		case h.layer > m.layer && bytes.Equal(h.key, m.key):
			if !m.advance(i) {
				continue
			}
		}
		i++
	}
	if self >= 0 {
		m.advance(self)
	}
}

// firstFetch and lastFetch bound how many entries of a table are fetched at once.
const (
	firstFetch = 16
	lastFetch  = 256
)

// tableSource walks a memory table, deletes included.
type tableSource struct {
	t       *memindex.Table
	lo, hi  []byte
	at      uint64
	reverse bool
	open    bool
	size    int
	chunk   memindex.Chunk
	i       int
	begun   bool
	edge    []byte
}

// keepKeys is how many bytes of keys a source keeps room for.
const keepKeys = 64 << 10

func (s *tableSource) begin(t *memindex.Table, lo, hi []byte, reverse bool, at uint64, size int) {
	s.t, s.lo, s.hi, s.at, s.reverse, s.size = t, lo, hi, at, reverse, size
	s.open, s.begun, s.i = false, false, 0
}

func (s *tableSource) end() {
	s.t, s.lo, s.hi = nil, nil, nil
	if s.chunk.KeyBytes() > keepKeys {
		s.chunk = memindex.Chunk{}
	}
}

func (s *tableSource) move() bool {
	s.i++
	if s.begun && s.i < s.chunk.Len() {
		return true
	}
	if s.begun {
		if !s.chunk.More() || s.chunk.Len() == 0 {
			return false
		}
		s.edge = append(s.edge[:0], s.chunk.Key(s.chunk.Len()-1)...)
		if s.reverse {
			s.hi = s.edge
			if len(s.hi) == 0 {
				return false
			}
		} else {
			s.lo, s.open = s.edge, true
		}
		s.size = min(2*s.size, lastFetch)
	}
	s.begun, s.i = true, 0
	s.chunk.Deletes = true
	s.t.Scan(&s.chunk, s.lo, s.hi, s.open, s.at, s.reverse, s.size)
	return s.chunk.Len() > 0
}

func (s *tableSource) entry() ([]byte, memindex.Version) {
	return s.chunk.Key(s.i), s.chunk.Version(s.i)
}

func (s *tableSource) err() error { return nil }

// runSource walks a run; of each key it gives out the newest version below at.
type runSource struct {
	run     *openRun
	it      run.Iter
	lo, hi  []byte
	at      uint64
	reverse bool
	single  bool // no key has two versions
	begun   bool
	key     []byte
	own     []byte // the key's memory, where it is not the iterator's
	version memindex.Version
}

func (s *runSource) begin(r *openRun, lo, hi []byte, reverse bool, at uint64) {
	s.run, s.lo, s.hi, s.at, s.reverse, s.single = r, lo, hi, at, reverse, r.info.Entries == r.info.Keys
	s.begun, s.own, s.key = false, s.own[:0], nil
	s.it.Init(r.Run)
}

func (s *runSource) end() {
	s.run, s.lo, s.hi, s.key = nil, nil, nil, nil
	s.it.Init(nil)
}

func (s *runSource) entry() ([]byte, memindex.Version) { return s.key, s.version }

func (s *runSource) err() error { return s.run.note(s.it.Err()) }

func (s *runSource) move() bool {
	if s.reverse {
		return s.moveBack()
	}
	var ok bool
	switch {
	case !s.begun:
		s.begun = true
		ok = s.it.SeekGE(s.lo)
	case s.single:
		ok = s.it.Next()
	default:
		for ok = s.it.Next(); ok && bytes.Equal(s.it.Key(), s.key); ok = s.it.Next() {
		}
	}
	for ; ok; ok = s.it.Next() {
		if s.hi != nil && bytes.Compare(s.it.Key(), s.hi) >= 0 {
			return false
		}
		if v := s.it.Version(); v.Ref < s.at {
			s.version = v
			s.take()
			return true
		}
	}
	return false
}

// take remembers the iterator's key; a copy where it is compared with after the iterator has moved.
func (s *runSource) take() {
	if s.single && !s.reverse {
		s.key = s.it.Key()
	} else {
		s.own = append(s.own[:0], s.it.Key()...)
		s.key = s.own
	}
}

// moveBack goes to the next lower key, whose versions come oldest first.
func (s *runSource) moveBack() bool {
	if !s.begun {
		s.begun = true
		if s.hi == nil {
			s.it.Last()
		} else {
			s.it.SeekLT(s.hi)
		}
	}
	for s.it.Valid() {
		if bytes.Compare(s.it.Key(), s.lo) < 0 {
			return false
		}
		s.take()
		found := false
		for s.it.Valid() && bytes.Equal(s.it.Key(), s.key) {
			if v := s.it.Version(); v.Ref < s.at {
				s.version, found = v, true
			}
			if !s.it.Prev() {
				break
			}
		}
		if found {
			return true
		}
	}
	return false
}
