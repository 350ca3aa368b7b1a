package run_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// pair is what an iterator stands on.
type pair struct {
	key string
	v   memindex.Version
}

func order(a, b pair) int {
	if c := strings.Compare(a.key, b.key); c != 0 {
		return c
	}
	switch {
	case a.v.Ref > b.v.Ref:
		return -1
	case a.v.Ref < b.v.Ref:
		return 1
	}
	return 0
}

// sorted puts pairs in the order of a run and drops those that stand twice.
func sorted(pairs []pair) []pair {
	slices.SortFunc(pairs, order)
	return slices.CompactFunc(pairs, func(a, b pair) bool { return order(a, b) == 0 })
}

const runPath = "/a.run"

// write makes a run of sorted pairs.
func write(t testing.TB, fsys vfs.FS, path string, pairs []pair, ranges []run.RangeDelete, o run.WriterOptions) run.Info {
	t.Helper()
	if o.To == 0 {
		o.To = 1 << 40
	}
	w, err := run.NewWriter(fsys, path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, p := range pairs {
		if err := w.Add([]byte(p.key), p.v); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range ranges {
		if err := w.AddRangeDelete(d); err != nil {
			t.Fatal(err)
		}
	}
	info, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func open(t testing.TB, fsys vfs.FS, path string) *run.Run {
	t.Helper()
	r, err := run.Open(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// checkGet compares one point look-up with the model.
func checkGet(t testing.TB, r *run.Run, pairs []pair, key string, at uint64) {
	var want pair
	i, _ := slices.BinarySearchFunc(pairs, pair{key, memindex.Version{Ref: at}}, order)
	if i < len(pairs) && pairs[i].key == key && pairs[i].v.Ref == at {
		i++
	}
	found := i < len(pairs) && pairs[i].key == key
	if found {
		want = pairs[i]
	}
	v, ok, err := r.Get([]byte(key), at)
	if err != nil || ok != found || v != want.v {
		t.Fatalf("Get(%.40q, %d) = %v, %v, %v; want %v, %v", key, at, v, ok, err, want.v, found)
	}
}

func checkAt(t testing.TB, it *run.Iter, pairs []pair, i int, what string) {
	if it.Err() != nil {
		t.Fatalf("%s: %v", what, it.Err())
	}
	if i < 0 || i >= len(pairs) {
		if it.Valid() {
			t.Fatalf("%s: stands on %.40q, want the end", what, it.Key())
		}
		return
	}
	if !it.Valid() {
		t.Fatalf("%s: at the end, want pair %d, %.40q", what, i, pairs[i].key)
	}
	if want := &pairs[i]; string(it.Key()) != want.key || it.Version() != want.v {
		t.Fatalf("%s: got %.40q %v, want pair %d, %.40q %v", what, it.Key(), it.Version(), i, want.key, want.v)
	}
}

// checkAll compares everything that a run answers with the model.
func checkAll(t testing.TB, rng *rand.Rand, r *run.Run, pairs []pair) {
	t.Helper()
	it := r.NewIter()
	it.First()
	for i := range pairs {
		checkAt(t, it, pairs, i, "forward")
		it.Next()
	}
	checkAt(t, it, pairs, len(pairs), "forward")
	it.Last()
	for i := len(pairs) - 1; i >= 0; i-- {
		checkAt(t, it, pairs, i, "backward")
		it.Prev()
	}
	checkAt(t, it, pairs, -1, "backward")

	try := func(key string) {
		for _, at := range []uint64{0, 1, rng.Uint64N(1 << 45), 1<<64 - 1} {
			checkGet(t, r, pairs, key, at)
		}
		i, _ := slices.BinarySearchFunc(pairs, key, func(p pair, k string) int {
			if p.key < k {
				return -1
			}
			return 1
		})
		it.SeekGE([]byte(key))
		checkAt(t, it, pairs, i, fmt.Sprintf("SeekGE(%.40q)", key))
		it.SeekLT([]byte(key))
		checkAt(t, it, pairs, i-1, fmt.Sprintf("SeekLT(%.40q)", key))
		if it.Valid() { // a walk that turns around
			j := i - 1
			for range 40 {
				if rng.IntN(3) > 0 == (i%2 == 0) {
					j++
					it.Next()
				} else {
					j--
					it.Prev()
				}
				checkAt(t, it, pairs, j, "walk")
				if !it.Valid() {
					break
				}
			}
		}
	}
	tries := 300
	if len(pairs) > 100_000 || len(pairs) > 0 && len(pairs[0].key) > 1000 {
		tries = 30 // each compares much
	}
	for range tries {
		key := ""
		if len(pairs) > 0 {
			p := pairs[rng.IntN(len(pairs))]
			key = p.key
			checkGet(t, r, pairs, key, p.v.Ref)
			checkGet(t, r, pairs, key, p.v.Ref+1)
		}
		try(key)
		try(neighbour(rng, key))
	}
	try("")
	if err := r.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// neighbour returns a key close to another one.
func neighbour(rng *rand.Rand, key string) string {
	b := []byte(key)
	switch n := len(b); {
	case rng.IntN(4) == 0 && n < memindex.MaxKeyLen:
		return key + "\x00"
	case n == 0:
		return string([]byte{byte(rng.Uint32())})
	case rng.IntN(3) == 0:
		return key[:n-1]
	case rng.IntN(2) == 0:
		b[n-1] += byte(rng.IntN(3)) - 1
	default:
		b[rng.IntN(n)] ^= 1 << rng.IntN(8)
	}
	return string(b)
}

// shapes are ways to make keys.
var shapes = []struct {
	name string
	n    int
	key  func(rng *rand.Rand) string
}{
	{"random", 80_000, func(rng *rand.Rand) string {
		return string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, rng.Uint64()), rng.Uint64()))
	}},
	{"counter", 20_000, func(rng *rand.Rand) string { return fmt.Sprintf("user:%012d", rng.IntN(40_000)) }},
	{"binary counter", 20_000, func(rng *rand.Rand) string {
		return string(binary.BigEndian.AppendUint64([]byte("account:"), rng.Uint64N(100_000)))
	}},
	{"tiny alphabet", 5_000, func(rng *rand.Rand) string {
		b := make([]byte, rng.IntN(14))
		for i := range b {
			b[i] = byte(rng.IntN(3)) * 127
		}
		return string(b)
	}},
	{"tables", 20_000, func(rng *rand.Rand) string {
		return fmt.Sprintf("%s:%d:field-%c", []string{"a", "orders/2026/11", "orders/2026/12", "z-something-quite-long"}[rng.IntN(4)],
			rng.IntN(5000), 'a'+rune(rng.IntN(8)))
	}},
	{"one key", 6_000, func(rng *rand.Rand) string { return "the only key" }},
	{"versions over index blocks", 250_000, func(rng *rand.Rand) string { return "key-" + "aab"[rng.IntN(3):][:1] }},
	{"few keys", 10_000, func(rng *rand.Rand) string { return fmt.Sprintf("key-%c", 'a'+rune(rng.IntN(7))) }},
	{"around a page", 150, func(rng *rand.Rand) string {
		b := bytes.Repeat([]byte{byte('a' + rng.IntN(2))}, 4000+rng.IntN(120))
		b[rng.IntN(len(b))]++
		return string(b)
	}},
	{"long", 25, func(rng *rand.Rand) string {
		b := bytes.Repeat([]byte{'x'}, memindex.MaxKeyLen-rng.IntN(3))
		b[rng.IntN(len(b))] = byte(rng.Uint32())
		return string(b)
	}},
	{"long and alike", 300, func(rng *rand.Rand) string {
		return strings.Repeat("x", memindex.MaxKeyLen-4) + fmt.Sprint(rng.IntN(1000))
	}},
	{"mixed", 3_000, func(rng *rand.Rand) string {
		b := make([]byte, 1<<rng.IntN(12))
		for i := range b {
			b[i] = "ab"[rng.IntN(2)]
		}
		return string(b)
	}},
	{"long common", 3_000, func(rng *rand.Rand) string { return strings.Repeat("p", 300) + fmt.Sprint(rng.IntN(100_000)) }},
	{"empty key", 3, func(*rand.Rand) string { return "" }},
	{"none", 0, nil},
}

// someVersion returns a version with a Ref as the log makes them.
func someVersion(rng *rand.Rand) memindex.Version {
	return memindex.Version{Ref: rng.Uint64N(1 << 45), Kind: memindex.Kind(rng.IntN(3))}
}

func TestModel(t *testing.T) {
	for _, s := range shapes {
		if testing.Short() && s.n > 100_000 {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			most, seeds := s.n, uint64(4)
			if testing.Short() {
				most, seeds = (most+3)/4, 2
			}
			for seed := range seeds {
				rng := rand.New(rand.NewPCG(seed, 1))
				n := most
				if seed > 0 && n > 0 {
					n = 1 + rng.IntN(n)
				}
				pairs := make([]pair, n)
				for i := range pairs {
					pairs[i] = pair{s.key(rng), someVersion(rng)}
					if seed == 1 { // as a load in order does
						pairs[i].v.Ref = uint64(i) * 130
					}
				}
				pairs = sorted(pairs)
				disk := waltest.NewDisk()
				info := write(t, disk, runPath, pairs, nil, run.WriterOptions{Expected: uint64(n), From: seed << 30})
				r := open(t, disk, runPath)
				if got := r.Info(); got != info {
					t.Fatalf("opened: %+v, written: %+v", got, info)
				}
				checkInfo(t, r, pairs)
				checkAll(t, rng, r, pairs)
			}
		})
	}
}

func checkInfo(t *testing.T, r *run.Run, pairs []pair) {
	t.Helper()
	var want run.Info
	for i, p := range pairs {
		if i == 0 {
			want.MinRef = p.v.Ref
		}
		want.MinRef, want.MaxRef = min(want.MinRef, p.v.Ref), max(want.MaxRef, p.v.Ref)
		if i == 0 || pairs[i-1].key != p.key {
			want.Keys++
		}
		if p.v.Kind == memindex.Delete {
			want.Deletes++
		}
	}
	want.Entries = uint64(len(pairs))
	got := r.Info()
	want.From, want.To, want.Size, want.Checksum = got.From, got.To, got.Size, got.Checksum
	if got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if n := len(pairs); n > 0 && (string(r.Smallest()) != pairs[0].key || string(r.Largest()) != pairs[n-1].key) {
		t.Fatalf("keys from %.40q to %.40q, want %.40q to %.40q", r.Smallest(), r.Largest(), pairs[0].key, pairs[n-1].key)
	}
}
