package engine

import (
	"runtime"
	"sync"
	"sync/atomic"

	"shiplog/engine/internal/memindex"
	"shiplog/wal"
)

// stretch is a part of a scan: entries of the index and, where they are read ahead, their values.
type stretch struct {
	chunk memindex.Chunk
	err   error // of the look into the index; the chunk is then of no use

	blocks []aheadBlock
	count  int          // blocks; 0: values are read when they are asked for
	next   atomic.Int32 // the first block that nobody has taken
}

const (
	// aheadFrom is the shortest stretch behind which a scan is read ahead: a seek and some steps never come there.
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

// divide makes blocks of the chunk's values.
func (st *stretch) divide() {
	st.count = (st.chunk.Len() + aheadEntries - 1) / aheadEntries
	for len(st.blocks) < st.count {
		st.blocks = append(st.blocks, aheadBlock{})
	}
	for i := range st.count {
		st.blocks[i].ready.Store(false)
	}
	st.next.Store(0)
}

// take gives out a block that nobody has taken.
func (st *stretch) take() (int, bool) {
	if int(st.next.Load()) >= st.count {
		return 0, false
	}
	i := int(st.next.Add(1)) - 1
	return i, i < st.count
}

// value returns the value of an entry whose block is ready; false if it must be read.
func (st *stretch) value(i int) ([]byte, bool) {
	b := &st.blocks[i/aheadEntries]
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

// ahead has a second goroutine look up a scan's next stretch in the index, and read its values, before the iterator asks for them. The iterator
// takes the blocks of its own stretch that it meets unread. So a scan looks up, unpacks and waits for the disk on two cores. The
// goroutine is at most one stretch ahead, and ends with the scan or with the next positioning call.
type ahead struct {
	it   *Iterator // its snapshot, its bounds and its direction: they stay as they are meanwhile
	two  *[2]stretch
	size int // entries of the next stretch

	at      atomic.Int64  // the stretch that the iterator stands in; stretch n is two[n%2]
	ready   atomic.Int64  // stretches that were looked up
	stop    atomic.Bool   // what is not read yet is not wanted any more
	wake    chan struct{} // capacity 1: the goroutine has looked up a stretch, or read a block
	moved   chan struct{} // capacity 1: the iterator has gone on, or gives up
	worker  sync.WaitGroup
	running bool
	bufs    scanBufs // of the goroutine
}

// begin starts to read behind the first of two stretches, in which the iterator stands. size is how many entries follow in the next one.
// On one processor there is nothing to be had.
func (a *ahead) begin(it *Iterator, two *[2]stretch, size int) {
	if runtime.GOMAXPROCS(0) == 1 {
		return
	}
	if a.wake == nil {
		a.wake, a.moved = make(chan struct{}, 1), make(chan struct{}, 1)
	}
	a.it, a.two, a.size = it, two, size
	a.at.Store(0)
	a.ready.Store(1)
	a.stop.Store(false)
	two[0].divide()
	a.running = true
	a.worker.Go(a.run) // ends with the scan, or by end
}

// end gives up what is not read, and waits for the goroutine.
func (a *ahead) end() {
	if a.running {
		a.stop.Store(true)
		token(a.moved)
		a.worker.Wait()
		a.running, a.it = false, nil
	}
}

// token puts a token into a channel of capacity 1, if it has none.
func token(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run is the goroutine. The index comes first: the iterator cannot do that part itself.
func (a *ahead) run() {
	for !a.stop.Load() {
		at := a.at.Load()
		more := a.two[(a.ready.Load()-1)%2].goesOn()
		switch {
		case more && a.ready.Load() <= at+1:
			a.lookUp()
		case a.readOne(at) || a.readOne(at+1):
		case !more && at+1 >= a.ready.Load():
			return
		default:
			<-a.moved
		}
	}
}

// goesOn reports whether there may be entries behind the stretch.
func (st *stretch) goesOn() bool { return st.err == nil && st.chunk.More() }

// lookUp looks the next stretch up. The iterator has left the one whose memory it takes.
func (a *ahead) lookUp() {
	n := a.ready.Load()
	st := &a.two[n%2]
	a.it.follow(st, &a.two[(n-1)%2], a.size)
	a.size = min(a.size*2, lastChunk)
	if st.err == nil {
		st.divide()
	}
	a.ready.Store(n + 1)
	token(a.wake)
}

// readOne reads a block of a stretch, if there is one that nobody has taken.
func (a *ahead) readOne(n int64) bool {
	if n >= a.ready.Load() {
		return false
	}
	st := &a.two[n%2]
	i, ok := st.take()
	if ok {
		a.read(st, i, &a.bufs)
		token(a.wake)
	}
	return ok
}

// value returns the value of an entry of the iterator's stretch, valid until it leaves that; false if it must be read.
func (a *ahead) value(st *stretch, i int, bufs *scanBufs) ([]byte, bool) {
	if st.count == 0 {
		return nil, false
	}
	for b := &st.blocks[i/aheadEntries]; !b.ready.Load(); {
		if n, ok := st.take(); ok {
			a.read(st, n, bufs)
		} else {
			<-a.wake
		}
	}
	return st.value(i)
}

// advance returns the stretch behind the iterator's, which goes on.
func (a *ahead) advance() *stretch {
	n := a.at.Load() + 1
	for a.ready.Load() <= n {
		<-a.wake
	}
	a.at.Store(n)
	token(a.moved)
	return &a.two[n%2]
}

// read reads a block.
func (a *ahead) read(st *stretch, n int, bufs *scanBufs) {
	b, s := &st.blocks[n], a.it.snap
	b.values, b.ends = b.values[:0], b.ends[:0]
	first := n * aheadEntries
	take := func(v []byte, _ int64) error {
		b.values = append(b.values, v...)
		return nil
	}
	for i := first; i < min(first+aheadEntries, st.chunk.Len()); i++ {
		if i%nearEntries == 0 {
			bufs.near(s.db.log, &st.chunk, i)
		}
		end := notRead
		if len(b.values) < aheadBytes && !a.stop.Load() {
			v := st.chunk.Version(i)
			if s.readVersion(st.chunk.Key(i), v, bufs.of(s.db.log, v), take) == nil {
				end = len(b.values)
			}
		}
		b.ends = append(b.ends, end)
	}
	b.ready.Store(true)
}

// room is the memory of an iterator. It goes from one to the next: a seek would spend a fifth of its time on it.
type room struct {
	two   [2]stretch
	ahead ahead
	bufs  scanBufs // of the iterator
	own   []byte   // a value that was not read ahead
}

var rooms = sync.Pool{New: func() any { return new(room) }}

// keepValues is how much memory for values a block, or a room, keeps.
const keepValues = 64 << 10

// release gives the room back; nobody reads ahead any more.
func (r *room) release() {
	for i := range r.two {
		st := &r.two[i]
		if st.chunk.KeyBytes() > keepValues {
			st.chunk = memindex.Chunk{}
		}
		for j := range st.blocks {
			if b := &st.blocks[j]; cap(b.values) > keepValues {
				b.values = nil
			}
		}
		st.err, st.count = nil, 0
	}
	if cap(r.own) > keepValues {
		r.own = nil
	}
	r.bufs.release()
	r.ahead.bufs.release()
	rooms.Put(r)
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
		*b = bufferPool.Get().(*wal.Buffer)
	}
	return *b
}

func (s *scanBufs) release() {
	for i, b := range s.frames {
		if b != nil {
			putBuffer(b)
			s.frames[i] = nil
		}
	}
}
