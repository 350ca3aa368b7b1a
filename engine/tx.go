package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// Tx is an optimistic transaction: it reads one snapshot and its own writes, and is checked, when
// its function has returned, against everything that was written meanwhile. Not safe for concurrent
// use, and not usable after its function has returned.
type Tx struct {
	db      *DB
	snap    *Snapshot
	batch   *Batch
	reads   map[string]struct{} // keys whose state was seen, absence included
	ranges  []keyRange          // ranges that were walked
	writes  map[string]Record   // own writes; slices point into copies
	deleted []keyRange          // ranges of keys that were deleted, but for later writes
	undone  map[string]struct{} // keys that were put and then deleted
	watches []*Watch            // that were found unchanged
	behind  wal.LSN             // a watch was found changed by a write that ends behind it; 0: none was
	buf     wal.Buffer
	done    bool

	checking sync.Mutex // guards closed: the pipeline may still check what its caller has given up
	closed   bool
}

type keyRange struct{ lo, hi []byte } // hi nil: no bound

func (r keyRange) contains(key []byte) bool {
	return bytes.Compare(key, r.lo) >= 0 && (r.hi == nil || bytes.Compare(key, r.hi) < 0)
}

// updateAttempts bounds how often Update runs a function whose reads keep being overtaken.
const updateAttempts = 100

// Update runs fn in a transaction and commits what it wrote, atomically, at level l. Transactions are
// serializable: one that commits saw the state right before it. When something that fn has read
// was changed meanwhile, fn runs again on the newer state, so it must have no other effects; after
// many attempts ErrConflict is returned. An error of fn ends the transaction without writing and is
// returned as it is. The other errors are those of Commit.
func (db *DB) Update(ctx context.Context, l Level, fn func(tx *Tx) error) (Position, error) {
	if err := l.Validate(); err != nil {
		return Position{}, err
	}
	for range updateAttempts {
		pos, err := db.tryUpdate(ctx, l, fn)
		if !errors.Is(err, errOvertaken) {
			return pos, err
		}
	}
	return Position{}, fmt.Errorf("%w: overtaken %d times", ErrConflict, updateAttempts)
}

// errOvertaken says that a transaction has read what is no longer so.
var errOvertaken = fmt.Errorf("%w: transaction overtaken", ErrConflict)

func (db *DB) tryUpdate(ctx context.Context, l Level, fn func(tx *Tx) error) (Position, error) {
	if err := db.readable(); err != nil {
		return Position{}, err
	}
	tx := &Tx{db: db, snap: db.Snapshot(), batch: &Batch{}, reads: map[string]struct{}{}, writes: map[string]Record{}}
	defer tx.close()
	err := fn(tx)
	tx.done = true
	if err != nil {
		return Position{}, err
	}
	if tx.batch.err != nil {
		return Position{}, tx.batch.err
	}
	if tx.batch.Len() == 0 {
		return tx.readOnly(ctx)
	}
	return db.commitBatch(ctx, tx.batch, l, func(v *view, _ *Batch) error { return tx.check(v) })
}

// readOnly ends a transaction that has written nothing: it stands at its snapshot. Where it found a key changed by a write
// that is not visible yet, its answer waits for that.
func (tx *Tx) readOnly(ctx context.Context) (Position, error) {
	db := tx.db
	if tx.behind < db.marks.visibleLSN() {
		return tx.snap.Position(), nil
	}
	if db.opts.CommitTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, db.opts.CommitTimeout)
		defer cancel()
	}
	pos := db.position(tx.behind + 1)
	err := db.WaitApplied(ctx, pos)
	if err != nil && ctx.Err() != nil {
		return Position{}, &OutcomeError{Position: pos, Cause: err}
	}
	return pos, err
}

// check runs in the pipeline, in log order: nothing that was read may have changed since.
func (tx *Tx) check(v *view) error {
	tx.checking.Lock()
	defer tx.checking.Unlock()
	if tx.closed {
		return errOvertaken
	}
	for key := range tx.reads {
		switch changed, err := v.changedSince([]byte(key), tx.snap.at); {
		case err != nil:
			return err
		case changed:
			return errOvertaken
		}
	}
	for _, w := range tx.watches {
		inGroup := func(key string, _ watched) bool {
			r, ok := v.overlay.get([]byte(key))
			return ok && r.Orig == 0 // also where only a delete of nothing: the next attempt knows better
		}
		if w.changed.Load() != 0 || w.some(inGroup) {
			return errOvertaken
		}
	}
	if len(tx.ranges) == 0 {
		return nil
	}
	conflict := false
	v.overlay.keys(func(key string) bool {
		conflict = tx.walked([]byte(key))
		return !conflict
	})
	if conflict {
		return errOvertaken
	}
	return tx.checkLog()
}

// close releases the snapshot, which the check needs: it keeps the versions that tell what has changed.
func (tx *Tx) close() {
	tx.checking.Lock()
	defer tx.checking.Unlock()
	tx.closed = true
	tx.snap.Close()
}

