package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

const spaceSegment = 1 << 20

// fill writes until the disk is full for ordinary batches of some size.
func fill(t *testing.T, db *engine.DB, m model, prefix string, value string) {
	t.Helper()
	for i := range 100_000 {
		k, head := fmt.Sprint(prefix, i), db.Stats().Head
		err := db.Put([]byte(k), []byte(value))
		if err == nil {
			m[k] = value
			continue
		}
		if !errors.Is(err, engine.ErrNoSpace) || errors.Is(err, engine.ErrUnknownOutcome) || db.Stats().Head != head {
			t.Fatalf("Put on a full disk: %v; the head went from %v to %v", err, head, db.Stats().Head)
		}
		return
	}
	t.Fatal("the disk is never full")
}

// TestDeletesOnAFullDisk: deletes, and nothing else, go into the space that is held in reserve.
func TestDeletesOnAFullDisk(t *testing.T) {
	disk := waltest.NewDisk()
	opts := &engine.Options{FS: disk, SegmentSize: spaceSegment, Compression: engine.NoCompression}
	db := open(t, "db", opts)
	m := model{}
	disk.SetCapacity(disk.Used() + 2*spaceSegment)
	fill(t, db, m, "k", strings.Repeat("x", 5000))
	fill(t, db, m, "s", "small")
	mixed := func() *engine.Batch {
		b := db.NewBatch()
		b.Delete([]byte("k0"))
		b.Put([]byte("k1"), []byte("y"))
		return b
	}
	reversed := db.NewBatch()
	reversed.Put([]byte("k1"), []byte("y"))
	reversed.Delete([]byte("k0"))
	emptied := mixed()
	emptied.Reset()
	emptied.Put([]byte("k1"), []byte("y"))
	for name, b := range map[string]*engine.Batch{"delete and put": mixed(), "put and delete": reversed, "put after Reset": emptied} {
		if _, err := db.Commit(ctx, b, engine.Default); !errors.Is(err, engine.ErrNoSpace) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range 20 {
		k := fmt.Sprint("k", i)
		if err := db.Delete([]byte(k)); err != nil {
			t.Fatalf("Delete on a full disk: %v", err)
		}
		delete(m, k)
	}
	b := db.NewBatch()
	b.DeleteRange([]byte("k3"), []byte("k4"))
	b.Delete([]byte("s0"))
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatalf("delete range on a full disk: %v", err)
	}
	for _, k := range append(m.sorted("k3", "k4"), "s0") {
		delete(m, k)
	}
	if _, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		if _, err := tx.Get([]byte("s1")); err != nil {
			return err
		}
		return tx.Delete([]byte("s1"))
	}); err != nil {
		t.Fatalf("transaction that deletes, on a full disk: %v", err)
	}
	delete(m, "s1")
	same(t, db, m, "on the full disk")
	disk.SetCapacity(0)
	mustPut(t, db, "more", "room")
	m["more"] = "room"
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, open(t, "db", opts), m, "after reopening")
}

// TestFullMount fills real file systems under concurrent writers: refused writes are told so before anything of them is
// written, reads and deletes go on, writes go on by themselves once there is room, and nothing acknowledged is lost: not
// on a clean close and open of the full disk, and not with the power.
func TestFullMount(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewMount(t, kind, 40<<20)
			ballast := filepath.Join(m.Dir, "ballast")
			leave(t, ballast, 12<<20)
			opts := &engine.Options{FS: m.FS(), SegmentSize: spaceSegment, Compression: engine.NoCompression}
			dir := filepath.Join(m.Dir, "db")
			db := open(t, dir, opts)
			want := fillTogether(t, db, "a")
			same(t, db, want, "on the full disk")
			// The log's own preparations for the next segment take room, and give it back, beside the writers.
			fill(t, db, want, "s", strings.Repeat("s", 5000))
			for _, k := range want.sorted("a", "b")[:50] {
				if err := db.Delete([]byte(k)); err != nil {
					t.Fatalf("Delete on a full disk: %v", err)
				}
				delete(want, k)
			}
			b := db.NewBatch()
			b.DeleteRange([]byte("a0/"), []byte("a1/"))
			if _, err := db.Commit(ctx, b, engine.Default); err != nil {
				t.Fatalf("delete range on a full disk: %v", err)
			}
			for _, k := range want.sorted("a0/", "a1/") {
				delete(want, k)
			}
			leave(t, ballast, 8<<20)
			before := len(want)
			maps.Copy(want, fillTogether(t, db, "b"))
			if len(want) < before+100 {
				t.Errorf("%d writes once there was room", len(want)-before)
			}
			if err := db.Close(); err != nil {
				t.Fatalf("close on a full disk: %v", err)
			}
			db = open(t, dir, opts)
			same(t, db, want, "after reopening the full disk")
			if kind == "tmpfs" {
				return
			}
			leave(t, ballast, 2<<20)
			maps.Copy(want, fillTogether(t, db, "c"))
			if err := m.Shutdown(); err != nil {
				t.Fatal(err)
			}
			db.Close() // whatever it says
			if err := m.Restart(); err != nil {
				t.Fatal(err)
			}
			db = open(t, dir, opts)
			same(t, db, want, "after a power cut of the full disk")
			if err := db.Delete([]byte("c0/0")); err != nil {
				t.Fatalf("Delete on a full disk, after a power cut: %v", err)
			}
			db.Close()
		})
	}
}

