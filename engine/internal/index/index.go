package index

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal"
	"shiplog/wal/vfs"
)

// Options configure Open.
type Options struct {
	FS  vfs.FS
	Dir string // of the runs and the manifest; made if it is not there
	// Memory is how many bytes the memory tables may hold together. A table is frozen at half of it.
	Memory int64
	// Versions freezes a table also when so many versions were inserted. Zero: no such bound. It serves tests.
	Versions int
	Logger   *slog.Logger
	// Valid judges a run that ends at to by the mark that was stored with it. False: it is not of this log.
	Valid func(to wal.LSN, mark []byte) bool
	// Stable reports whether nothing below to can be cut from the log any more.
	Stable func(to wal.LSN) bool
	// Pins appends the positions that someone still reads at, besides the newest, to dst. From the call on
	// nobody begins to read at another one below to.
	Pins func(dst []wal.LSN, to wal.LSN) []wal.LSN
	// Failed is told when a run cannot be written, and with nil when that works again. It must not call the index.
	Failed func(err error)
	// Damaged is told of each run that turns out to be damaged, once. It must not call the index, nor block. See Rebuild.
	Damaged func(err error)
}

// Index is the layered index. One goroutine at a time may call Insert, DeleteRange, Freeze and CutFrom
// (the writer); all other methods may be called by any number of goroutines at any time.
type Index struct {
	o     Options
	state atomic.Pointer[state]
	tail  atomic.Uint64 // refs below are dead
	gone  atomic.Uint64 // the log below is not on the disk any more: what is known of refs below may be forgotten
	floor atomic.Uint64 // for tables to come

	mu       sync.Mutex // held by whoever replaces state
	inserted int        // into the active table; the writer's own

	seq    uint64     // number of the next file; guarded by mu
	failed error      // why the last run could not be written; guarded by mu
	room   *sync.Cond // on mu: a frozen table has gone, or failed has changed

	flushing             sync.Mutex // held while a frozen table is being written out
	merging              sync.Mutex // held while runs are being merged
	kickFlush, kickMerge chan struct{}
	quit                 chan struct{}
	workers              sync.WaitGroup
}

// state is a set of layers, newest first. It never changes; a change makes another. Its runs stay open as long as
// someone uses it.
type state struct {
	tables []*table // the first is the writer's
	runs   []*openRun
	users  atomic.Int64 // readers, and one while it is the index's; counted only where there are runs
}

// openRun is a run and the number of states that hold it.
type openRun struct {
	*run.Run
	name    string
	info    run.Info
	mark    []byte
	states  atomic.Int32
	fs      vfs.FS
	path    string
	gone    atomic.Bool           // the manifest names it no more: the last user removes the file
	cause   atomic.Pointer[error] // why it is damaged, as the first reader has found it
	damaged func(err error)
}

// table is a layer in memory.
type table struct {
	*memindex.Table
	from wal.LSN // what it holds begins here
	to   wal.LSN // and ends here; 0: it is not frozen
	mark []byte  // of to
	dels atomic.Pointer[[]run.RangeDelete]
}

func (x *Index) newTable(from wal.LSN, over bool) *table {
	t := &table{from: from}
	if over {
		t.Table = memindex.NewOver()
	} else {
		t.Table = memindex.New()
	}
	t.SetFloor(x.floor.Load())
	return t
}

func (t *table) deletes() []run.RangeDelete {
	if d := t.dels.Load(); d != nil {
		return *d
	}
	return nil
}

// acquire returns the state of now; it must be released.
func (x *Index) acquire() *state {
	for {
		s := x.state.Load()
		if len(s.runs) == 0 {
			return s
		}
		for n := s.users.Load(); n > 0; n = s.users.Load() {
			if s.users.CompareAndSwap(n, n+1) {
				return s
			}
		}
	}
}

func (s *state) release() {
	if len(s.runs) > 0 && s.users.Add(-1) == 0 {
		for _, r := range s.runs {
			r.drop()
		}
	}
}

func (r *openRun) drop() {
	if r.states.Add(-1) > 0 {
		return
	}
	_ = r.Close() // only a map: there is nothing that could be lost
	if r.gone.Load() {
		_ = r.fs.Remove(r.path) // what stays is removed by the next Open
	}
}

