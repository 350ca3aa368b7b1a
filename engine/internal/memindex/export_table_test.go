package memindex_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"shiplog/engine/internal/memindex"
)

// A table over others keeps every delete, below the floor too, also of keys it has never had; and what Export gives
// out is everything that a reader at or above the floor can ask for.
func TestExportOver(t *testing.T) {
	table := memindex.NewOver()
	r := rand.New(rand.NewPCG(7, 7))
	type version struct {
		ref  uint64
		kind memindex.Kind
	}
	model := map[string][]version{}
	const floor = 150_000
	for ref := uint64(1); ref <= 200_000; ref++ {
		key := fmt.Sprintf("key%05d", r.IntN(20_000))
		kind := memindex.Kind(r.IntN(3))
		table.Insert([]byte(key), ref, kind)
		model[key] = append(model[key], version{ref, kind})
		if ref == floor {
			table.SetFloor(floor)
		}
	}
	seen, last := 0, []byte(nil)
	err := table.Export(func(key []byte, got []memindex.Version) error {
		if last != nil && bytes.Compare(last, key) >= 0 {
			return fmt.Errorf("%q follows %q", key, last)
		}
		last = append(last[:0], key...)
		seen++
		want := model[string(key)]
		slices.Reverse(want)
		for i, v := range got {
			if i >= len(want) || want[i] != (version{v.Ref, v.Kind}) {
				return fmt.Errorf("%q: version %d is %v, want one of %v", key, i, v, want)
			}
		}
		if len(got) < len(want) && got[len(got)-1].Ref >= floor {
			return fmt.Errorf("%q: %v, the version below the floor is missing of %v", key, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(model) {
		t.Fatalf("%d keys exported, want %d", seen, len(model))
	}
	var c memindex.Chunk
	c.Deletes = true
	n := 0
	for lo, open := []byte(nil), false; ; open = true {
		table.Scan(&c, lo, nil, open, 200_001, false, 1000)
		n += c.Len()
		if !c.More() {
			break
		}
		lo = bytes.Clone(c.Key(c.Len() - 1))
	}
	if n != len(model) {
		t.Fatalf("a scan with deletes found %d keys, want %d", n, len(model))
	}
}
