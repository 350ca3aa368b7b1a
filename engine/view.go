package engine

import (
	"errors"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// view is the state of the database right behind everything that was decided so far, visible or
// not: what conditional operations are decided on. It lives as long as one decision.
type view struct {
	db      *DB
	overlay *overlay
	buf     wal.Buffer
}

// entry is the current value of a key.
type entry struct {
	value  []byte
	expiry int64 // unix milliseconds; 0: none
}

// get returns the newest value of key; ok is false where there is none, or it has expired.
func (v *view) get(key []byte) (e entry, ok bool, err error) {
	if r, found := v.overlay.get(key); found {
		if r.Op == OpDelete || v.db.expired(r.Expiry, v.db.clock.read()) {
			return entry{}, false, nil
		}
		return entry{r.Value, r.Expiry}, true, nil
	}
	ver, found, err := v.db.idx.Latest(key)
	if err != nil || !found {
		return entry{}, false, v.db.indexError(err)
	}
	err = v.db.readVersion(key, ver, v.db.clock.read(), &v.buf, func(value []byte, expiry int64) error {
		e = entry{append([]byte(nil), value...), expiry}
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return entry{}, false, nil
	}
	return e, err == nil, err
}

// changedSince reports whether key was given a version, of whatever kind, at or above lsn. One that was only moved there is
// judged by where it came from.
func (v *view) changedSince(key []byte, lsn wal.LSN) (bool, error) {
	if _, found := v.overlay.get(key); found {
		return true, nil
	}
	ver, found, err := v.db.idx.Latest(key)
	if err != nil || !found || ver.Ref < refAt(lsn) {
		return false, v.db.indexError(err)
	}
	if ver.Kind == memindex.Delete {
		return true, nil
	}
	orig := uint64(0)
	err = v.db.log.ReadRecord(wal.Ref(ver.Ref), &v.buf, func(p []byte) error {
		r, _, _, err := decodeHead(p)
		orig = uint64(r.Orig)
		return err
	})
	return orig == 0 || orig >= refAt(lsn), err
}

// overlay holds what batches of the group in hand will write, before they are in the log.
type overlay struct {
	records map[string]Record
}

func (o *overlay) reset() {
	if len(o.records) > 0 {
		clear(o.records)
	}
}

func (o *overlay) get(key []byte) (Record, bool) {
	r, ok := o.records[string(key)]
	return r, ok
}

// add enters the batch; false if it holds a range delete, which the overlay cannot answer for.
func (o *overlay) add(b *Batch) bool {
	if o.records == nil {
		o.records = map[string]Record{}
	}
	for i := range b.w.Len() {
		r, _, err := DecodeRecord(b.w.Record(i))
		if err != nil || r.Op == OpDeleteRange {
			return false
		}
		o.records[string(r.Key)] = r
	}
	return true
}

// keys calls fn for each key that the overlay holds, until it returns false.
func (o *overlay) keys(fn func(key string) bool) {
	for k := range o.records {
		if !fn(k) {
			return
		}
	}
}