// install makes next the state. x.mu is held.
func (x *Index) install(tables []*table, runs []*openRun) {
	next := &state{tables: tables, runs: runs}
	next.users.Store(1)
	for _, r := range runs {
		r.states.Add(1)
	}
	old := x.state.Swap(next)
	if old != nil {
		old.release()
	}
}

func refOf(lsn wal.LSN) uint64 { return uint64(wal.MakeRef(lsn, 0)) }

// Prefetch says that key will be inserted soon. Any goroutine may call it.
func (x *Index) Prefetch(key []byte) { x.state.Load().tables[0].Prefetch(key) }

// Insert adds a version of key to the active table. Refs rise from call to call.
func (x *Index) Insert(key []byte, ref uint64, kind memindex.Kind) {
	x.inserted++
	x.state.Load().tables[0].Insert(key, ref, kind)
}

// Get returns the newest version of key below at, which may be a Delete. An error says that a run is damaged.
func (x *Index) Get(key []byte, at uint64) (v memindex.Version, ok bool, err error) {
	s := x.state.Load()
	if len(s.runs) == 0 && len(s.tables) == 1 {
		v, ok = s.tables[0].Get(key, at)
		return v, ok && v.Ref >= x.tail.Load(), nil
	}
	s = x.acquire()
	v, ok, err = s.get(key, at)
	s.release()
	return v, ok && v.Ref >= x.tail.Load(), err
}

// Latest returns the newest version of key.
func (x *Index) Latest(key []byte) (memindex.Version, bool, error) { return x.Get(key, ^uint64(0)) }

func (s *state) get(key []byte, at uint64) (memindex.Version, bool, error) {
	for _, t := range s.tables {
		if v, ok := t.Get(key, at); ok {
			return v, true, nil
		}
		if ref := covers(t.deletes(), key, at); ref != 0 {
			return memindex.Version{Ref: ref, Kind: memindex.Delete}, true, nil
		}
	}
	if len(s.runs) == 0 {
		return memindex.Version{}, false, nil
	}
	hash := run.Hash(key)
	for _, r := range s.runs {
		v, ok, err := r.GetHashed(key, hash, at)
		if ok || err != nil {
			return v, ok, r.note(err)
		}
		if ref := covers(r.RangeDeletes(), key, at); ref != 0 {
			return memindex.Version{Ref: ref, Kind: memindex.Delete}, true, nil
		}
	}
	return memindex.Version{}, false, nil
}

// covers returns the newest ref below at of the deletes that cover key, or 0.
func covers(dels []run.RangeDelete, key []byte, at uint64) (ref uint64) {
	for i := range dels {
		d := &dels[i]
		if d.Ref < at && d.Ref > ref && bytes.Compare(key, d.Start) >= 0 && (d.End == nil || bytes.Compare(key, d.End) < 0) {
			ref = d.Ref
		}
	}
	return ref
}

// fewKeys is the number of keys up to which a range delete is entered key by key.
const fewKeys = 256

// DeleteRange deletes the keys from start, inclusive, to end, exclusive; a nil end is no bound.
func (x *Index) DeleteRange(start, end []byte, ref uint64) {
	if end != nil && bytes.Compare(start, end) >= 0 {
		return
	}
	x.inserted++
	s := x.acquire()
	defer s.release()
	t := s.tables[0]
	if len(s.tables) == 1 && len(s.runs) == 0 {
		t.DeleteRange(start, end, ref)
		return
	}
	older := state{tables: s.tables[1:], runs: s.runs}
	var c memindex.Chunk
	err := older.scan(&c, start, end, false, ^uint64(0), x.tail.Load(), false, fewKeys+1)
	t.DeleteRange(start, end, ref)
	if err == nil && c.Len() <= fewKeys {
		for i := range c.Len() {
			t.Insert(c.Key(i), ref, memindex.Delete)
		}
		return
	}
	// What is in the way of reading the older layers is met again by those who read them.
	t.addDelete(run.RangeDelete{Start: bytes.Clone(start), End: bytes.Clone(end), Ref: ref})
}

// addDelete enters a range delete. Those that it makes needless for readers of now are kept: others may read below it.
func (t *table) addDelete(d run.RangeDelete) {
	old := t.deletes()
	next := make([]run.RangeDelete, 0, len(old)+1)
	next = append(append(next, old...), d)
	t.dels.Store(&next)
}

// SetFloor promises that nobody will read below at; see [memindex.Table.SetFloor].
func (x *Index) SetFloor(at uint64) {
	for {
		old := x.floor.Load()
		if at <= old {
			return
		}
		if x.floor.CompareAndSwap(old, at) {
			break
		}
	}
	for _, t := range x.state.Load().tables {
		t.SetFloor(at)
	}
}

