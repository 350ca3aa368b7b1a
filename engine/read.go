package engine

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

var bufferPool = sync.Pool{New: func() any { return new(wal.Buffer) }}

func putBuffer(b *wal.Buffer) {
	b.Trim()
	bufferPool.Put(b)
}

// Get returns a copy of the visible value of key, or ErrNotFound. The value was checked against its
// checksum by this call. Safe for concurrent use.
func (db *DB) Get(key []byte) ([]byte, error) {
	value, _, err := db.GetEntry(key)
	return value, err
}

// GetEntry is Get that also returns when the value expires; the zero time means never.
func (db *DB) GetEntry(key []byte) (value []byte, expiry time.Time, err error) {
	err = db.ViewEntry(key, func(v []byte, e time.Time) error {
		value, expiry = append(make([]byte, 0, len(v)), v...), e
		return nil
	})
	return value, expiry, err
}

// ViewEntry is View that also tells when the value expires; the zero time means never.
func (db *DB) ViewEntry(key []byte, fn func(value []byte, expiry time.Time) error) error {
	return db.viewLatest(key, func(v []byte, e int64) error { return fn(v, expiryTime(e)) })
}

// expiryTime turns unix milliseconds into a time, and 0 into none.
func expiryTime(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// View calls fn with the visible value of key, which is valid during the call only and must not be
// changed: where its frame is stored raw, the bytes are the log's own. Returns ErrNotFound, or what fn returns.
func (db *DB) View(key []byte, fn func(value []byte) error) error {
	return db.viewLatest(key, func(v []byte, _ int64) error { return fn(v) })
}

// viewLatest reads at the visible mark. While the floor has not passed that mark, the index still
// had every version that a reader there sees; else the look-up is made again at the newer mark.
func (db *DB) viewLatest(key []byte, fn func(value []byte, expiry int64) error) error {
	for {
		takenBack := db.takenBack.Load()
		if err := db.loading(); err != nil {
			return err
		}
		at := db.marks.visibleLSN()
		v, ok, err := db.idx.Get(key, refAt(at))
		if wal.LSN(db.floor.Load()) > at || db.takenBack.Load() != takenBack {
			continue
		}
		if err != nil {
			return db.indexError(err)
		}
		if err := db.leased(); err != nil { // a lease that runs now ran when at was read
			return err
		}
		if !ok || v.Kind == memindex.Delete {
			return ErrNotFound
		}
		now := int64(0)
		if v.Kind == memindex.PutTTL {
			now = db.ReadTime()
		}
		buf := bufferPool.Get().(*wal.Buffer)
		err = db.readVersion(key, v, now, buf, fn)
		putBuffer(buf)
		if errors.Is(err, wal.ErrTrimmed) && db.marks.visibleLSN() > at {
			continue // what was found has been written again behind at, and its place given up
		}
		return err
	}
}

// readVersion reads and verifies the record of a version of key and calls fn with its value.
// ErrNotFound: it is a delete, or has expired at log time now.
func (db *DB) readVersion(key []byte, v memindex.Version, now int64, buf *wal.Buffer, fn func(value []byte, expiry int64) error) error {
	if v.Kind == memindex.Delete {
		return ErrNotFound
	}
	return db.log.ReadRecord(wal.Ref(v.Ref), buf, func(p []byte) error {
		r, _, err := DecodeRecord(p)
		if err == nil && (!bytes.Equal(r.Key, key) || (r.Op != OpPut && r.Op != OpPutTTL)) {
			err = errors.New("the index names another record")
		}
		if err != nil {
			return &wal.CorruptError{LSN: wal.Ref(v.Ref).LSN(), Reason: "record does not match the index", Err: err}
		}
		if db.expired(r.Expiry, now) {
			return ErrNotFound
		}
		return fn(r.Value, r.Expiry)
	})
}

// expired reports whether a value with this expiry is gone at log time now.
func (db *DB) expired(expiry, now int64) bool { return expiry != 0 && now >= expiry }

// readable is loading, and ErrLeaseLost where a leader's leases do not run.
func (db *DB) readable() error {
	if err := db.loading(); err != nil {
		return err
	}
	return db.leased()
}

// loading answers ErrClosed, or ErrLoading while what is here may not be shown.
func (db *DB) loading() error {
	if db.closed.Load() {
		return ErrClosed
	}
	if db.opts.LogOnly {
		return ErrLogOnly
	}
	if err := db.applyErr.Load(); err != nil {
		return fmt.Errorf("%w: application of the log has stopped: %w", ErrLoading, *err)
	}
	need := db.loadedAt.Load()
	if need == 0 || db.opts.StaleReads {
		return nil
	}
	if need == loadingUntilConsistent {
		if at := db.consistentAt.Load(); at == 0 || db.marks.visible.Load() < at {
			return ErrLoading
		}
	} else if db.marks.visible.Load() < need {
		return ErrLoading
	}
	db.loadedAt.CompareAndSwap(need, 0)
	return nil
}
