package memindex_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"shiplog/engine/internal/memindex"
)

// newRand returns a generator whose seed is logged, and taken from
// MEMINDEX_SEED if that is set.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("MEMINDEX_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MEMINDEX_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomKey draws keys that collide, share long prefixes, end in zeros and
// contain each other.
func randomKey(r *rand.Rand, space int) []byte {
	n := r.IntN(space)
	switch r.IntN(6) {
	case 0:
		return bytes.Repeat([]byte{0}, n%20)
	case 1:
		return fmt.Appendf(nil, "%016d", n)
	case 2:
		return fmt.Appendf(nil, "user:%d:%s:%d", n%3, strings.Repeat("x", 40), n)
	case 3:
		return append(bytes.Repeat([]byte{0xff}, n%12), byte(n))
	case 4:
		return fmt.Appendf(bytes.Repeat([]byte("p"), n%30), "%d", n%7)
	default:
		return []byte(strconv.Itoa(n))
	}
}

// pair is a table beside its model.
type pair struct {
	t     *testing.T
	r     *rand.Rand
	table *memindex.Table
	model *model
	ref   uint64
	floor uint64
	space int
	late  bool // insert below the newest version at times
}

func newPair(t *testing.T, space int) *pair {
	return &pair{t: t, r: newRand(t), table: memindex.New(), model: newModel(), space: space}
}

func (p *pair) insert(key []byte, k memindex.Kind) {
	p.ref += 1 + p.r.Uint64N(3)
	p.table.Insert(key, p.ref, k)
	p.model.insert(string(key), memindex.Version{Ref: p.ref, Kind: k})
}

// step does one random operation on both.
func (p *pair) step() {
	switch n := p.r.IntN(1000); {
	case n < 20 && p.late:
		p.insertLate()
	case n < 600:
		p.insert(randomKey(p.r, p.space), memindex.Kind(p.r.IntN(2)))
	case n < 950:
		p.insert(randomKey(p.r, p.space), memindex.Delete)
	case n < 955:
		p.deleteRange()
	case n < 960:
		p.cut()
	default:
		p.floor += p.r.Uint64N(p.ref - p.floor + 2)
		p.table.SetFloor(p.floor)
	}
}

// insertLate adds a version at a position between older ones.
func (p *pair) insertLate() {
	v := memindex.Version{Ref: p.floor + p.r.Uint64N(p.ref-min(p.floor, p.ref)+1), Kind: memindex.Kind(p.r.IntN(3))}
	k := randomKey(p.r, p.space)
	p.table.Insert(k, v.Ref, v.Kind)
	p.model.insert(string(k), v)
}

func (p *pair) deleteRange() {
	lo, hi := randomKey(p.r, p.space), randomKey(p.r, p.space)
	bounded := p.r.IntN(4) > 0
	p.ref++
	p.model.deleteRange(string(lo), string(hi), bounded, p.ref)
	if !bounded {
		hi = nil
	}
	p.table.DeleteRange(lo, hi, p.ref)
}

func (p *pair) cut() {
	at := p.floor + p.r.Uint64N(p.ref-min(p.floor, p.ref)+2)
	p.table.CutFrom(at)
	p.model.cutFrom(at)
	p.ref = max(at, 1)
}

// check compares the two at a position that may still be asked for.
func (p *pair) check() {
	p.t.Helper()
	at := p.floor + p.r.Uint64N(p.ref-min(p.floor, p.ref)+3)
	want := p.model.state(at)
	lo, hi := randomKey(p.r, p.space), randomKey(p.r, p.space)
	if p.r.IntN(2) == 0 {
		lo, hi = nil, nil
	}
	loOpen, reverse := p.r.IntN(2) == 0, p.r.IntN(2) == 0
	if len(lo) == 0 {
		loOpen = false
	}
	got := scanAll(p.table, lo, hi, loOpen, at, reverse, 1+p.r.IntN(40))
	if want := within(want, lo, hi, loOpen, reverse); !slices.Equal(got, want) {
		p.t.Fatalf("scan [%q, %q) open %v reverse %v at %d:\n got %v\nwant %v", lo, hi, loOpen, reverse, at, got, want)
	}
	for range 20 {
		k := randomKey(p.r, p.space)
		v, ok := p.table.Get(k, at)
		ok = ok && v.Kind != memindex.Delete
		if wv, wok := p.model.get(string(k), at); ok != wok || ok && v != wv {
			p.t.Fatalf("get %q at %d: got %v %v, want %v %v", k, at, v, ok, wv, wok)
		}
	}
	if got, want := p.table.Len(), len(p.model.state(math.MaxUint64)); got != want {
		p.t.Fatalf("Len: got %d, want %d", got, want)
	}
}

