package engine

import (
	"fmt"
	"sync"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// Snapshot is the database at one position: an LSN, a log time and a pin. Taking one costs no copy
// and blocks nobody. Safe for concurrent use until Close.
type Snapshot struct {
	db   *DB
	at   wal.LSN
	now  int64 // log time: what has expired by then is not in the snapshot
	once sync.Once
}

// Snapshot pins the state that is visible now. It must be closed.
func (db *DB) Snapshot() *Snapshot {
	s := &Snapshot{db: db, now: db.clock.read()}
	s.at = db.pins.add(&db.marks)
	return s
}

// Get returns a copy of key's value in the snapshot, or ErrNotFound.
func (s *Snapshot) Get(key []byte) ([]byte, error) {
	var out []byte
	err := s.View(key, func(v []byte) error {
		out = append(make([]byte, 0, len(v)), v...)
		return nil
	})
	return out, err
}

// View calls fn with key's value in the snapshot; the bytes are valid during the call only.
func (s *Snapshot) View(key []byte, fn func(value []byte) error) error {
	if err := s.db.readable(); err != nil {
		return err
	}
	v, ok := s.db.idx.Get(key, refAt(s.at))
	if !ok || v.Kind == memindex.Delete {
		return ErrNotFound
	}
	buf := bufferPool.Get().(*wal.Buffer)
	defer func() {
		buf.Trim()
		bufferPool.Put(buf)
	}()
	return s.db.readVersion(key, v, s.now, buf, func(v []byte, _ int64) error { return fn(v) })
}

// NewIter returns an iterator over the snapshot; it must be closed before the snapshot is.
func (s *Snapshot) NewIter(o *IterOptions) *Iterator { return newIterator(s, false, o) }

// Position is where the snapshot stands: it holds every write that ends at or below it.
func (s *Snapshot) Position() Position { return s.db.position(s.at) }

// Close releases the pin. It may be called more than once.
func (s *Snapshot) Close() {
	s.once.Do(func() { s.db.pins.drop(s.at, &s.db.marks) })
}

// String describes the snapshot in logs.
func (s *Snapshot) String() string { return fmt.Sprintf("snapshot at %v", s.at) }

// pins counts the open snapshots at each LSN; the lowest bounds the index's floor.
type pins struct {
	mu sync.Mutex // guards at
	at map[wal.LSN]int
}

// add pins the visible mark. The floor never passes it: floor reads both under the same mutex.
func (p *pins) add(m *marks) wal.LSN {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[wal.LSN]int{}
	}
	lsn := m.visibleLSN()
	p.at[lsn]++
	return lsn
}

func (p *pins) drop(lsn wal.LSN, _ *marks) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at[lsn]--; p.at[lsn] == 0 {
		delete(p.at, lsn)
	}
}

// raiseFloor tells the index below which LSN no reader will look: the lowest pin, the visible mark,
// and what can still be cut.
func (db *DB) raiseFloor() {
	p := &db.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	floor := min(db.marks.visibleLSN(), db.marks.committedLSN())
	for lsn := range p.at {
		floor = min(floor, lsn)
	}
	if uint64(floor) > db.floor.Load() {
		db.floor.Store(uint64(floor))
		db.idx.SetFloor(refAt(floor))
	}
}