// maxRangeCheck is how many bytes of log a range check reads before it gives up as a conflict.
const maxRangeCheck = 8 << 20

// checkLog looks for writes into walked ranges among the records since the snapshot. The log is the
// list of what has changed, deletes included; no other has to be kept.
func (tx *Tx) checkLog() error {
	log := tx.db.log
	if log.Head()-tx.snap.at > maxRangeCheck {
		return errOvertaken
	}
	r := log.NewReader(tx.snap.at)
	defer r.Close()
	var d decoder
	for r.Next() {
		err := d.frame(r.Frame(), r.Raw(), func(_ wal.Ref, rec Record) error {
			if rec.Orig == 0 && tx.walkedRecord(rec) {
				return errOvertaken
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return r.Err()
}

func (tx *Tx) walkedRecord(rec Record) bool {
	if rec.Op != OpDeleteRange {
		return tx.walked(rec.Key)
	}
	end := rec.Value
	for _, r := range tx.ranges {
		if (len(end) == 0 || bytes.Compare(r.lo, end) < 0) && (r.hi == nil || bytes.Compare(rec.Key, r.hi) < 0) {
			return true
		}
	}
	return false
}

func (tx *Tx) walked(key []byte) bool {
	return slices.ContainsFunc(tx.ranges, func(r keyRange) bool { return r.contains(key) })
}

// Get returns a copy of the value of key as the transaction sees it, or ErrNotFound.
func (tx *Tx) Get(key []byte) ([]byte, error) {
	value, _, err := tx.GetEntry(key)
	return value, err
}

// GetEntry is Get that also returns when the value expires; the zero time means never.
func (tx *Tx) GetEntry(key []byte) (value []byte, expiry time.Time, err error) {
	err = tx.ViewEntry(key, func(v []byte, e time.Time) error {
		value, expiry = append(make([]byte, 0, len(v)), v...), e
		return nil
	})
	return value, expiry, err
}

// ViewEntry calls fn with the value of key as the transaction sees it, and when it expires; the zero time means never.
// The value is valid during the call only and must not be changed. Returns ErrNotFound, or what fn returns.
func (tx *Tx) ViewEntry(key []byte, fn func(value []byte, expiry time.Time) error) error {
	if tx.done {
		return ErrTxDone
	}
	if r, ok := tx.writes[string(key)]; ok {
		if r.Op == OpDelete || tx.db.expired(r.Expiry, tx.snap.now) {
			return ErrNotFound
		}
		return fn(r.Value, expiryTime(r.Expiry))
	}
	if tx.hasDeleted(key) {
		return ErrNotFound
	}
	tx.reads[string(key)] = struct{}{}
	v, ok, err := tx.db.idx.Get(key, refAt(tx.snap.at))
	if err = errors.Join(err, tx.snap.lost()); err != nil {
		return tx.db.indexError(err)
	}
	if !ok {
		return ErrNotFound
	}
	return tx.snap.readVersion(key, v, &tx.buf, func(v []byte, e int64) error { return fn(v, expiryTime(e)) })
}

// hasDeleted reports whether key lies in a range that the transaction has deleted.
func (tx *Tx) hasDeleted(key []byte) bool {
	return slices.ContainsFunc(tx.deleted, func(r keyRange) bool { return r.contains(key) })
}

// Has reports whether key has a value as the transaction sees it.
func (tx *Tx) Has(key []byte) (bool, error) {
	err := tx.ViewEntry(key, func([]byte, time.Time) error { return nil })
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Now is the log time by which the transaction judges what has expired.
func (tx *Tx) Now() time.Time { return time.UnixMilli(tx.snap.now) }

// Put sets key to value.
func (tx *Tx) Put(key, value []byte) error {
	return tx.write(Record{Op: OpPut, Key: key, Value: value})
}

// PutTTL sets key to value until the expiry, to the millisecond. The zero time means never.
func (tx *Tx) PutTTL(key, value []byte, expiry time.Time) error {
	if expiry.IsZero() {
		return tx.Put(key, value)
	}
	return tx.write(Record{Op: OpPutTTL, Key: key, Value: value, Expiry: recordExpiry(expiry)})
}

// Delete removes key.
func (tx *Tx) Delete(key []byte) error { return tx.write(Record{Op: OpDelete, Key: key}) }

// DeleteRange removes every key in [start, end) that is there when the transaction is committed, those included that others
// have written since its snapshot; an empty end means no upper bound.
func (tx *Tx) DeleteRange(start, end []byte) error {
	if tx.done {
		return ErrTxDone
	}
	tx.batch.DeleteRange(start, end)
	if tx.batch.err != nil {
		return tx.batch.err
	}
	r := keyRange{lo: bytes.Clone(start), hi: bytes.Clone(unbounded(end))}
	for key, w := range tx.writes {
		if r.contains(w.Key) {
			tx.noteDelete(key)
			tx.writes[key] = Record{Op: OpDelete, Key: w.Key}
		}
	}
	tx.deleted = append(tx.deleted, r)
	return nil
}

func (tx *Tx) write(r Record) error {
	if tx.done {
		return ErrTxDone
	}
	switch r.Op {
	case OpPut:
		tx.batch.Put(r.Key, r.Value)
	case OpPutTTL:
		tx.batch.putTTL(r.Key, r.Value, r.Expiry)
	case OpDelete:
		tx.batch.Delete(r.Key)
	}
	if tx.batch.err != nil {
		return tx.batch.err
	}
	if r.Op == OpDelete {
		tx.noteDelete(string(r.Key))
	}
	r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
	tx.writes[string(r.Key)] = r
	return nil
}

// noteDelete keeps in mind, before a delete, that the transaction had put the key.
func (tx *Tx) noteDelete(key string) {
	if w, ok := tx.writes[key]; ok && w.Op != OpDelete {
		if tx.undone == nil {
			tx.undone = map[string]struct{}{}
		}
		tx.undone[key] = struct{}{}
	}
}

// Scan calls fn for the keys in [lo, hi) in order, own writes included, until fn returns false; a nil
// hi is no bound. The slices are valid during the call. Keys that another transaction adds to what
// was walked are conflicts like any other.
func (tx *Tx) Scan(lo, hi []byte, fn func(key, value []byte) bool) error {
	return tx.walk(lo, hi, func(key []byte, value func() []byte) bool { return fn(key, value()) })
}

// Keys is Scan that does not read the values.
func (tx *Tx) Keys(lo, hi []byte, fn func(key []byte) bool) error {
	return tx.walk(lo, hi, func(key []byte, _ func() []byte) bool { return fn(key) })
}

// walk calls fn for the keys in [lo, hi), with a function that reads the value.
func (tx *Tx) walk(lo, hi []byte, fn func(key []byte, value func() []byte) bool) error {
	if tx.done {
		return ErrTxDone
	}
	walked := keyRange{lo: bytes.Clone(lo), hi: bytes.Clone(hi)}
	own := tx.ownIn(walked)
	it := tx.snap.NewIter(&IterOptions{Lower: lo, Upper: hi})
	defer func() { _ = it.Close() }() // its error is Err, asked for below
	more := tx.skipDeleted(it, it.First())
	for goOn := true; goOn && (more || len(own) > 0); {
		if len(own) == 0 || more && own[0] > string(it.Key()) {
			key := bytes.Clone(it.Key())
			goOn = fn(key, it.Value)
			if it.Err() != nil {
				return it.Err()
			}
			if !goOn {
				walked.hi = append(key, 0) // the range that was seen ends right behind key
				break
			}
			more = tx.skipDeleted(it, it.Next())
			continue
		}
		r := tx.writes[own[0]]
		if more && own[0] == string(it.Key()) {
			more = tx.skipDeleted(it, it.Next())
		}
		own = own[1:]
		if r.Op == OpDelete || tx.db.expired(r.Expiry, tx.snap.now) {
			continue
		}
		if goOn = fn(r.Key, func() []byte { return r.Value }); !goOn {
			walked.hi = append(bytes.Clone(r.Key), 0)
		}
	}
	tx.ranges = append(tx.ranges, walked)
	return it.Err()
}

// skipDeleted moves it on, if it stands on a key, to the first that is in no range that the transaction has deleted.
func (tx *Tx) skipDeleted(it *Iterator, valid bool) bool {
	for valid {
		i := slices.IndexFunc(tx.deleted, func(r keyRange) bool { return r.contains(it.Key()) })
		if i < 0 {
			return true
		}
		if tx.deleted[i].hi == nil {
			return false
		}
		valid = it.SeekGE(tx.deleted[i].hi)
	}
	return false
}

// Len estimates the number of keys that the transaction sees, as Stats does: keys that have expired and were not removed yet
// count. After DeleteRange the keys are counted one by one. It is no ground for a conflict.
func (tx *Tx) Len() (int, error) {
	n := 0
	if len(tx.deleted) > 0 {
		ranges := tx.ranges
		err := tx.Keys(nil, nil, func([]byte) bool { n++; return true })
		tx.ranges = ranges
		return n, err
	}
	n = tx.db.idx.Len()
	for key, r := range tx.writes {
		v, ok, err := tx.db.idx.Get([]byte(key), refAt(tx.snap.at))
		if err != nil {
			return 0, tx.db.indexError(err)
		}
		had, has := ok && v.Kind != memindex.Delete, r.Op != OpDelete
		switch {
		case has && !had:
			n++
		case had && !has:
			n--
		}
	}
	return max(0, n), nil
}

// ownIn lists the keys of own writes within r, sorted.
func (tx *Tx) ownIn(r keyRange) []string {
	var keys []string
	for k := range tx.writes {
		if r.contains([]byte(k)) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}
