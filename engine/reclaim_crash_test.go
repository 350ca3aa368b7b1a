package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// reclaimScript is a workload in which the tail goes past everything that was written first: live, overwritten and deleted keys, deleted
// ranges, keys with an expiry, a value larger than a segment, and what was written again and then overwritten or deleted. models[i] is
// the state after i steps.
type reclaimScript struct {
	steps  []func(b *engine.Batch) // nil: the oldest segment is reclaimed
	models []model
}

const reclaimSegment = 128 << 10

func newReclaimScript() *reclaimScript {
	s := &reclaimScript{models: []model{{}}}
	m := model{}
	step := func(fill func(b *engine.Batch)) {
		s.steps = append(s.steps, fill)
		s.models = append(s.models, maps.Clone(m))
	}
	put := func(prefix string, from, to, size int, version string) {
		for i := from; i < to; i++ {
			m[fmt.Sprint(prefix, i)] = strings.Repeat(version, size/len(version))
		}
		step(func(b *engine.Batch) {
			for i := from; i < to; i++ {
				b.Put(fmt.Append(nil, prefix, i), []byte(strings.Repeat(version, size/len(version))))
			}
		})
	}
	del := func(keys ...string) {
		for _, k := range keys {
			delete(m, k)
		}
		step(func(b *engine.Batch) {
			for _, k := range keys {
				b.Delete([]byte(k))
			}
		})
	}
	reclaim := func() { step(nil) }

	put("live", 0, 25, 4000, "first")
	put("over", 0, 20, 1000, "old")
	put("range", 0, 20, 500, "gone")
	m["ttl"] = "for ever, nearly"
	step(func(b *engine.Batch) {
		b.PutTTL([]byte("ttl"), []byte("for ever, nearly"), time.UnixMilli(1<<42))
		b.PutTTL([]byte("expired"), []byte("gone"), time.UnixMilli(1))
	})
	put("large", 0, 1, 150_000, "0123456789")
	put("over", 0, 10, 1000, "new")
	for _, k := range m.sorted("range1", "range5") {
		delete(m, k)
	}
	step(func(b *engine.Batch) { b.DeleteRange([]byte("range1"), []byte("range5")) })
	del("live3", "live4", "over12")
	put("filler", 0, 20, 4000, "1")
	reclaim()
	put("live", 5, 8, 4000, "again") // of those that were just written again
	del("live8", "live9", "ttl")
	reclaim()
	put("filler", 0, 20, 4000, "2")
	reclaim()
	del("large0")
	put("filler", 5, 10, 4000, "3")
	reclaim()
	reclaim()
	put("end", 0, 1, 10, "e")
	reclaim()
	del("end0")
	return s
}

// step takes one step. Its commit is durable, and acknowledged by the rule, on return.
func (s *reclaimScript) step(db *engine.DB, i int) error {
	if s.steps[i] == nil {
		_, err := db.Reclaim()
		return err
	}
	b := db.NewBatch()
	s.steps[i](b)
	_, err := db.Commit(ctx, b, engine.Durable)
	return err
}

// run opens the database and takes steps until something fails. It returns how many were acknowledged.
func (s *reclaimScript) run(disk *waltest.Disk, opts engine.Options) (acked int) {
	opts.FS = disk
	db, err := engine.Open("db", &opts)
	if err != nil {
		return 0
	}
	for ; acked < len(s.steps) && s.step(db, acked) == nil; acked++ {
		db.Trim()
	}
	db.Close()
	return acked
}

// isAfter reports whether a state is the one after that many steps, or one more.
func (s *reclaimScript) isAfter(got model, acked int) bool {
	return maps.Equal(got, s.models[acked]) || acked < len(s.steps) && maps.Equal(got, s.models[acked+1])
}

// eachCrash loses power in each call of a run that changes or syncs something, and hands on what different parts of the unsynced bytes leave,
// and what a kill of the process does.
func eachCrash(t *testing.T, run func(disk *waltest.Disk) (acked int), check func(disk *waltest.Disk, acked int, what string)) {
	t.Helper()
	// By default each run takes other calls of them; SHIPLOG_CRASHES=all takes all.
	first, step := int(time.Now().UnixNano()%4), 4
	if os.Getenv("SHIPLOG_CRASHES") == "all" {
		first, step = 0, 1
	} else if testing.Short() {
		step = 16
	}
	for k := first; ; k += step {
		disk := waltest.NewDisk()
		disk.Inject(waltest.Fault{Skip: k, Crash: true})
		acked := run(disk)
		crashed := disk.Crashed()
		disk.PowerOff()
		check(disk.Kill(), acked, fmt.Sprintf("call %d, killed", k))
		for seed := range uint64(3) {
			check(disk.Crash(seed+seed/2*uint64(k)*1000), acked, fmt.Sprintf("call %d, survivors %d", k, seed))
		}
		if !crashed {
			t.Logf("%d calls", k)
			return
		}
	}
}

