package engine

import (
	"bytes"
	"errors"
	"fmt"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
	"shiplog/wal/vfs"
)

// IterOptions bound an iterator. Nil bounds are open.
type IterOptions struct {
	Lower []byte // first key that may be seen
	Upper []byte // first key above that is not seen any more
}

// Iterator walks keys in byte order, in both directions, over one snapshot. It is positioned by
// First, Last, SeekGE or SeekLT before use. Key and Value return copies that are valid until the
// next positioning call. It is not safe for concurrent use, holds no lock between calls, and must be
// closed.
type Iterator struct {
	snap  *Snapshot
	owned bool // the snapshot is the iterator's own
	lower []byte
	upper []byte

	chunk   memindex.Chunk
	at      int // position in the chunk
	reverse bool
	size    int // entries asked for next: small at first, for seeks
	valid   bool
	closed  bool
	err     error

	bufs   scanBufs
	ahead  *ahead // nil until a chunk is read ahead
	near   bool   // the values around are near the processor
	wanted bool   // values of this chunk were asked for, and those behind prefetched where that helps
	own    []byte // a value that was not read ahead
	value  []byte
	loaded bool
}

// Chunks grow from the first size, good for a seek and a few steps, to the last, good for a scan.
const (
	firstChunk = 16
	lastChunk  = 2048
)

// NewIter returns an iterator over the state that is visible now. Nil options mean no bounds.
func (db *DB) NewIter(o *IterOptions) *Iterator { return newIterator(db.Snapshot(), true, o) }

func newIterator(s *Snapshot, owned bool, o *IterOptions) *Iterator {
	it := &Iterator{snap: s, owned: owned}
	if o != nil {
		it.lower, it.upper = bytes.Clone(o.Lower), bytes.Clone(o.Upper)
	}
	it.err = s.db.readable()
	return it
}

// First moves to the lowest key and reports whether there is one.
func (it *Iterator) First() bool { return it.seek(it.lower, it.upper, false, false) }

// Last moves to the highest key and reports whether there is one.
func (it *Iterator) Last() bool { return it.seek(it.lower, it.upper, false, true) }

// SeekGE moves to the lowest key at or above key and reports whether there is one.
func (it *Iterator) SeekGE(key []byte) bool {
	lo := key
	if bytes.Compare(lo, it.lower) < 0 {
		lo = it.lower
	}
	return it.seek(lo, it.upper, false, false)
}

// SeekLT moves to the highest key below key and reports whether there is one.
func (it *Iterator) SeekLT(key []byte) bool {
	hi := key
	if it.upper != nil && bytes.Compare(hi, it.upper) > 0 {
		hi = it.upper
	}
	if len(hi) == 0 {
		it.valid, it.loaded = false, false
		return false
	}
	return it.seek(it.lower, hi, false, true)
}

func (it *Iterator) seek(lo, hi []byte, loOpen, reverse bool) bool {
	it.size = firstChunk
	return it.load(lo, hi, loOpen, reverse)
}

// load fetches the chunk at one end of (lo, hi) and moves to its first live entry.
func (it *Iterator) load(lo, hi []byte, loOpen, reverse bool) bool {
	it.valid, it.loaded = false, false
	if it.closed && it.err == nil {
		it.err = fmt.Errorf("%w: the iterator", ErrClosed)
	}
	if it.err != nil || hi != nil && bytes.Compare(lo, hi) >= 0 {
		return false
	}
	it.reverse = reverse
	it.ahead.end()
	if err := it.snap.db.idx.Scan(&it.chunk, lo, hi, loOpen, refAt(it.snap.at), reverse, it.size); err != nil {
		it.err = it.snap.db.indexError(err)
		return false
	}
	if it.err = it.snap.lost(); it.err != nil {
		return false
	}
	it.size = min(it.size*2, lastChunk)
	if it.wanted && it.chunk.Len() >= aheadFrom {
		if it.ahead == nil {
			it.ahead = new(ahead)
		}
		it.ahead.begin(it.snap, &it.chunk)
	}
	it.wanted, it.near = false, false
	it.at = -1
	return it.step()
}

