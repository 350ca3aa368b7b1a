package wal

import "fmt"

// A follower's log does not wait for its disk at the end of each segment. The rule of FORMAT.md, that a header is in its
// file only once everything before it is synced, is kept by withholding the header: the segment behind an unsynced one is
// written and read like any other, while its file has no header yet. To recovery such a file is not a segment. Sync
// syncs the sealed segments in order and writes each header as soon as what is before it is durable.

// withheld is a segment whose header is not in its file yet.
type withheld struct {
	before *handle  // the sealed segment before it, which is to be synced first; pinned
	seg    *segment // its header is to be written then
}

const (
	// maxWithheldBytes is how far a log may run ahead of its disk in sealed segments: a burst of that much is received as
	// fast as it comes. What is ahead stands in the page cache, and is received again after a crash.
	maxWithheldBytes = 512 << 20
	// maxWithheld bounds the open files that small segments would make of it.
	maxWithheld = 64
)

// mayWithhold reports whether one header more may be withheld.
func (l *Log) mayWithhold() bool {
	return len(l.withheld) < int(min(max(maxWithheldBytes/l.SegmentSize(), 1), maxWithheld))
}

// beginRaw begins the segment of a header that a peer has sent. The tip is sealed. mu is held.
func (l *Log) beginRaw(h *Header) error {
	if len(l.withheld) == 0 && l.Durable() >= l.cur.at {
		return l.beginSegment(h)
	}
	for !l.mayWithhold() {
		if err := l.syncSealed(); err != nil {
			return err
		}
	}
	before := l.tipFile
	before.pins.Add(1)
	if err := l.placeSegment(h, false); err != nil {
		before.unpin()
		return err
	}
	l.withheld = append(l.withheld, &withheld{before: before, seg: l.tip})
	l.whole.Store(min(l.whole.Load(), uint64(h.Base)))
	return nil
}

// syncSealed makes the oldest segment durable that a header is withheld for, and writes that header. mu is held.
func (l *Log) syncSealed() error {
	w := l.withheld[0]
	l.writeGuard.begin()
	err := w.before.file.Datasync()
	l.writeGuard.end()
	if err != nil {
		return l.poisonWith(fmt.Errorf("sync segment: %w", err))
	}
	return l.release(w)
}

// release writes a withheld header: everything before it has been synced. Whoever comes second has nothing to do. mu is
// held.
func (l *Log) release(w *withheld) error {
	if err := l.Err(); err != nil {
		return err
	}
	if len(l.withheld) == 0 || l.withheld[0] != w {
		return nil
	}
	h, err := l.handles.pin(w.seg)
	if err != nil {
		return l.poisonWith(err)
	}
	b := w.seg.header.Marshal()
	_, err = h.file.WriteAt(b[:], 0)
	h.unpin()
	if err != nil {
		return l.poisonWith(fmt.Errorf("write segment %s: %w", w.seg.path, spaceError(err)))
	}
	w.before.unpin()
	l.withheld = l.withheld[1:]
	whole := noLSN
	if len(l.withheld) > 0 {
		whole = l.withheld[0].seg.base()
	}
	l.whole.Store(uint64(whole))
	l.raiseDurable(w.seg.base())
	return nil
}

// releaseAll makes all sealed segments durable and writes all withheld headers. mu is held.
func (l *Log) releaseAll() error {
	for len(l.withheld) > 0 {
		if err := l.syncSealed(); err != nil {
			return err
		}
	}
	return nil
}

// forgetWithheld lets go of the files; the headers are never written. mu is held.
func (l *Log) forgetWithheld() {
	for _, w := range l.withheld {
		w.before.unpin()
	}
	l.withheld = nil
}

// inFiles makes sure that the bytes below an LSN are all in their files, withheld headers included.
func (l *Log) inFiles(to LSN) error {
	if uint64(to) <= l.whole.Load() {
		return nil
	}
	_, err := l.Sync()
	return err
}
