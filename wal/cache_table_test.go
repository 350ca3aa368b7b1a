package wal

import (
	"math/rand/v2"
	"testing"
)

// TestCacheTable fills a small cache, has it evict, pins some of what is in it, cuts, and checks after each step that the table
// finds exactly the slots that hold a frame, each with the bytes that were put in. It is inside the package because a table that
// loses entries only shows as a slow cache.
func TestCacheTable(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	c := newFrameCache(40 * MaxSmallFrame)
	frame := func(at LSN) []byte {
		p := make([]byte, 1+int(at)%MaxSmallFrame)
		p[0], p[len(p)-1] = byte(at), byte(at>>8)
		return p
	}
	check := func(step int) {
		t.Helper()
		for i := range c.shards {
			s := &c.shards[i]
			held := 0
			for j := range s.slots {
				slot := s.slot(uint32(j))
				if slot.lsn == 0 {
					continue
				}
				held++
				if at, ok := s.find(slot.lsn, mix(slot.lsn)); !ok || uint32(s.table[at].Load())-1 != uint32(j) {
					t.Fatalf("seed %d, step %d: the frame at %v is in slot %d, and not found", seed, step, slot.lsn, j)
				}
			}
			entries := 0
			for i := range s.table {
				if s.table[i].Load() != 0 {
					entries++
				}
			}
			if held != entries || 2*entries > len(s.table) {
				t.Fatalf("seed %d, step %d: %d slots hold a frame, %d of %d entries", seed, step, held, entries, len(s.table))
			}
		}
	}
	var pinned []*cacheSlot
	hits := 0
	for step := range 20000 {
		at := LSN(1+rng.IntN(300)) * 8
		switch n := rng.IntN(1000); {
		case n < 3:
			c.cut(LSN(rng.IntN(300)) * 8)
		case n < 30 && len(pinned) < 10:
			if slot, _ := c.get(at); slot != nil {
				pinned = append(pinned, slot)
			}
		case n < 100: // a hint: whatever it is asked for, it changes nothing
			c.near([]Ref{MakeRef(at, rng.IntN(MaxSmallFrame)), MakeRef(at+8, 0)})
		case n < 130 && len(pinned) > 0:
			pinned[0].release()
			pinned = pinned[1:]
		default:
			slot, raw := c.get(at)
			if slot == nil {
				c.put(at, &frameMeta{flags: FlagFirst | FlagLast, count: 1}, frame(at), func() bool { return true })
				break
			}
			hits++
			if want := frame(at); string(raw) != string(want) || slot.lsn != at {
				t.Fatalf("seed %d, step %d: %d bytes at %v, want %d", seed, step, len(raw), at, len(want))
			}
			slot.release()
		}
		check(step)
	}
	if hits < 500 {
		t.Errorf("seed %d: only %d hits", seed, hits)
	}
}

// TestCacheEqualTags puts two frames in whose hashes agree in the bits that the table keeps.
func TestCacheEqualTags(t *testing.T) {
	seen := map[uint32]LSN{}
	var a, b LSN
	for b = 8; ; b += 8 {
		if a = seen[cacheTag(mix(b))]; a != 0 {
			break
		}
		seen[cacheTag(mix(b))] = b
	}
	c := newFrameCache(16 * MaxSmallFrame)
	put := func(at LSN) {
		c.put(at, &frameMeta{flags: FlagFirst | FlagLast, count: 1}, []byte{byte(at >> 3), byte(at >> 11), byte(at >> 19)}, func() bool { return true })
	}
	put(a)
	if slot, _ := c.get(b); slot != nil {
		t.Fatalf("the frame at %v is given for the one at %v", a, b)
	}
	put(b)
	for _, at := range []LSN{a, b} {
		slot, raw := c.get(at)
		if slot == nil || raw[0] != byte(at>>3) || raw[1] != byte(at>>11) || raw[2] != byte(at>>19) {
			t.Fatalf("%v: %v, %v", at, slot, raw)
		}
		slot.release()
	}
	c.cut(max(a, b))
	if slot, _ := c.get(max(a, b)); slot != nil {
		t.Error("the frame that was cut is there")
	}
	if slot, _ := c.get(min(a, b)); slot == nil {
		t.Error("the frame that was not cut is gone")
	}
}