// TestReclaimCrashAtEveryCall: at whatever call the power goes while reclaim writes again, moves the tail and removes segments, nothing that lives
// is lost and nothing deleted comes back: not at the next open, not at the one after, not without the index's files, and not as reclaim goes on.
func TestReclaimCrashAtEveryCall(t *testing.T) {
	s := newReclaimScript()
	for _, level := range []engine.Level{engine.Durable, engine.Written} {
		t.Run(level.String(), func(t *testing.T) {
			defer engine.FreezeEvery(25)() // runs are written and merged meanwhile
			opts := engine.Options{
				Commit: level, SegmentSize: reclaimSegment, Compression: engine.NoCompression, SpaceFactor: -1, CommitTimeout: -1,
			}
			whole := waltest.NewDisk()
			if n := s.run(whole, opts); n != len(s.steps) || whole.Count(waltest.OpRemove) < 4 {
				t.Fatalf("%d of %d steps, %d removed", n, len(s.steps), whole.Count(waltest.OpRemove))
			}
			eachCrash(t, func(disk *waltest.Disk) int { return s.run(disk, opts) }, func(disk *waltest.Disk, acked int, what string) {
				t.Helper()
				s.checkReclaimed(t, disk, opts, acked, what)
			})
		})
	}
}

func (s *reclaimScript) checkReclaimed(t *testing.T, disk *waltest.Disk, opts engine.Options, acked int, what string) {
	t.Helper()
	opts.FS = disk
	var first model
	for _, when := range []string{"first open", "second open", "without index", "reclaimed", "after that"} {
		if when == "without index" {
			dropIndex(t, disk)
		}
		db, err := engine.Open("db", &opts)
		if err != nil {
			t.Fatalf("%s: %s: %v", what, when, err)
		}
		if when == "reclaimed" {
			for again := true; again && db.Log().Head() < 16*reclaimSegment; {
				if again, err = db.Reclaim(); err != nil {
					t.Fatalf("%s: reclaim goes on: %v", what, err)
				}
				db.Trim()
			}
		}
		got := state(t, db)
		if err := db.Close(); err != nil {
			t.Fatalf("%s: %s: close: %v", what, when, err)
		}
		switch {
		case first != nil && !maps.Equal(got, first):
			t.Fatalf("%s: %s: %d keys, %d before; %s", what, when, len(got), len(first), difference(got, first))
		case first == nil && !s.isAfter(got, acked):
			t.Fatalf("%s: %d steps were acknowledged; %s", what, acked, difference(got, s.models[acked]))
		}
		first = got
	}
}

// difference names some keys that differ.
func difference(got, want model) string {
	var d []string
	for k := range want {
		if _, ok := got[k]; !ok {
			d = append(d, k+" is missing")
		} else if got[k] != want[k] {
			d = append(d, k+" has another value")
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			d = append(d, k+" should not be there")
		}
	}
	return strings.Join(d[:min(len(d), 8)], ", ")
}

// stream is what a leader ships: the bytes of its log, and where each step of the script ends in them.
type stream struct {
	p    []byte
	ends []wal.LSN // after i+1 steps
	tail []wal.LSN // of the leader then
}

func (s *reclaimScript) stream(t *testing.T) *stream {
	t.Helper()
	db := open(t, "leader", &engine.Options{
		FS: waltest.NewDisk(), SegmentSize: reclaimSegment, Compression: engine.NoCompression, SpaceFactor: -1,
	})
	st := &stream{}
	for i := range s.steps {
		if err := s.step(db, i); err != nil {
			t.Fatal(err)
		}
		from := wal.LSN(len(st.p))
		end := db.Log().Head()
		st.p = append(st.p, make([]byte, end-from)...)
		if _, err := db.Log().ReadAt(st.p[from:], from); err != nil {
			t.Fatal(err)
		}
		db.Trim()
		st.ends, st.tail = append(st.ends, end), append(st.tail, db.Log().Tail())
	}
	return st
}

// feed gives a follower the stream up to an LSN, durably, and says that it is committed. An empty log begins at start.
func (st *stream) feed(f *engine.DB, start, end wal.LSN) error {
	at := start
	if !f.Log().Empty() {
		at = f.Log().Head()
	}
	for at < end {
		n, err := f.Log().AppendRaw(at, st.p[at:end])
		if err != nil {
			return err
		}
		at += wal.LSN(n)
	}
	if _, err := f.Log().Sync(); err != nil {
		return err
	}
	moved := make(chan struct{}, 1)
	defer f.Subscribe(moved)()
	for f.Applied() < end {
		<-moved
	}
	return f.FollowMark(end, 0)
}

