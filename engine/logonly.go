package engine

import (
	"errors"

	"shiplog/wal"
)

// A node that keeps the log only (Options.LogOnly) has everything that makes a write safe, and nothing that reads it: it takes, checks and
// acknowledges the log, confirms writes, promises, and hands on what it has, to candidates, followers and repairs. Of the log it
// reads the frames' headers and the control records: those say who votes, and where the log begins.

// frames walks the frames of the log in order, over segment headers and seals. A *wal.Reader is one, which verifies and unpacks each.
type frames interface {
	Next() bool
	Frame() wal.Frame
	Raw() []byte  // of control frames at least, valid until the next call of Next
	End() wal.LSN // of the current frame
	Err() error
	Close()
}

// newFrames walks from an LSN, the tail or the end of a frame, as this node does to apply the log.
func (db *DB) newFrames(from wal.LSN) frames {
	if db.opts.LogOnly {
		return &controls{log: db.log, at: from}
	}
	return db.log.NewReader(from)
}

// controls is a walk that reads, verifies and unpacks control frames alone. Others are stepped over by their headers, whatever they hold: what it
// would take to decode them does not matter.
type controls struct {
	log   *wal.Log
	at    wal.LSN
	frame wal.Frame
	raw   []byte
	err   error
}

func (c *controls) Next() bool {
	for c.err == nil {
		at := c.at
		if uint64(at)%uint64(c.log.SegmentSize()) == 0 {
			at += wal.HeaderSize
		}
		if at >= c.log.Head() {
			return false
		}
		f, err := c.log.FrameAt(at)
		if err != nil { // reading it has it repaired
			if f, _, err = c.log.ReadFrame(at, nil); errors.Is(err, wal.ErrVersion) {
				f, err = c.log.FrameAt(at)
			}
		}
		if err == nil && f.Control() {
			f, c.raw, err = c.log.ReadFrame(at, c.raw)
		}
		if c.err = err; err != nil {
			return false
		}
		c.at = f.End()
		if f.Seal() {
			continue
		}
		c.frame = f
		return true
	}
	return false
}

func (c *controls) Frame() wal.Frame { return c.frame }
func (c *controls) Raw() []byte      { return c.raw }
func (c *controls) End() wal.LSN     { return c.at }
func (c *controls) Err() error       { return c.err }
func (c *controls) Close()           {}

// KeepsLogOnly reports whether this node keeps the log without applying it: it answers no reads, and Applied and Visible are zero.
func (db *DB) KeepsLogOnly() bool { return db.opts.LogOnly }

// dropIndex removes the index of a node that has applied the log before, and does not any more. It is built from the log when the node
// is opened without LogOnly.
func (db *DB) dropIndex() error {
	_, _, err := db.idx.CutFrom(0)
	return err
}

// late reports whether what this node shows is behind what it has on purpose, or never shown: its committed mark is then what its upstream
// says, whatever is applied.
func (o *Options) late() bool { return o.LogOnly || o.ApplyDelay > 0 }

// PeerReads tells, before anything else of a connection, whether readers of a follower see what it has as soon as they can. One whose readers
// do not, because it keeps the log only or shows it later on purpose, is not counted by Applied: neither for a rule nor for a call.
func (db *DB) PeerReads(id wal.NodeID, name string, reads bool) {
	m := &db.marks
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lateReaders == nil {
		m.lateReaders = map[wal.NodeID]struct{}{}
	}
	delete(m.lateReaders, id)
	if !reads {
		m.lateReaders[id] = struct{}{}
	}
	if f := m.followers[id]; f != nil {
		f.late = !reads
	}
	if !reads && m.asksReaders() {
		db.opts.Logger.Warn("a follower is not counted: the commit rule asks for readers, and it shows what it has later, or never", "name", name,
			"node", id.String(), "rule", Level(m.ruleLevel.Load()).String())
	}
}

// asksReaders reports whether a rule in force asks for what followers show. m.mu is held.
func (m *marks) asksReaders() bool {
	for r := range m.inForce {
		if Level(r.Level).kind() == levelApplied {
			return true
		}
	}
	return false
}
