package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestModelOverOptions runs one random sequence of writes on two databases with different random options, and on a follower of the first with
// a third set, while each loses power, or its process is killed, again and again: after each crash what was acknowledged is there
// and at most the write in hand beside it, all three give the model's answers, and the follower's log has the leader's bytes.
// SHIPLOG_SEED reruns a seed.
func TestModelOverOptions(t *testing.T) {
	for _, seed := range seeds(t, 6) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 11))
			a, b := newModelNode(t, rng), newModelNode(t, rng)
			f := &modelFollower{modelNode: modelNode{t: t, rng: rng, disk: waltest.NewDisk(), opts: randomOptions(rng)}, leader: a}
			f.opts.Follower, f.opts.SegmentSize, f.opts.Commit = true, a.opts.SegmentSize, 0
			f.open()
			steps := 800
			if testing.Short() {
				steps = 250
			}
			for step := range steps {
				o := randomOp(rng, step)
				a.do(o)
				b.do(o)
				if rng.IntN(10) == 0 {
					f.catchUp()
				}
				if rng.IntN(25) == 0 {
					a.check()
					b.check()
				}
			}
			a.check()
			b.check()
			f.catchUp()
			f.check()
			if !maps.Equal(a.m, b.m) {
				t.Error("the two have come to different states")
			}
			t.Logf("crashes %d, %d and %d; tails %v, %v and %v; started over %d times", a.crashes, b.crashes, f.crashes,
				a.db.Log().Tail(), b.db.Log().Tail(), f.db.Log().Tail(), f.over)
		})
	}
}

// randomOptions chooses whatever does not change what a database answers.
func randomOptions(rng *rand.Rand) engine.Options {
	one := func(of ...int64) int64 { return of[rng.IntN(len(of))] }
	o := engine.Options{
		Commit:       []engine.Level{engine.Durable, engine.Written, engine.Buffered}[rng.IntN(3)],
		SegmentSize:  64 << 10 << rng.IntN(3),
		Compression:  engine.Compression(rng.IntN(3)),
		MemIndexSize: one(1<<20, 4<<20, 0),
		CacheSize:    one(-1, 64<<10, 0),
		SpaceFactor:  int(one(-1, -1, 120, 150, 0)),
		MaxPinned:    one(256<<10, 0),
		SortWhenIdle: rng.IntN(2) == 0,
		ReadLeases:   rng.IntN(2) == 0,
	}
	if o.SpaceFactor >= 0 { // a snapshot may then have to give way to reclaim, whenever that comes: an answer of another kind
		o.MaxPinned = 0
	}
	return o
}

// modelOp is one write: run does it, and apply says what it does to the model.
type modelOp struct {
	run   func(db *engine.DB) error
	apply func(m model)
}

// farAway is later than any test.
var farAway = time.UnixMilli(1 << 45)

func randomOp(rng *rand.Rand, step int) modelOp {
	key := func() string { return fmt.Sprintf("key%03d", rng.IntN(200)) }
	k, other := key(), key()
	v := strings.Repeat(fmt.Sprint(step, " "), 1+rng.IntN(400)*(1+rng.IntN(30)/29*50))
	switch rng.IntN(12) {
	case 0: // it sees a range and two keys, and writes what it saw
		sum := func(m []string) string { return fmt.Sprint("sum ", len(m), strings.Join(m, ",")) }
		lo, hi := min(k, other), max(k, other)
		return modelOp{func(db *engine.DB) error {
			_, err := db.Update(ctx, engine.Durable, func(tx *engine.Tx) error {
				var seen []string
				if err := tx.Keys([]byte(lo), []byte(hi), func(key []byte) bool {
					seen = append(seen, string(key))
					return true
				}); err != nil {
					return err
				}
				if err := tx.Put([]byte(k), []byte(sum(seen))); err != nil {
					return err
				}
				return tx.Delete([]byte(other))
			})
			return err
		}, func(m model) {
			m[k] = sum(m.sorted(lo, hi))
			delete(m, other)
		}}
	case 1:
		return modelOp{func(db *engine.DB) error {
			_, _, err := db.PutIfAbsent(ctx, engine.Durable, []byte(k), []byte(v))
			return err
		}, func(m model) {
			if _, ok := m[k]; !ok {
				m[k] = v
			}
		}}
	case 2:
		return modelOp{func(db *engine.DB) error {
			_, _, err := db.Increment(ctx, engine.Durable, []byte("counter"), int64(step))
			return err
		}, func(m model) {
			n, _ := strconv.ParseInt(m["counter"], 10, 64)
			m["counter"] = fmt.Sprint(n + int64(step))
		}}
	}
	var fill []func(b *engine.Batch)
	var apply []func(m model)
	for range 1 + rng.IntN(12) {
		f, a := randomRecord(rng, key(), key(), fmt.Sprint(step, " ", v[:min(len(v), rng.IntN(3000))]))
		fill, apply = append(fill, f), append(apply, a)
	}
	return modelOp{func(db *engine.DB) error {
		b := db.NewBatch()
		for _, f := range fill {
			f(b)
		}
		_, err := db.Commit(ctx, b, engine.Durable)
		return err
	}, func(m model) {
		for _, a := range apply {
			a(m)
		}
	}}
}

