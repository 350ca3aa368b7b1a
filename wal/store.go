package wal

import (
	"fmt"
	"os"
)

// mapped is what is known of the stores through the tip's map. The log's mutex guards it.
type mapped struct {
	flushed  LSN // up to here the system was asked to write back
	stored   LSN // end of the last store
	released LSN // below it, all pages that were stored to are out of the map
}

// mappedFrom is what is known before the first store at an LSN.
func mappedFrom(at LSN) mapped {
	return mapped{flushed: at, stored: at, released: at &^ (pageSize - 1)}
}

const (
	// maxMapStore is where a pwrite begins to cost less than the page faults of a store through the map.
	maxMapStore = 64 << 10
	// writeBackEvery is how many unsynced bytes the system is asked to write back at a time, so that the sync at the
	// segment's end finds little to do.
	writeBackEvery = 4 << 20
)

// pageSize is what the system maps at a time, at least.
var pageSize = LSN(os.Getpagesize())

// write stores p, which lies within the allocated part of the tip. This is the one place that decides how: through the
// map when nothing was synced for some time, and where map and file are known to agree; else with one pwrite.
// An error here poisons: what the file holds behind the head is not known.
func (l *Log) write(at LSN, p []byte, sync bool) error {
	off := int64(at - l.tip.base())
	if l.useMap && !sync && len(p) <= maxMapStore && l.cur.time-l.synced > l.opts.DurableWindow.Milliseconds() {
		if err := l.store(off, p); err != nil {
			return l.poisonWith(fmt.Errorf("store into segment %s: %w", l.tip.path, err))
		}
	} else if err := l.pwrite(p, off); err != nil {
		return l.poisonWith(fmt.Errorf("write segment %s: %w", l.tip.path, spaceError(err)))
	}
	if end := at + LSN(len(p)); !sync && end-l.mapped.flushed >= writeBackEvery {
		l.keeper.kick() // it calls writeBehind
	}
	return nil
}

// pwrite writes p at an offset of the tip, watched.
func (l *Log) pwrite(p []byte, off int64) error {
	l.writeGuard.begin()
	defer l.writeGuard.end()
	_, err := l.tipFile.file.WriteAt(p, off)
	return err
}

// store copies p to an offset of the tip through its map.
func (l *Log) store(off int64, p []byte) (err error) {
	h := l.tipFile
	if h.data == nil {
		_, err := h.file.WriteAt(p, off)
		return err
	}
	defer h.leavePinned(enter(), &err)
	copy(h.data[off:], p)
	l.mapped.stored = l.tip.base() + LSN(off) + LSN(len(p))
	return nil
}

// takeStored returns where the tip was stored to since the last call, from the beginning of a page on, for release. mu is held.
func (l *Log) takeStored() (off, n int64) {
	m := &l.mapped
	from, to := max(m.released, l.tip.base()), min(m.stored, l.cur.at)
	if from >= to {
		return 0, 0
	}
	m.released = to &^ (pageSize - 1)
	return int64(from - l.tip.base()), int64(to - from)
}

// release takes pages that are about to be written back out of the map. The last, which is not full, stays.
func (h *handle) release(off, n int64) {
	if h.m != nil && n > 0 {
		h.m.Release(off, n)
	}
}

// writeBehind asks the system to begin to write what is not synced, once that is much. It is called by the keeper: the call
// waits where the device's queue is full.
func (l *Log) writeBehind() {
	l.mu.Lock()
	end := l.cur.at
	if l.tipFile == nil || end-l.mapped.flushed < writeBackEvery {
		l.mu.Unlock()
		return
	}
	base, h := l.tip.base(), l.tipFile
	from := max(l.mapped.flushed, base)
	l.mapped.flushed = end
	off, n := l.takeStored()
	h.pins.Add(1)
	l.mu.Unlock()
	h.release(off, n)
	_ = h.file.WriteBack(int64(from-base), int64(end-from)) // a hint
	h.unpin()
}
