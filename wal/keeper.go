package wal

import (
	"sync"
	"sync/atomic"
	"time"
)

// keeper does what need not be done while a caller waits: it writes the mark file once commits pause, and prepares the
// next segment. One goroutine, started by Open, ended by stop; with Options.Inline there is none, and
// the mark is written at Close alone.
type keeper struct {
	log   *Log
	kicks chan struct{}
	quit  chan struct{}
	done  chan struct{}
	once  sync.Once

	watch atomic.Uint32 // asleep, watching or moved

	held atomic.Bool // the mark was lost, and what is left of the log is not accepted: no mark may say so

	mu   sync.Mutex // guards file
	file *markFile  // opened at the first write
	last mark       // what is in the file
}

// maxMarkAge bounds how old the mark file gets under a load that never pauses.
const maxMarkAge = time.Second

func startKeeper(l *Log, last mark) *keeper {
	k := &keeper{log: l, kicks: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}), last: last}
	if l.opts.Inline {
		close(k.done)
		return k
	}
	go func() { // ended by stop
		defer close(k.done)
		k.run()
	}()
	return k
}

// What a keeper knows of the marks: they stand as its file says; it looks again when its timer ends; they have moved since it looked.
const (
	asleep = iota
	watching
	moved
)

// moved says that a mark has moved. It costs a wake-up only once commits had paused: under load each commit comes by here.
func (k *keeper) moved() {
	if k == nil || k.watch.Load() == moved || k.watch.CompareAndSwap(watching, moved) {
		return
	}
	if k.watch.CompareAndSwap(asleep, moved) {
		k.kick()
	}
}

// kick says that the tip is filling up. It never blocks. A nil keeper has nothing to do.
func (k *keeper) kick() {
	if k == nil || len(k.kicks) > 0 {
		return
	}
	select {
	case k.kicks <- struct{}{}:
	default:
	}
}

func (k *keeper) run() {
	idle := time.NewTimer(time.Hour)
	idle.Stop()
	defer idle.Stop()
	armed, written := false, time.Now()
	for {
		select {
		case <-k.quit:
			return
		case <-k.kicks:
			k.log.writeBehind()
			k.log.prepareAhead()
			if !armed && k.watch.CompareAndSwap(moved, watching) {
				idle.Reset(idleMark)
				armed = true
			}
			continue
		case <-idle.C:
		}
		if armed = !k.watch.CompareAndSwap(watching, asleep); armed {
			k.watch.Store(watching)
			idle.Reset(idleMark)
			if time.Since(written) < maxMarkAge {
				continue
			}
		}
		if err := k.writeMark(); err != nil {
			k.log.opts.Logger.Warn("mark file not written", "error", err)
		}
		written = time.Now()
	}
}

// writeMark stores the marks as they are, if they have moved.
func (k *keeper) writeMark() error { return k.write(nil) }

// write stores the marks, with the end of the log if that is given.
func (k *keeper) write(end *cursor) error {
	if k == nil { // during Open
		return nil
	}
	l := k.log
	if l.Empty() || l.Err() != nil || k.held.Load() {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// The durable mark first: what is read later can only be higher.
	durable := min(l.Durable(), l.BatchEnd())
	m := mark{database: l.DatabaseID(), durable: durable, committed: min(durable, l.Committed()), epoch: l.Epoch()}
	if end != nil && end.at == durable && !end.open {
		m.end, m.digest, m.time = end.at, end.digest, end.time
	}
	same := m
	same.seq = k.last.seq
	if end == nil { // an end alone, which only a clean close has a use for, is no reason to write
		same.end, same.digest, same.time = k.last.end, k.last.digest, k.last.time
	}
	if same == k.last {
		return nil
	}
	if err := k.openLocked(); err != nil {
		return err
	}
	if err := k.file.write(m); err != nil {
		return err
	}
	k.last = k.file.last
	return nil
}

// makeFile makes the mark file, so that a disk that is full later can take marks.
func (k *keeper) makeFile() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.openLocked()
}

func (k *keeper) openLocked() error {
	if k.file != nil {
		return nil
	}
	f, err := openMark(k.log.opts.FS, k.log.dir, k.last)
	k.file = f
	return err
}

// forget closes the mark file, which is about to be removed.
func (k *keeper) forget() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = mark{}
	if k.file == nil {
		return nil
	}
	f := k.file.f
	k.file = nil
	return f.Close()
}

func (k *keeper) stop() {
	if k == nil {
		return
	}
	k.once.Do(func() { close(k.quit) })
	<-k.done
}

func (k *keeper) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file == nil {
		return nil
	}
	return k.file.f.Close()
}
