package memindex

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
)

// Kind says what a version did to its key.
type Kind uint8

// The kinds of versions. The table tells Delete from the others; what else
// they mean is the caller's business.
const (
	Put    Kind = iota // the record holds a value
	PutTTL             // the record holds a value and when it expires
	Delete             // the key was deleted
)

// Version is one version of a key: the position of its record, which is also
// its rank among all versions, and what it did.
type Version struct {
	Ref  uint64
	Kind Kind
}

// busyRef stands in a node while ref and kind change together. No reader's
// position lies above it, so scans take the way under the lock.
const busyRef = math.MaxUint64

// Table is an ordered multi-version table. One goroutine at a time may call
// Insert, DeleteRange, CutFrom and Wait (the writer); all other methods may be
// called by any number of goroutines at any time. Make one with [New].
//
// Inserting starts a goroutine now and then that does a bounded piece of work
// and ends; there is nothing to close.
type Table struct {
	over  bool // deletes are kept: they hide what older tables hold
	floor atomic.Uint64
	live  atomic.Int64
	seed  maphash.Seed
	// hashMask is all ones; tests clear bits to make hashes collide.
	hashMask uint64

	arena  arena // the writer's, but for the published space
	shards [shardCount]shard
	ring   ring

	// order is held by whoever changes the tree or takes keys from the ring.
	order sync.Mutex
	// treeLock guards tree: exclusive for those who hold order and change it,
	// shared for scans.
	treeLock sync.RWMutex
	tree     tree
	batch    []entry // scratch, guarded by order
	spare    []entry // scratch, guarded by order
	// settled is a position below which no key is missing from the tree.
	settled atomic.Uint64
	// disorder is set once a key's first version lay below the first version
	// of a key that came before it: settled then proves nothing.
	disorder atomic.Bool

	// The writer's own.
	lastNew uint64 // first version of the newest key
	reserve uint32 // a free version node, or 0
	queue   queue
	debt    int // versions and deletes since the last pruning
	job     job
	jobs    sync.WaitGroup // the goroutine that runs job, if any
	running atomic.Bool    // job belongs to that goroutine
	keyBuf  []byte
	addrBuf []uint32

	arenaBytes, slotBytes, treeBytes, ringBytes, queueBytes atomic.Int64
}

// New returns an empty table that stands alone: a deleted key that nobody can
// see any more leaves it.
func New() *Table { return newTable(false) }

// NewOver returns an empty table that lies over older ones: a delete, also of a
// key that is not in the table, stays in it, because it hides what they hold.
func NewOver() *Table { return newTable(true) }

func newTable(over bool) *Table {
	t := &Table{over: over, seed: maphash.MakeSeed(), hashMask: math.MaxUint64}
	t.arena.init()
	return t
}

// hash is seeded, so that nobody who chooses keys can choose collisions.
func (t *Table) hash(key []byte) uint64 {
	return maphash.Bytes(t.seed, key) & t.hashMask
}

// Insert adds a version of key. Only the writer calls it. Refs of a key should
// rise from call to call, which is the fast case; a version below the newest
// is put in its place, and one with the ref of an older call replaces it. A
// position must not be read before all versions below it are inserted.
//
// Insert panics if key is longer than [MaxKeyLen]. It keeps no reference to
// key.
func (t *Table) Insert(key []byte, ref uint64, k Kind) {
	if len(key) > MaxKeyLen {
		panic("memindex: key exceeds MaxKeyLen")
	}
	id, tag := split(t.hash(key))
	s := &t.shards[id]
	s.mu.Lock()
	t.touch()
	addr := s.find(t.arena.space, tag, key)
	if addr != 0 {
		t.addVersion(addr, ref, k)
		s.mu.Unlock()
	} else {
		addr = t.newNode(key, ref, k, id)
		if grown := s.add(int(id), tag, addr); grown != 0 {
			t.slotBytes.Add(int64(grown))
		}
		s.mu.Unlock()
		t.pushNew(addr, ref)
	}
	if t.debt >= pruneBatch || t.ring.len() >= len(t.ring.addr)/2 {
		t.maintain()
	}
}

// newNode allocates the node of a new key with one version.
func (t *Table) newNode(key []byte, ref uint64, k Kind, shard uint8) uint32 {
	end := t.arena.end
	addr := t.arena.alloc(classOf(nodeUnits(len(key))))
	if t.arena.end != end {
		t.arenaBytes.Add(chunkBytes)
	}
	w := t.arena.space.node(addr)
	m := uint64(len(key))<<lenShift | uint64(shard)<<shardShift | uint64(k)<<kindShift
	if k == Delete {
		m |= t.draw(addr, ref, m)
	} else {
		t.live.Add(1)
	}
	w[0], w[1] = ref, m
	packKey(w, key)
	return addr
}

// draw queues a node for pruning and returns the bit that says so.
func (t *Table) draw(addr uint32, ref, meta uint64) uint64 {
	t.debt++
	if meta&queuedBit == 0 {
		t.queue.push(ticket{ref, addr})
	}
	return queuedBit
}

// pushNew hands a new key to the ordered side.
func (t *Table) pushNew(addr uint32, ref uint64) {
	if t.ring.len() == len(t.ring.addr) {
		t.order.Lock()
		if len(t.ring.addr) < ringMax {
			t.ring.grow()
			t.ringBytes.Store(int64(len(t.ring.addr)) * 12)
		} else {
			t.mergeTo(t.ring.tail.Load() + mergeLate)
		}
		t.order.Unlock()
	}
	if ref < t.lastNew && !t.disorder.Load() {
		t.disorder.Store(true)
	}
	t.lastNew = ref
	t.ring.push(addr, ref)
}

// Get returns the newest version of key below at. It may be a Delete. ok is
// false if there is none. In a table that stands alone, a key that is deleted
// and that nobody above the floor can see otherwise may be reported either way.
func (t *Table) Get(key []byte, at uint64) (_ Version, ok bool) {
	id, tag := split(t.hash(key))
	s := &t.shards[id]
	s.mu.RLock()
	defer s.mu.RUnlock()
	sp := *t.arena.published.Load()
	addr := s.find(sp, tag, key)
	if addr == 0 {
		return Version{}, false
	}
	return sp.visible(addr, at)
}

// Latest returns the newest version of key.
func (t *Table) Latest(key []byte) (_ Version, ok bool) {
	return t.Get(key, math.MaxUint64)
}

// SetFloor promises that no reader will ask for a position below at, and that
// CutFrom will not be called with one, so that versions only they could see
// may go. Any goroutine may call it; a floor that was set never falls.
func (t *Table) SetFloor(at uint64) {
	for {
		old := t.floor.Load()
		if at <= old || t.floor.CompareAndSwap(old, at) {
			return
		}
	}
}

// Len returns the number of keys whose newest version is not a Delete.
func (t *Table) Len() int { return int(t.live.Load()) }

// Keys returns the number of keys, those whose newest version is a Delete
// included.
func (t *Table) Keys() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		n += s.used
		s.mu.RUnlock()
	}
	return n
}

// Bytes returns the memory that the table holds, in bytes, free blocks
// included.
func (t *Table) Bytes() int64 {
	const fixed = int64(shardCount*128 + 1024)
	return fixed + t.arenaBytes.Load() + t.slotBytes.Load() + t.treeBytes.Load() +
		t.ringBytes.Load() + t.queueBytes.Load()
}
