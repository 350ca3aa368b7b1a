package run_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// ram is a file system of one file, in plain memory.
type ram struct {
	vfs.FS
	b []byte
}

type ramFile struct {
	vfs.File
	b []byte
}

type ramMap []byte

func (m ramMap) Bytes() []byte      { return m }
func (ramMap) Release(int64, int64) {}

func (ramMap) Prefetch(int64, int64) bool { return false }
func (ramMap) Close() error               { return nil }

func (r ram) OpenFile(string, int, fs.FileMode) (vfs.File, error) { return ramFile{b: r.b}, nil }

func (f ramFile) Size() (int64, error)                     { return int64(len(f.b)), nil }
func (f ramFile) Map(n int64, _ bool) (vfs.Mapping, error) { return ramMap(f.b[:n]), nil }
func (f ramFile) Close() error                             { return nil }

// small returns the bytes of a run that has a bit of everything, and what it holds.
func small(t testing.TB) ([]byte, []pair, []run.RangeDelete) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 7))
	var pairs []pair
	for range 40 {
		b := make([]byte, 40+rng.IntN(100))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		pairs = append(pairs, pair{"k" + string(b), someVersion(rng)})
	}
	for i := range 420 { // over a block's end
		pairs = append(pairs, pair{"m", memindex.Version{Ref: uint64(i) << 55, Kind: memindex.Put}})
	}
	pairs = append(pairs, pair{strings.Repeat("y", 5000), someVersion(rng)}, pair{strings.Repeat("y", 5000) + "z", someVersion(rng)}, pair{"", someVersion(rng)}, pair{"z", someVersion(rng)})
	pairs = sorted(pairs)
	ranges := []run.RangeDelete{{Start: []byte("a"), End: []byte("b"), Ref: 77}, {Start: []byte{}, End: nil, Ref: 1 << 40}, {Start: []byte("x"), End: []byte{}, Ref: 3}}
	disk := waltest.NewDisk()
	write(t, disk, runPath, pairs, ranges, run.WriterOptions{Expected: 43, ID: 99})
	b, err := disk.ReadFile(runPath)
	if err != nil {
		t.Fatal(err)
	}
	return b, pairs, ranges
}

// damaged reports whether err is one of those that damage may lead to.
func damaged(err error) bool {
	return errors.Is(err, &run.CorruptError{}) || errors.Is(err, wal.ErrVersion)
}

// sameOrError opens a run and compares all that it answers with what it holds: an answer may be missing with an error,
// and never differ. It returns how many errors it met.
func sameOrError(t testing.TB, fsys vfs.FS, info run.Info, pairs []pair, ranges []run.RangeDelete) (errs int) {
	t.Helper()
	met := func(err error) {
		if !damaged(err) {
			t.Fatalf("not an error of damage: %v", err)
		}
		errs++
	}
	r, err := run.Open(fsys, runPath)
	if err != nil {
		met(err)
		return errs
	}
	defer r.Close()
	if r.Info() != info {
		t.Fatalf("got %+v, want %+v", r.Info(), info)
	}
	if string(r.Smallest()) != pairs[0].key || string(r.Largest()) != pairs[len(pairs)-1].key {
		t.Fatal("smallest or largest key")
	}
	for i, d := range r.RangeDeletes() {
		w := ranges[i]
		if string(d.Start) != string(w.Start) || string(d.End) != string(w.End) || (d.End == nil) != (w.End == nil) || d.Ref != w.Ref {
			t.Fatalf("range delete %d: got %+v, want %+v", i, d, w)
		}
	}
	it := r.NewIter()
	i := 0
	for it.First(); it.Valid(); it.Next() {
		checkAt(t, it, pairs, i, "forward")
		i++
	}
	if it.Err() != nil {
		met(it.Err())
	} else if i != len(pairs) {
		t.Fatalf("forward: %d pairs, want %d", i, len(pairs))
	}
	i = len(pairs) - 1
	for it.Last(); it.Valid(); it.Prev() {
		checkAt(t, it, pairs, i, "backward")
		i--
	}
	if it.Err() != nil {
		met(it.Err())
	} else if i != -1 {
		t.Fatalf("backward: %d pairs missing", i+1)
	}
	for i := 0; i < len(pairs); i += 1 + i/10*3 {
		p := pairs[i]
		v, ok, err := r.Get([]byte(p.key), p.v.Ref+1)
		if err != nil {
			met(err)
		} else if !ok || v != p.v {
			t.Fatalf("Get(%.40q) = %v, %v, want %v", p.key, v, ok, p.v)
		}
		if it.SeekGE([]byte(p.key)) && string(it.Key()) != p.key {
			t.Fatalf("SeekGE(%.40q) stands on %.40q", p.key, it.Key())
		} else if it.Err() != nil {
			met(it.Err())
		}
	}
	if err := r.Verify(context.Background()); err != nil {
		met(err)
	} else if errs > 0 {
		t.Fatal("Verify finds nothing")
	}
	return errs
}

