package engine

import (
	"errors"
	"sync"
	"sync/atomic"

	"shiplog/wal"
)

// Watch notices writes to keys, from before a transaction begins: read, think, and let [Tx.Unchanged] tell
// whether what was read still stands. Unlike a comparison of values it also notices a value that was
// changed and changed back. It holds nothing but its keys, and no version of them. One goroutine at a time may use a Watch; it
// must be closed.
type Watch struct {
	db      *DB
	keys    map[string]watched // guarded by watches.mu
	changed atomic.Uint64      // an LSN in the first write that was noticed, plus 1; 0: none
}

// watched is what a key was when it was taken up.
type watched struct {
	absent bool  // it had no value, so that a delete is no change
	expiry int64 // unix milliseconds; 0: none
}

// NewWatch returns a watch of no keys.
func (db *DB) NewWatch() *Watch { return &Watch{db: db, keys: map[string]watched{}} }

// Add takes up a key: writes that become visible after the call are noticed, and so is the expiry of the value that the key
// has now. Adding a key twice changes nothing. The key is copied; memory is bounded by the caller alone.
func (w *Watch) Add(key []byte) error {
	if err := w.db.readable(); err != nil {
		return err
	}
	all := &w.db.watches
	if !all.add(w, string(key)) {
		return nil
	}
	// What is written from here on is noticed. What is in the index already, and not visible yet, is a change too.
	s := w.db.Snapshot()
	defer s.Close()
	v := view{db: w.db, overlay: &overlay{}}
	changed, err := v.changedSince(key, s.at)
	if err != nil {
		return err
	}
	if changed {
		ver, _, err := w.db.idx.Latest(key)
		if err != nil {
			return w.db.indexError(err)
		}
		w.change(wal.Ref(ver.Ref))
		return nil
	}
	var now watched
	switch err := s.view(key, func(_ []byte, e int64) error { now.expiry = e; return nil }); {
	case errors.Is(err, ErrNotFound):
		now.absent = true
	case err != nil:
		return err
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	w.keys[string(key)] = now
	return nil
}

// Len is the number of keys.
func (w *Watch) Len() int {
	w.db.watches.mu.RLock()
	defer w.db.watches.mu.RUnlock()
	return len(w.keys)
}

// Close lets go of the keys. It may be called more than once.
func (w *Watch) Close() { w.db.watches.remove(w) }

// change notes the first write that was noticed.
func (w *Watch) change(ref wal.Ref) { w.changed.CompareAndSwap(0, uint64(ref.LSN())+1) }

// some reports whether is holds for one of the keys.
func (w *Watch) some(is func(key string, was watched) bool) bool {
	w.db.watches.mu.RLock()
	defer w.db.watches.mu.RUnlock()
	for key, was := range w.keys {
		if is(key, was) {
			return true
		}
	}
	return false
}

// Unchanged reports whether none of w's keys was written, or lost its value by expiry, between its being added to w and
// this transaction, the transaction's own writes included. That it was so is checked once more when the transaction is
// committed, like everything that it has read. Where the answer is no, Update returns once the write that was noticed is visible.
func (tx *Tx) Unchanged(w *Watch) (bool, error) {
	if tx.done {
		return false, ErrTxDone
	}
	if at := w.changed.Load(); at != 0 {
		tx.behind = max(tx.behind, wal.LSN(at-1))
		return false, nil
	}
	changed := w.some(func(key string, was watched) bool {
		return tx.db.expired(was.expiry, tx.snap.now) || tx.changes(key, was.absent)
	})
	if changed {
		return false, nil
	}
	tx.watches = append(tx.watches, w)
	return true, nil
}

// changes reports whether the transaction has changed a key so far, if only to change it back; absent: it had no value.
func (tx *Tx) changes(key string, absent bool) bool {
	if _, ok := tx.undone[key]; ok {
		return true
	}
	if r, ok := tx.writes[key]; ok {
		return r.Op != OpDelete || !absent
	}
	return !absent && tx.hasDeleted([]byte(key))
}

// watches holds the watched keys of a database. What enters records into the index tells it of each.
type watches struct {
	count atomic.Int64 // of keys in byKey: 0 lets the pipeline pass by

	mu    sync.RWMutex // guards byKey and the keys of every watch
	byKey map[string][]*Watch
}

// add enters a key of w; false if it is there.
func (a *watches) add(w *Watch, key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := w.keys[key]; ok {
		return false
	}
	if a.byKey == nil {
		a.byKey = map[string][]*Watch{}
	}
	w.keys[key] = watched{}
	a.byKey[key] = append(a.byKey[key], w)
	a.count.Store(int64(len(a.byKey)))
	return true
}

func (a *watches) remove(w *Watch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key := range w.keys {
		left := a.byKey[key]
		for i, other := range left {
			if other == w {
				left[i] = left[len(left)-1]
				left[len(left)-1] = nil
				left = left[:len(left)-1]
				break
			}
		}
		if len(left) > 0 {
			a.byKey[key] = left
		} else {
			delete(a.byKey, key)
		}
	}
	clear(w.keys)
	a.count.Store(int64(len(a.byKey)))
}

// written is told of each record but range deletes, in log order, once it is in the index: a key that is taken up meanwhile is
// looked up there.
func (a *watches) written(key []byte, op Op, ref wal.Ref) {
	if a.count.Load() == 0 {
		return
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, w := range a.byKey[string(key)] {
		if op != OpDelete || !w.keys[string(key)].absent {
			w.change(ref)
		}
	}
}

// rangeDeleted is told of each range delete; end nil: no bound.
func (a *watches) rangeDeleted(start, end []byte, ref wal.Ref) {
	if a.count.Load() == 0 {
		return
	}
	r := keyRange{start, end}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for key, ws := range a.byKey {
		if !r.contains([]byte(key)) {
			continue
		}
		for _, w := range ws {
			if !w.keys[key].absent {
				w.change(ref)
			}
		}
	}
}