func TestAgainstModel(t *testing.T) {
	for _, c := range []struct {
		name         string
		space, steps int
		mask         uint64
	}{
		{"few keys", 30, 6000, math.MaxUint64},
		{"late versions", 50, 10000, math.MaxUint64},
		{"many keys", 5000, 60000, math.MaxUint64},
		{"colliding hashes", 300, 8000, 0},
		{"colliding tags", 2000, 20000, 3<<56 | 1<<55 | 1<<24},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, c.space)
			p.late = c.name == "late versions"
			p.table.SetHashMask(c.mask)
			for i := range c.steps {
				p.step()
				if i%200 == 0 {
					p.check()
					if err := p.table.Check(); err != nil {
						t.Fatal(err)
					}
				}
			}
			p.table.Wait()
			p.check()
			if err := p.table.Check(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEmpty(t *testing.T) {
	table := memindex.New()
	if _, ok := table.Latest(nil); ok {
		t.Error("Latest found a key")
	}
	if got := scanAll(table, nil, nil, false, math.MaxUint64, false, 10); got != nil {
		t.Errorf("Scan: got %v", got)
	}
	if got := scanAll(table, nil, nil, false, math.MaxUint64, true, 10); got != nil {
		t.Errorf("reverse Scan: got %v", got)
	}
	table.DeleteRange(nil, nil, 5)
	table.CutFrom(0)
	if table.Len() != 0 {
		t.Errorf("Len: got %d", table.Len())
	}
}

func TestEmptyKey(t *testing.T) {
	table := memindex.New()
	table.Insert(nil, 1, memindex.Put)
	table.Insert([]byte{0}, 2, memindex.Put)
	for _, reverse := range []bool{false, true} {
		got := scanAll(table, nil, nil, false, 3, reverse, 1)
		if len(got) != 2 {
			t.Errorf("reverse %v: got %v", reverse, got)
		}
	}
	if got := scanAll(table, []byte{}, nil, true, 3, false, 1); len(got) != 1 {
		t.Errorf("above the empty key: got %v", got)
	}
	if got := scanAll(table, nil, []byte{}, false, 3, true, 1); len(got) != 0 {
		t.Errorf("below the empty key: got %v", got)
	}
}

// TestEmptyKeyEndsAHold puts the empty key where a descending scan lets go of
// the tree: it has to go on below that key, not from the top.
func TestEmptyKeyEndsAHold(t *testing.T) {
	for _, n := range []int{memindex.ScanHold, 2 * memindex.ScanHold} {
		table := memindex.New()
		for i := range n {
			key := fmt.Appendf(nil, "%08d", i)
			if i == 0 {
				key = nil
			}
			table.Insert(key, uint64(i), memindex.Put)
		}
		if got := scanAll(table, nil, nil, false, math.MaxUint64, true, 10*n); len(got) != n {
			t.Errorf("%d entries of %d keys", len(got), n)
		}
	}
}

// Versions of one key, around the floor and around a read's position.
func TestVersions(t *testing.T) {
	table := memindex.New()
	k := []byte("k")
	if _, ok := table.Get(k, 100); ok {
		t.Fatal("found before it was inserted")
	}
	table.Insert(k, 10, memindex.Put)
	table.Insert(k, 20, memindex.Delete)
	table.Insert(k, 30, memindex.PutTTL)
	table.Insert(k, 30, memindex.Put)
	table.Insert(k, 25, memindex.PutTTL)
	table.Insert(k, 5, memindex.PutTTL)
	for _, c := range []struct {
		at   uint64
		want memindex.Version
		ok   bool
	}{
		{5, memindex.Version{}, false},
		{6, memindex.Version{Ref: 5, Kind: memindex.PutTTL}, true},
		{10, memindex.Version{Ref: 5, Kind: memindex.PutTTL}, true},
		{11, memindex.Version{Ref: 10, Kind: memindex.Put}, true},
		{21, memindex.Version{Ref: 20, Kind: memindex.Delete}, true},
		{26, memindex.Version{Ref: 25, Kind: memindex.PutTTL}, true},
		{30, memindex.Version{Ref: 25, Kind: memindex.PutTTL}, true},
		{31, memindex.Version{Ref: 30, Kind: memindex.Put}, true},
		{math.MaxUint64, memindex.Version{Ref: 30, Kind: memindex.Put}, true},
	} {
		if v, ok := table.Get(k, c.at); v != c.want || ok != c.ok {
			t.Errorf("at %d: got %v %v, want %v %v", c.at, v, ok, c.want, c.ok)
		}
	}
	table.SetFloor(26)
	table.Insert(k, 40, memindex.Put)
	table.Wait()
	for at, want := range map[uint64]uint64{26: 25, 30: 25, 31: 30, 41: 40} {
		if v, _ := table.Get(k, at); v.Ref != want {
			t.Errorf("after SetFloor(26), at %d: got %d, want %d", at, v.Ref, want)
		}
	}
	if v, ok := table.Get(k, 25); ok {
		t.Errorf("version %v below the floor was kept although no reader needs it", v)
	}
}

func TestLargeKeys(t *testing.T) {
	p := newPair(t, 0)
	for i := range 300 {
		k := bytes.Repeat([]byte{'k'}, memindex.MaxKeyLen-p.r.IntN(3)*p.r.IntN(70))
		k[len(k)-1-p.r.IntN(40)] = byte(i)
		p.insert(k, memindex.Kind(p.r.IntN(3)))
		p.floor = p.ref / 2
		p.table.SetFloor(p.floor)
	}
	for _, at := range []uint64{p.floor, p.ref + 1} {
		for _, reverse := range []bool{false, true} {
			got := scanAll(p.table, nil, nil, false, at, reverse, 100)
			if want := within(p.model.state(at), nil, nil, false, reverse); !slices.Equal(got, want) {
				t.Fatalf("at %d reverse %v: got %d entries, want %d", at, reverse, len(got), len(want))
			}
		}
	}
	var c memindex.Chunk
	p.table.Scan(&c, nil, nil, false, p.ref+1, false, 1000)
	if c.Len() > 20 || !c.More() {
		t.Errorf("a chunk of %d of the longest keys, More %v", c.Len(), c.More())
	}
	if err := p.table.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestKeyTooLong(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	memindex.New().Insert(make([]byte, memindex.MaxKeyLen+1), 1, memindex.Put)
}

// Orders of insertion that take different ways through the tree.
func TestInsertOrders(t *testing.T) {
	const n = 40000
	r := newRand(t)
	perm := r.Perm(n)
	orders := map[string]func(i int) int{
		"ascending":   func(i int) int { return i },
		"descending":  func(i int) int { return n - 1 - i },
		"random":      func(i int) int { return perm[i] },
		"two streams": func(i int) int { return i/2 + i%2*n/2 },
		"inside out":  func(i int) int { return n/2 + (i%2*2-1)*((i+1)/2) - i%2 },
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			table := memindex.New()
			seen := map[int]bool{}
			for i := range n {
				seen[order(i)] = true
				table.Insert(fmt.Appendf(nil, "key-%08d", order(i)), uint64(i+1), memindex.Put)
				if r.IntN(3000) == 0 {
					var c memindex.Chunk
					table.Scan(&c, nil, nil, false, uint64(i+2), false, 1)
				}
			}
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			got := scanAll(table, nil, nil, false, n+1, false, 333)
			if len(got) != len(seen) {
				t.Fatalf("got %d keys, want %d", len(got), len(seen))
			}
			if !slices.IsSortedFunc(got, func(a, b item) int { return strings.Compare(a.key, b.key) }) {
				t.Fatal("keys out of order")
			}
		})
	}
}

// TestRefsOutOfOrder gives new keys lower refs than keys that came before
// them: as such, and after a cut.
func TestRefsOutOfOrder(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  uint64
	}{{"across keys", 0}, {"after a cut", 50}} {
		t.Run(c.name, func(t *testing.T) {
			table := memindex.New()
			table.Insert([]byte("a"), 10, memindex.Put)
			table.Insert([]byte("b"), 100, memindex.Put)
			if got := scanAll(table, nil, nil, false, 101, false, 10); len(got) != 2 {
				t.Fatalf("got %v", got)
			}
			if c.cut > 0 {
				table.CutFrom(c.cut)
			}
			table.Insert([]byte("c"), 60, memindex.Put)
			want := []item{{"a", memindex.Version{Ref: 10}}, {"c", memindex.Version{Ref: 60}}}
			if got := scanAll(table, nil, nil, false, 70, false, 10); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// TestSharedPrefixes inserts, in batches large enough for every way of
// sorting, keys that differ far behind, or only in length.
func TestSharedPrefixes(t *testing.T) {
	for _, c := range []struct {
		name string
		key  func(i int) []byte
	}{
		{"lengths", func(i int) []byte { return make([]byte, i) }},
		{"far behind", func(i int) []byte { return fmt.Appendf(bytes.Repeat([]byte("x"), 100), "%d", i) }},
		{"families", func(i int) []byte {
			return fmt.Appendf(bytes.Repeat([]byte{byte(i % 7)}, 20+i%3), "%020d", i)
		}},
		{"each longer", func(i int) []byte { return append(bytes.Repeat([]byte("abcdefgh"), i/3), byte(i%3)) }},
		{"high bytes", func(i int) []byte { return append(bytes.Repeat([]byte{0xff}, 8+i%9), make([]byte, i/9)...) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRand(t)
			table, m := memindex.New(), newModel()
			const n = 3000 / min(scale, 3)
			for i, k := range r.Perm(n) {
				table.Insert(c.key(k), uint64(i), memindex.Put)
				m.insert(string(c.key(k)), memindex.Version{Ref: uint64(i)})
			}
			for _, reverse := range []bool{false, true} {
				got := scanAll(table, nil, nil, false, n, reverse, 100)
				if !slices.Equal(got, within(m.state(n), nil, nil, false, reverse)) {
					t.Errorf("reverse %v: wrong order", reverse)
				}
			}
			all := m.state(n)
			for range 50 {
				lo := c.key(r.IntN(n))
				got := scanAll(table, lo, nil, true, n, false, n)
				if want := within(all, lo, nil, true, false); !slices.Equal(got, want) {
					t.Fatalf("above %q: got %d entries, want %d", lo, len(got), len(want))
				}
			}
			if err := table.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKeyBehindLooseOnes inserts a key behind a leaf that holds loose entries,
// and shares less with them than they share with each other.
func TestKeyBehindLooseOnes(t *testing.T) {
	table, m := memindex.New(), newModel()
	ref := uint64(0)
	insert := func(key string) {
		ref++
		table.Insert([]byte(key), ref, memindex.Put)
		m.insert(key, memindex.Version{Ref: ref})
	}
	for i := range 2000 {
		insert(fmt.Sprintf("account:%08d", 2*i))
	}
	for _, key := range []string{"account:00003801", "account:00003803", "b", "a", "account:00003999"} {
		insert(key)
		for _, reverse := range []bool{false, true} {
			got := scanAll(table, nil, nil, false, ref+1, reverse, 77)
			if !slices.Equal(got, within(m.state(ref+1), nil, nil, false, reverse)) {
				t.Fatalf("reverse %v: wrong after %q", reverse, key)
			}
		}
	}
	if err := table.Check(); err != nil {
		t.Error(err)
	}
}
