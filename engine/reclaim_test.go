package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// churn overwrites, deletes and lets expire, n times, and keeps the model.
func churn(t *testing.T, db *engine.DB, rng *rand.Rand, m model, n int) {
	t.Helper()
	for i := range n {
		b := db.NewBatch()
		for range 1 + rng.IntN(8) {
			k := fmt.Sprint("key", rng.IntN(300))
			switch rng.IntN(12) {
			case 0, 1:
				b.Delete([]byte(k))
				delete(m, k)
			case 2:
				b.PutTTL([]byte(k), []byte("gone soon"), time.UnixMilli(1))
				delete(m, k)
			case 3:
				if rng.IntN(20) == 0 {
					lo, hi := fmt.Sprint("key", rng.IntN(300)), fmt.Sprint("key", rng.IntN(300))
					b.DeleteRange([]byte(lo), []byte(hi))
					for _, k := range m.sorted(lo, hi) {
						delete(m, k)
					}
				}
			case 4:
				v := strings.Repeat(fmt.Sprint("large ", i), 2000)
				b.Put([]byte("large"+k[3:4]), []byte(v))
				m["large"+k[3:4]] = v
			default:
				v := strings.Repeat(fmt.Sprint(i), 1+rng.IntN(40))
				b.Put([]byte(k), []byte(v))
				m[k] = v
			}
		}
		if _, err := db.Commit(ctx, b, engine.Default); err != nil {
			t.Fatal(err)
		}
	}
}

func (m model) bytes() (n int64) {
	for k, v := range m {
		n += int64(len(k) + len(v) + 8)
	}
	return n
}

// settled waits until the log is no longer than the bound.
func settled(t *testing.T, db *engine.DB, m model, segment int64) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		s := db.Stats()
		stored := int64(s.Head - s.Tail)
		// Frames, seals and the sampling's error come on top of the records themselves.
		if stored <= 2*m.bytes()*5/4+3*segment {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes stored, %d live: %+v", stored, m.bytes(), s)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestReclaim: however much is overwritten, deleted and expired, the log stays within its bound; nothing that lives is lost
// and nothing deleted comes back, also after the index was thrown away.
func TestReclaim(t *testing.T) {
	for _, seed := range seeds(t, 3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			defer engine.FreezeEvery(200 * rng.IntN(3))()
			const segment = 64 << 10
			opts := &engine.Options{Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression}
			disk := waltest.NewDisk()
			opts.FS = disk
			db := open(t, "db", opts)
			m := model{}
			for range 4 {
				churn(t, db, rng, m, 400)
				settled(t, db, m, segment)
				compareAll(t, rng, db.NewIter, db.Get, m)
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				if rng.IntN(2) == 0 {
					dropIndex(t, disk)
				}
				db = open(t, "db", opts)
				if got := state(t, db); !maps.Equal(got, m) {
					t.Fatalf("after a reopen %d keys, want %d", len(got), len(m))
				}
			}
			if db.Stats().Tail == 0 {
				t.Error("the tail has never moved")
			}
		})
	}
}

