package engine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// Snapshot is the database at one position: an LSN, a log time and a pin. Taking one costs no copy
// and blocks nobody. Safe for concurrent use until Close.
type Snapshot struct {
	db   *DB
	at   wal.LSN
	tail wal.LSN // of the log when the snapshot was taken: all that it shows lies at or above it
	now  int64   // log time: what has expired by then is not in the snapshot

	closed atomic.Bool
}

// Snapshot pins the state that is visible now. It must be closed.
func (db *DB) Snapshot() *Snapshot {
	s := &Snapshot{db: db, now: db.ReadTime()}
	s.at, s.tail = db.pins.add(db)
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
	return s.view(key, func(v []byte, _ int64) error { return fn(v) })
}

// ViewEntry is View that also tells when the value expires; the zero time means never.
func (s *Snapshot) ViewEntry(key []byte, fn func(value []byte, expiry time.Time) error) error {
	return s.view(key, func(v []byte, e int64) error { return fn(v, expiryTime(e)) })
}

func (s *Snapshot) view(key []byte, fn func(value []byte, expiry int64) error) error {
	if err := s.db.readable(); err != nil {
		return err
	}
	v, ok, err := s.db.idx.Get(key, refAt(s.at))
	if err := errors.Join(err, s.lost()); err != nil { // asked after the look-up: the tail may have moved before it
		return s.db.indexError(err)
	}
	if !ok || v.Kind == memindex.Delete {
		return ErrNotFound
	}
	buf := bufferPool.Get().(*wal.Buffer)
	defer putBuffer(buf)
	return s.readVersion(key, v, buf, fn)
}

// readVersion reads a version that the snapshot shows.
func (s *Snapshot) readVersion(key []byte, v memindex.Version, buf *wal.Buffer, fn func(value []byte, expiry int64) error) error {
	err := s.db.readVersion(key, v, s.now, buf, fn)
	if errors.Is(err, wal.ErrTrimmed) {
		return errors.Join(s.lost(), err)
	}
	return err
}

// NewIter returns an iterator over the snapshot; it must be closed before the snapshot is.
func (s *Snapshot) NewIter(o *IterOptions) *Iterator { return newIterator(s, false, o) }

// Position is where the snapshot stands: it holds every write that ends at or below it.
func (s *Snapshot) Position() Position { return s.db.position(s.at) }

// Now is the log time by which the snapshot judges what has expired.
func (s *Snapshot) Now() time.Time { return time.UnixMilli(s.now) }

// Close releases the pin. It may be called more than once. Reads after it answer ErrClosed.
func (s *Snapshot) Close() {
	if !s.closed.Swap(true) {
		s.db.pins.drop(s.at)
	}
}

// String describes the snapshot in logs.
func (s *Snapshot) String() string { return fmt.Sprintf("snapshot at %v", s.at) }

// pins holds the open snapshots at each LSN; the lowest bounds the index's floor, and their tails what is removed.
type pins struct {
	mu sync.Mutex // guards all below
	at map[wal.LSN]pin
	// held stops raiseFloor while the log is being cut: what it would compute is about to be taken back.
	held bool
}

type pin struct {
	count int
	tail  wal.LSN // the lowest of their tails
}

// add pins the visible mark, and the log from its tail on. The floor never passes it: floor reads both under the same mutex.
func (p *pins) add(db *DB) (lsn, tail wal.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[wal.LSN]pin{}
	}
	if !db.log.Empty() {
		tail = max(db.log.Tail(), db.idx.Tail()) // files below may still be there
	}
	lsn = db.marks.visibleLSN()
	at, ok := p.at[lsn]
	if !ok {
		at.tail = tail
	}
	at.count++
	p.at[lsn] = at
	return lsn, tail
}

func (p *pins) drop(lsn wal.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.at[lsn]
	if at.count--; at.count == 0 {
		delete(p.at, lsn)
	} else {
		p.at[lsn] = at
	}
}

// lost answers ErrSnapshotTooOld once the log has lost what the snapshot may show, and ErrClosed once it is not held any more.
func (s *Snapshot) lost() error {
	if s.closed.Load() {
		return fmt.Errorf("%w: the snapshot", ErrClosed)
	}
	if s.tail < s.db.idx.Tail() {
		return fmt.Errorf("%w: it was taken when the log began at %v, now it begins at %v", ErrSnapshotTooOld, s.tail, s.db.idx.Tail())
	}
	return nil
}

// raiseFloor tells the index below which LSN no reader will look: the lowest pin, the visible mark,
// and what can still be cut.
func (db *DB) raiseFloor() {
	p := &db.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held {
		return
	}
	floor := min(db.marks.visibleLSN(), db.marks.committedLSN())
	for lsn := range p.at {
		floor = min(floor, lsn)
	}
	db.raiseReadFloor(floor)
	db.idx.SetFloor(refAt(floor))
	db.idx.Poke()
}