// step moves on in the direction of the chunk, over what has expired.
func (it *Iterator) step() bool {
	for {
		it.loaded = false
		it.at++
		if it.at >= it.chunk.Len() {
			return it.next()
		}
		it.valid = true
		if it.chunk.Version(it.at).Kind != memindex.PutTTL {
			return true
		}
		switch err := it.fetch(); {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			it.err, it.valid = err, false
			return false
		default:
			return true
		}
	}
}

// next goes on behind the chunk's last entry.
func (it *Iterator) next() bool {
	n := it.chunk.Len()
	it.valid = false
	if n == 0 {
		return false
	}
	edge := bytes.Clone(it.chunk.Key(n - 1))
	if it.reverse {
		return it.load(it.lower, edge, false, true)
	}
	return it.load(edge, it.upper, true, false)
}

// Next moves to the next higher key and reports whether there is one.
func (it *Iterator) Next() bool {
	if !it.valid {
		return false
	}
	if it.reverse {
		it.size = firstChunk
		return it.load(bytes.Clone(it.Key()), it.upper, true, false)
	}
	return it.step()
}

// Prev moves to the next lower key and reports whether there is one.
func (it *Iterator) Prev() bool {
	if !it.valid {
		return false
	}
	if !it.reverse {
		key := bytes.Clone(it.Key())
		it.size = firstChunk
		if len(key) == 0 {
			it.valid = false
			return false
		}
		return it.load(it.lower, key, false, true)
	}
	return it.step()
}

// Valid reports whether the iterator stands on a key.
func (it *Iterator) Valid() bool { return it.valid }

// Key is the current key, valid until the next positioning call; nil where Valid is false.
func (it *Iterator) Key() []byte {
	if !it.valid {
		return nil
	}
	return it.chunk.Key(it.at)
}

// Value is the current value, verified and copied out of the log, valid until the next positioning
// call. After a failed read it is nil, Err tells why, and Valid is false.
func (it *Iterator) Value() []byte {
	if !it.valid {
		return nil
	}
	if !it.loaded {
		if err := it.fetch(); err != nil {
			it.err, it.valid = err, false
			return nil
		}
	}
	return it.value
}

func (it *Iterator) fetch() error {
	if !it.wanted {
		it.wanted = true
		it.prefetch()
	}
	if it.value, it.loaded = it.ahead.value(it.at, &it.bufs); it.loaded {
		return nil
	}
	if it.at%nearEntries == 0 || !it.near {
		it.near = true
		it.bufs.near(it.snap.db.log, &it.chunk, it.at)
	}
	v := it.chunk.Version(it.at)
	err := it.snap.readVersion(it.Key(), v, it.bufs.of(it.snap.db.log, v), func(v []byte, _ int64) error {
		it.own = append(it.own[:0], v...)
		return nil
	})
	it.value, it.loaded = it.own, err == nil
	return err
}

// prefetch has the system begin to read the frames that a chunk's values are in, all at once, where they come from the disk: while this process
// waits for pages that are not in memory, or did so for the chunk before. Long chunks do without: a scan touches so much
// that the system's own reading around each fault brings more.
func (it *Iterator) prefetch() {
	db := it.snap.db
	faults := vfs.MajorFaults()
	if db.majorFaults.Swap(faults) == faults && !db.cold.Load() || it.chunk.Len() >= aheadFrom {
		return
	}
	cold := false
	for i := max(it.at, 0); i < it.chunk.Len(); i++ {
		if db.log.Prefetch(wal.Ref(it.chunk.Version(i).Ref)) {
			cold = true
		}
	}
	db.cold.Store(cold)
}

// Err is the first error that the iterator met. The end of the keys is none.
func (it *Iterator) Err() error { return it.err }

// Close releases the iterator and, if it made one, its snapshot. It returns Err. It may be called more than once; an iterator that is
// positioned after it answers ErrClosed.
func (it *Iterator) Close() error {
	it.valid, it.closed = false, true
	it.ahead.end()
	if it.owned {
		it.snap.Close()
	}
	return it.err
}
