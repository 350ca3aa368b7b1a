package wal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Log is an open log. One call appends at a time (calls that append wait for each other, and never for a
// sync); any number of goroutines read, sync and wait meanwhile. Close ends all of them.
type Log struct {
	dir     string
	opts    Options
	lock    io.Closer
	report  RecoveryReport
	handles handles
	cache   *frameCache             // nil: none
	segs    atomic.Pointer[segList] // immutable; replaced under mu

	head       atomic.Uint64 // next LSN to write; readers see everything below
	durable    atomic.Uint64 // everything below was covered by a successful sync
	committed  atomic.Uint64
	batchEnd   atomic.Uint64 // end of the last complete batch
	generation atomic.Uint64 // raised by Truncate: bytes below the old head may change
	whole      atomic.Uint64 // base of the first segment whose header is withheld; noLSN: none is
	poison     atomic.Pointer[error]
	history    atomic.Pointer[[]HistoryEntry] // immutable; replaced under mu
	listeners  atomic.Pointer[[]chan<- struct{}]
	listenMu   sync.Mutex                                   // serialises changes of listeners
	repairer   atomic.Pointer[func(at LSN, err error) bool] // see SetRepair

	mu       sync.Mutex // the appender's: guards everything down to the blank line
	closed   bool
	cur      cursor
	tip      *segment              // the segment that is written
	tipFile  *handle               // pinned while tip is current
	alloc    int64                 // bytes of tip that have blocks
	begun    time.Time             // when tip became the tip
	next     *prepared             // the segment after tip, if it is prepared
	ahead    *preparation          // the same in the making
	sealed   int64                 // AppendRaw: bytes of an unfinished seal's zeros taken so far
	seal32   [FrameHeaderSize]byte // the header of that seal
	withheld []*withheld           // AppendRaw: headers that wait for what is before them to be synced, oldest first
	buf      []byte                // the group being packed
	payload  []byte                // raw bytes of the frame being packed
	slots    []slot                // records in payload
	comp     *compressor           // of this appender
	synced   int64                 // unix ms of the last append that was to be synced
	useMap   bool                  // the file system is coherent: unsynced groups go through the map
	mapped   mapped                // what is known of the stores through the map
	erased   bool                  // there is no note of a clean close
	headless []string              // files before the tail that are left from a removal, oldest first

	syncMu     sync.Mutex // one fdatasync of the tip at a time
	syncGuard  stallGuard // of what is done under syncMu
	writeGuard stallGuard // of what is done under mu

	nodeMu sync.Mutex // guards node and its file
	node   *node

	keeper *keeper
}

// RecoveryReport says what Open found.
type RecoveryReport struct {
	Clean        bool   // the log was closed cleanly and nothing has changed since
	End          LSN    // the end of the log
	Cut          bool   // a torn tail was cut
	CutFrom      LSN    // where; equal to End
	CutBytes     int64  // from there to the last byte that was not zero
	Rewritten    int64  // bytes whose durability was unknown and that were written and synced again
	Resumed      bool   // a cut that a crash had interrupted was finished
	PreviousNode NodeID // set when the directory is a copy: the node it was copied from
	MarkLost     bool   // neither slot of the mark file was valid: writes are refused until AcceptMark
}

// Open opens the log in dir, making the directory if need be, and recovers it: see FORMAT.md for the steps. It
// fails with a [*CorruptError] where bytes that were known to be durable do not validate; nothing is changed then. A
// directory without a log gives an empty Log, which takes Create or the first AppendRaw. Nil options are the defaults.
//
// Unless Options.Inline or ReadOnly is set, Open starts one goroutine for housekeeping; Close ends it.
func Open(dir string, o *Options) (*Log, error) {
	if o != nil {
		if err := o.validate(); err != nil {
			return nil, err
		}
	}
	l := &Log{dir: dir, opts: o.withDefaults()}
	l.syncGuard.guard(l)
	l.writeGuard.guard(l)
	l.cache = newFrameCache(l.opts.CacheSize)
	l.handles = handles{fs: l.opts.FS, max: l.opts.MaxMaps, readOnly: l.opts.ReadOnly}
	l.whole.Store(uint64(noLSN))
	l.segs.Store(&segList{size: l.opts.SegmentSize})
	l.history.Store(&[]HistoryEntry{})
	last, err := l.open()
	if err != nil {
		l.handles.closeAll()
		if l.lock != nil {
			err = errors.Join(err, l.lock.Close())
		}
		return nil, fmt.Errorf("open log %s: %w", dir, err)
	}
	if !l.opts.ReadOnly {
		l.keeper = startKeeper(l, last)
		l.keeper.held.Store(l.report.MarkLost)
		if err := l.keeper.writeMark(); err != nil { // recovery has made durable what was not known to be
			l.opts.Logger.Warn("mark file not written", "error", err)
		}
	}
	return l, nil
}

func (l *Log) segDir() string { return filepath.Join(l.dir, "log") }

// Dir returns the directory that was opened.
func (l *Log) Dir() string { return l.dir }

// Recovery returns what Open found.
func (l *Log) Recovery() RecoveryReport { return l.report }

// Empty reports whether the log has no database yet.
func (l *Log) Empty() bool { return len(l.segs.Load().segs) == 0 }

// DatabaseID returns the database's ID, zero on an empty log.
func (l *Log) DatabaseID() DatabaseID {
	if s := l.segs.Load().last(); s != nil {
		return s.header.Database
	}
	return DatabaseID{}
}

// NodeID returns this directory's node ID.
func (l *Log) NodeID() NodeID {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	return l.node.id
}

// Tail returns the oldest LSN kept: the base of the first segment.
func (l *Log) Tail() LSN {
	if sl := l.segs.Load(); len(sl.segs) > 0 {
		return sl.segs[0].base()
	}
	return 0
}

// Head returns the next LSN to write.
func (l *Log) Head() LSN { return LSN(l.head.Load()) }

// Durable returns the durable mark: everything below was synced in this process or rewritten by recovery.
func (l *Log) Durable() LSN { return LSN(l.durable.Load()) }

// BatchEnd returns the end of the last complete batch.
func (l *Log) BatchEnd() LSN { return LSN(l.batchEnd.Load()) }

// Committed returns the committed mark that was set last, or read from the mark file by Open.
func (l *Log) Committed() LSN { return LSN(l.committed.Load()) }

// SetCommitted records the committed mark. It reaches the mark file lazily, and never ahead of the durable mark there.
func (l *Log) SetCommitted(at LSN) {
	for {
		old := l.committed.Load()
		if uint64(at) <= old {
			return
		}
		if l.committed.CompareAndSwap(old, uint64(at)) {
			l.keeper.moved()
			return
		}
	}
}

// SegmentSize returns the size of the log's segments in bytes.
func (l *Log) SegmentSize() int64 { return l.segs.Load().size }

// Epoch returns the epoch of the last frame.
func (l *Log) Epoch() Epoch {
	h := *l.history.Load()
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].Epoch
}

