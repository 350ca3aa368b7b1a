package index_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"shiplog/engine/internal/index"
	"shiplog/engine/internal/memindex"
	"shiplog/wal"
	"shiplog/wal/vfs"
)

// owner plays the engine: it numbers operations, keeps all versions of each key, and pins positions.
type owner struct {
	t        testing.TB
	mu       sync.Mutex // guards stable and pins
	stable   wal.LSN
	pins     map[wal.LSN]int
	at       wal.LSN // end of what was inserted
	versions map[string][]memindex.Version
	dir      string
	opts     index.Options
	x        *index.Index
}

func newOwner(t testing.TB) *owner {
	o := &owner{t: t, pins: map[wal.LSN]int{}, versions: map[string][]memindex.Version{}, dir: t.TempDir(), at: 8}
	o.opts = index.Options{
		FS: vfs.OS, Dir: o.dir, Memory: 1 << 30, Logger: slog.New(slog.DiscardHandler),
		Valid: func(to wal.LSN, mark []byte) bool {
			return string(mark) == fmt.Sprint("mark ", uint64(to)) && to <= o.at
		},
		Stable: func(to wal.LSN) bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			return to <= o.stable
		},
		Pins: func(dst []wal.LSN, to wal.LSN) []wal.LSN {
			o.mu.Lock()
			defer o.mu.Unlock()
			for p := range o.pins {
				if p < to {
					dst = append(dst, p)
				}
			}
			return dst
		},
		Failed: func(error) {}, Damaged: func(error) {},
	}
	return o
}

// open opens the index and inserts what its runs lack.
func (o *owner) open() {
	o.t.Helper()
	x, from, mark, err := index.Open(o.opts)
	if err != nil {
		o.t.Fatal(err)
	}
	if from > 0 && string(mark) != fmt.Sprint("mark ", uint64(from)) {
		o.t.Fatalf("from %v with mark %q", from, mark)
	}
	o.x = x
	o.replay(from)
}

// replay inserts all versions at or above from again, in their order.
func (o *owner) replay(from wal.LSN) {
	for _, p := range o.log(from) {
		o.x.Insert([]byte(p.key), p.v.Ref, p.v.Kind)
	}
}

type op struct {
	key string
	v   memindex.Version
}

// log lists all versions at or above from in their order.
func (o *owner) log(from wal.LSN) []op {
	var ops []op
	for key, vs := range o.versions {
		for _, v := range vs {
			if wal.Ref(v.Ref).LSN() >= from {
				ops = append(ops, op{key, v})
			}
		}
	}
	slices.SortFunc(ops, func(a, b op) int {
		if a.v.Ref != b.v.Ref {
			return int(int64(a.v.Ref - b.v.Ref))
		}
		return strings.Compare(a.key, b.key)
	})
	return ops
}

func (o *owner) next() uint64 {
	ref := uint64(wal.MakeRef(o.at, 0))
	o.at += 8
	return ref
}

func (o *owner) insert(key string, kind memindex.Kind) {
	v := memindex.Version{Ref: o.next(), Kind: kind}
	o.versions[key] = append(o.versions[key], v)
	o.x.Insert([]byte(key), v.Ref, kind)
}

func (o *owner) deleteRange(lo, hi string) {
	ref := o.next()
	for key, vs := range o.versions {
		if key >= lo && (hi == "" || key < hi) && vs[len(vs)-1].Kind != memindex.Delete {
			o.versions[key] = append(vs, memindex.Version{Ref: ref, Kind: memindex.Delete})
		}
	}
	end := []byte(hi)
	if hi == "" {
		end = nil
	}
	o.x.DeleteRange([]byte(lo), end, ref)
}

func (o *owner) freeze(stable bool) {
	if stable {
		o.mu.Lock()
		o.stable = o.at
		o.mu.Unlock()
	}
	o.x.Freeze(o.at, fmt.Appendf(nil, "mark %d", uint64(o.at)))
}

// visible is what the model says of a key at a position.
func (o *owner) visible(key string, at wal.LSN) (memindex.Version, bool) {
	for _, v := range slices.Backward(o.versions[key]) {
		if wal.Ref(v.Ref).LSN() < at {
			return v, v.Kind != memindex.Delete
		}
	}
	return memindex.Version{}, false
}

