package wal

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"shiplog/wal/prefetch"
)

// frameCache keeps unpacked frames, so that reading a neighbour, or the same record again, neither verifies nor unpacks. A frame was
// verified when it was put in. Eviction is the clock algorithm (Corbató 1968); once the cache is full, a frame is let in
// at its second miss only, as a doorkeeper does (TinyLFU, Einziger et al. 2017), so that one scan or a data set far larger
// than the cache costs no copying.
//
// Memory is slots of MaxSmallFrame bytes in chunks without pointers. A reader pins a slot instead of holding a lock, so
// what it does with the bytes keeps nobody waiting. What a look-up touches besides the bytes is packed tight, for what it costs is
// misses of the processor's caches: 8 bytes of a hash table and 16 of a slot.
type frameCache struct {
	shards []cacheShard
	mask   uint64
}

const (
	cacheChunk     = 64 // slots that are allocated together
	maxCacheShards = 64
)

type cacheShard struct {
	mu sync.Mutex // guards all below but the slots' pins, and the bytes of pinned slots
	// table finds slots: an open-addressing hash table, at most half full, of 32 bits of the hash (the tag, whose lowest bits are the
	// home) above the slot's number and one; 0 is empty. Its words and the parts' pointers are atomic for near, which reads them without mu.
	table []atomic.Uint64
	parts []atomic.Pointer[cachePart]
	slots int // in parts that are or were in use
	limit int
	hand  int
	door  []uint16 // fingerprints of frames that were missed once
	_     [40]byte
}

type cachePart struct {
	slots [cacheChunk]cacheSlot
	bytes [cacheChunk * MaxSmallFrame]byte
}

type cacheSlot struct {
	lsn    LSN // 0: free
	pins   atomic.Int32
	length uint16
	used   bool
	goesOn bool // see mayGoOn
}

// newFrameCache returns a cache of about size bytes, or nil if that is too small for any use.
func newFrameCache(size int64) *frameCache {
	slots := int(size / MaxSmallFrame)
	if slots < 2 {
		return nil
	}
	n := 1
	for n < maxCacheShards && slots/(2*n) >= cacheChunk {
		n *= 2
	}
	c := &frameCache{shards: make([]cacheShard, n), mask: uint64(n - 1)}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = slots / n
		s.table = make([]atomic.Uint64, 1<<bits.Len(uint(2*s.limit)))
		s.parts = make([]atomic.Pointer[cachePart], (s.limit+cacheChunk-1)/cacheChunk)
		s.door = make([]uint16, 1<<bits.Len(uint(2*s.limit)))
	}
	return c
}

