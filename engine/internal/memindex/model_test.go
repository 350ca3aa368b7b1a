package memindex_test

import (
	"math"
	"slices"
	"sort"

	"shiplog/engine/internal/memindex"
)

// model is what the table has to be equal to: a map of keys to their versions,
// oldest first, that forgets nothing.
type model struct {
	versions map[string][]memindex.Version
}

func newModel() *model { return &model{versions: map[string][]memindex.Version{}} }

func (m *model) insert(key string, v memindex.Version) {
	vs := m.versions[key]
	i := sort.Search(len(vs), func(i int) bool { return vs[i].Ref >= v.Ref })
	if i < len(vs) && vs[i].Ref == v.Ref {
		vs[i] = v
		return
	}
	m.versions[key] = slices.Insert(vs, i, v)
}

// get returns the version visible at at; a Delete counts as none.
func (m *model) get(key string, at uint64) (v memindex.Version, ok bool) {
	for _, x := range m.versions[key] {
		if x.Ref < at {
			v, ok = x, x.Kind != memindex.Delete
		}
	}
	return v, ok
}

func (m *model) deleteRange(start, end string, bounded bool, ref uint64) {
	for k := range m.versions {
		if k < start || bounded && k >= end {
			continue
		}
		if _, ok := m.get(k, math.MaxUint64); ok {
			m.insert(k, memindex.Version{Ref: ref, Kind: memindex.Delete})
		}
	}
}

func (m *model) cutFrom(ref uint64) {
	for k, vs := range m.versions {
		vs = slices.DeleteFunc(vs, func(v memindex.Version) bool { return v.Ref >= ref })
		if len(vs) == 0 {
			delete(m.versions, k)
		} else {
			m.versions[k] = vs
		}
	}
}

type item struct {
	key string
	v   memindex.Version
}

// state lists what is visible at at, in order.
func (m *model) state(at uint64) []item {
	var out []item
	for k := range m.versions {
		if v, ok := m.get(k, at); ok {
			out = append(out, item{k, v})
		}
	}
	slices.SortFunc(out, func(a, b item) int {
		if a.key < b.key {
			return -1
		}
		return 1
	})
	return out
}

// scanAll reads a range in chunks of max. hi is nil or a bound.
func scanAll(t *memindex.Table, lo, hi []byte, loOpen bool, at uint64, reverse bool, max int) []item {
	var out []item
	var c memindex.Chunk
	for {
		t.Scan(&c, lo, hi, loOpen, at, reverse, max)
		for i := range c.Len() {
			out = append(out, item{string(c.Key(i)), c.Version(i)})
		}
		if !c.More() {
			return out
		}
		last := slices.Clone(c.Key(c.Len() - 1))
		if last == nil {
			last = []byte{}
		}
		if reverse {
			hi = last
		} else {
			lo, loOpen = last, true
		}
	}
}

// within keeps the items of a range and turns them round for a reverse scan.
func within(all []item, lo, hi []byte, loOpen, reverse bool) []item {
	var out []item
	for _, x := range all {
		if x.key < string(lo) || loOpen && x.key == string(lo) || hi != nil && x.key >= string(hi) {
			continue
		}
		out = append(out, x)
	}
	if reverse {
		slices.Reverse(out)
	}
	return out
}
