package memindex_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"shiplog/engine/internal/memindex"
)

// pins is what keeps the floor below the readers, as the engine's snapshots
// do.
type pins struct {
	mu    sync.Mutex // guards the model as well
	at    map[int]uint64
	model *model
	ref   uint64 // all versions up to it are inserted
}

// TestReadersSeeOneState runs a writer that inserts, deletes, deletes ranges
// and lets the floor follow its readers. Each reader takes a position, and
// what was visible there; whatever it reads at that position has to be just
// that, until it lets go.
func TestReadersSeeOneState(t *testing.T) {
	const readers, rounds = 3, 25
	r := newRand(t)
	table := memindex.New()
	p := &pins{at: map[int]uint64{}, model: newModel()}
	var running atomic.Int32
	var wg sync.WaitGroup
	for id := range readers {
		running.Add(1)
		rr := rand.New(rand.NewPCG(r.Uint64(), 1))
		wg.Go(func() {
			defer running.Add(-1)
			for range rounds {
				if !readOneState(t, rr, table, p, id) {
					return
				}
			}
		})
	}
	for steps := 0; running.Load() > 0 || steps < 20000; steps++ {
		p.mu.Lock()
		ref := p.ref + 1
		writeStep(r, table, p.model, ref)
		p.ref = ref
		floor := ref + 1
		for _, at := range p.at {
			floor = min(floor, at)
		}
		table.SetFloor(floor)
		p.mu.Unlock()
	}
	wg.Wait()
	if err := table.Check(); err != nil {
		t.Error(err)
	}
}

// writeStep does one operation on the table and its model, which it keeps
// small.
func writeStep(r *rand.Rand, table *memindex.Table, m *model, ref uint64) {
	const space = 4000
	switch n := r.IntN(2000); {
	case n < 1200:
		k := randomKey(r, space)
		table.Insert(k, ref, memindex.Kind(n%2))
		m.insert(string(k), memindex.Version{Ref: ref, Kind: memindex.Kind(n % 2)})
	case n < 1999:
		k := randomKey(r, space)
		table.Insert(k, ref, memindex.Delete)
		m.insert(string(k), memindex.Version{Ref: ref, Kind: memindex.Delete})
	default:
		lo, hi := randomKey(r, space), randomKey(r, space)
		table.DeleteRange(lo, hi, ref)
		m.deleteRange(string(lo), string(hi), true, ref)
	}
}

// readOneState pins a position and reads it in several ways. It reports
// whether all was as it should be.
func readOneState(t *testing.T, r *rand.Rand, table *memindex.Table, p *pins, id int) bool {
	p.mu.Lock()
	at := p.ref + 1
	p.at[id] = at
	want := p.model.state(at)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.at, id)
		p.mu.Unlock()
	}()
	for range 4 {
		lo, hi := randomKey(r, 4000), randomKey(r, 4000)
		if r.IntN(2) == 0 {
			lo, hi = nil, nil
		}
		reverse := r.IntN(2) == 0
		got := scanAll(table, lo, hi, false, at, reverse, 1+r.IntN(300))
		if want := within(want, lo, hi, false, reverse); !slices.Equal(got, want) {
			t.Errorf("at %d, [%q, %q) reverse %v: got %d entries, want %d", at, lo, hi, reverse, len(got), len(want))
			return false
		}
		for range 100 {
			k := randomKey(r, 4000)
			table.Prefetch(k) // changes nothing
			v, ok := table.Get(k, at)
			ok = ok && v.Kind != memindex.Delete
			i, wok := slices.BinarySearchFunc(want, string(k), func(x item, k string) int {
				if x.key < k {
					return -1
				} else if x.key > k {
					return 1
				}
				return 0
			})
			if ok != wok || ok && want[i].v != v {
				t.Errorf("get %q at %d: got %v %v, want %v", k, at, v, ok, wok)
				return false
			}
		}
	}
	return true
}

// TestScanFindsNewKeys lets readers scan for keys that were inserted just
// before the position they read at.
func TestScanFindsNewKeys(t *testing.T) {
	r := newRand(t)
	table := memindex.New()
	const n = 30000
	keys := r.Perm(n)
	var visible atomic.Uint64 // keys[:visible] are inserted
	key := func(i uint64) []byte {
		x := keys[i]
		return []byte{byte(x >> 16), byte(x >> 8), byte(x)}
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var c memindex.Chunk
			for v := uint64(0); v < n; {
				if v = visible.Load(); v == 0 {
					continue
				}
				k := key(v - 1)
				if table.Scan(&c, k, nil, false, v, false, 1); c.Len() != 1 || string(c.Key(0)) != string(k) {
					t.Errorf("key %d is not found by a scan at %d", v-1, v)
					return
				}
			}
		})
	}
	for i := range uint64(n) {
		table.Insert(key(i), i, memindex.Put)
		visible.Store(i + 1)
	}
	wg.Wait()
}

// TestKindBelongsToRef switches a key between Put at odd refs and Delete at
// even ones, while others scan without its lock.
func TestKindBelongsToRef(t *testing.T) {
	table := memindex.New()
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var c memindex.Chunk
			for !done.Load() {
				table.Scan(&c, nil, nil, false, math.MaxUint64, false, 10)
				for i := range c.Len() {
					if v := c.Version(i); v.Ref%2 == 0 {
						t.Errorf("a scan shows the Delete at %d as a Put", v.Ref)
						return
					}
				}
			}
		})
	}
	for ref := uint64(1); ref < 400_000; ref++ {
		k := memindex.Put
		if ref%2 == 0 {
			k = memindex.Delete
		}
		table.Insert([]byte("k"), ref, k)
		table.SetFloor(ref - 1)
	}
	done.Store(true)
	wg.Wait()
}

// TestCutUnderReaders cuts above positions that others are reading at.
func TestCutUnderReaders(t *testing.T) {
	r := newRand(t)
	table := memindex.New()
	m := newModel()
	ref := uint64(0)
	write := func(n int) {
		for range n {
			ref++
			k, kind := randomKey(r, 3000), memindex.Kind(r.IntN(3))
			table.Insert(k, ref, kind)
			m.insert(string(k), memindex.Version{Ref: ref, Kind: kind})
		}
	}
	write(5000)
	base := ref + 1
	want := m.state(base)
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range 2 {
		want := within(want, nil, nil, false, i == 0)
		wg.Go(func() {
			for !done.Load() {
				if got := scanAll(table, nil, nil, false, base, i == 0, 100); !slices.Equal(got, want) {
					t.Errorf("reverse %v: got %d entries, want %d", i == 0, len(got), len(want))
					return
				}
			}
		})
	}
	for range 60 {
		table.SetFloor(base)
		write(3000)
		ref = base + r.Uint64N(100)
		table.CutFrom(ref)
		m.cutFrom(ref)
	}
	done.Store(true)
	wg.Wait()
	if got, want := scanAll(table, nil, nil, false, ref, false, 100), m.state(ref); !slices.Equal(got, want) {
		t.Errorf("after the cuts: got %d entries, want %d", len(got), len(want))
	}
	if err := table.Check(); err != nil {
		t.Error(err)
	}
}