// leave makes a file so large that the file system has room for n bytes more, or a little less.
func leave(t *testing.T, ballast string, n int64) {
	t.Helper()
	f, err := vfs.OS.OpenFile(ballast, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	for step := int64(4 << 20); step >= 4<<10; {
		if err := f.Allocate(size, step); err == nil {
			size += step
		} else if !vfs.IsNoSpace(err) {
			t.Fatal(err)
		} else {
			step /= 2
		}
	}
	if err := errors.Join(f.Truncate(size-n), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// fillTogether has four writers write until the disk is full, and returns what was acknowledged.
func fillTogether(t *testing.T, db *engine.DB, prefix string) model {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	m := model{}
	for w := range 4 {
		wg.Go(func() {
			value := strings.Repeat(prefix, 3000+5000*w)
			for i := range 100_000 {
				k := fmt.Sprintf("%s%d/%d", prefix, w, i)
				if err := db.Put([]byte(k), []byte(value)); err != nil {
					if !errors.Is(err, engine.ErrNoSpace) || errors.Is(err, engine.ErrUnknownOutcome) {
						t.Errorf("Put on a full disk: %v", err)
					}
					return
				}
				mu.Lock()
				m[k] = value
				mu.Unlock()
			}
			t.Error("the disk is never full")
		})
	}
	wg.Wait()
	return m
}

// TestIndexThatCannotBeWritten: while no run can be written, memory is bounded all the same: a leader refuses what would
// need more, before anything of it is written, and still deletes; a follower keeps the log and stops applying; and both go on by themselves once
// runs can be written. What was let in comes back after a restart; a log whose index needs far more than it may does not open.
func TestIndexThatCannotBeWritten(t *testing.T) {
	const memory = 1 << 20
	disk := waltest.NewDisk()
	opts := &engine.Options{FS: disk, MemIndexSize: memory} // durable: what is not committed may pass the bound
	db := open(t, "db", opts)
	broken := func(d *waltest.Disk) *waltest.Injection {
		return d.Inject(waltest.Fault{Op: waltest.OpCreate, Path: "*.run", Times: waltest.Forever, Err: syscall.ENOSPC})
	}
	fault := broken(disk)
	put := func(from int) error {
		b := db.NewBatch()
		for i := range 100 {
			b.Put(fmt.Appendf(nil, "key that is not short %08d", from+i), []byte("v"))
		}
		_, err := db.Commit(ctx, b, engine.Default)
		return err
	}
	var head wal.LSN
	var err error
	keys := 0
	for {
		head = db.Stats().Head
		if err = put(keys); err != nil {
			break
		}
		if keys += 100; keys > 1_000_000 {
			t.Fatal("the index takes everything")
		}
	}
	if !errors.Is(err, engine.ErrNoSpace) || errors.Is(err, engine.ErrUnknownOutcome) || db.Stats().Head != head {
		t.Fatalf("an index that is full: %v; the head went from %v to %v", err, head, db.Stats().Head)
	}
	if n := db.Stats().Index.MemoryBytes; n < 2*memory || n > 3*memory {
		t.Errorf("%d bytes are taken of %d", n, memory)
	}
	wantGet(t, db.Get, "key that is not short 00000007", "v")
	if err := db.Delete([]byte("key that is not short 00000007")); err != nil {
		t.Errorf("Delete: %v", err)
	}

	t.Run("follower", func(t *testing.T) {
		fdisk := waltest.NewDisk()
		ffault := broken(fdisk)
		f := open(t, "f", &engine.Options{FS: fdisk, Follower: true, MemIndexSize: memory})
		bigger := open(t, t.TempDir(), &engine.Options{Commit: engine.Written})
		for i := range keys / 100 * 2 {
			b := bigger.NewBatch()
			for k := range 100 {
				b.Put(fmt.Appendf(nil, "key that is not short %08d", i*100+k), []byte("v"))
			}
			if _, err := bigger.Commit(ctx, b, engine.Default); err != nil {
				t.Fatal(err)
			}
		}
		end := bigger.Log().Head()
		p := make([]byte, end)
		if _, err := bigger.Log().ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(p); { // all of it gets into the log
			n, err := f.Log().AppendRaw(wal.LSN(at), p[at:min(at+16<<10, len(p))])
			if err != nil {
				t.Fatal(err)
			}
			at += n
			if _, err := f.Log().Sync(); err != nil {
				t.Fatal(err)
			}
			whole := f.Log().BatchEnd()
			if err := f.FollowMark(whole, 0); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "it is applied, or waits", func() bool { return f.Applied() >= whole || f.IndexOverfull() })
		}
		waitFor(t, "application waits", f.IndexOverfull)
		time.Sleep(300 * time.Millisecond) // an applier that does not wait is through by then
		if f.Applied() == end || f.Stats().Index.MemoryBytes > 3*memory {
			t.Errorf("applied %v of %v with %d bytes of memory", f.Applied(), end, f.Stats().Index.MemoryBytes)
		}
		ffault.End()
		waitFor(t, "application goes on", func() bool { return f.Applied() == end })
		wantGet(t, f.Get, "key that is not short 00000009", "v")
	})

	survivor := disk.Kill()
	again := broken(survivor)
	reopened := *opts
	reopened.FS = survivor
	o := open(t, "db", &reopened)
	wantGet(t, o.Get, "key that is not short 00000009", "v")
	again.End()
	waitFor(t, "writes go on", func() bool { return o.Put([]byte("a"), []byte("1")) == nil })

	fault.End()
	waitFor(t, "writes go on", func() bool { return put(keys) == nil })
	wantGet(t, db.Get, fmt.Sprintf("key that is not short %08d", keys+99), "v")
	for range 5 { // more than may be replayed into memory
		for i := range keys / 100 {
			if err := put(keys + 100*i); err != nil {
				t.Fatal(err)
			}
		}
		keys *= 2
		if keys > 300_000 {
			break
		}
	}
	survivor = disk.Kill()
	for name := range survivor.Files() {
		if strings.HasPrefix(name, "/db/index/") {
			if err := survivor.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	broken(survivor)
	reopened.FS = survivor
	if o, err := engine.Open("db", &reopened); !errors.Is(err, engine.ErrNoSpace) {
		t.Errorf("open with an index that needs far more than it may: %v", err)
		if err == nil {
			o.Close()
		}
	}
}

// same compares everything that db shows with the model.
func same(t *testing.T, db *engine.DB, want model, when string) {
	t.Helper()
	got := state(t, db)
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Fatalf("%s: %s has %d bytes (there: %v), want %d", when, k, len(g), ok, len(v))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d keys, want %d", when, len(got), len(want))
	}
}

// held stalls the sync of one commit and queues others behind it, in order: they form one group when it goes on.
type held struct {
	t       *testing.T
	db      *engine.DB
	release chan struct{}
	first   chan error
	n       int
}

func holdSync(t *testing.T, db *engine.DB, disk *waltest.Disk) *held {
	t.Helper()
	h := &held{t: t, db: db, release: make(chan struct{}), first: make(chan error, 1)}
	stalled := disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Stall: h.release})
	go func() { h.first <- db.Put([]byte("first"), []byte("of all")) }()
	for stalled.Hits() == 0 {
		runtime.Gosched()
	}
	return h
}

// then queues fn, which commits once.
func (h *held) then(fn func() error) <-chan error {
	h.t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	h.n++
	for h.db.Queued() < h.n {
		runtime.Gosched()
	}
	return done
}

func (h *held) goOn() {
	h.t.Helper()
	close(h.release)
	if err := <-h.first; err != nil {
		h.t.Fatal(err)
	}
}

// TestDecisionOnWhatWasNotWritten: a conditional operation that saw a write of its own group, which the full disk then
// refused, is decided again without it.
func TestDecisionOnWhatWasNotWritten(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk, SegmentSize: spaceSegment, Compression: engine.NoCompression})
	mustPut(t, db, "k", "old")
	large := []byte(strings.Repeat("x", 2*spaceSegment))
	disk.SetCapacity(disk.Used() + spaceSegment/2)

	h := holdSync(t, db, disk)
	refused := h.then(func() error { return db.Put([]byte("k"), large) })
	again := h.then(func() error { return db.Put([]byte("n"), large) })
	var swapped, absent bool
	var sum int64
	swap := h.then(func() (err error) {
		swapped, _, err = db.CompareAndSwap(ctx, engine.Default, []byte("k"), large, []byte("new"))
		return err
	})
	put := h.then(func() (err error) {
		absent, _, err = db.PutIfAbsent(ctx, engine.Default, []byte("n"), []byte("1"))
		return err
	})
	incr := h.then(func() (err error) {
		sum, _, err = db.Increment(ctx, engine.Default, []byte("n"), 5)
		return err
	})
	h.goOn()
	for _, c := range []<-chan error{refused, again} {
		if err := <-c; !errors.Is(err, engine.ErrNoSpace) {
			t.Fatalf("a batch that does not fit: %v", err)
		}
	}
	for name, c := range map[string]<-chan error{"CompareAndSwap": swap, "PutIfAbsent": put, "Increment": incr} {
		if err := <-c; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if swapped || !absent || sum != 6 {
		t.Errorf("swapped a value that was never there: %v; put an absent key: %v; 1 + 5 = %d", swapped, absent, sum)
	}
	wantGet(t, db.Get, "k", "old")
	wantGet(t, db.Get, "n", "6")
}