func randomRecord(rng *rand.Rand, k, other, v string) (fill func(b *engine.Batch), apply func(m model)) {
	remove := func(m model) { delete(m, k) }
	put := func(m model) { m[k] = v }
	switch rng.IntN(16) {
	case 0, 1, 2:
		return func(b *engine.Batch) { b.Delete([]byte(k)) }, remove
	case 3:
		return func(b *engine.Batch) { b.PutTTL([]byte(k), []byte(v), time.UnixMilli(1)) }, remove
	case 4:
		return func(b *engine.Batch) { b.PutTTL([]byte(k), []byte(v), farAway) }, put
	case 5:
		lo, hi := min(k, other), max(k, other)
		if rng.IntN(4) > 0 { // mostly a few keys
			hi = lo + "~"
		}
		return func(b *engine.Batch) { b.DeleteRange([]byte(lo), []byte(hi)) }, func(m model) {
			for _, k := range m.sorted(lo, hi) {
				delete(m, k)
			}
		}
	}
	return func(b *engine.Batch) { b.Put([]byte(k), []byte(v)) }, put
}

// modelNode is a database and what it should hold.
type modelNode struct {
	t       *testing.T
	rng     *rand.Rand
	disk    *waltest.Disk
	opts    engine.Options
	db      *engine.DB
	m       model
	armed   []*waltest.Injection
	crashes int
}

func newModelNode(t *testing.T, rng *rand.Rand) *modelNode {
	n := &modelNode{t: t, rng: rng, disk: waltest.NewDisk(), opts: randomOptions(rng), m: model{}}
	n.open()
	return n
}

// open opens the database. Options that may change from one open to the next do.
func (n *modelNode) open() {
	n.t.Helper()
	was := n.opts
	n.opts = randomOptions(n.rng)
	n.opts.FS, n.opts.Commit, n.opts.SegmentSize, n.opts.Follower = n.disk, was.Commit, was.SegmentSize, was.Follower
	defer engine.FreezeEvery(n.rng.IntN(3) * n.rng.IntN(300))()
	n.db = open(n.t, "db", &n.opts)
}

// arm lets the disk lose power at one of the next calls, from time to time.
func (n *modelNode) arm() {
	if n.rng.IntN(12) == 0 {
		n.armed = append(n.armed, n.disk.Inject(waltest.Fault{Skip: n.rng.IntN(40), Crash: true}))
	}
}

// settle lets no power be lost from here on, by work in the background either, until arm is called again.
func (n *modelNode) settle() {
	n.t.Helper()
	for _, in := range n.armed {
		in.End()
	}
	n.armed = nil
	if n.disk.Crashed() {
		n.reopen()
	}
}

// reopen opens what a loss of power leaves; that may be lost again meanwhile.
func (n *modelNode) reopen() {
	n.t.Helper()
	n.crashes++
	n.disk.PowerOff()
	n.db.Close()
	n.disk = n.disk.Crash(n.rng.Uint64N(1000))
	if n.rng.IntN(3) == 0 {
		n.opts.FS = n.disk
		n.disk.Inject(waltest.Fault{Skip: n.rng.IntN(60), Crash: true})
		if db, err := engine.Open("db", &n.opts); err == nil {
			db.Close()
		}
		n.disk.PowerOff()
		n.disk = n.disk.Crash(n.rng.Uint64N(1000))
	}
	n.open()
}

