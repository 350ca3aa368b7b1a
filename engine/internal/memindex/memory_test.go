package memindex_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"shiplog/engine/internal/memindex"
)

func numberKey(i uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte("account:"), i)
}

// growth runs step n times twice and returns the table's size after each.
func growth(t *memindex.Table, n uint64, step func(i uint64)) (first, second int64) {
	for i := range n {
		step(i)
	}
	first = t.Bytes()
	for i := range n {
		step(n + i)
	}
	return first, t.Bytes()
}

// TestMemoryIsBounded runs endless workloads on a bounded number of live keys
// and holds the size of the table against what those keys need.
func TestMemoryIsBounded(t *testing.T) {
	const perKey, fixed = 200, 16 << 20 // bytes; fixed is mostly the backlog of pruning
	for _, c := range []struct {
		name string
		live int64
		step func(t *memindex.Table, i uint64)
	}{
		{"overwrite, floor behind by one", 1000, func(t *memindex.Table, i uint64) {
			t.Insert(numberKey(i*7919%1000), i+1, memindex.Put)
			t.SetFloor(i)
		}},
		{"overwrite, floor behind by 10000", 10000, func(t *memindex.Table, i uint64) {
			t.Insert(numberKey(i*7919%1000), i+1, memindex.Put)
			t.SetFloor(uint64(max(0, int64(i)-10000)))
		}},
		{"one key, floor in steps", 16000, func(t *memindex.Table, i uint64) {
			t.Insert(numberKey(0), i+1, memindex.Put)
			if i%16000 == 0 {
				t.SetFloor(i)
			}
		}},
		{"queue", 1000, func(t *memindex.Table, i uint64) {
			t.Insert(numberKey(i), 2*i+1, memindex.Put)
			if i >= 1000 {
				t.Insert(numberKey(i-1000), 2*i+2, memindex.Delete)
			}
			t.SetFloor(2 * i)
		}},
		{"queue of keys in random order", 1000, func(t *memindex.Table, i uint64) {
			const odd = 0x9E3779B97F4A7C15
			t.Insert(numberKey(i*odd), 2*i+1, memindex.Put)
			if i >= 1000 {
				t.Insert(numberKey((i-1000)*odd), 2*i+2, memindex.Delete)
			}
			t.SetFloor(2 * i)
		}},
		{"keys deleted by range", 1000, func(t *memindex.Table, i uint64) {
			t.Insert(numberKey(i), 2*i+1, memindex.Put)
			if i%1000 == 0 {
				t.DeleteRange(nil, numberKey(i), 2*i+2)
			}
			t.SetFloor(2 * i)
		}},
		{"deletes of keys that never were", 0, func(t *memindex.Table, i uint64) {
			t.Insert(numberKey(i), i+1, memindex.Delete)
			t.SetFloor(i)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			table := memindex.New()
			first, second := growth(table, 200_000/scale, func(i uint64) { c.step(table, i) })
			if limit := fixed + perKey*c.live; second > limit {
				t.Errorf("%d live keys in %d bytes (%d half-way), limit %d", c.live, second, first, limit)
			}
			table.Wait()
			if err := table.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSnapshotMemoryComesBack holds the floor during many overwrites and
// deletes; once it moves, the memory serves the inserts that follow.
func TestSnapshotMemoryComesBack(t *testing.T) {
	table := memindex.New()
	ref := uint64(0)
	round := func() {
		for i := range uint64(20_000) {
			for range 5 {
				ref++
				table.Insert(numberKey(i), ref, memindex.Put)
			}
		}
		table.SetFloor(ref + 1)
		table.Wait()
		if n := table.Versions(); n > 20_000 {
			t.Fatalf("%d old versions of 20000 keys are left although the floor has passed", n)
		}
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
	}
	round()
	first := table.Bytes()
	for range 5 {
		round()
	}
	if got := table.Bytes(); got > first*11/10 {
		t.Errorf("%d bytes after the first round, %d after the sixth", first, got)
	}
}

// TestManyLeaves grows the tree to several branches and shrinks it again.
func TestManyLeaves(t *testing.T) {
	n := uint64(300_000) / scale // ascending, a branch covers 262,144
	if testing.Short() {
		n = 30_000
	}
	for _, odd := range []uint64{1, 0x9E3779B97F4A7C15} {
		t.Run(fmt.Sprintf("step=%d", odd), func(t *testing.T) {
			t.Parallel()
			table := memindex.New()
			ref := uint64(0)
			for i := range n {
				ref++
				table.Insert(numberKey(i*odd), ref, memindex.Put)
			}
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			full := table.TreeBytes()
			for i := range n {
				if i%100 != 0 {
					ref++
					table.Insert(numberKey(i*odd), ref, memindex.Delete)
				}
			}
			table.SetFloor(ref + 1)
			table.Wait()
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			if got, want := len(scanAll(table, nil, nil, false, math.MaxUint64, false, 1000)), int(n+99)/100; got != want {
				t.Errorf("%d keys left, want %d", got, want)
			}
			if got := table.TreeBytes(); got > full/10 {
				t.Errorf("the tree takes %d bytes for 1 %% of the keys, %d for all", got, full)
			}
			for i := range n {
				ref++
				table.Insert(numberKey(i*odd), ref, memindex.Put)
			}
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