// TestCancelledBeforeItIsWritten: a wait that ends while the batch is on its way into the log has no position to
// report, and none is made up: what is asked of it is an error, not "committed".
func TestCancelledBeforeItIsWritten(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk, SegmentSize: spaceSegment})
	mustPut(t, db, "k", "old")
	release := make(chan struct{})
	stalled := disk.Inject(waltest.Fault{Op: waltest.OpWrite, Path: "*.seg", Stall: release})
	first := make(chan error, 1)
	go func() { first <- db.Put([]byte("k"), []byte("1")) }()
	for stalled.Hits() == 0 {
		runtime.Gosched()
	}
	// The first commit leads and cannot leave. What queues behind it was never written.
	c, cancel := context.WithCancel(ctx)
	cancel()
	b := db.NewBatch()
	b.Put([]byte("k"), []byte("2"))
	if _, err := db.Commit(c, b, engine.Default); !errors.Is(err, context.Canceled) || errors.Is(err, engine.ErrUnknownOutcome) {
		t.Fatalf("cancelled before it was queued: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}

	// One that another leads, in the middle of its write.
	h := holdSync(t, db, disk)
	lead := h.then(func() error { return db.Put([]byte("a"), []byte("1")) })
	c, cancel = context.WithCancel(ctx)
	defer cancel()
	led := h.then(func() error {
		b := db.NewBatch()
		b.Put([]byte("b"), []byte("1"))
		_, err := db.Commit(c, b, engine.Default)
		return err
	})
	release = make(chan struct{})
	stalled = disk.Inject(waltest.Fault{Op: waltest.OpWrite, Path: "*.seg", Stall: release})
	h.goOn()
	for stalled.Hits() == 0 {
		runtime.Gosched()
	}
	cancel()
	err := <-led
	var unknown *engine.OutcomeError
	if !errors.As(err, &unknown) || !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled in the middle of its write: %v", err)
	}
	if unknown.Position != (engine.Position{}) {
		t.Errorf("position %v, and the batch was nowhere yet", unknown.Position)
	}
	if o, err := db.Outcome(unknown.Position); !errors.Is(err, engine.ErrInvalidOption) {
		t.Errorf("the outcome of no position is %v, %v", o, err)
	}
	close(release)
	if err := <-lead; err != nil {
		t.Fatal(err)
	}
	wantGet(t, db.Get, "b", "1")
}

