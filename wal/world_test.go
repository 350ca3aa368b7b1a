package wal_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"shiplog/wal"
	"shiplog/wal/vfs"
)

// dbDir is where tests on simulated disks keep their log.
const dbDir = "/data/db"

// world appends batches that tell what they are, and remembers what the log has promised about them.
type world struct {
	fsys  vfs.FS
	dir   string
	opts  wal.Options
	log   *wal.Log
	clock time.Time

	items  []item // in the log, in order; the last ones perhaps, if unsure
	unsure int    // items at the end whose Append failed half-way
	synced int    // items that were acknowledged as durable
	cut    int    // items that a Truncate leaves, which may or may not have happened; -1: none is under way
	tails  [2]wal.LSN
	nextID uint32
}

// item is a batch or a control record.
type item struct {
	id         uint32 // of a batch
	control    byte   // type of a control record; 0: a batch
	start, end wal.LSN
}

func newWorld(fsys vfs.FS, dir string) *world {
	w := &world{fsys: fsys, dir: dir, clock: time.UnixMilli(1_700_000_000_000), cut: -1}
	w.opts = wal.Options{
		FS: fsys, SegmentSize: wal.MinSegmentSize, Inline: true, Compression: wal.S2,
		Now: func() time.Time { w.clock = w.clock.Add(2 * time.Millisecond); return w.clock },
	}
	return w
}

// batch builds batch id: records whose sizes are given, telling the batch, their place in it and their length. Odd
// batches shrink when compressed.
func batch(id uint32, sizes ...int) *wal.Batch {
	b := new(wal.Batch)
	for i, size := range sizes {
		b.Buf = append(b.Buf, 1)
		b.Buf = binary.LittleEndian.AppendUint32(b.Buf, id)
		b.Buf = binary.LittleEndian.AppendUint16(b.Buf, uint16(i))
		b.Buf = binary.LittleEndian.AppendUint16(b.Buf, uint16(len(sizes)))
		b.Buf = binary.LittleEndian.AppendUint32(b.Buf, uint32(size))
		b.Buf = append(b.Buf, content(id, i, size)...)
		b.End()
	}
	return b
}

const recordHead = 13 // bytes of a record before its content

func content(id uint32, i, size int) []byte {
	p := make([]byte, size)
	if id%2 == 1 {
		for k := range p {
			p[k] = byte(int(id) + i + k/40)
		}
		return p
	}
	rng := rand.New(rand.NewPCG(uint64(id), uint64(i)))
	for k := range p {
		p[k] = byte(rng.Uint32())
	}
	return p
}

func (w *world) open() error {
	l, err := wal.Open(w.dir, &w.opts)
	if err != nil {
		return err
	}
	w.log = l
	return nil
}

func (w *world) close() error {
	l := w.log
	w.log = nil
	if err := l.Close(); err != nil {
		return err
	}
	w.synced = len(w.items)
	return nil
}

func (w *world) create() error {
	w.items, w.unsure = []item{{control: 1, start: wal.HeaderSize}}, 1
	if err := w.log.Create(wal.Rule{}); err != nil {
		return err
	}
	w.items[0].end, w.unsure, w.synced = w.log.Head(), 0, 1
	return nil
}

// append stores batches of records of these sizes in one group.
func (w *world) append(sync bool, sizes ...[]int) error {
	var batches []*wal.Batch
	w.drop()
	before := len(w.items)
	for _, s := range sizes {
		batches = append(batches, batch(w.nextID, s...))
		w.items = append(w.items, item{id: w.nextID, start: w.log.Head(), end: 1<<64 - 1})
		w.nextID++
	}
	w.unsure = len(sizes)
	r, err := w.log.Append(batches, sync)
	if err != nil {
		return err
	}
	w.unsure = 0
	for i := before; i < len(w.items); i++ {
		w.items[i].start = batches[i-before].Ref(0).LSN()
		w.items[i].end = r.End
	}
	if sync {
		return w.sync()
	}
	return nil
}

// idle lets so much time pass that unsynced groups are stored through the map.
func (w *world) idle() { w.clock = w.clock.Add(time.Minute) }

// drop forgets what an Append that failed without poisoning did not store.
func (w *world) drop() {
	if w.unsure > 0 && w.log.Err() == nil {
		w.items, w.unsure = w.items[:len(w.items)-w.unsure], 0
	}
}

func (w *world) sync() error {
	n := len(w.items) - w.unsure
	durable, err := w.log.Sync()
	if err != nil {
		return err
	}
	if n > 0 && w.unsure == 0 && durable < w.items[n-1].end {
		return fmt.Errorf("sync returned %v, the last batch ends at %v", durable, w.items[n-1].end)
	}
	w.synced = n
	return nil
}

func (w *world) control(c wal.Control, kind byte, sync bool) error {
	w.drop()
	w.items = append(w.items, item{control: kind, start: w.log.Head(), end: 1<<64 - 1})
	w.unsure = 1
	r, err := w.log.AppendControl(c, sync)
	if err != nil {
		return err
	}
	w.unsure = 0
	w.items[len(w.items)-1].end = r.End
	if sync {
		return w.sync()
	}
	return nil
}