func (o *owner) sorted(at wal.LSN, lo, hi string) (keys []string) {
	for k := range o.versions {
		if _, ok := o.visible(k, at); ok && k >= lo && (hi == "" || k < hi) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// check compares look-ups and scans at a position with the model.
func (o *owner) check(rng *rand.Rand, at wal.LSN) {
	o.t.Helper()
	ref := uint64(wal.MakeRef(at, 0))
	for key := range o.versions {
		want, live := o.visible(key, at)
		got, ok, err := o.x.Get([]byte(key), ref)
		if err != nil {
			o.t.Fatal(err)
		}
		if ok = ok && got.Kind != memindex.Delete; ok != live || live && got != want {
			o.t.Fatalf("get %q at %v: %v %v, want %v %v", key, at, got, ok, want, live)
		}
	}
	lo, hi := "", ""
	if rng.IntN(2) == 0 {
		lo = fmt.Sprintf("k%03d", rng.IntN(400))
	}
	if rng.IntN(2) == 0 {
		hi = fmt.Sprintf("k%03d", rng.IntN(400))
	}
	if hi != "" && hi < lo {
		lo, hi = hi, lo
	}
	o.checkScan(at, lo, hi, rng.IntN(2) == 0, 1+rng.IntN(50))
}

func (o *owner) checkScan(at wal.LSN, lo, hi string, reverse bool, limit int) {
	o.t.Helper()
	want := o.sorted(at, lo, hi)
	if reverse {
		slices.Reverse(want)
	}
	from, to, open := []byte(lo), []byte(hi), false
	if hi == "" {
		to = nil
	}
	var c memindex.Chunk
	var got []string
	for {
		if err := o.x.Scan(&c, from, to, open, uint64(wal.MakeRef(at, 0)), reverse, limit); err != nil {
			o.t.Fatal(err)
		}
		for i := range c.Len() {
			got = append(got, string(c.Key(i)))
			if v, _ := o.visible(string(c.Key(i)), at); v != c.Version(i) {
				o.t.Fatalf("scan at %v: %q is %v, want %v", at, c.Key(i), c.Version(i), v)
			}
		}
		if !c.More() {
			break
		}
		if edge := bytes.Clone(c.Key(c.Len() - 1)); reverse {
			to = edge
		} else {
			from, open = edge, true
		}
	}
	if !slices.Equal(got, want) {
		o.t.Fatalf("scan of [%q, %q) at %v, reverse %v:\n got %q\nwant %q", lo, hi, at, reverse, got, want)
	}
}

func seeds(n int) []uint64 {
	var out []uint64
	if s := os.Getenv("SHIPLOG_SEED"); s != "" {
		var seed uint64
		fmt.Sscan(s, &seed)
		return []uint64{seed}
	}
	if testing.Short() {
		n = (n + 3) / 4
	}
	for i := range n {
		out = append(out, uint64(time.Now().UnixNano())%1e9+uint64(i))
	}
	return out
}

// TestModel runs random operations, freezes, flushes, merges, pins, cuts and reopens against a model that keeps everything.
func TestModel(t *testing.T) {
	for _, seed := range seeds(8) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runModel(newOwner(t), rand.New(rand.NewPCG(seed, 3)))
		})
	}
}

func runModel(o *owner, rng *rand.Rand) {
	o.open()
	defer func() { o.x.Close() }()
	var pins []wal.LSN
	runs := false
	for range 300 {
		for range rng.IntN(30) {
			key := fmt.Sprintf("k%03d", rng.IntN(400))
			switch rng.IntN(12) {
			case 0, 1, 2:
				o.insert(key, memindex.Delete)
			case 3:
				o.insert(key, memindex.PutTTL)
			case 4:
				if rng.IntN(6) == 0 {
					o.deleteRange(key, fmt.Sprintf("k%03d", rng.IntN(400)))
				}
			default:
				o.insert(key, memindex.Put)
			}
		}
		switch rng.IntN(10) {
		case 0, 1, 2:
			o.freeze(true)
		case 3:
			o.freeze(false)
		case 4:
			pins = append(pins, o.pin())
		case 5:
			if len(pins) > 0 {
				i := rng.IntN(len(pins))
				o.unpin(pins[i])
				pins = slices.Delete(pins, i, i+1)
			}
		case 6:
			if rng.IntN(4) == 0 {
				o.x.Close()
				for _, p := range pins { // a reopened index knows no pins
					o.unpin(p)
				}
				pins = nil
				o.open()
			}
		case 7:
			o.cut(rng, &pins)
		case 8:
			o.raiseFloor()
		}
		o.check(rng, o.at)
		for _, p := range pins {
			o.check(rng, p)
		}
		runs = runs || o.x.Stats().Runs > 0
	}
	if !runs {
		o.t.Error("there was never a run")
	}
}