// SetTail says that the log below lsn is gone: what the index knows of it is dead. The tail never falls.
func (x *Index) SetTail(lsn wal.LSN) {
	at := refOf(lsn)
	for {
		old := x.tail.Load()
		if at <= old || x.tail.CompareAndSwap(old, at) {
			return
		}
	}
}

// SetRemoved says that the log below lsn is not on the disk any more, nor comes back with a loss of power. From then on runs
// leave out what is below, deletes too. Before that they must not: were the log still there at the next Open, what a forgotten
// delete has deleted would live again.
func (x *Index) SetRemoved(lsn wal.LSN) {
	at := refOf(lsn)
	for {
		old := x.gone.Load()
		if at <= old || x.gone.CompareAndSwap(old, at) {
			return
		}
	}
}

// Tail is what SetTail has set last.
func (x *Index) Tail() wal.LSN { return wal.Ref(x.tail.Load()).LSN() }

// Len estimates the number of keys: it is exact while there is one layer, and else counts some keys that are in several.
func (x *Index) Len() int {
	s := x.acquire()
	defer s.release()
	n := 0
	for _, t := range s.tables {
		n += t.Len()
	}
	for _, r := range s.runs {
		n += int(r.info.Keys - r.info.Deletes)
	}
	return n
}

// Stats describes the index.
type Stats struct {
	MemoryBytes int64 // of the tables
	Tables      int   // in memory, the active one included
	Runs        int
	RunBytes    int64 // of the runs' files, mapped
	RunEntries  int64
	RunEnd      wal.LSN // everything below is in runs
}

// Stats describes the index at this moment.
func (x *Index) Stats() Stats {
	s := x.acquire()
	defer s.release()
	st := Stats{Tables: len(s.tables), Runs: len(s.runs)}
	for _, t := range s.tables {
		st.MemoryBytes += t.Bytes()
	}
	for _, r := range s.runs {
		st.RunBytes += r.info.Size
		st.RunEntries += int64(r.info.Entries)
	}
	if len(s.runs) > 0 {
		st.RunEnd = wal.LSN(s.runs[0].info.To)
	}
	return st
}

// Full reports whether the active table should be frozen at the next end of a batch.
func (x *Index) Full() bool {
	return x.state.Load().tables[0].Bytes() >= x.o.Memory/2 || x.o.Versions > 0 && x.inserted >= x.o.Versions
}

// Freeze closes the active table at to, the end of everything inserted so far and of a batch, and begins another. The
// mark is stored with the run that the table becomes. While tables wait to be written out, and that works, it
// waits until there is room. The mark is kept.
func (x *Index) Freeze(to wal.LSN, mark []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		s := x.state.Load()
		if len(s.tables) < maxTables || x.failed != nil || !x.o.Stable(s.tables[len(s.tables)-1].to) {
			break
		}
		x.kick(x.kickFlush)
		x.room.Wait()
	}
	s := x.state.Load()
	if len(s.tables) >= maxTables {
		return // it grows on; the writer's owner bounds what is not stable
	}
	old := s.tables[0]
	frozen := &table{Table: old.Table, from: old.from, to: to, mark: mark}
	frozen.dels.Store(old.dels.Load())
	tables := append([]*table{x.newTable(to, true), frozen}, s.tables[1:]...)
	x.install(tables, s.runs)
	x.inserted = 0
	x.kick(x.kickFlush)
}

// maxTables is how many tables are in memory at once: one that is filled, one that is written out.
const maxTables = 2

func (x *Index) kick(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Poke makes the index look whether a frozen table has become stable.
func (x *Index) Poke() {
	if len(x.state.Load().tables) > 1 {
		x.kick(x.kickFlush)
	}
}

// Overfull reports whether the tables have outgrown their memory so many times over because no run can be written.
func (x *Index) Overfull(times int64) bool {
	n := int64(0)
	for _, t := range x.state.Load().tables {
		n += t.Bytes()
	}
	if n < times*x.o.Memory {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.failed != nil
}

// note takes down that a run is damaged, and says which it is.
func (r *openRun) note(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("index run %s: %w", r.name, err)
	if r.cause.CompareAndSwap(nil, &err) && r.damaged != nil {
		r.damaged(err)
	}
	return err
}