// History returns the epochs of the log, oldest first. The first begins at the tail or before it; what is known of older ones comes from
// LearnHistory. The caller must not change the slice.
func (l *Log) History() []HistoryEntry { return *l.history.Load() }

// LearnHistory tells the log which epochs began before the tail, as a tail record says: their own records have gone with the segments
// that held them, and Open finds only what is left. Epochs must rise, and the one in which the log's first byte was written must be
// among them; else it does nothing. It is not kept over a reopen. Safe for concurrent use.
func (l *Log) LearnHistory(older []HistoryEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := *l.history.Load()
	if len(h) == 0 {
		return
	}
	i := slices.IndexFunc(older, func(e HistoryEntry) bool {
		return e.Epoch == h[0].Epoch && e.ID == h[0].ID && e.Start <= h[0].Start
	})
	if i < 0 || i == 0 && older[0].Start == h[0].Start {
		return
	}
	for j := range i {
		if older[j].Epoch >= older[j+1].Epoch || older[j].Start >= older[j+1].Start {
			return
		}
	}
	next := append(older[:i+1:i+1], h[1:]...)
	l.history.Store(&next)
}

// EpochAt returns the epoch in which what ends at the LSN was written.
func (l *Log) EpochAt(end LSN) Epoch {
	h := *l.history.Load()
	i, _ := slices.BinarySearchFunc(h, end, func(e HistoryEntry, at LSN) int {
		if e.Start < at {
			return -1
		}
		return 1
	})
	switch {
	case i > 0:
		return h[i-1].Epoch
	case len(h) > 0:
		return h[0].Epoch
	}
	return 0
}

