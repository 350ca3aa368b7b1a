package memindex

import (
	"bytes"
	"errors"
	"fmt"
)

// ScanHold is the number of entries that a scan looks at under one hold.
const ScanHold = scanHold

// SetHashMask makes hashes collide; the table is empty.
func (t *Table) SetHashMask(m uint64) { t.hashMask = m }

// Check verifies the structure of the table. Only the writer calls it.
func (t *Table) Check() error {
	t.jobs.Wait()
	t.collect()
	t.order.Lock()
	defer t.order.Unlock()
	t.mergeTo(t.ring.head.Load())
	sp := t.arena.space
	inHash := map[uint32]bool{}
	for id := range t.shards {
		n := 0
		for _, v := range t.shards[id].slots {
			if v == 0 {
				continue
			}
			n++
			key := sp.appendKey(nil, uint32(v))
			if s, tag := split(t.hash(key)); int(s) != id || tag != uint32(v>>32) {
				return fmt.Errorf("key %q in the wrong shard", key)
			}
			if t.shards[id].find(sp, uint32(v>>32), key) != uint32(v) {
				return fmt.Errorf("key %q is not found", key)
			}
			inHash[uint32(v)] = true
		}
		if n != t.shards[id].used {
			return fmt.Errorf("shard %d holds %d, counts %d", id, n, t.shards[id].used)
		}
	}
	if err := t.checkUnits(sp, inHash); err != nil {
		return err
	}
	return t.checkTree(sp, inHash)
}

// Versions counts the versions besides the newest of each key.
func (t *Table) Versions() int {
	n := 0
	for id := range t.shards {
		for _, v := range t.shards[id].slots {
			if v != 0 {
				for a := metaPrev(t.arena.space.node(uint32(v))[1]); a != 0; n++ {
					a = metaPrev(t.arena.space.node(a)[1])
				}
			}
		}
	}
	return n
}

// checkUnits accounts for every unit of the arena: in a node, or free, once.
func (t *Table) checkUnits(sp space, nodes map[uint32]bool) error {
	units := t.Versions()
	for a := range nodes {
		units += classUnits(classOf(nodeUnits(sp.keyLen(a))))
	}
	if t.reserve != 0 {
		units++
	}
	for c := range t.arena.free {
		last := uint32(0)
		for a := t.arena.free[c].head; a != 0; a = uint32(sp.node(a)[0]) {
			units += classUnits(c)
			last = a
		}
		if l := t.arena.free[c]; l.head != 0 && l.tail != last {
			return fmt.Errorf("free list of class %d ends at %d, not at %d", c, last, l.tail)
		}
	}
	if want := max(int(t.arena.next), 1) - 1; units != want {
		return fmt.Errorf("%d units used or free, %d handed out", units, want)
	}
	return nil
}

func (t *Table) checkTree(sp space, inHash map[uint32]bool) error {
	var last []byte
	n := 0
	var memory int64
	if len(t.tree.addr) != len(t.tree.branches) {
		return errors.New("root of wrong length")
	}
	if err := t.tree.fan.check(sp); err != nil {
		return err
	}
	for i, b := range t.tree.branches {
		memory += branchBytes + b.bytes()
		if len(b.addr) != len(b.leaves) || t.tree.addr[i] != b.addr[0] || len(b.leaves) > branchCap {
			return errors.New("branch does not fit its root")
		}
		if err := b.fan.check(sp); err != nil {
			return err
		}
		for j, l := range b.leaves {
			memory += fanBytes + l.bytes()
			if len(l.addr) == 0 || b.addr[j] != l.addr[0] || len(l.addr) > leafCap {
				return errors.New("leaf does not fit its branch")
			}
			if err := l.check(sp); err != nil {
				return err
			}
			all := span{l, 0, len(l.addr) - l.loose, len(l.addr) - l.loose, len(l.addr)}
			for _, a := range all.ascend(sp, make([]uint32, leafCap), leafCap) {
				key := sp.appendKey(nil, a)
				if n > 0 && bytes.Compare(last, key) >= 0 {
					return fmt.Errorf("key %q stands behind %q", key, last)
				}
				last = key
				n++
				if !inHash[a] {
					return fmt.Errorf("key %q is in the tree alone", key)
				}
			}
		}
	}
	if n != len(inHash) {
		return fmt.Errorf("%d keys in the tree, %d in the hash", n, len(inHash))
	}
	if memory != t.tree.memory {
		return fmt.Errorf("tree holds %d bytes, counts %d", memory, t.tree.memory)
	}
	return nil
}

func (f *fan) check(s space) error {
	if len(f.prefix) != len(f.addr) {
		return errors.New("fan with arrays of different lengths")
	}
	for i, a := range f.addr {
		if f.prefix[i] != f.prefixOf(s, a) || sharedLen(s, f.addr[0], a) < f.skip {
			return fmt.Errorf("entry %d of a fan with skip %d is wrong", i, f.skip)
		}
	}
	return nil
}

// TreeBytes returns the size of the ordered side without scratch.
func (t *Table) TreeBytes() int64 { return t.tree.memory }