func (w *world) epoch() error {
	w.drop()
	w.items = append(w.items, item{control: 1, start: w.log.Head(), end: 1<<64 - 1})
	w.unsure = 1
	end, err := w.log.StartEpoch(w.log.Epoch().NextRestart(), wal.Rule{})
	if err != nil {
		return err
	}
	w.unsure = 0
	w.items[len(w.items)-1].end = end
	w.synced = len(w.items)
	return nil
}

// truncate cuts the log so that n items are left: n must end a group.
func (w *world) truncate(n int) error {
	w.cut = n
	if err := w.log.Truncate(w.items[n-1].end); err != nil {
		return err
	}
	w.items, w.synced, w.cut = w.items[:n:n], min(w.synced, n), -1
	return nil
}

func (w *world) trim(below wal.LSN) error {
	w.tails[1] = below
	if err := w.log.TrimBefore(below); err != nil {
		return err
	}
	w.tails = [2]wal.LSN{w.log.Tail(), w.log.Tail()}
	return nil
}

// contents reads a log from its tail and returns the items in it. Everything is checked against what batches with these
// numbers hold.
func contents(l *wal.Log) ([]item, error) {
	var items []item
	var open []byte // records of the batch that is not complete yet
	inside := l.Tail() > 0
	r := l.NewReader(l.Tail())
	for r.Next() {
		f := r.Frame()
		if f.Control() {
			items = append(items, item{control: r.Raw()[0], start: f.LSN, end: f.End()})
			inside = false
			continue
		}
		if inside && !f.First() { // the tail stands inside a batch
			continue
		}
		inside = false
		open = append(open, r.Raw()...)
		if !f.Last() {
			continue
		}
		for len(open) > 0 {
			id, n, err := parseBatch(open)
			if err != nil {
				return items, fmt.Errorf("frame at %v: %w", f.LSN, err)
			}
			items = append(items, item{id: id, start: f.LSN, end: f.End()})
			open = open[n:]
		}
	}
	if r.Err() != nil {
		return items, r.Err()
	}
	if len(open) > 0 {
		return items, fmt.Errorf("the log ends inside a batch at %v", r.End())
	}
	return items, nil
}

// parseBatch checks the batch at the front of p and returns its number and length.
func parseBatch(p []byte) (id uint32, n int, err error) {
	for i, count := 0, 1; i < count; i++ {
		if len(p)-n < recordHead {
			return 0, 0, fmt.Errorf("a batch is cut off in its record %d", i)
		}
		rec := p[n:]
		id, count = binary.LittleEndian.Uint32(rec[1:]), int(binary.LittleEndian.Uint16(rec[7:]))
		size := int(binary.LittleEndian.Uint32(rec[9:]))
		last := rec[0] == 0x81
		switch {
		case rec[0]&0x7f != 1 || last != (i == count-1) || int(binary.LittleEndian.Uint16(rec[5:])) != i:
			return 0, 0, fmt.Errorf("batch %d: record %d does not follow: % x", id, i, rec[:recordHead])
		case len(rec) < recordHead+size:
			return 0, 0, fmt.Errorf("batch %d: record %d of %d bytes is cut off", id, i, size)
		case !bytes.Equal(rec[recordHead:recordHead+size], content(id, i, size)):
			return 0, 0, fmt.Errorf("batch %d: record %d has other bytes", id, i)
		}
		n += recordHead + size
	}
	return id, n, nil
}

// check compares a recovered log with what was promised: it holds a prefix of what was appended, with
// everything in it that was acknowledged as durable.
func (w *world) check(l *wal.Log) error {
	if l.Empty() {
		if w.synced > 0 {
			return fmt.Errorf("the log is empty, %d items were durable", w.synced)
		}
		return nil
	}
	got, err := contents(l)
	if err != nil {
		return err
	}
	if l.Tail() < w.tails[0] || l.Tail() > w.tails[1] {
		return fmt.Errorf("tail %v, want between %v and %v", l.Tail(), w.tails[0], w.tails[1])
	}
	first := 0
	for first < len(w.items) && w.items[first].start < l.Tail() {
		first++
	}
	for i, g := range got {
		if first+i >= len(w.items) {
			return fmt.Errorf("item %d is more than was appended: %+v", first+i, g)
		}
		if want := w.items[first+i]; g.id != want.id || g.control != want.control {
			return fmt.Errorf("item %d is %+v, want %+v", first+i, g, want)
		}
	}
	must := w.synced
	if w.cut >= 0 {
		must = min(must, w.cut)
	}
	if first+len(got) < must {
		return fmt.Errorf("%d items recovered, %d were durable; recovery %+v", first+len(got), must, l.Recovery())
	}
	if l.BatchEnd() != l.Head() || l.Durable() != l.Head() {
		return fmt.Errorf("head %v, batch end %v, durable %v after recovery", l.Head(), l.BatchEnd(), l.Durable())
	}
	return nil
}

// repeat returns n batches of one record each.
func repeat(n, size int) [][]int {
	sizes := make([][]int, n)
	for i := range sizes {
		sizes[i] = []int{size}
	}
	return sizes
}
