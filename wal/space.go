package wal

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"shiplog/wal/vfs"
)

// This file is how a log comes by disk space before it writes: blocks of the tip, and the files behind it.

// room makes sure that need bytes behind the cursor have blocks, and the reserve behind them unless urgent; late, that they have them
// behind a seal at the cursor. On a full disk nothing has changed.
func (l *Log) room(need int64, urgent, late bool) error {
	if !urgent {
		need += reserve(l.SegmentSize())
	}
	size := l.SegmentSize()
	off := int64(l.cur.at - l.tip.base())
	have, left := l.alloc-off, size-off
	if late && left > 0 { // of the tip only the seal is still written
		if have < FrameHeaderSize {
			if err := l.allocate(off + FrameHeaderSize); err != nil {
				return err
			}
		}
		have, left = 0, 0
	}
	if have >= need {
		return nil
	}
	if have < left {
		if err := l.allocate(min(left, need) + off); err != nil {
			return err
		}
		if need <= l.alloc-off {
			return nil
		}
	}
	need -= left
	l.takeAhead()
	for base := l.tip.end(); need > 0; base += LSN(size) {
		if l.next == nil {
			p, err := prepare(l.opts.FS, l.segDir(), base, min(need+HeaderSize, size))
			if err != nil {
				return err
			}
			l.next = p
		} else if err := l.next.extend(l.opts.FS, l.segDir(), base, min(need+HeaderSize, size)); err != nil {
			return err
		}
		need -= size - HeaderSize
	}
	return nil
}

// reserve is the allocated space that ordinary batches leave for deletes, reclaim and control records, so that a full
// disk can be cleared.
func reserve(segmentSize int64) int64 { return max(segmentSize/64, 4<<10) }

// allocate gives the tip blocks up to the offset end at least, in steps that grow with the segment.
func (l *Log) allocate(end int64) error {
	step := min(max(l.alloc, 256<<10), 16<<20)
	to := min(max(end, l.alloc+step), l.SegmentSize())
	err := l.tipFile.file.Allocate(l.alloc, to-l.alloc)
	if err != nil && to > end && vfs.IsNoSpace(err) {
		to = end
		err = l.tipFile.file.Allocate(l.alloc, to-l.alloc)
	}
	if err != nil {
		return fmt.Errorf("allocate segment %s: %w", l.tip.path, spaceError(err))
	}
	l.alloc = to
	return nil
}

// prepared is a run of segment files that have blocks and no header yet: not segments, until they are.
type prepared struct {
	base  LSN
	path  string
	file  vfs.File
	alloc int64
	more  *prepared // the one behind it
}

// prepare makes the file of the segment at base. Its name is durable on return.
func prepare(fsys vfs.FS, dir string, base LSN, alloc int64) (*prepared, error) {
	path := filepath.Join(dir, segmentName(base))
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return nil, fmt.Errorf("make segment %s: %w", path, spaceError(err))
	}
	p := &prepared{base: base, path: path, file: f, alloc: alloc}
	if err = f.Allocate(0, alloc); err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		_ = p.discard(fsys)
		return nil, fmt.Errorf("make segment %s: %w", path, spaceError(err))
	}
	return p, nil
}

// extend makes sure that the file at base, in p's run, exists and has alloc bytes.
func (p *prepared) extend(fsys vfs.FS, dir string, base LSN, alloc int64) error {
	for ; p.base != base; p = p.more {
		if p.more == nil {
			more, err := prepare(fsys, dir, base, alloc)
			p.more = more
			return err
		}
	}
	if p.alloc >= alloc {
		return nil
	}
	if err := p.file.Allocate(p.alloc, alloc-p.alloc); err != nil {
		return fmt.Errorf("allocate segment %s: %w", p.path, spaceError(err))
	}
	p.alloc = alloc
	return nil
}

// discard removes the run's files.
func (p *prepared) discard(fsys vfs.FS) error {
	var err error
	if p.more != nil {
		err = p.more.discard(fsys)
	}
	if e := p.file.Close(); err == nil {
		err = e
	}
	if e := fsys.Remove(p.path); err == nil {
		err = e
	}
	return err
}

// preparation is a next segment in the making, outside of the appender's mutex.
type preparation struct {
	done chan struct{} // closed when the two below are set
	p    *prepared
	err  error
}

// prepareAhead makes the next segment's file once the tip is half full. It is called by the keeper.
func (l *Log) prepareAhead() {
	l.mu.Lock()
	if l.writable() != nil || l.tip == nil || l.next != nil || l.ahead != nil || int64(l.cur.at-l.tip.base()) <= l.SegmentSize()/2 {
		l.mu.Unlock()
		return
	}
	job := &preparation{done: make(chan struct{})}
	l.ahead = job
	base, alloc := l.tip.end(), min(l.SegmentSize(), 4<<20)
	if time.Since(l.begun) < fastFill {
		alloc = l.SegmentSize() // all of it will be wanted soon: not while an appender waits
	}
	l.mu.Unlock()
	job.p, job.err = prepare(l.opts.FS, l.segDir(), base, alloc)
	close(job.done)
}

// fastFill is how soon the tip is half full where the next segment gets all of its blocks ahead.
const fastFill = 500 * time.Millisecond

// takeAhead waits for a preparation that is under way and takes what it made. mu is held.
func (l *Log) takeAhead() {
	if l.ahead == nil {
		return
	}
	<-l.ahead.done
	if l.ahead.err == nil {
		l.next = l.ahead.p
	}
	l.ahead = nil
}

// dropNext removes the files that are prepared behind the tip. mu is held.
func (l *Log) dropNext() error {
	l.takeAhead()
	p := l.next
	l.next = nil
	if p == nil {
		return nil
	}
	return p.discard(l.opts.FS)
}
