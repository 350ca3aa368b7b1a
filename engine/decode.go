package engine

import (
	"errors"
	"fmt"

	"shiplog/engine/internal/index"
	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// decoder turns the frames of a log, in order, into records. A record longer than a frame has its
// frames to itself; unless values are wanted, it is given out as soon as its key is known and the
// rest is stepped over, so that memory stays bounded by a key.
type decoder struct {
	values bool // collect values: for Changes; the index needs keys only

	open bool // a record began in an earlier frame and is not complete
	ref  wal.Ref
	part []byte // its bytes so far, while it is being collected
	skip int    // its bytes still to step over, once it was given out
}

// frame decodes one frame and calls fn for each record. The record's slices are valid during the call.
func (d *decoder) frame(f wal.Frame, raw []byte, fn func(ref wal.Ref, r Record) error) error {
	if f.Control() || f.Seal() {
		return nil
	}
	if d.open != f.Continuation() {
		return d.malformed(f, errors.New("a continuation without its beginning, or the reverse"))
	}
	if d.open {
		return d.resume(f, raw, fn)
	}
	for at := 0; at < len(raw); {
		r, n, err := DecodeRecord(raw[at:])
		if errors.Is(err, errShortRecord) && at == 0 && f.Records == 1 {
			d.open, d.ref = true, wal.MakeRef(f.LSN, 0)
			d.part = append(d.part[:0], raw...)
			return d.tryOpen(f, fn)
		}
		if err != nil {
			return d.malformed(f, err)
		}
		if err := fn(wal.MakeRef(f.LSN, at), r); err != nil {
			return err
		}
		at += n
	}
	return nil
}

func (d *decoder) resume(f wal.Frame, raw []byte, fn func(wal.Ref, Record) error) error {
	if d.skip == 0 {
		d.part = append(d.part, raw...)
		return d.tryOpen(f, fn)
	}
	if len(raw) > d.skip {
		return d.malformed(f, errBadRecord)
	}
	d.skip -= len(raw)
	d.open = d.skip > 0
	return nil
}

// tryOpen gives the open record out as soon as that is possible.
func (d *decoder) tryOpen(f wal.Frame, fn func(wal.Ref, Record) error) error {
	r, head, n, err := decodeHead(d.part)
	if errors.Is(err, errShortRecord) {
		return nil
	}
	if err != nil {
		return d.malformed(f, err)
	}
	missing := head + n - len(d.part)
	switch {
	case missing < 0:
		return d.malformed(f, errBadRecord)
	case missing > 0 && (d.values || r.Op == OpDeleteRange):
		return nil
	}
	if missing == 0 && r.Op != OpDelete {
		r.Value = d.part[head:]
	}
	d.skip, d.open = missing, missing > 0
	err = fn(d.ref, r)
	if len(d.part) > maxScratch {
		d.part = nil
	}
	return err
}

// maxScratch is the largest buffer that is kept for the next use.
const maxScratch = 1 << 20

func (d *decoder) malformed(f wal.Frame, err error) error {
	var version *wal.VersionError
	if errors.As(err, &version) {
		return fmt.Errorf("frame at %v: %w", f.LSN, err)
	}
	return &wal.CorruptError{LSN: f.LSN, Reason: "frame with a valid checksum holds a malformed record", Err: err}
}

// chunk is a run of decoded operations for the index, without values and without pointers a key.
type chunk struct {
	keys     []byte
	ops      []indexOp
	controls []controlAt
	end      wal.LSN // end of the last complete batch; 0: none in this chunk
	last     wal.LSN // end of the last frame
	time     int64   // log time of the last frame
	err      error
}

type indexOp struct {
	ref     uint64
	keyEnd  uint32 // of the key in keys; it begins where the one before ended
	second  uint32 // delete range: the end of its end key
	op      Op
	moved   bool  // a relocated record: no change of its key
	control int32 // index into controls; -1: a record
}

// end is where the operation's keys end.
func (o *indexOp) end() uint32 { return max(o.keyEnd, o.second) }

type controlAt struct {
	control wal.Control
	end     wal.LSN
	time    int64 // log time of the frame
}

func (c *chunk) reset() {
	c.keys, c.ops, c.controls = c.keys[:0], c.ops[:0], c.controls[:0]
	c.end, c.last, c.time, c.err = 0, 0, 0, nil
}

// newDecoder is what chunk.add decodes records by; nil on a node that keeps the log only.
func (db *DB) newDecoder() *decoder {
	if db.opts.LogOnly {
		return nil
	}
	return &decoder{}
}

// add decodes one frame into the chunk; without a decoder control records alone.
func (c *chunk) add(d *decoder, f wal.Frame, raw []byte) error {
	c.time = f.Time
	if f.Control() {
		ctl, err := wal.DecodeControl(raw)
		if err == nil {
			err = checkControl(ctl)
		}
		if err != nil {
			return fmt.Errorf("control record at %v: %w", f.LSN, err)
		}
		c.controls = append(c.controls, controlAt{ctl, f.End(), f.Time})
		c.ops = append(c.ops, indexOp{control: int32(len(c.controls) - 1), keyEnd: uint32(len(c.keys))})
	} else if d != nil {
		if err := d.frame(f, raw, c.record); err != nil {
			return err
		}
	}
	c.last = f.End()
	if f.Last() {
		c.end = f.End()
	}
	return nil
}

func (c *chunk) record(ref wal.Ref, r Record) error {
	c.keys = append(c.keys, r.Key...)
	op := indexOp{ref: uint64(ref), keyEnd: uint32(len(c.keys)), op: r.Op, moved: r.Orig != 0, control: -1}
	if r.Op == OpDeleteRange {
		c.keys = append(c.keys, r.Value...)
		op.second = uint32(len(c.keys))
	}
	c.ops = append(c.ops, op)
	return nil
}

// keysOf returns the key of the chunk's i-th operation, and of a range delete the end key.
func (c *chunk) keysOf(i int) (key, end []byte) {
	from, op := uint32(0), &c.ops[i]
	if i > 0 {
		from = c.ops[i-1].end()
	}
	return c.keys[from:op.keyEnd], c.keys[op.keyEnd:op.end()]
}

// apply enters the chunk into the index and hands control records to the marks.
func (db *DB) apply(c *chunk) {
	for i, op := range c.ops {
		if n := i + prefetchOps; n < len(c.ops) {
			key, _ := c.keysOf(n)
			db.idx.Prefetch(key)
		}
		if op.control >= 0 {
			ctl := c.controls[op.control]
			db.applyControl(ctl.control, ctl.end, ctl.time)
			continue
		}
		key, end := c.keysOf(i)
		if op.op == OpDeleteRange {
			db.idx.DeleteRange(key, unbounded(end), op.ref)
			db.watches.rangeDeleted(key, unbounded(end), wal.Ref(op.ref))
			continue
		}
		db.idx.Insert(key, op.ref, kindOf(op.op))
		if !op.moved {
			db.watches.written(key, op.op, wal.Ref(op.ref))
		}
	}
	if c.time > 0 {
		db.clock.observe(c.time)
		if c.time > db.appliedTime.Load() {
			db.appliedTime.Store(c.time)
		}
	}
}

// applyInto enters the chunk into a run of the index that is built again.
func (c *chunk) applyInto(into *index.Entries) error {
	for i, op := range c.ops {
		if op.control >= 0 {
			continue
		}
		key, end := c.keysOf(i)
		if op.op == OpDeleteRange {
			into.DeleteRange(key, unbounded(end), op.ref)
		} else {
			into.Insert(key, op.ref, kindOf(op.op))
		}
	}
	if c.endsBatch() {
		return into.End(c.end)
	}
	return nil
}

// endsBatch reports whether the chunk ends where a batch does.
func (c *chunk) endsBatch() bool { return c.end != 0 && c.end == c.last }

// indexRecord enters one record of a batch that was just appended.
func (db *DB) indexRecord(r Record, ref wal.Ref) {
	if r.Op == OpDeleteRange {
		db.idx.DeleteRange(r.Key, unbounded(r.Value), uint64(ref))
		db.watches.rangeDeleted(r.Key, unbounded(r.Value), ref)
		return
	}
	db.idx.Insert(r.Key, uint64(ref), kindOf(r.Op))
	if r.Orig == 0 {
		db.watches.written(r.Key, r.Op, ref)
	}
}

func kindOf(op Op) memindex.Kind {
	switch op {
	case OpDelete:
		return memindex.Delete
	case OpPutTTL:
		return memindex.PutTTL
	}
	return memindex.Put
}

// unbounded turns the log's empty end of a range into the index's nil.
func unbounded(end []byte) []byte {
	if len(end) == 0 {
		return nil
	}
	return end
}

// refAt is the first version number at or above lsn: a reader at lsn sees what is below it.
func refAt(lsn wal.LSN) uint64 { return uint64(wal.MakeRef(lsn, 0)) }