// dropIndex removes every derived file.
func dropIndex(t *testing.T, disk *waltest.Disk) {
	t.Helper()
	names, err := disk.ReadDir("db/index")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := disk.Remove("db/index/" + n); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReclaimSnapshot: a snapshot keeps what it shows while reclaim goes on behind it; past the cap it says so.
func TestReclaimSnapshot(t *testing.T) {
	const segment = 64 << 10
	for _, limit := range []int64{1 << 30, segment} {
		t.Run(fmt.Sprint("cap=", limit), func(t *testing.T) {
			db := open(t, t.TempDir(), &engine.Options{
				Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression, MaxPinned: limit,
			})
			rng := rand.New(rand.NewPCG(1, 1))
			m := model{}
			churn(t, db, rng, m, 100)
			snap := db.Snapshot()
			defer snap.Close()
			then := maps.Clone(m)
			for i := range 10 {
				churn(t, db, rng, m, 200)
				if limit > segment && (i == 9 || !testing.Short()) {
					compareAll(t, rng, snap.NewIter, snap.Get, then)
				}
			}
			if limit > segment {
				snap.Close()
				settled(t, db, m, segment)
				return
			}
			settled(t, db, m, segment)
			if _, err := snap.Get([]byte("key1")); !errors.Is(err, engine.ErrSnapshotTooOld) {
				t.Errorf("get from a snapshot past the cap: %v", err)
			}
			it := snap.NewIter(nil)
			it.First()
			if err := it.Close(); !errors.Is(err, engine.ErrSnapshotTooOld) {
				t.Errorf("iterator over a snapshot past the cap: %v", err)
			}
		})
	}
}

// TestReclaimUnderFreshSnapshots: however the tail moves, a snapshot that was taken a moment ago can be read.
func TestReclaimUnderFreshSnapshots(t *testing.T) {
	const segment = 64 << 10
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression})
	rng, m := rand.New(rand.NewPCG(3, 3)), model{}
	churn(t, db, rng, m, 100)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				snap := db.Snapshot()
				if _, err := snap.Get(fmt.Append(nil, "key", n%300)); err != nil && !errors.Is(err, engine.ErrNotFound) {
					t.Errorf("get from a fresh snapshot: %v", err)
					snap.Close()
					return
				}
				snap.Close()
			}
		})
	}
	segments := wal.LSN(100)
	if testing.Short() {
		segments = 25
	}
	for db.Stats().Tail < segments*segment && !t.Failed() {
		churn(t, db, rng, m, 200)
	}
	close(stop)
	wg.Wait()
}

// TestReclaimFollower: a follower that copies a log whose tail has moved answers loading until it has the tail record, then equals
// the leader, and removes the same segments.
func TestReclaimFollower(t *testing.T) {
	const segment = 64 << 10
	opts := engine.Options{Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression}
	leader := open(t, t.TempDir(), &opts)
	rng := rand.New(rand.NewPCG(2, 2))
	m := model{}
	churn(t, leader, rng, m, 800)
	settled(t, leader, m, segment)
	peer := wal.NodeID{1}
	leader.HoldSlot(peer, "", leader.Log().Tail())
	ack := func(at wal.LSN) { leader.PeerAck(peer, at, at, at, at) } // holds the leader's files from there on
	tail := leader.Log().Tail()
	if tail == 0 {
		t.Fatal("the tail has not moved")
	}
	opts.Follower = true
	f := open(t, t.TempDir(), &opts)
	p := make([]byte, leader.Log().Head()-tail)
	if _, err := leader.Log().ReadAt(p, tail); err != nil {
		t.Fatal(err)
	}
	half := 0
	for half < len(p)/2 {
		n, err := f.Log().AppendRaw(tail+wal.LSN(half), p[half:len(p)/2])
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		half += n
	}
	if err := f.FollowMark(tail+wal.LSN(half), 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "half is applied", func() bool { return f.Applied() > tail })
	if _, err := f.Get([]byte("key1")); !errors.Is(err, engine.ErrLoading) {
		t.Errorf("get before the consistency point: %v", err)
	}
	feed(t, leader, f, leader.Log().Head())
	if err := f.FollowMark(leader.Log().Head(), 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the follower has loaded", func() bool {
		_, err := f.Get([]byte("key1"))
		return !errors.Is(err, engine.ErrLoading)
	})
	if got := state(t, f); !maps.Equal(got, m) {
		t.Fatalf("%d keys on the follower, want %d", len(got), len(m))
	}
	ack(f.Log().Head())
	churn(t, leader, rng, m, 400)
	before := f.Log().Head()
	waitFor(t, "the leader has written its live records again", func() bool { return leader.Log().Head() > before+20*segment })
	if got := leader.Stats().Tail; got > before {
		t.Fatalf("the leader's tail has moved to %v, a follower is at %v", got, before)
	}
	feed(t, leader, f, leader.Log().Head())
	ack(f.Log().Head())
	if err := f.FollowMark(leader.Log().Head(), 0); err != nil {
		t.Fatal(err)
	}
	settled(t, leader, m, segment)
	feed(t, leader, f, leader.Log().Head())
	if err := f.FollowMark(leader.Log().Head(), 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the follower's tail has moved", func() bool { return f.Stats().Tail > before })
	if got := state(t, f); !maps.Equal(got, m) {
		t.Fatalf("%d keys on the follower, want %d", len(got), len(m))
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: ", what)
		}
	}
}

