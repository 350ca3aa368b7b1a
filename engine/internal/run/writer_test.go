package run_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

func TestWriterChecksOrder(t *testing.T) {
	put := func(ref uint64) memindex.Version { return memindex.Version{Ref: ref} }
	for _, c := range []struct {
		name string
		a, b pair
	}{
		{"key falls", pair{"b", put(1)}, pair{"a", put(1)}},
		{"key is a prefix", pair{"ab", put(1)}, pair{"a", put(1)}},
		{"ref rises", pair{"a", put(1)}, pair{"a", put(2)}},
		{"twice", pair{"a", put(1)}, pair{"a", put(1)}},
		{"empty key twice", pair{"", put(1)}, pair{"", put(1)}},
	} {
		w, err := run.NewWriter(waltest.NewDisk(), runPath, run.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add([]byte(c.a.key), c.a.v); err != nil {
			t.Fatal(err)
		}
		if err := w.Add([]byte(c.b.key), c.b.v); !errors.Is(err, run.ErrOrder) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := w.Finish(); !errors.Is(err, run.ErrOrder) {
			t.Errorf("%s: Finish: %v", c.name, err)
		}
		w.Abort()
	}
}

func TestWriterLimits(t *testing.T) {
	disk := waltest.NewDisk()
	w, err := run.NewWriter(disk, runPath, run.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.NewWriter(disk, runPath, run.WriterOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second writer of the file: %v", err)
	}
	if err := w.Add(make([]byte, memindex.MaxKeyLen+1), memindex.Version{}); !errors.Is(err, run.ErrTooLarge) {
		t.Errorf("long key: %v", err)
	}
	w.Abort()
	w.Abort()
	if err := w.Add(nil, memindex.Version{}); err == nil {
		t.Error("Add after Abort")
	}
	if names, err := disk.ReadDir("/"); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if left := disk.Open(); len(left) != 0 {
		t.Errorf("still open: %v", left)
	}
}

func TestFinishIsDurable(t *testing.T) {
	_, pairs, ranges := small(t)
	for seed := range uint64(20) {
		disk := waltest.NewDisk()
		info := write(t, disk, runPath, pairs, ranges, run.WriterOptions{Expected: 43, WriteBack: 4096})
		if left := disk.Open(); len(left) != 0 {
			t.Fatalf("still open: %v", left)
		}
		if err := disk.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		if n := sameOrError(t, disk.Crash(seed), info, pairs, ranges); n != 0 {
			t.Fatalf("seed %d: %d errors after a loss of power", seed, n)
		}
	}
}

// TestFailedCalls lets each call of the writer fail once, by an error and by a loss of power in the middle of it.
func TestFailedCalls(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	pairs := make([]pair, 150_000) // several writes
	for i := range pairs {
		pairs[i] = pair{shapes[0].key(rng), someVersion(rng)}
	}
	pairs = sorted(pairs)
	attempt := func(disk *waltest.Disk) (run.Info, error) {
		w, err := run.NewWriter(disk, runPath, run.WriterOptions{Expected: 150_000})
		if err != nil {
			return run.Info{}, err
		}
		defer w.Abort()
		for _, p := range pairs {
			if err := w.Add([]byte(p.key), p.v); err != nil {
				return run.Info{}, err
			}
		}
		return w.Finish()
	}
	for k := 0; ; k++ {
		disk := waltest.NewDisk()
		in := disk.Inject(waltest.Fault{Skip: k, Bytes: 5000})
		info, err := attempt(disk)
		if in.Hits() == 0 {
			if err != nil || k < 4 {
				t.Fatalf("after %d calls: %v", k, err)
			}
			break
		}
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("call %d: %v, %+v", k, err, info)
		}
		in.End()
		if names, _ := disk.ReadDir("/"); len(names) != 0 {
			t.Fatalf("call %d: left behind: %v", k, names)
		}

		disk = waltest.NewDisk()
		disk.Inject(waltest.Fault{Skip: k, Crash: true})
		if _, err = attempt(disk); err == nil {
			t.Fatalf("call %d: no error without power", k)
		}
		for seed := range uint64(4) {
			r, err := run.Open(disk.Crash(seed), runPath)
			if err == nil { // the end got there, and before it what got there
				it := r.NewIter()
				it.First()
				i := 0
				for ; i < len(pairs) && it.Err() == nil; i++ {
					checkAt(t, it, pairs, i, "after a crash")
					it.Next()
				}
				if err := it.Err(); err != nil && !damaged(err) || err == nil && it.Valid() {
					t.Fatalf("call %d: pair %d: %v", k, i, err)
				}
				r.Close()
			} else if !damaged(err) && !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("call %d: %v", k, err)
			}
		}
	}
}

