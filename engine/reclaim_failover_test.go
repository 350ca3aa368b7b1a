package engine_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// ship copies what a follower lacks of a leader's log, durably, and confirms it.
func ship(leader, f *engine.DB) error {
	at, end := f.Log().Head(), leader.Log().Head()
	if f.Log().Empty() {
		at = leader.Log().Tail()
	}
	p := make([]byte, end-at)
	if _, err := leader.Log().ReadAt(p, at); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := f.Log().AppendRaw(at, p)
		if err != nil {
			return err
		}
		at, p = at+wal.LSN(n), p[n:]
	}
	if _, err := f.Log().Sync(); err != nil {
		return err
	}
	leader.PeerAck(f.Log().NodeID(), end, end, f.Applied(), f.Applied())
	return f.FollowMark(min(end, leader.Committed()), 0)
}

// shipping does that whenever the leader's log or its marks have moved, until stop is called or something fails.
func shipping(leader, f *engine.DB) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	moved := make(chan struct{}, 1)
	cancel := leader.Subscribe(moved)
	go func() { // ended by stop
		defer close(done)
		defer cancel()
		for ship(leader, f) == nil {
			select {
			case <-moved:
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// trio is a leader on a disk that is to crash, and two followers that confirm its writes.
type trio struct {
	t       *testing.T
	script  *reclaimScript
	opts    engine.Options
	disk    *waltest.Disk
	a, b, c *engine.DB
	stop    func() // of the shipping from a
}

func newTrio(t *testing.T, s *reclaimScript) *trio {
	t.Helper()
	w := &trio{t: t, script: s, disk: waltest.NewDisk()}
	w.opts = engine.Options{
		Commit: engine.Replicated(1), SegmentSize: reclaimSegment, Compression: engine.NoCompression, SpaceFactor: -1, CommitTimeout: -1,
	}
	w.a = w.open(w.disk, false)
	w.b, w.c = w.open(waltest.NewDisk(), true), w.open(waltest.NewDisk(), true)
	for i, f := range []*engine.DB{w.b, w.c} {
		feed(t, w.a, f, w.a.Log().Head())
		w.admit(w.a, f, string(rune('b'+i)))
	}
	stopB, stopC := shipping(w.a, w.b), shipping(w.a, w.c)
	w.stop = func() { stopB(); stopC() }
	waitFor(t, "both followers count", func() bool {
		n := 0
		for _, f := range w.a.Stats().Followers {
			if f.Admitted {
				n++
			}
		}
		return n == 2
	})
	return w
}

func (w *trio) open(disk *waltest.Disk, follower bool) *engine.DB {
	w.t.Helper()
	o := w.opts
	o.FS, o.Follower = disk, follower
	if follower {
		o.Commit = engine.Default
	}
	db, err := engine.Open("db", &o)
	if err != nil {
		w.t.Fatal(err)
	}
	return db
}

func (w *trio) admit(leader, f *engine.DB, name string) {
	w.t.Helper()
	leader.HoldSlot(f.Log().NodeID(), name, f.Log().Head())
	if _, err := leader.AdmitPeer(f.Log().NodeID(), name, name+".example:7380"); err != nil {
		w.t.Fatal(err)
	}
}

// failover is what follows the death of a after so many acknowledged steps: b leads, or c if it has more, and the other follows; the rest of the script, and more reclaim, is
// done there; then a comes back with what its disk has kept, and follows too. All three have the same state and the same bytes.
func (w *trio) failover(acked int, survived *waltest.Disk, what string) {
	t, name := w.t, "c"
	t.Helper()
	if w.c.Log().Head() > w.b.Log().Head() { // it may have given up already what the other lacks
		w.b, w.c, name = w.c, w.b, "b"
	}
	w.b.SetElectorate(voters{t, w.b, map[wal.NodeID]*engine.DB{w.c.Log().NodeID(): w.c}})
	if err := w.b.Promote(t.Context()); err != nil {
		t.Fatalf("%s: promote: %v", what, err)
	}
	hold := w.b.Snapshot() // its segments stay until the other is known to need them
	w.join(w.c, what)
	if w.c.Log().Empty() {
		if err := ship(w.b, w.c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	w.admit(w.b, w.c, name)
	stop := shipping(w.b, w.c)
	hold.Close()
	waitFor(t, what+": the new leader has loaded", func() bool { return !w.b.Stats().Loading })
	got := state(t, w.b)
	if !w.script.isAfter(got, acked) {
		t.Fatalf("%s: %d steps were acknowledged; the new leader: %s", what, acked, difference(got, w.script.models[acked]))
	}
	if !maps.Equal(got, w.script.models[acked]) {
		acked++
	}
	for ; acked < len(w.script.steps); acked++ {
		if err := w.script.step(w.b, acked); err != nil {
			t.Fatalf("%s: step %d on the new leader: %v", what, acked, err)
		}
	}
	for range 4 {
		if _, err := w.b.Reclaim(); err != nil {
			t.Fatalf("%s: reclaim on the new leader: %v", what, err)
		}
	}
	waitFor(t, "everything is committed", func() bool { return w.b.Committed() == w.b.Log().Head() })
	stop()
	w.b.Trim()
	hold = w.b.Snapshot() // while they are copied
	defer hold.Close()
	w.a = w.open(survived, true)
	w.join(w.a, what)
	for name, db := range map[string]*engine.DB{"the new leader": w.b, "the other follower": w.c, "the old leader": w.a} {
		if db != w.b {
			if err := ship(w.b, db); err != nil {
				t.Fatalf("%s: %s: %v", what, name, err)
			}
			waitFor(t, "it is applied", func() bool { return db.Applied() == w.b.Log().Head() })
			waitFor(t, "it is shown", func() bool { return !db.Stats().Loading && db.Stats().Visible == w.b.Log().Head() })
		}
		db.Trim()
		if got := state(t, db); !maps.Equal(got, w.script.models[acked]) {
			t.Fatalf("%s: %s: %s", what, name, difference(got, w.script.models[acked]))
		}
		from := max(db.Log().Tail(), w.b.Log().Tail())
		if !bytes.Equal(logBytes(t, db, from), logBytes(t, w.b, from)) {
			t.Fatalf("%s: %s has other bytes from %v on", what, name, from)
		}
	}
	hold.Close()
	for _, db := range []*engine.DB{w.a, w.b, w.c} {
		if err := db.Close(); err != nil {
			t.Fatalf("%s: close: %v", what, err)
		}
	}
}

// join cuts what a node has of the old leader's end and the new one has not, or has it start over where that begins behind its end.
func (w *trio) join(db *engine.DB, what string) {
	w.t.Helper()
	h := w.b.Log().History()
	fork := h[len(h)-1].Start
	var err error
	if db.Log().Head() > fork {
		err = db.CutLog(fork)
	}
	if err == nil && db.Log().Head() < w.b.Log().Tail() {
		err = db.StartOver()
	}
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

func logBytes(t *testing.T, db *engine.DB, from wal.LSN) []byte {
	t.Helper()
	p := make([]byte, db.Log().Head()-from)
	if _, err := db.Log().ReadAt(p, from); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestReclaimFailover: the leader dies at any call while it reclaims, and a follower leads and reclaims on.
func TestReclaimFailover(t *testing.T) {
	s := newReclaimScript()
	defer engine.FreezeEvery(25)()
	first, step := int(time.Now().UnixNano()%16), 16
	if os.Getenv("SHIPLOG_CRASHES") == "all" {
		first, step = 0, 1
	}
	for k := first; ; k += step {
		w := newTrio(t, s)
		acked := 0
		for s.steps[acked] != nil { // up to the first reclaim
			if err := s.step(w.a, acked); err != nil {
				t.Fatal(err)
			}
			acked++
		}
		w.disk.Inject(waltest.Fault{Skip: k, Crash: true})
		for ; acked < len(s.steps) && s.step(w.a, acked) == nil; acked++ {
			w.a.Trim()
		}
		w.stop()
		crashed := w.disk.Crashed()
		w.disk.PowerOff()
		w.a.Close()
		w.failover(acked, w.disk.Crash(uint64(k)), fmt.Sprint("call ", k))
		if !crashed {
			t.Logf("%d calls", k)
			return
		}
	}
}

// TestTailRecordOfADeadLeader: the leader dies between what it has written again and the tail record, which its disk has and nobody else.
func TestTailRecordOfADeadLeader(t *testing.T) {
	s := newReclaimScript()
	for seed := range uint64(3) {
		w := newTrio(t, s)
		acked := 0
		for ; s.steps[acked] != nil; acked++ {
			if err := s.step(w.a, acked); err != nil {
				t.Fatal(err)
			}
		}
		tail, err := w.a.Relocate()
		if err != nil || tail == 0 {
			t.Fatal(tail, err)
		}
		w.stop()
		if err := w.a.MoveTail(tail); err != nil {
			t.Fatal(err)
		}
		w.a.Trim()
		if w.a.Log().Tail() != 0 {
			t.Fatal("the leader has removed segments by a record that nobody else has")
		}
		w.disk.PowerOff()
		w.a.Close()
		w.failover(acked, w.disk.Crash(seed), fmt.Sprint("survivors ", seed))
	}
}