// TestReclaimCrashOnFollower is TestReclaimCrashAtEveryCall on a follower: one that was there from the beginning, and one that begins at a
// moved tail, which is loading until it has the record that moved it.
func TestReclaimCrashOnFollower(t *testing.T) {
	s := newReclaimScript()
	st := s.stream(t)
	moved := 0
	for st.tail[moved] < 2*reclaimSegment {
		moved++
	}
	for name, start := range map[string]wal.LSN{"from the beginning": 0, "from a moved tail": st.tail[moved]} {
		t.Run(name, func(t *testing.T) {
			defer engine.FreezeEvery(25)()
			opts := engine.Options{Follower: true, CommitTimeout: -1}
			first := 0
			for st.ends[first] <= start {
				first++
			}
			run := func(disk *waltest.Disk) int {
				opts.FS = disk
				f, err := engine.Open("db", &opts)
				if err != nil {
					return first
				}
				defer f.Close()
				for i := first; i < len(s.steps); i++ {
					if st.feed(f, start, st.ends[i]) != nil {
						return i
					}
					f.Trim()
				}
				return len(s.steps)
			}
			whole := waltest.NewDisk()
			if n := run(whole); n != len(s.steps) || whole.Count(waltest.OpRemove) < 2 {
				t.Fatalf("%d of %d steps, %d removed", n, len(s.steps), whole.Count(waltest.OpRemove))
			}
			eachCrash(t, run, func(disk *waltest.Disk, acked int, what string) {
				t.Helper()
				s.checkFollower(t, st, disk, opts, start, acked, what)
			})
		})
	}
}

func (s *reclaimScript) checkFollower(t *testing.T, st *stream, disk *waltest.Disk, opts engine.Options, start wal.LSN, acked int, what string) {
	t.Helper()
	opts.FS = disk
	last := len(s.steps) - 1
	for _, when := range []string{"first open", "second open", "without index", "fed on", "after that"} {
		if when == "without index" {
			dropIndex(t, disk)
		}
		f, err := engine.Open("db", &opts)
		if err != nil {
			t.Fatalf("%s: %s: %v", what, when, err)
		}
		loads := func() bool {
			_, err := f.Get([]byte("live0"))
			return errors.Is(err, engine.ErrLoading)
		}
		if !loads() { // as far as it was known to be committed
			if got := state(t, f); !s.wasOnce(got, acked) {
				t.Fatalf("%s: %s: never the state up to step %d; %s", what, when, acked, difference(got, s.models[acked]))
			}
		}
		if f.Log().Recovery().MarkLost {
			f.Log().AcceptMark() // as package ship does, once it has compared the logs
		}
		if when == "fed on" {
			if err := st.feed(f, start, st.ends[last]); err != nil {
				t.Fatalf("%s: fed on: %v", what, err)
			}
			waitFor(t, "its segments are gone", func() bool { f.Trim(); return f.Log().Tail() == st.tail[last] })
			acked = last + 1
		} else if !f.Log().Empty() {
			if err := f.FollowMark(f.Log().BatchEnd(), 0); err != nil {
				t.Fatalf("%s: %s: %v", what, when, err)
			}
		}
		switch {
		case !loads():
			if got := state(t, f); !s.isAfter(got, acked) {
				t.Fatalf("%s: %s: %d steps were fed; %s", what, when, acked, difference(got, s.models[acked]))
			}
		case acked > 0 && start == 0, acked > last:
			t.Fatalf("%s: %s: loading after %d steps", what, when, acked)
		}
		if err := f.Close(); err != nil {
			t.Fatalf("%s: %s: close: %v", what, when, err)
		}
	}
}

// wasOnce reports whether a state is the one after that many steps, one more, or fewer.
func (s *reclaimScript) wasOnce(got model, acked int) bool {
	for i := range acked + 1 {
		if s.isAfter(got, i) {
			return true
		}
	}
	return false
}

// TestReclaimKeepsExpiry: what is written again expires when it would have, and what has expired is not written again.
func TestReclaimKeepsExpiry(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	opts := &engine.Options{
		FS: waltest.NewDisk(), SegmentSize: 64 << 10, Compression: engine.NoCompression, SpaceFactor: -1, Now: func() time.Time { return now },
	}
	db := open(t, "db", opts)
	expiry := now.Add(time.Hour)
	b := db.NewBatch()
	b.PutTTL([]byte("lives"), []byte("1"), expiry)
	b.PutTTL([]byte("expired"), []byte(strings.Repeat("x", 20_000)), now.Add(-time.Hour))
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		mustPut(t, db, fmt.Sprint("filler", i%2), strings.Repeat("f", 20_000))
	}
	head := db.Log().Head()
	if again, err := db.Reclaim(); err != nil || !again {
		t.Fatal(again, err)
	}
	if grown := db.Log().Head() - head; grown > 10_000 {
		t.Errorf("%d bytes were written again for one that lives", grown)
	}
	v, at, err := db.GetEntry([]byte("lives"))
	if err != nil || string(v) != "1" || !at.Equal(expiry) {
		t.Errorf("%q, expires %v, %v; want %v", v, at, err, expiry)
	}
	wantMissing(t, db.Get, "expired")
	waitFor(t, "the tail has moved", func() bool { return db.Stats().Tail > 0 })
}