// TestPositionsAfterAFailedSync: each write whose wait a failed sync ends reports its own place in the log, so that it
// can be asked for after a restart; later writes are refused, and nothing of them is unknown.
func TestPositionsAfterAFailedSync(t *testing.T) {
	disk := waltest.NewDisk()
	opts := &engine.Options{FS: disk, Commit: engine.Replicated(1)}
	db := open(t, "db", opts)
	f := join(t, db, "f")
	f.confirm()
	ends := make([]wal.LSN, 2)
	var waits []<-chan error
	for i := range ends {
		waits = append(waits, write(t, db, fmt.Sprint("k", i), "1"))
		ends[i] = db.Log().Head()
	}
	waitFor(t, "both are on this disk", func() bool { return db.Log().Durable() == ends[1] })
	disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg"})
	waits = append(waits, write(t, db, "k2", "1"))
	for i, w := range waits {
		err := <-w
		var unknown *engine.OutcomeError
		if !errors.As(err, &unknown) || !errors.Is(err, engine.ErrPoisoned) {
			t.Fatalf("write %d: %v", i, err)
		}
		if i < len(ends) && unknown.Position.LSN != ends[i] {
			t.Errorf("write %d ends at %v, it says %v", i, ends[i], unknown.Position)
		}
	}
	if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrPoisoned) || errors.Is(err, engine.ErrUnknownOutcome) {
		t.Errorf("Put after a failed sync: %v", err)
	}
}