// Err returns the error that poisoned the log, or nil.
func (l *Log) Err() error {
	if p := l.poison.Load(); p != nil {
		return *p
	}
	return nil
}

func (l *Log) poisonWith(cause error) error {
	err := fmt.Errorf("%w: %w", ErrPoisoned, cause)
	if l.poison.CompareAndSwap(nil, &err) {
		l.opts.Logger.Error("log poisoned", "error", cause, "durable_lsn", l.Durable().String())
		if l.opts.Poisoned != nil {
			go l.opts.Poisoned(err) // bounded by it
		}
	}
	l.notify()
	return l.Err()
}

// Notify has ch receive, without blocking, each time Head or Durable moves. A channel of capacity one never misses
// the last move. The result ends it.
func (l *Log) Notify(ch chan<- struct{}) (stop func()) {
	change := func(f func([]chan<- struct{}) []chan<- struct{}) {
		l.listenMu.Lock()
		defer l.listenMu.Unlock()
		var old []chan<- struct{}
		if p := l.listeners.Load(); p != nil {
			old = slices.Clone(*p)
		}
		next := f(old)
		l.listeners.Store(&next)
	}
	change(func(s []chan<- struct{}) []chan<- struct{} { return append(s, ch) })
	return func() {
		change(func(s []chan<- struct{}) []chan<- struct{} {
			if i := slices.Index(s, ch); i >= 0 {
				s = slices.Delete(s, i, i+1)
			}
			return s
		})
	}
}