func (o *owner) pin() wal.LSN {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pins[o.at]++
	o.stable = o.at // what is pinned is visible
	return o.at
}

// raiseFloor promises that nobody reads below the lowest pin, or below all that is stable.
func (o *owner) raiseFloor() {
	o.mu.Lock()
	floor := o.stable
	for p := range o.pins {
		floor = min(floor, p)
	}
	o.mu.Unlock()
	o.x.SetFloor(uint64(wal.MakeRef(floor, 0)))
}

func (o *owner) unpin(p wal.LSN) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pins[p]--; o.pins[p] == 0 {
		delete(o.pins, p)
	}
}

// cut goes back to a place at or above all that is stable, or, now and then, below it.
func (o *owner) cut(rng *rand.Rand, pins *[]wal.LSN) {
	o.mu.Lock()
	low := o.stable
	if rng.IntN(3) == 0 {
		low = 8
		for _, p := range *pins {
			low = max(low, p)
		}
	}
	o.mu.Unlock()
	if low >= o.at {
		return
	}
	to := low + wal.LSN(rng.IntN(int(o.at-low)/8))*8
	for key, vs := range o.versions {
		o.versions[key] = slices.DeleteFunc(vs, func(v memindex.Version) bool { return wal.Ref(v.Ref).LSN() >= to })
		if len(o.versions[key]) == 0 {
			delete(o.versions, key)
		}
	}
	o.mu.Lock()
	o.at, o.stable = to, min(o.stable, to)
	o.mu.Unlock()
	from, _, err := o.x.CutFrom(to)
	if err != nil {
		o.t.Fatal(err)
	}
	if from < to {
		o.replay(from)
	}
}

// TestMergesKeepRunsFew: many small runs become few, and their files go.
func TestMergesKeepRunsFew(t *testing.T) {
	o := newOwner(t)
	o.open()
	defer o.x.Close()
	for i := range 60 {
		for j := range 50 {
			o.insert(fmt.Sprintf("k%03d", (i*37+j*11)%400), memindex.Put)
		}
		o.freeze(true)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		st := o.x.Stats()
		names, err := filepath.Glob(filepath.Join(o.dir, "*.run"))
		if err != nil {
			t.Fatal(err)
		}
		if st.Tables == 1 && st.Runs <= 8 && len(names) == st.Runs {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, files %q", st, names)
		}
		time.Sleep(time.Millisecond)
	}
	o.check(rand.New(rand.NewPCG(1, 1)), o.at)
}

// TestUnstableStaysInMemory: what may still be cut from the log is in no run, however often it is asked for.
func TestUnstableStaysInMemory(t *testing.T) {
	o := newOwner(t)
	o.open()
	defer func() { o.x.Close() }()
	for i := range 100 {
		o.insert(fmt.Sprint("k", i), memindex.Put)
	}
	mark := fmt.Appendf(nil, "mark %d", uint64(o.at))
	for range 3 {
		o.x.Settle(o.at, mark)
		if s := o.x.Stats(); s.Runs != 0 || s.Tables != 2 {
			t.Fatalf("%d runs and %d tables, nothing is stable", s.Runs, s.Tables)
		}
	}
	o.mu.Lock()
	o.stable = o.at
	o.mu.Unlock()
	o.x.Settle(o.at, mark)
	if s := o.x.Stats(); s.Runs == 0 {
		t.Fatal("no run, and everything is stable")
	}
}