// do does one write, through as many crashes as come in its way.
func (n *modelNode) do(o modelOp) {
	n.t.Helper()
	for {
		n.arm()
		if n.opts.SpaceFactor < 0 && n.rng.IntN(8) == 0 {
			n.reclaim()
		}
		err := o.run(n.db)
		if err != nil && !n.disk.Crashed() {
			n.t.Fatalf("%+v: %v", n.opts, err)
		}
		next := maps.Clone(n.m)
		o.apply(next)
		if !n.disk.Crashed() {
			n.m = next
			return
		}
		n.reopen()
		got := state(n.t, n.db)
		switch {
		case maps.Equal(got, next):
			n.m = next
			return
		case err == nil || !maps.Equal(got, n.m):
			n.t.Fatalf("%+v: after a crash there are %d keys, which is neither the state before a write nor behind it (%v); it differs from that before in %s; from that behind in %s",
				n.opts, len(got), err, difference(got, n.m), difference(got, next))
		}
	}
}

// reclaim gives up the oldest segment, which the database does not by itself. It may be cut short by a crash.
func (n *modelNode) reclaim() {
	n.t.Helper()
	_, err := n.db.Reclaim()
	n.db.Trim()
	if err != nil && !n.disk.Crashed() {
		n.t.Fatalf("%+v: reclaim: %v", n.opts, err)
	}
}

func (n *modelNode) check() {
	n.t.Helper()
	n.settle()
	if n.rng.IntN(2) == 0 {
		n.db.SetCold()
	}
	compareAll(n.t, n.rng, n.db.NewIter, n.db.Get, n.m)
	if got := state(n.t, n.db); !maps.Equal(got, n.m) {
		n.t.Fatalf("%+v: %d keys, want %d", n.opts, len(got), len(n.m))
	}
}

// modelFollower is a copy of another node's log.
type modelFollower struct {
	modelNode
	leader *modelNode
	over   int
}

// catchUp copies what the leader has committed, compares, and crashes from time to time.
func (f *modelFollower) catchUp() {
	f.t.Helper()
	f.leader.settle()
	if f.rng.IntN(3) == 0 {
		f.reopen()
	}
	for {
		err := f.copy()
		if err == nil {
			break
		}
		if !errors.Is(err, wal.ErrTrimmed) {
			f.t.Fatalf("%+v: copy to the follower: %v", f.opts, err)
		}
		f.over++
		if err := f.db.StartOver(); err != nil {
			f.t.Fatal(err)
		}
	}
	end := f.db.Log().Head()
	waitFor(f.t, "the follower has applied and shows what it holds", func() bool {
		_, err := f.db.Get([]byte("key000"))
		return f.db.Applied() == end && !errors.Is(err, engine.ErrLoading)
	})
	if end == f.leader.db.Log().Head() { // else reclaim has gone on, which changes no answer
		f.m = maps.Clone(f.leader.m)
	}
	if got := state(f.t, f.db); !maps.Equal(got, f.leader.m) {
		f.t.Fatalf("%+v: %d keys on the follower, want %d", f.opts, len(got), len(f.leader.m))
	}
	f.m = f.leader.m
	f.sameBytes()
}

// copy appends what the leader has committed and the follower does not hold.
func (f *modelFollower) copy() error {
	leader, log := f.leader.db.Log(), f.db.Log()
	from := leader.Tail()
	if !log.Empty() {
		from = log.Head()
	}
	p := make([]byte, leader.Committed()-from)
	if _, err := leader.ReadAt(p, from); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := log.AppendRaw(from, p)
		if err != nil || n == 0 {
			return fmt.Errorf("%d bytes at %v: %w", len(p), from, err)
		}
		from, p = from+wal.LSN(n), p[n:]
	}
	if _, err := log.Sync(); err != nil {
		return err
	}
	return f.db.FollowMark(log.BatchEnd(), 0)
}

// sameBytes compares the logs where both have one.
func (f *modelFollower) sameBytes() {
	f.t.Helper()
	leader, log := f.leader.db.Log(), f.db.Log()
	from, to := max(leader.Tail(), log.Tail()), min(leader.Committed(), log.Head())
	a, b := make([]byte, to-from), make([]byte, to-from)
	_, err := leader.ReadAt(a, from)
	if _, err2 := log.ReadAt(b, from); errors.Is(errors.Join(err, err2), wal.ErrTrimmed) {
		return // reclaim went on meanwhile
	} else if err := errors.Join(err, err2); err != nil || !slices.Equal(a, b) {
		f.t.Fatalf("the logs differ between %v and %v: %v", from, to, err)
	}
}