func TestFullDisk(t *testing.T) {
	_, pairs, ranges := small(t)
	disk := waltest.NewDisk()
	disk.SetCapacity(20_000)
	w, err := run.NewWriter(disk, runPath, run.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pairs {
		if err := w.Add([]byte(p.key), p.v); err != nil {
			break
		}
	}
	if _, err := w.Finish(); !vfs.IsNoSpace(err) {
		t.Fatalf("got %v", err)
	}
	w.Abort()
	disk.SetCapacity(0)
	write(t, disk, runPath, pairs, ranges, run.WriterOptions{})
}

// TestFilterSize: a filter that was made for too many keys shrinks, and one that was made for too few misses nothing.
func TestFilterSize(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	pairs := make([]pair, 20_000)
	for i := range pairs {
		pairs[i] = pair{shapes[0].key(rng), someVersion(rng)}
	}
	pairs = sorted(pairs)
	sizes := map[uint64]int64{}
	for _, expected := range []uint64{0, 1, 1000, 20_000, 40_000, 1_000_000} {
		disk := waltest.NewDisk()
		info := write(t, disk, runPath, pairs, nil, run.WriterOptions{Expected: expected})
		sizes[expected] = info.Size
		r := open(t, disk, runPath)
		checkAll(t, rng, r, pairs)
	}
	exact := sizes[20_000]
	if over := sizes[1_000_000]; over > exact+exact/20 {
		t.Errorf("%d bytes for a filter that was made for 50 times the keys, %d for one made for the right number", over, exact)
	}
}

func TestFilterPasses(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 9))
	const n = 100_000
	pairs := make([]pair, n)
	for i := range pairs {
		pairs[i] = pair{shapes[0].key(rng), someVersion(rng)}
	}
	pairs = sorted(pairs)
	for _, expected := range []uint64{n, 5 * n} {
		disk := waltest.NewDisk()
		write(t, disk, runPath, pairs, nil, run.WriterOptions{Expected: expected})
		r := open(t, disk, runPath)
		passed := 0
		for range n {
			may, err := r.MayHold(run.Hash([]byte(shapes[0].key(rng))))
			if err != nil {
				t.Fatal(err)
			}
			if may {
				passed++
			}
		}
		if passed > n*2/100 {
			t.Errorf("made for %d keys: %.2f %% of missing keys pass", expected, 100*float64(passed)/n)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	b, pairs, _ := small(t)
	r := open(t, ram{b: b}, runPath)
	it := r.NewIter()
	it.Last()
	it.First()
	i, key, last := 0, make([]byte, 0, 8000), []byte{0xff}
	if n := testing.AllocsPerRun(1000, func() {
		p := pairs[i%len(pairs)]
		key := append(key[:0], p.key...)
		i++
		if _, ok, err := r.Get(key, p.v.Ref+1); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if !it.SeekGE(key) || !it.SeekLT(last) || !it.Prev() {
			t.Fatal(it.Err())
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTogether lets several goroutines touch the blocks of a run for the first time.
func TestTogether(t *testing.T) {
	b, pairs, _ := small(t)
	for range 20 {
		r := open(t, ram{b: b}, runPath)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				it := r.NewIter()
				for i := range pairs {
					p := pairs[(i*37+g)%len(pairs)]
					if v, ok, err := r.Get([]byte(p.key), p.v.Ref+1); err != nil || !ok || v != p.v {
						t.Errorf("%.40q: %v %v %v", p.key, v, ok, err)
						return
					}
					if !it.SeekGE([]byte(p.key)) || string(it.Key()) != p.key {
						t.Errorf("%.40q: %v", p.key, it.Err())
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestWriterKeepsNothing(t *testing.T) {
	disk := waltest.NewDisk()
	w, err := run.NewWriter(disk, runPath, run.WriterOptions{Expected: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	key, start := []byte("aaa"), []byte("bbb")
	if err := w.Add(key, memindex.Version{Ref: 1}); err != nil {
		t.Fatal(err)
	}
	if err := w.AddRangeDelete(run.RangeDelete{Start: start, End: start}); err != nil {
		t.Fatal(err)
	}
	copy(key, "zzz")
	copy(start, "zzz")
	if err := w.Add([]byte(strings.Repeat("b", 10)), memindex.Version{Ref: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	r := open(t, disk, runPath)
	if d := r.RangeDeletes()[0]; !bytes.Equal(r.Smallest(), []byte("aaa")) || !bytes.Equal(d.Start, []byte("bbb")) || !bytes.Equal(d.End, []byte("bbb")) {
		t.Fatalf("%q %q %q", r.Smallest(), d.Start, d.End)
	}
}