// TestDamagedFiles: whatever has become of the files, Open leaves out what is damaged, and what it names is right.
func TestDamagedFiles(t *testing.T) {
	build := func(t *testing.T) *owner {
		o := newOwner(t)
		o.open()
		for i := range 3 {
			for j := range 100 {
				o.insert(fmt.Sprintf("k%03d", (i*37+j)%400), memindex.Put)
			}
			o.freeze(true)
			for o.x.Stats().Tables > 1 {
				time.Sleep(time.Millisecond)
			}
		}
		o.x.Close()
		return o
	}
	runs := func(t *testing.T, o *owner) []string {
		names, err := filepath.Glob(filepath.Join(o.dir, "*.run"))
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		return names
	}
	for name, damage := range map[string]func(t *testing.T, o *owner){
		"nothing":           func(*testing.T, *owner) {},
		"manifest missing":  func(t *testing.T, o *owner) { must(t, os.Remove(filepath.Join(o.dir, "MANIFEST"))) },
		"manifest cut":      func(t *testing.T, o *owner) { must(t, os.Truncate(filepath.Join(o.dir, "MANIFEST"), 100)) },
		"manifest flipped":  func(t *testing.T, o *owner) { flip(t, filepath.Join(o.dir, "MANIFEST"), 60) },
		"first run missing": func(t *testing.T, o *owner) { must(t, os.Remove(runs(t, o)[0])) },
		"last run missing":  func(t *testing.T, o *owner) { r := runs(t, o); must(t, os.Remove(r[len(r)-1])) },
		"last run cut":      func(t *testing.T, o *owner) { r := runs(t, o); must(t, os.Truncate(r[len(r)-1], 200)) },
		"stray run": func(t *testing.T, o *owner) {
			must(t, os.WriteFile(filepath.Join(o.dir, "0-0-99.run"), []byte("x"), 0o600))
		},
		"run of another log": func(_ *testing.T, o *owner) { o.opts.Valid = func(wal.LSN, []byte) bool { return false } },
		"directory emptied":  func(t *testing.T, o *owner) { must(t, os.RemoveAll(o.dir)) },
		"half a new manifest": func(t *testing.T, o *owner) {
			must(t, os.WriteFile(filepath.Join(o.dir, "MANIFEST.new"), []byte("sh"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := build(t)
			damage(t, o)
			o.open()
			defer o.x.Close()
			o.check(rand.New(rand.NewPCG(1, 1)), o.at)
			names, err := os.ReadDir(o.dir)
			if err != nil || len(names) != 1+o.x.Stats().Runs && (len(names) != 0 || o.x.Stats().Runs != 0) {
				t.Errorf("%d files for %d runs: %v", len(names), o.x.Stats().Runs, err)
			}
		})
	}
}

// TestFullDisk: while runs cannot be written the writer goes on, and when they can again they are.
func TestFullDisk(t *testing.T) {
	o := newOwner(t)
	fs := &failing{FS: vfs.OS}
	o.opts.FS = fs
	told := make(chan error, 1000)
	o.opts.Failed = func(err error) { told <- err }
	o.open()
	defer o.x.Close()
	fs.fail(errors.New("no space"))
	for i := range 10 {
		for j := range 20 {
			o.insert(fmt.Sprintf("k%03d", i*20+j), memindex.Put)
		}
		o.freeze(true)
	}
	o.check(rand.New(rand.NewPCG(1, 1)), o.at)
	next := func() error {
		select {
		case err := <-told:
			return err
		case <-time.After(time.Minute):
			t.Fatal("it is not told")
			return nil
		}
	}
	if err := next(); err == nil {
		t.Error("told that runs can be written")
	}
	fs.fail(nil)
	if err := next(); err != nil {
		t.Errorf("told of %v", err)
	}
	for end := time.Now().Add(time.Minute); o.x.Stats().Tables > 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d tables are left", o.x.Stats().Tables)
		}
	}
	o.check(rand.New(rand.NewPCG(1, 1)), o.at)
	select {
	case err := <-told:
		t.Errorf("told of %v once more", err)
	default:
	}
}

type failing struct {
	vfs.FS
	mu  sync.Mutex
	err error
}

func (f *failing) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil && flag&os.O_CREATE != 0 {
		return nil, f.err
	}
	return f.FS.OpenFile(name, flag, perm)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, path string, off int) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	b[off] ^= 4
	must(t, os.WriteFile(path, b, 0o600))
}