// mix spreads an LSN over 64 bits (the finalizer of MurmurHash3).
func mix(at LSN) uint64 {
	h := uint64(at)
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func (s *cacheShard) slot(i uint32) *cacheSlot {
	return &s.parts[i/cacheChunk].Load().slots[i%cacheChunk]
}

// memory returns all bytes of a slot.
func (s *cacheShard) memory(i uint32) []byte { return s.parts[i/cacheChunk].Load().memory(i) }

func (p *cachePart) memory(i uint32) []byte {
	off := i % cacheChunk * MaxSmallFrame
	return p.bytes[off : off+MaxSmallFrame : off+MaxSmallFrame]
}

func cacheTag(h uint64) uint32 { return uint32(h >> 32) }

// find returns the place in the table of the frame at an LSN with hash h; false if it is not there.
func (s *cacheShard) find(at LSN, h uint64) (int, bool) {
	tag, mask := cacheTag(h), len(s.table)-1
	for i := int(tag) & mask; ; i = (i + 1) & mask {
		v := s.table[i].Load()
		if v == 0 {
			return i, false
		}
		if uint32(v>>32) == tag && s.slot(uint32(v)-1).lsn == at {
			return i, true
		}
	}
}

// enter puts an entry that is not in the table into it.
func (s *cacheShard) enter(v uint64) {
	mask := len(s.table) - 1
	i := int(v>>32) & mask
	for s.table[i].Load() != 0 {
		i = (i + 1) & mask
	}
	s.table[i].Store(v)
}

// remove takes the entry at i out of the table: those behind that would not be found over the gap move up.
func (s *cacheShard) remove(i int) {
	mask := len(s.table) - 1
	for j := (i + 1) & mask; ; j = (j + 1) & mask {
		v := s.table[j].Load()
		if v == 0 {
			break
		}
		if home := int(v>>32) & mask; (j-home)&mask >= (j-i)&mask {
			s.table[i].Store(v)
			i = j
		}
	}
	s.table[i].Store(0)
}

// near has the processor load what get and the reading of the records will look at, for all of refs at once. It takes no lock and
// changes nothing: what moves meanwhile is loaded in vain.
func (c *frameCache) near(refs []Ref) {
	for _, ref := range refs {
		h := mix(ref.LSN())
		s := &c.shards[h&c.mask]
		prefetch.Line(unsafe.Pointer(&s.table[int(cacheTag(h))&(len(s.table)-1)]))
	}
	for _, ref := range refs {
		h := mix(ref.LSN())
		s := &c.shards[h&c.mask]
		tag, mask := cacheTag(h), len(s.table)-1
		for i := int(tag) & mask; ; i = (i + 1) & mask {
			v := s.table[i].Load()
			if v == 0 {
				break
			}
			if uint32(v>>32) != tag {
				continue
			}
			n := uint32(v) - 1
			if p := s.parts[n/cacheChunk].Load(); p != nil {
				prefetch.Line(unsafe.Pointer(&p.slots[n%cacheChunk]))
				rec := p.memory(n)[ref.Offset()%MaxSmallFrame:]
				for i := 0; i < min(len(rec), nearBytes); i += 64 {
					prefetch.Line(unsafe.Pointer(&rec[i]))
				}
			}
			break
		}
	}
}

// nearBytes is how much of a record is loaded; behind it the processor sees by itself that bytes are read in order.
const nearBytes = 192

// get pins the frame at an LSN and returns its bytes; nil if it is not in the cache. The slot must be released.
func (c *frameCache) get(at LSN) (slot *cacheSlot, raw []byte) {
	h := mix(at)
	s := &c.shards[h&c.mask]
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(at, h)
	if !ok {
		return nil, nil
	}
	n := uint32(s.table[i].Load()) - 1
	slot = s.slot(n)
	slot.used = true
	slot.pins.Add(1)
	return slot, s.memory(n)[:slot.length]
}

func (s *cacheSlot) release() { s.pins.Add(-1) }

// put enters a frame that was missed, if it is worth it. fresh is asked with the shard locked: false means that the frame may
// have been cut meanwhile.
func (c *frameCache) put(at LSN, m *frameMeta, raw []byte, fresh func() bool) {
	if len(raw) > MaxSmallFrame {
		return
	}
	h := mix(at)
	s := &c.shards[h&c.mask]
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.find(at, h); ok || !fresh() {
		return
	}
	if s.slots >= s.limit {
		door := &s.door[h>>8&uint64(len(s.door)-1)]
		if print := uint16(h>>48) | 1; *door != print {
			*door = print
			return
		}
		*door = 0
	}
	i, ok := s.room()
	if !ok {
		return
	}
	slot := s.slot(i)
	slot.lsn, slot.used, slot.goesOn = at, false, m.mayGoOn(0)
	slot.length = uint16(copy(s.memory(i), raw))
	s.enter(uint64(cacheTag(h))<<32 | uint64(i+1))
}

// room finds a free slot, or makes one free. None: all are pinned.
func (s *cacheShard) room() (uint32, bool) {
	if s.slots < s.limit {
		if s.slots%cacheChunk == 0 {
			s.parts[s.slots/cacheChunk].Store(new(cachePart))
		}
		s.slots++
		return uint32(s.slots - 1), true
	}
	for range 2*s.slots + 1 {
		i := uint32(s.hand)
		if s.hand++; s.hand == s.slots {
			s.hand = 0
		}
		slot := s.slot(i)
		switch {
		case slot.pins.Load() != 0: // nobody pins without the lock
		case slot.used:
			slot.used = false
		default:
			s.forget(slot)
			return i, true
		}
	}
	return 0, false
}

func (s *cacheShard) forget(slot *cacheSlot) {
	if slot.lsn == 0 {
		return
	}
	if i, ok := s.find(slot.lsn, mix(slot.lsn)); ok {
		s.remove(i)
	}
	slot.lsn = 0
}

// cut forgets every frame at or above an LSN. Who reads one now goes on reading it.
func (c *frameCache) cut(to LSN) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for j := range s.slots {
			if slot := s.slot(uint32(j)); slot.lsn >= to {
				s.forget(slot)
			}
		}
		s.mu.Unlock()
	}
}
