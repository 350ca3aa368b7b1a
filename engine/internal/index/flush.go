package index

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal"
)

// retryAfter is how long a failed write of a run rests. The disk may be full; nothing is lost meanwhile.
const retryAfter = time.Second

// errClosing ends work that Close does not want to wait for.
var errClosing = errors.New("index: closing")

// flusher writes out frozen tables. Ended by Close.
func (x *Index) flusher() {
	defer x.workers.Done()
	for {
		select {
		case <-x.quit:
			return
		case <-x.kickFlush:
		}
		for x.flushOne() {
		}
	}
}

// flushOne writes out the oldest frozen table if it is stable. It reports whether to look again at once.
func (x *Index) flushOne() bool {
	x.flushing.Lock()
	defer x.flushing.Unlock()
	s := x.state.Load()
	t := s.tables[len(s.tables)-1]
	if t.to == 0 || !x.o.Stable(t.to) {
		return false
	}
	r, err := x.writeTable(t, len(s.runs) == 0)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		s = x.state.Load() // merges may have replaced runs, the writer tables in front
		next := append([]*openRun{r}, s.runs...)
		if err = x.writeManifest(next); err == nil {
			x.install(s.tables[:len(s.tables)-1], next)
		} else {
			r.discard()
		}
	}
	x.setFailed(err)
	if err != nil {
		return false
	}
	x.kick(x.kickMerge)
	return true
}

// setFailed notes why no run can be written, or that one could. x.mu is held.
func (x *Index) setFailed(err error) {
	if errors.Is(err, errClosing) {
		return
	}
	if (err == nil) != (x.failed == nil) {
		x.o.Failed(err)
		if err != nil {
			x.o.Logger.Error("an index run could not be written", "error", err)
		}
	}
	x.failed = err
	x.room.Broadcast()
	if err != nil {
		time.AfterFunc(retryAfter, func() { x.kick(x.kickFlush) })
	}
}

// writeTable makes a run of a frozen table. A bottom run has no older layer to hide anything from.
func (x *Index) writeTable(t *table, bottom bool) (*openRun, error) {
	w, err := x.newWriter(run.WriterOptions{From: uint64(t.from), To: uint64(t.to), Expected: uint64(t.Keys())})
	if err != nil {
		return nil, err
	}
	k := x.keeper(t.to, bottom)
	n := 0
	err = t.Export(func(key []byte, versions []memindex.Version) error {
		if n++; n%closeCheck == 0 && x.closing() {
			return errClosing
		}
		for _, v := range k.keep(versions) {
			if err := w.Add(key, v); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && !bottom {
		for _, d := range t.deletes() {
			if d.Ref >= k.tail && err == nil {
				err = w.AddRangeDelete(d)
			}
		}
	}
	return x.finish(w, err, t.mark)
}

// closeCheck is after how many keys work looks whether it should end.
const closeCheck = 4096

func (x *Index) closing() bool {
	select {
	case <-x.quit:
		return true
	default:
		return false
	}
}

// writer is a run on its way to the disk.
type writer struct {
	*run.Writer
	name, path string
}

func (x *Index) newWriter(o run.WriterOptions) (*writer, error) {
	x.mu.Lock()
	name := fmt.Sprintf("%016x-%016x-%d%s", o.From, o.To, x.seq, suffix)
	x.seq++
	x.mu.Unlock()
	path := filepath.Join(x.o.Dir, name)
	w, err := run.NewWriter(x.o.FS, path, o)
	if err != nil {
		return nil, err
	}
	return &writer{w, name, path}, nil
}

// finish makes the run durable, unless err says that it has failed already, and opens it.
func (x *Index) finish(w *writer, err error, mark []byte) (*openRun, error) {
	if err != nil {
		w.Abort()
		return nil, err
	}
	info, err := w.Finish()
	if err != nil {
		w.Abort()
		return nil, err
	}
	if err := x.o.FS.SyncDir(x.o.Dir); err != nil {
		return nil, errors.Join(err, x.o.FS.Remove(w.path))
	}
	r, err := x.openRun(w.name, info, mark)
	if err != nil {
		return nil, errors.Join(err, x.o.FS.Remove(w.path))
	}
	return r, nil
}

// discard gives up a run that no state holds.
func (r *openRun) discard() {
	r.gone.Store(true)
	r.states.Store(1)
	r.drop()
}

// keeper decides which versions a run holds: the newest of each key, and those that someone who reads at an older position sees.
type keeper struct {
	pins   []uint64 // ascending
	tail   uint64   // of the log on the disk
	bottom bool
	kept   []memindex.Version
}

func (x *Index) keeper(to wal.LSN, bottom bool) *keeper {
	k := &keeper{tail: x.gone.Load(), bottom: bottom}
	for _, lsn := range x.o.Pins(nil, to) {
		k.pins = append(k.pins, refOf(lsn))
	}
	return k
}

// keep picks what stays of the versions of a key, newest first. The result is valid until the next call.
func (k *keeper) keep(versions []memindex.Version) []memindex.Version {
	k.kept = k.kept[:0]
	for i, v := range versions {
		if v.Ref < k.tail {
			break
		}
		if i > 0 && !k.pinned(v.Ref, versions[i-1].Ref) {
			continue
		}
		k.kept = append(k.kept, v)
	}
	if k.bottom {
		for n := len(k.kept); n > 0 && k.kept[n-1].Kind == memindex.Delete; n-- {
			k.kept = k.kept[:n-1]
		}
	}
	return k.kept
}

// pinned reports whether someone reads at a position where the version at ref is the newest, newer being the next.
func (k *keeper) pinned(ref, newer uint64) bool {
	for _, p := range k.pins {
		if ref < p && p <= newer {
			return true
		}
	}
	return false
}

// Settle writes out everything inserted so far, which ends at to, the end of a batch, and returns when that is done
// or has failed. Only the writer calls it.
func (x *Index) Settle(to wal.LSN, mark []byte) {
	x.Freeze(to, mark)
	for x.flushOne() {
	}
}