func TestEveryBit(t *testing.T) {
	b, pairs, ranges := small(t)
	r := open(t, ram{b: b}, runPath)
	info := r.Info()
	if n := sameOrError(t, ram{b: b}, info, pairs, ranges); n != 0 {
		t.Fatalf("%d errors without damage", n)
	}
	step := 1
	if testing.Short() {
		step = 41
	}
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			b := append([]byte(nil), b...)
			for bit := w * step; bit < len(b)*8; bit += workers * step {
				b[bit/8] ^= 1 << (bit % 8)
				if sameOrError(t, ram{b: b}, info, pairs, ranges) == 0 {
					t.Errorf("bit %d: not noticed", bit)
				}
				b[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
	wg.Wait()
}

func TestEveryPageSwappedZeroedOrForeign(t *testing.T) {
	b, pairs, ranges := small(t)
	info := open(t, ram{b: b}, runPath).Info()
	disk := waltest.NewDisk()
	write(t, disk, runPath, pairs, ranges, run.WriterOptions{Expected: 43, ID: 100})
	foreign, err := disk.ReadFile(runPath)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	for i := 0; i < len(b); i += page {
		for name, p := range map[string][]byte{"zeros": make([]byte, page), "of another run": foreign[i:][:page], "the next": b[(i+page)%len(b):][:page]} {
			if bytes.Equal(p, b[i:][:page]) { // inside of a long block
				continue
			}
			bad := append([]byte(nil), b...)
			copy(bad[i:], p)
			if sameOrError(t, ram{b: bad}, info, pairs, ranges) == 0 {
				t.Errorf("page %d, %s: not noticed", i/page, name)
			}
		}
	}
}

func TestEveryTruncation(t *testing.T) {
	b, _, _ := small(t)
	for n := range len(b) {
		if _, err := run.Open(ram{b: b[:n:n]}, runPath); !errors.Is(err, &run.CorruptError{}) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if _, err := run.Open(ram{b: append(b, make([]byte, 4096)...)}, runPath); !errors.Is(err, &run.CorruptError{}) {
		t.Fatalf("a page too many: %v", err)
	}
}

func TestNewerVersion(t *testing.T) {
	b, _, _ := small(t)
	blocks := run.Blocks(b)
	b[len(b)-4096+8]++
	run.Reseal(b, 99, blocks)
	_, err := run.Open(ram{b: b}, runPath)
	var v *wal.VersionError
	if !errors.As(err, &v) || v.Have != 2 || v.Need != 3 {
		t.Fatal(err)
	}
}

// TestHostile puts nonsense into blocks and right checksums on them: whatever comes of it, it is not a panic, and
// takes no memory that the file does not account for.
func TestHostile(t *testing.T) {
	b, pairs, _ := small(t)
	blocks := run.Blocks(b)
	n := 10_000
	if testing.Short() {
		n = 1_000
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for seed := range n {
		rng := rand.New(rand.NewPCG(uint64(seed), 3))
		bad := append([]byte(nil), b...)
		for range 1 + rng.IntN(4) {
			nonsense(rng, bad)
		}
		run.Reseal(bad, 99, blocks)
		useAll(ram{b: bad}, pairs)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / uint64(n); each > 40*uint64(len(b)) {
		t.Errorf("%d bytes allocated for a file of %d", each, len(b))
	}
}

// nonsense changes a few bytes, preferably where the lengths are.
func nonsense(rng *rand.Rand, b []byte) {
	at := rng.IntN(len(b))
	if rng.IntN(3) > 0 {
		at = at&^4095 + rng.IntN(128)
	}
	v := []byte{0, 1, 0x7f, 0x80, 0xff, byte(rng.Uint32())}[rng.IntN(6)]
	for i := range min(1<<rng.IntN(4), len(b)-at) {
		b[at+i] = v
	}
}

// useAll calls everything and looks at nothing.
func useAll(fsys vfs.FS, pairs []pair) {
	r, err := run.Open(fsys, runPath)
	if err != nil {
		return
	}
	defer r.Close()
	it := r.NewIter()
	steps := 0
	for it.First(); it.Valid() && steps < 5000; it.Next() {
		steps++
	}
	for it.Last(); it.Valid() && steps < 10000; it.Prev() {
		steps++
	}
	for i := 0; i < len(pairs); i += 17 {
		key := []byte(pairs[i].key)
		_, _, _ = r.Get(key, pairs[i].v.Ref)
		if it.SeekGE(key) {
			it.Prev()
		}
		if it.SeekLT(key) {
			it.Next()
		}
	}
	_ = r.Verify(context.Background())
}

func FuzzRun(f *testing.F) {
	b, pairs, _ := small(f)
	blocks := run.Blocks(b)
	f.Add(uint32(4096), []byte{1, 2, 3})
	f.Add(uint32(3*4096+8), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, with []byte) {
		bad := append([]byte(nil), b...)
		copy(bad[int(at)%len(bad):], with)
		run.Reseal(bad, 99, blocks)
		useAll(ram{b: bad}, pairs)
	})
}

func TestFaultsOfTheMap(t *testing.T) {
	b, pairs, _ := small(t)
	for page := range len(b) / 4096 {
		for _, truncate := range []bool{false, true} {
			disk := waltest.NewDisk()
			if err := disk.WriteFile(runPath, b); err != nil {
				t.Fatal(err)
			}
			r := open(t, disk, runPath)
			it := r.NewIter()
			if it.First(); !it.Valid() {
				t.Fatal(it.Err())
			}
			var err error
			if truncate {
				err = disk.TruncateFile(runPath, int64(page)*4096)
			} else {
				err = disk.FailRange(runPath, int64(page)*4096, 4096, false)
			}
			if err != nil {
				t.Fatal(err)
			}
			faults := 0
			met := func(err error) {
				if err != nil {
					if !errors.Is(err, wal.ErrIO) {
						t.Fatalf("page %d: %v", page, err)
					}
					faults++
				}
			}
			i := 0
			for ; it.Valid(); it.Next() {
				checkAt(t, it, pairs, i, "forward")
				i++
			}
			met(it.Err())
			for _, p := range pairs {
				v, ok, err := r.Get([]byte(p.key), p.v.Ref+1)
				if met(err); err == nil && (!ok || v != p.v) {
					t.Fatalf("page %d: wrong answer", page)
				}
			}
			met(r.Verify(context.Background()))
			if faults == 0 {
				t.Errorf("page %d: no fault", page)
			}
		}
	}
}

// faultAt is what the runtime panics with at a fault.
type faultAt uintptr

func (faultAt) Error() string   { return "fault" }
func (f faultAt) Addr() uintptr { return uintptr(f) }

// TestPanicsPass: what is not a fault inside the map is not taken for one.
func TestPanicsPass(t *testing.T) {
	b, _, _ := small(t)
	r := open(t, ram{b: b}, runPath)
	for _, c := range []struct {
		name string
		x    any
		ours bool
	}{
		{"first byte", faultAt(r.Start()), true},
		{"last byte", faultAt(r.Start() + uintptr(len(b)) - 1), true},
		{"before", faultAt(r.Start() - 1), false},
		{"behind", faultAt(r.Start() + uintptr(len(b))), false},
		{"an error without address", errors.New("some"), false},
		{"no error", 7, false},
	} {
		passed := true
		err := func() error {
			defer func() {
				if x := recover(); x != nil && x != c.x {
					t.Errorf("%s: panics with %v", c.name, x)
				}
			}()
			err := r.Fault(c.x)
			passed = false
			return err
		}()
		if passed == c.ours || c.ours && !errors.Is(err, wal.ErrIO) {
			t.Errorf("%s: panic %v, error %v", c.name, passed, err)
		}
	}

	it := r.NewIter()
	it.Init(nil)
	defer func() {
		if recover() == nil {
			t.Error("a nil dereference came back as an error")
		}
	}()
	it.First()
}

// TestKeyGrowsBackwards: a step back to a longer key keeps what the two share, also where the buffer is replaced.
func TestKeyGrowsBackwards(t *testing.T) {
	disk := waltest.NewDisk()
	pairs := []pair{{key: "common-" + strings.Repeat("a", 500)}, {key: "common-b"}}
	write(t, disk, runPath, pairs, nil, run.WriterOptions{})
	it := open(t, disk, runPath).NewIter()
	it.Last()
	checkAt(t, it, pairs, 1, "last")
	it.Prev()
	checkAt(t, it, pairs, 0, "back")
}