// TestStartOver: a follower that was left behind the leader's tail gives its log up, answers loading, and ends with what the leader
// has, also when it was killed in between.
func TestStartOver(t *testing.T) {
	const segment = 64 << 10
	opts := engine.Options{Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression}
	leader := open(t, t.TempDir(), &opts)
	rng := rand.New(rand.NewPCG(3, 3))
	m := model{}
	churn(t, leader, rng, m, 50)
	opts.Follower = true
	dir := t.TempDir()
	f := open(t, dir, &opts)
	feed(t, leader, f, leader.Log().Head())
	if err := f.FollowMark(leader.Log().Head(), 0); err != nil {
		t.Fatal(err)
	}
	if got := state(t, f); !maps.Equal(got, m) {
		t.Fatalf("%d keys, want %d", len(got), len(m))
	}
	snap := f.Snapshot()
	defer snap.Close()
	before := f.Log().Head()
	churn(t, leader, rng, m, 800)
	settled(t, leader, m, segment)
	if leader.Stats().Tail <= before {
		t.Fatal("the leader's tail has not passed the follower")
	}
	if err := f.StartOver(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get([]byte("key1")); !errors.Is(err, engine.ErrLoading) {
		t.Errorf("get from an empty copy: %v", err)
	}
	if _, err := snap.Get([]byte("key1")); !errors.Is(err, engine.ErrSnapshotTooOld) && !errors.Is(err, engine.ErrLoading) {
		t.Errorf("get from a snapshot of what was given up: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir, &opts)
	hold := leader.Snapshot()
	defer hold.Close()
	tail := leader.Log().Tail()
	p := make([]byte, leader.Log().Head()-tail)
	if _, err := leader.Log().ReadAt(p, tail); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(p); {
		k, err := f.Log().AppendRaw(tail+wal.LSN(n), p[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if _, err := f.Log().Sync(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all is applied", func() bool { return f.Applied() == tail+wal.LSN(len(p)) })
	if err := f.FollowMark(tail+wal.LSN(len(p)), 0); err != nil {
		t.Fatal(err)
	}
	if got := state(t, f); !maps.Equal(got, m) {
		t.Fatalf("%d keys, want %d", len(got), len(m))
	}
}

// TestSegmentsStayUntilTheRecordIsCommitted: a tail record that followers have not confirmed may be lost with this node;
// what it gives up is kept until then, and goes after it.
func TestSegmentsStayUntilTheRecordIsCommitted(t *testing.T) {
	const segment = 64 << 10
	db := open(t, t.TempDir(), &engine.Options{
		Commit: engine.Replicated(1), SegmentSize: segment, Compression: engine.NoCompression, SpaceFactor: -1,
	})
	f := join(t, db, "f")
	f.confirm()
	for db.Log().Head() < 4*segment {
		done := write(t, db, "k", strings.Repeat("x", 10_000))
		f.confirm()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	committed := db.Committed()
	if err := db.MoveTail(2 * segment); err != nil {
		t.Fatal(err)
	}
	db.Trim()
	if db.Log().Tail() != 0 || db.Committed() != committed {
		t.Errorf("the log begins at %v; the record is not committed", db.Log().Tail())
	}
	f.confirm()
	db.Trim()
	if tail := db.Log().Tail(); tail == 0 || tail > 2*segment {
		t.Errorf("the log begins at %v, the record is committed", tail)
	}
	wantGet(t, db.Get, "k", strings.Repeat("x", 10_000))
}

// TestRunsOfAnotherLog: runs that lie in a directory whose log they were not made from are not believed.
func TestRunsOfAnotherLog(t *testing.T) {
	defer engine.FreezeEvery(20)()
	disk := waltest.NewDisk()
	want := model{}
	for _, name := range []string{"a", "b"} {
		db := open(t, name, &engine.Options{FS: disk})
		for i := range 200 {
			k := fmt.Sprint(name, i)
			mustPut(t, db, k, k)
			if name == "b" {
				want[k] = k
			}
		}
		waitFor(t, "there are runs", func() bool { return db.Stats().Index.Runs > 0 })
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name := range disk.Files() {
		if dir, file := filepath.Split(name); filepath.Clean(dir) == "/b/index" {
			if err := disk.Remove(filepath.Join("b/index", file)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, p := range disk.Files() {
		if dir, file := filepath.Split(name); filepath.Clean(dir) == "/a/index" {
			if err := disk.WriteFile(filepath.Join("b/index", file), p); err != nil {
				t.Fatal(err)
			}
		}
	}
	same(t, open(t, "b", &engine.Options{FS: disk}), want, "with another log's runs")
}

// TestRelocatedIsNotNewer: what reclaim has read and means to write again is left alone if it was overwritten or deleted
// meanwhile, also by a batch of the same group.
func TestRelocatedIsNotNewer(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk, SpaceFactor: -1})
	for _, k := range []string{"kept", "overwritten", "deleted", "ranged", "late"} {
		mustPut(t, db, k, "old")
	}
	again, err := db.Relocation("kept", "overwritten", "deleted", "ranged", "late")
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, db, "overwritten", "new")
	b := db.NewBatch()
	b.Delete([]byte("deleted"))
	b.DeleteRange([]byte("r"), []byte("s"))
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	h := holdSync(t, db, disk)
	late := h.then(func() error { return db.Put([]byte("late"), []byte("new")) })
	relocated := h.then(again)
	h.goOn()
	if err := errors.Join(<-late, <-relocated); err != nil {
		t.Fatal(err)
	}
	wantGet(t, db.Get, "kept", "old")
	wantGet(t, db.Get, "overwritten", "new")
	wantGet(t, db.Get, "late", "new")
	wantMissing(t, db.Get, "deleted")
	wantMissing(t, db.Get, "ranged")
	var kept []wal.Ref
	r := db.Log().NewReader(0)
	defer r.Close()
	for r.Next() {
		for raw := r.Raw(); !r.Frame().Control() && len(raw) > 0; {
			rec, n, err := engine.DecodeRecord(raw)
			if err != nil {
				t.Fatal(err)
			}
			raw = raw[n:]
			if rec.Orig != 0 {
				if string(rec.Key) != "kept" {
					t.Errorf("%q was written again", rec.Key)
				}
				kept = append(kept, rec.Orig)
			}
		}
	}
	if len(kept) != 1 {
		t.Errorf("written again %d times", len(kept))
	}
}

// TestWritesWaitForReclaim: a write that would take the log over its bound waits until reclaim has moved that, for a second at the most; deletes,
// and what reclaim writes, do not.
func TestWritesWaitForReclaim(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := open(t, "db", &engine.Options{FS: waltest.NewDisk(), SpaceFactor: -1})
		mustPut(t, db, "kept", "1")
		again, err := db.Relocation("kept")
		if err != nil {
			t.Fatal(err)
		}
		start := func() <-chan error {
			db.BoundLog(db.Log().Head())
			done := make(chan error, 1)
			go func() { done <- db.Put([]byte("k"), []byte("v")) }()
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatal("Put did not wait: ", err)
			default:
			}
			return done
		}
		done := start()
		if err := errors.Join(db.Delete([]byte("other")), again()); err != nil {
			t.Fatal(err)
		}
		db.BoundLog(db.Log().Head() + 1<<20)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		done = start()
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) != time.Second {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
	})
}