func (l *Log) notify() {
	p := l.listeners.Load()
	if p == nil {
		return
	}
	for _, ch := range *p {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Promised returns the highest epoch that this node has promised to.
func (l *Log) Promised() Epoch {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	return l.node.promised
}

// promises returns that, and the highest epoch that this node has led.
func (l *Log) promises() (promised, led Epoch) {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	return l.node.promised, l.node.led
}

// Promise records, durably, that this node follows no epoch below e any more. A lower one than promised is [ErrEpoch].
func (l *Log) Promise(e Epoch) error {
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	switch {
	case e < l.node.promised:
		return fmt.Errorf("%w: %v, promised %v", ErrEpoch, e, l.node.promised)
	case e == l.node.promised:
		return nil
	}
	old := l.node.promised
	l.node.promised = e
	if err := l.node.save(); err != nil {
		l.node.promised = old
		return err
	}
	return nil
}

// dirty erases the note of a clean close, durably, before the first change after Open. mu is held.
func (l *Log) dirty() error {
	if l.erased {
		return nil
	}
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	if old := l.node.clean; old != noLSN {
		l.node.clean = noLSN
		if err := l.node.save(); err != nil {
			l.node.clean = old
			return err
		}
	}
	l.erased = true
	return nil
}

// writable says why nothing can be appended. mu is held.
func (l *Log) writable() error {
	switch {
	case l.closed:
		return ErrClosed
	case l.opts.ReadOnly:
		return ErrReadOnly
	case l.report.MarkLost:
		return fmt.Errorf("%w: both slots of the mark file were lost", ErrReadOnly)
	}
	return l.Err()
}

// AcceptMark lets a log whose mark file was lost be written again: the caller has compared the log's end with that of
// a peer, or takes it as it is.
func (l *Log) AcceptMark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.report.MarkLost {
		return
	}
	l.report.MarkLost = false
	l.keeper.held.Store(false)
	l.keeper.moved()
}

// Sync makes everything durable that was appended before the call, and returns the durable mark. A failed sync
// poisons the log: [ErrPoisoned] from then on.
func (l *Log) Sync() (LSN, error) {
	target := l.head.Load()
	if l.durable.Load() >= target {
		return l.Durable(), l.Err()
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	for l.durable.Load() < target {
		if err := l.syncOne(); err != nil {
			return l.Durable(), err
		}
	}
	return l.Durable(), l.Err()
}

// syncOne syncs the oldest segment that is not durable: a sealed one whose successor's header is withheld for it, or
// the tip. syncMu is held.
func (l *Log) syncOne() error {
	l.mu.Lock()
	if err := l.writable(); err != nil {
		l.mu.Unlock()
		return err
	}
	head, h := l.head.Load(), l.tipFile
	var w *withheld
	if len(l.withheld) > 0 {
		w = l.withheld[0]
		h = w.before
	}
	var off, n int64
	if w == nil {
		off, n = l.takeStored()
	}
	h.pins.Add(1)
	l.mu.Unlock()
	h.release(off, n)
	l.syncGuard.begin()
	err := h.file.Datasync()
	l.syncGuard.end()
	h.unpin()
	if err != nil {
		return l.poisonWith(fmt.Errorf("sync segment: %w", err))
	}
	if w != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.release(w)
	}
	if err := l.Err(); err != nil {
		return err
	}
	l.raiseDurable(LSN(head))
	return nil
}

func (l *Log) raiseDurable(to LSN) {
	for {
		old := l.durable.Load()
		if uint64(to) <= old {
			return
		}
		if l.durable.CompareAndSwap(old, uint64(to)) {
			break
		}
	}
	l.keeper.moved()
	l.notify()
}

// Close syncs, writes the mark and the note of a clean close, and releases the directory. Reads end with
// [ErrClosed] or finish first. A poisoned log is closed without the note. Calls after the first return nil.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	known := l.Err() != nil
	l.keeper.stop()
	var err error
	if !l.opts.ReadOnly {
		_, err = l.Sync()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if !l.opts.ReadOnly {
		err = errors.Join(err, l.closeFiles(err == nil))
	}
	l.nodeMu.Lock()
	l.node.closed = true
	l.nodeMu.Unlock()
	l.handles.closeAll()
	l.notify()
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
	}
	if known && errors.Is(err, ErrPoisoned) {
		return nil // it was told to everyone when it happened
	}
	return err
}

// closeFiles leaves the directory as a clean close does. mu is held.
func (l *Log) closeFiles(synced bool) error {
	errs := []error{l.dropNext()}
	l.forgetWithheld()
	if l.tipFile != nil {
		l.tipFile.unpin()
		l.tipFile = nil
	}
	if l.Empty() || !synced || l.report.MarkLost {
		return errors.Join(append(errs, l.keeper.close())...)
	}
	errs = append(errs, l.keeper.write(&l.cur), l.keeper.close())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.nodeMu.Lock()
	defer l.nodeMu.Unlock()
	if l.node.clean == l.Head() {
		return nil
	}
	l.node.clean = l.Head()
	err := l.node.save()
	if errors.Is(err, ErrNoSpace) { // the next Open rewrites what it would have trusted
		l.opts.Logger.Warn("clean close not noted", "error", err)
		return nil
	}
	return err
}

// nowMs is the clock of log time.
func (l *Log) nowMs() int64 { return l.opts.Now().UnixMilli() }

// idleMark is how long after the last durable commit the mark file is written.
const idleMark = 10 * time.Millisecond
