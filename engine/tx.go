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

	"shiplog/wal"
)

// Tx is an optimistic transaction: it reads one snapshot and its own writes, and is checked, when
// its function has returned, against everything that was written meanwhile. Not safe for concurrent
// use, and not usable after its function has returned.
type Tx struct {
	db     *DB
	snap   *Snapshot
	batch  *Batch
	reads  map[string]struct{} // keys whose state was seen, absence included
	ranges []keyRange          // ranges that were walked
	writes map[string]Record   // own writes; slices point into copies
	done   bool

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
		return tx.snap.Position(), nil
	}
	return db.commitBatch(ctx, tx.batch, l, func(v *view, _ *Batch) error { return tx.check(v) })
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
	if tx.done {
		return nil, expiry, ErrTxDone
	}
	if r, ok := tx.writes[string(key)]; ok {
		return ownEntry(r, tx.snap.now)
	}
	tx.reads[string(key)] = struct{}{}
	v, ok, err := tx.db.idx.Get(key, refAt(tx.snap.at))
	if err = errors.Join(err, tx.snap.lost()); err != nil {
		return nil, expiry, tx.db.indexError(err)
	}
	if !ok {
		return nil, expiry, ErrNotFound
	}
	var buf wal.Buffer
	err = tx.snap.readVersion(key, v, &buf, func(v []byte, e int64) error {
		value = append(make([]byte, 0, len(v)), v...)
		if e != 0 {
			expiry = time.UnixMilli(e)
		}
		return nil
	})
	return value, expiry, err
}

func ownEntry(r Record, now int64) (value []byte, expiry time.Time, err error) {
	if r.Op == OpDelete || r.Expiry != 0 && now >= r.Expiry {
		return nil, expiry, ErrNotFound
	}
	if r.Expiry != 0 {
		expiry = time.UnixMilli(r.Expiry)
	}
	return bytes.Clone(r.Value), expiry, nil
}

// Has reports whether key has a value as the transaction sees it.
func (tx *Tx) Has(key []byte) (bool, error) {
	_, _, err := tx.GetEntry(key)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Put sets key to value.
func (tx *Tx) Put(key, value []byte) error {
	return tx.write(Record{Op: OpPut, Key: key, Value: value})
}

// PutTTL sets key to value until the expiry, to the millisecond.
func (tx *Tx) PutTTL(key, value []byte, expiry time.Time) error {
	return tx.write(Record{Op: OpPutTTL, Key: key, Value: value, Expiry: expiry.UnixMilli()})
}

// Delete removes key.
func (tx *Tx) Delete(key []byte) error { return tx.write(Record{Op: OpDelete, Key: key}) }

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
	r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
	tx.writes[string(r.Key)] = r
	return nil
}

// Scan calls fn for the keys in [lo, hi) in order, own writes included, until fn returns false; a nil
// hi is no bound. The slices are valid during the call. Keys that another transaction adds to what
// was walked are conflicts like any other.
func (tx *Tx) Scan(lo, hi []byte, fn func(key, value []byte) bool) error {
	if tx.done {
		return ErrTxDone
	}
	walked := keyRange{lo: bytes.Clone(lo), hi: bytes.Clone(hi)}
	own := tx.ownIn(walked)
	it := tx.snap.NewIter(&IterOptions{Lower: lo, Upper: hi})
	defer func() { _ = it.Close() }() // its error is Err, asked for below
	more := it.First()
	var stopped []byte
	for stopped == nil && (more || len(own) > 0) {
		var key, value []byte
		switch {
		case len(own) > 0 && (!more || own[0] <= string(it.Key())):
			if more && own[0] == string(it.Key()) {
				more = it.Next()
			}
			r := tx.writes[own[0]]
			own = own[1:]
			v, _, err := ownEntry(r, tx.snap.now)
			if err != nil {
				continue
			}
			key, value = r.Key, v
		default:
			key, value = bytes.Clone(it.Key()), bytes.Clone(it.Value())
			if it.Err() != nil {
				return it.Err()
			}
			more = it.Next()
		}
		if !fn(key, value) {
			stopped = append(bytes.Clone(key), 0) // the range that was seen ends right behind key
		}
	}
	if stopped != nil {
		walked.hi = stopped
	}
	tx.ranges = append(tx.ranges, walked)
	return it.Err()
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
