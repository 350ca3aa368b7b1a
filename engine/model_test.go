package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"shiplog/engine"
)

// model is what the database should hold: the plain thing.
type model map[string]string

func (m model) sorted(lo, hi string) []string {
	var out []string
	for k := range m {
		if k >= lo && (hi == "" || k < hi) {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// TestModel runs random batches, iterators in both directions, snapshots and reopens against the
// model. The seed is printed; SHIPLOG_SEED reruns it.
func TestModel(t *testing.T) {
	for _, seed := range seeds(t, 8) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			if rng.IntN(4) > 0 {
				defer engine.FreezeEvery(1 + rng.IntN(400))()
			}
			runModel(t, rng)
		})
	}
}

func runModel(t *testing.T, rng *rand.Rand) {
	opts := &engine.Options{
		Commit: engine.Written, SegmentSize: 64 << 10 << rng.IntN(3),
		Compression: engine.Compression(rng.IntN(3)),
	}
	dir := t.TempDir()
	db := open(t, dir, opts)
	m := model{}
	key := func() string { return strings.Repeat("k", rng.IntN(3)) + fmt.Sprint(rng.IntN(300)) }
	type pinned struct {
		snap *engine.Snapshot
		m    model
	}
	var snaps []pinned
	for step := range 400 {
		b := db.NewBatch()
		for range rng.IntN(20) + 1 {
			k := key()
			switch rng.IntN(10) {
			case 0, 1, 2:
				b.Delete([]byte(k))
				delete(m, k)
			case 3:
				lo, hi := key(), key()
				if hi < lo {
					lo, hi = hi, lo
				}
				b.DeleteRange([]byte(lo), []byte(hi))
				for _, k := range m.sorted(lo, hi) {
					delete(m, k)
				}
			default:
				v := strings.Repeat(fmt.Sprint(step), rng.IntN(200)*(1+rng.IntN(40)/39*100))
				b.Put([]byte(k), []byte(v))
				m[k] = v
			}
		}
		if _, err := db.Commit(ctx, b, engine.Default); err != nil {
			t.Fatal(err)
		}
		switch rng.IntN(20) {
		case 0:
			snaps = append(snaps, pinned{db.Snapshot(), maps.Clone(m)})
		case 1:
			for _, p := range snaps {
				compareAll(t, rng, p.snap.NewIter, p.snap.Get, p.m)
				p.snap.Close()
			}
			snaps = nil
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			db = open(t, dir, opts)
		case 2, 3:
			compareAll(t, rng, db.NewIter, db.Get, m)
		}
	}
	for _, p := range snaps {
		compareAll(t, rng, p.snap.NewIter, p.snap.Get, p.m)
		p.snap.Close()
	}
	compareAll(t, rng, db.NewIter, db.Get, m)
}

func compareAll(t *testing.T, rng *rand.Rand, iter func(*engine.IterOptions) *engine.Iterator, get func([]byte) ([]byte, error), m model) {
	t.Helper()
	for range 20 {
		k := fmt.Sprint(rng.IntN(300))
		v, err := get([]byte(k))
		want, ok := m[k]
		if ok && (err != nil || string(v) != want) || !ok && !errors.Is(err, engine.ErrNotFound) {
			t.Fatalf("Get(%q) = %d bytes, %v; want %d, %v", k, len(v), err, len(want), ok)
		}
	}
	o := &engine.IterOptions{}
	if rng.IntN(2) == 0 {
		o.Lower = []byte(fmt.Sprint(rng.IntN(300)))
	}
	if rng.IntN(2) == 0 {
		o.Upper = []byte("k" + fmt.Sprint(rng.IntN(300)))
	}
	want := m.sorted(string(o.Lower), string(o.Upper))
	walk(t, rng, iter(o), m, want)
}

// walk moves an iterator at random, over the sorted keys that it should see.
func walk(t *testing.T, rng *rand.Rand, it *engine.Iterator, m model, want []string) {
	t.Helper()
	defer it.Close()
	at, ok := 0, it.First()
	check := func(what string) {
		t.Helper()
		in := at >= 0 && at < len(want)
		if ok != in || it.Valid() != in {
			t.Fatalf("%s: valid = %v, want %v (%v)", what, ok, in, it.Err())
		}
		if in && (string(it.Key()) != want[at] || !bytes.Equal(it.Value(), []byte(m[want[at]]))) {
			t.Fatalf("%s: at %q with %d bytes, want %q with %d", what, it.Key(), len(it.Value()), want[at], len(m[want[at]]))
		}
	}
	check("First")
	for range 60 {
		switch op := rng.IntN(12); {
		case op == 0:
			at, ok = 0, it.First()
			check("First")
		case op == 1:
			at, ok = len(want)-1, it.Last()
			check("Last")
		case op == 2:
			k := fmt.Sprint(rng.IntN(300))
			at, ok = search(want, k), it.SeekGE([]byte(k))
			check("SeekGE " + k)
		case op == 3:
			k := "k" + fmt.Sprint(rng.IntN(300))
			at, ok = search(want, k)-1, it.SeekLT([]byte(k))
			check("SeekLT " + k)
		case op < 8 && it.Valid():
			at, ok = at+1, it.Next()
			check("Next")
		case it.Valid():
			at, ok = at-1, it.Prev()
			check("Prev")
		}
	}
	var got []string
	for ok := it.First(); ok; ok = it.Next() {
		got = append(got, string(it.Key()))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("forward: %d keys, want %d", len(got), len(want))
	}
	got = got[:0]
	for ok := it.Last(); ok; ok = it.Prev() {
		got = append(got, string(it.Key()))
	}
	slices.Reverse(got)
	if !slices.Equal(got, want) {
		t.Fatalf("backward: %d keys, want %d", len(got), len(want))
	}
}

func search(keys []string, k string) int {
	i, _ := slices.BinarySearch(keys, k)
	return i
}
