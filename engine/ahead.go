package engine

import (
	"runtime"
	"sync"
	"sync/atomic"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// ahead reads the values of an iterator's chunk before they are asked for: a second goroutine takes block after block of the
// chunk, the iterator takes those that it meets unread. So a scan unpacks, and waits for the disk, on two cores. The goroutine
// lives no longer than the chunk.
//
// A nil *ahead reads nothing.
type ahead struct {
	snap   *Snapshot
	chunk  *memindex.Chunk
	blocks []aheadBlock
	count  int // blocks of this chunk; 0: nothing is read ahead

	next   atomic.Int32  // the first block that nobody has taken
	stop   atomic.Bool   // what is not read yet is not wanted any more
	wake   chan struct{} // capacity 1: the goroutine has read a block
	worker sync.WaitGroup
	bufs   scanBufs // of the goroutine
}

const (
	// aheadFrom is the shortest chunk that is read ahead: a seek and some steps never come there.
	aheadFrom = 256
	// aheadEntries is how many entries make a block: many enough that few frames are unpacked on both sides of a border.
	aheadEntries = 256
	// aheadBytes bounds the values of a block; what does not fit is read when it is asked for.
	aheadBytes = 128 << 10
)

type aheadBlock struct {
	values []byte
	ends   []int // of each value; notRead: it has expired, cannot be read, or does not fit
	ready  atomic.Bool
}

const notRead = -1

// begin starts to read the values of a chunk.
func (a *ahead) begin(s *Snapshot, c *memindex.Chunk) {
	a.snap, a.chunk = s, c
	a.count = (c.Len() + aheadEntries - 1) / aheadEntries
	if a.wake == nil {
		a.wake = make(chan struct{}, 1)
	}
	for len(a.blocks) < a.count {
		a.blocks = append(a.blocks, aheadBlock{})
	}
	for i := range a.count {
		a.blocks[i].ready.Store(false)
	}
	a.next.Store(0)
	a.stop.Store(false)
	if runtime.GOMAXPROCS(0) == 1 {
		return
	}
	a.worker.Go(func() { // ends with the blocks, or by end
		for !a.stop.Load() {
			i := int(a.next.Add(1)) - 1
			if i >= a.count {
				return
			}
			a.read(i, &a.bufs)
			select {
			case a.wake <- struct{}{}:
			default:
			}
		}
	})
}

// end gives up what is not read, and waits for the goroutine.
func (a *ahead) end() {
	if a != nil && a.count > 0 {
		a.stop.Store(true)
		a.worker.Wait()
		a.count = 0
	}
}

// value returns the value of an entry of the chunk, valid until end; false if it must be read.
func (a *ahead) value(i int, bufs *scanBufs) ([]byte, bool) {
	if a == nil || a.count == 0 {
		return nil, false
	}
	b := &a.blocks[i/aheadEntries]
	for !b.ready.Load() {
		if n := int(a.next.Add(1)) - 1; n < a.count {
			a.read(n, bufs)
		} else {
			<-a.wake
		}
	}
	i %= aheadEntries
	to := b.ends[i]
	if to == notRead {
		return nil, false
	}
	from := 0
	for j := i - 1; j >= 0; j-- {
		if b.ends[j] != notRead {
			from = b.ends[j]
			break
		}
	}
	return b.values[from:to:to], true
}

// read reads a block.
func (a *ahead) read(n int, bufs *scanBufs) {
	b := &a.blocks[n]
	b.values, b.ends = b.values[:0], b.ends[:0]
	first := n * aheadEntries
	take := func(v []byte, _ int64) error {
		b.values = append(b.values, v...)
		return nil
	}
	for i := first; i < min(first+aheadEntries, a.chunk.Len()); i++ {
		if i%nearEntries == 0 {
			bufs.near(a.snap.db.log, a.chunk, i)
		}
		end := notRead
		if len(b.values) < aheadBytes && !a.stop.Load() {
			v := a.chunk.Version(i)
			if a.snap.readVersion(a.chunk.Key(i), v, bufs.of(a.snap.db.log, v), take) == nil {
				end = len(b.values)
			}
		}
		b.ends = append(b.ends, end)
	}
	b.ready.Store(true)
}

// scanBufs holds the frames that a scan is in, by segment: neighbours in key order that were sorted together share frames.
type scanBufs struct {
	frames [scanBuffers]*wal.Buffer
	refs   []wal.Ref // scratch
}

// nearEntries is how many values are brought near the processor together: enough that their misses overlap, and less than what it can
// wait for or keep at once. It divides aheadEntries and firstChunk.
const nearEntries = 16

// near brings the values of the chunk's entries from i on near the processor.
func (s *scanBufs) near(l *wal.Log, c *memindex.Chunk, i int) {
	s.refs = s.refs[:0]
	for n := min(i+nearEntries, c.Len()); i < n; i++ {
		s.refs = append(s.refs, wal.Ref(c.Version(i).Ref))
	}
	l.Near(s.refs)
}

// scanBuffers is how many sorted stretches of the log a scan can walk side by side, unpacking each frame once.
const scanBuffers = 64

// of returns the buffer for a version's frame.
func (s *scanBufs) of(l *wal.Log, v memindex.Version) *wal.Buffer {
	b := &s.frames[uint64(wal.Ref(v.Ref).LSN())/uint64(l.SegmentSize())%scanBuffers]
	if *b == nil {
		*b = new(wal.Buffer)
	}
	return *b
}
