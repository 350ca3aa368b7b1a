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
// next positioning call or Close. It is not safe for concurrent use, holds no lock between calls, and must be
// closed.
type Iterator struct {
	snap  *Snapshot
	owned bool // the snapshot is the iterator's own
	lower []byte
	upper []byte

	room    *room    // nil once it is closed
	cur     *stretch // of the room: where the iterator stands
	at      int      // position in its chunk
	reverse bool
	size    int // entries asked for next: small at first, for seeks
	valid   bool
	err     error

	near   bool // the values around are near the processor
	wanted bool // values of this stretch were asked for, and those behind prefetched where that helps
	value  []byte
	loaded bool
}

// Chunks grow from the first size, good for a seek and a few steps, to the last, good for a scan.
const (
	firstChunk = 32
	lastChunk  = 2048
)

// NewIter returns an iterator over the state that is visible now. Nil options mean no bounds.
func (db *DB) NewIter(o *IterOptions) *Iterator { return newIterator(db.Snapshot(), true, o) }

func newIterator(s *Snapshot, owned bool, o *IterOptions) *Iterator {
	it := &Iterator{snap: s, owned: owned, room: rooms.Get().(*room)}
	it.cur = &it.room.two[0]
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

// load looks up the stretch at one end of (lo, hi) and moves to its first live entry.
func (it *Iterator) load(lo, hi []byte, loOpen, reverse bool) bool {
	it.valid, it.loaded = false, false
	if it.room == nil && it.err == nil {
		it.err = fmt.Errorf("%w: the iterator", ErrClosed)
	}
	if it.err != nil || hi != nil && bytes.Compare(lo, hi) >= 0 {
		return false
	}
	r := it.room
	r.ahead.end()
	it.reverse, it.cur = reverse, &r.two[0]
	it.lookUp(it.cur, lo, hi, loOpen, it.size)
	it.size = min(it.size*2, lastChunk)
	if it.wanted && it.cur.err == nil && it.cur.chunk.Len() >= aheadFrom {
		r.ahead.begin(it, &r.two, it.size)
	}
	return it.enter()
}

// lookUp fills st with the first entries of a range, in the iterator's direction.
func (it *Iterator) lookUp(st *stretch, lo, hi []byte, loOpen bool, size int) {
	s := it.snap
	st.count = 0
	if st.err = s.db.idx.Scan(&st.chunk, lo, hi, loOpen, refAt(s.at), it.reverse, size); st.err != nil {
		st.err = s.db.indexError(st.err)
		return
	}
	st.err = s.lost()
}

// follow fills st with what comes behind the stretch before it, which is not empty.
func (it *Iterator) follow(st, before *stretch, size int) {
	edge := before.chunk.Key(before.chunk.Len() - 1)
	if it.reverse {
		it.lookUp(st, it.lower, edge, false, size)
	} else {
		it.lookUp(st, edge, it.upper, true, size)
	}
}

// enter moves to the first live entry of the stretch that was looked up.
func (it *Iterator) enter() bool {
	it.wanted, it.near = false, false
	if it.err = it.cur.err; it.err != nil {
		return false
	}
	it.at = -1
	return it.step()
}

// step moves on in the direction of the chunk, over what has expired.
func (it *Iterator) step() bool {
	for {
		it.loaded = false
		it.at++
		if it.at >= it.cur.chunk.Len() {
			return it.next()
		}
		it.valid = true
		if it.cur.chunk.Version(it.at).Kind != memindex.PutTTL {
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

// next goes on behind the stretch.
func (it *Iterator) next() bool {
	it.valid = false
	if !it.cur.goesOn() {
		return false
	}
	r := it.room
	if r.ahead.running && it.wanted {
		it.cur = r.ahead.advance()
		return it.enter()
	}
	n := it.cur.chunk.Len()
	edge := bytes.Clone(it.cur.chunk.Key(n - 1))
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
	return it.cur.chunk.Key(it.at)
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
	r, c := it.room, &it.cur.chunk
	if it.value, it.loaded = r.ahead.value(it.cur, it.at, &r.bufs); it.loaded {
		return nil
	}
	log := it.snap.db.log
	if it.at%nearEntries == 0 || !it.near {
		it.near = true
		r.bufs.near(log, c, it.at)
	}
	v := c.Version(it.at)
	err := it.snap.readVersion(c.Key(it.at), v, r.bufs.of(log, v), func(v []byte, _ int64) error {
		r.own = append(r.own[:0], v...)
		return nil
	})
	it.value, it.loaded = r.own, err == nil
	return err
}

// faultsEvery is how many stretches share a look at the faults of this process, which is a system call, once nothing was missing for as many.
const faultsEvery = 16

// prefetch has the system begin to read the frames that a stretch's values are in, all at once, where they come from the disk: while this process
// waits for pages that are not in memory, or did so for the stretch before. Long ones do without: a scan touches so much
// that the system's own reading around each fault brings more.
func (it *Iterator) prefetch() {
	db, c := it.snap.db, &it.cur.chunk
	if c.Len() >= aheadFrom {
		return
	}
	if !db.cold.Load() {
		if n := db.warm.Add(1); n > faultsEvery && n%faultsEvery != 0 {
			return
		}
		if faults := vfs.MajorFaults(); db.majorFaults.Swap(faults) == faults {
			return
		}
	}
	cold := false
	for i := max(it.at, 0); i < c.Len(); i++ {
		if db.log.Prefetch(wal.Ref(c.Version(i).Ref)) {
			cold = true
		}
	}
	if db.cold.Store(cold); cold {
		db.warm.Store(0)
	}
}

// Err is the first error that the iterator met. The end of the keys is none.
func (it *Iterator) Err() error { return it.err }

// Close releases the iterator and, if it made one, its snapshot. It returns Err. It may be called more than once; an iterator that is
// positioned after it answers ErrClosed.
func (it *Iterator) Close() error {
	if it.room == nil {
		return it.err
	}
	it.room.ahead.end()
	it.room.release()
	it.room, it.cur, it.value, it.valid = nil, nil, nil, false
	if it.owned {
		it.snap.Close()
	}
	return it.err
}