// TestDeadlinesHoldOnASilentDisk: a call whose context has a deadline returns then, also when it is the one that has the disk write for its group, or the
// next one. What it wrote is not lost when the disk answers, and the writes behind it go on.
func TestDeadlinesHoldOnASilentDisk(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk})
	mustPut(t, db, "k", "old")
	release := make(chan struct{})
	stalled := disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg", Stall: release})
	put := func(key string) <-chan error {
		done := make(chan error, 1)
		go func() { // ends at its deadline
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			b := db.NewBatch()
			b.Put([]byte(key), []byte("new"))
			_, err := db.Commit(ctx, b, engine.Default)
			done <- err
		}()
		return done
	}
	first := put("first")
	for stalled.Hits() == 0 {
		runtime.Gosched()
	}
	next, third := put("next"), put("third")
	for _, c := range []struct {
		name string
		done <-chan error
	}{{"first", first}, {"next", next}, {"third", third}} {
		select {
		case err := <-c.done:
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, engine.ErrUnknownOutcome) != (c.name == "first") {
				t.Errorf("%s: %v", c.name, err)
			}
		case <-time.After(15 * time.Second): // before the disk counts as failed
			t.Errorf("%s: its deadline has passed", c.name)
		}
	}
	close(release)
	mustPut(t, db, "k", "new")
	wantGet(t, db.Get, "first", "new")
	for _, key := range []string{"next", "third"} {
		if _, err := db.Get([]byte(key)); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("%s, which was not written: %v", key, err)
		}
	}
}

// TestSilentDisk: a leader whose disk has not answered in time takes no more writes, and the late answer acknowledges and shows nothing.
func TestSilentDisk(t *testing.T) { synctest.Test(t, silentDisk) }

func silentDisk(t *testing.T) {
	disk := waltest.NewDisk()
	db := open(t, "db", &engine.Options{FS: disk})
	mustPut(t, db, "k", "old")
	h := holdSync(t, db, disk)
	time.Sleep(21 * time.Second)
	if err := db.Stats().Failed; !errors.Is(err, engine.ErrStalled) {
		t.Errorf("after 21 s: %v", err)
	}
	if err := db.Put([]byte("k"), []byte("new")); !errors.Is(err, engine.ErrPoisoned) || !errors.Is(err, engine.ErrStalled) {
		t.Errorf("a write while the disk is silent: %v", err)
	}
	wantGet(t, db.Get, "k", "old")
	close(h.release)
	if err := <-h.first; !errors.Is(err, engine.ErrUnknownOutcome) || !errors.Is(err, engine.ErrStalled) {
		t.Errorf("the write that the disk has answered late: %v", err)
	}
	if _, err := db.Get([]byte("first")); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("it shows: %v", err)
	}
}
