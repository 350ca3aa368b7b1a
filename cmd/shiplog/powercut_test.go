package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestPowerCutsOfAPair cuts the power of the leader's file system, of the follower's, and of both at once, while writers
// commit under replicated:1 and readers read at both nodes. Nothing that was acknowledged or seen is lost, nothing shows
// on either node before both disks have it, and the logs stay the same.
func TestPowerCutsOfAPair(t *testing.T) {
	cuts := waltest.PowerCuts(t, 15, 3)
	for _, kinds := range [][2]string{{"ext4", "xfs"}, {"xfs", "ext4"}} {
		t.Run(kinds[0]+" and "+kinds[1], func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			rng := rand.New(rand.NewPCG(seed, 5))
			p := newPair(t, kinds)
			for cut := range cuts {
				p.what = fmt.Sprintf("seed %d, cut %d", seed, cut)
				victims := [][]*half{{p.leader}, {p.follower}, {p.leader, p.follower}}[cut%3]
				p.writeUntilCut(rng, victims)
				p.restart(victims)
				p.check()
			}
			p.sameLogs()
			acked := int64(0)
			for _, c := range p.counters {
				acked += c.acked.Load()
			}
			t.Logf("%d writes acknowledged", acked)
		})
	}
}

// half is one of the two nodes, with a file system of its own.
type half struct {
	m    *waltest.Mount
	opts engine.Options
	db   *engine.DB
	stop func() // what runs on db
}

func (h *half) dir() string { return filepath.Join(h.m.Dir, "db") }

type pair struct {
	t                *testing.T
	what             string
	leader, follower *half
	addr             atomic.Value // string: where the leader ships now
	counters         []*cutCounter
}

// cutCounter is a key that one writer counts up.
type cutCounter struct {
	key                string
	acked, tried, seen atomic.Int64
}

func newPair(t *testing.T, kinds [2]string) *pair {
	p := &pair{t: t, what: "first start"}
	nodes := [2]*half{}
	for i, kind := range kinds {
		h := &half{m: waltest.NewMount(t, kind, 400<<20)}
		h.opts = engine.Options{FS: h.m.FS(), Commit: engine.Replicated(1), SegmentSize: 256 << 10, Follower: i == 1}
		nodes[i] = h
	}
	p.leader, p.follower = nodes[0], nodes[1]
	t.Cleanup(func() {
		for _, h := range nodes {
			if h.db != nil {
				h.stop()
				h.db.Close()
			}
		}
	})
	for i := range 4 {
		p.counters = append(p.counters, &cutCounter{key: fmt.Sprint("counter", i)})
	}
	p.openLeader()
	p.serve()
	p.openFollower()
	return p
}

func (p *pair) open(h *half) {
	p.t.Helper()
	db, err := engine.Open(h.dir(), &h.opts)
	if err != nil {
		p.t.Fatalf("%s: open %s: %v", p.what, h.dir(), err)
	}
	h.db, h.stop = db, func() {}
}

func (p *pair) openLeader() {
	p.t.Helper()
	p.open(p.leader)
}

// serve lets the leader ship.
func (p *pair) serve() {
	p.t.Helper()
	l, err := ship.NewLeader(p.leader.db, &ship.LeaderOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.leader.db.OnAppend(l.Push)
	p.addr.Store(ln.Addr().String())
	done := make(chan struct{})
	go func() { // ends by stop
		defer close(done)
		_ = l.Serve(ln)
	}()
	p.leader.stop = func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.Shutdown(ctx)
		<-done
	}
}

func (p *pair) openFollower() {
	p.t.Helper()
	p.open(p.follower)
	f, err := ship.NewFollower(p.follower.db, &ship.FollowerOptions{
		Name: "f", BackoffMin: 5 * time.Millisecond, BackoffMax: 20 * time.Millisecond,
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", p.addr.Load().(string))
		},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends by stop, or with the disk
		defer close(done)
		_ = f.Run(ctx)
	}()
	p.follower.stop = func() {
		cancel()
		<-done
	}
}

// pause leaves the processors to others between two looks.
const pause = 200 * time.Microsecond

// writeUntilCut runs writers, readers and a watch over the marks, and cuts the victims' power in the middle.
func (p *pair) writeUntilCut(rng *rand.Rand, victims []*half) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var acks atomic.Int64
	leader, follower := p.leader.db, p.follower.db
	for i, c := range p.counters {
		pad := strings.Repeat("x", 1+rng.IntN(100)*(1+i*20))
		wg.Go(func() {
			for ctx.Err() == nil {
				n := c.tried.Add(1)
				b := leader.NewBatch()
				b.Put([]byte(c.key), fmt.Append(nil, n, ":", pad))
				if _, err := leader.Commit(ctx, b, engine.Default); err == nil {
					c.acked.Store(n)
					acks.Add(1)
				} else {
					time.Sleep(pause)
				}
			}
		})
	}
	for _, db := range []*engine.DB{leader, follower} {
		wg.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(pause) {
				for _, c := range p.counters {
					if n, err := c.read(db); err == nil && n > c.seen.Load() {
						c.seen.Store(n) // of two readers the lower may win: it was seen too
					}
				}
			}
		})
	}
	early := make(chan string, 1)
	wg.Go(func() { // marks only rise, so one that is read first must not be above one that is read later
		for ; ctx.Err() == nil; time.Sleep(pause) {
			for _, db := range []*engine.DB{leader, follower} {
				visible := db.Visible()
				if l, f := leader.Log().Durable(), follower.Log().Durable(); visible > l || visible > f {
					select {
					case early <- fmt.Sprintf("%v is visible; the leader's disk has %v, the follower's %v", visible, l, f):
					default:
					}
				}
			}
		}
	})
	until := int64(20 + rng.IntN(150))
	for end := time.Now().Add(time.Minute); acks.Load() < until; time.Sleep(pause) {
		if time.Now().After(end) {
			cancel()
			p.t.Fatalf("%s: writes do not go on", p.what)
		}
	}
	var off sync.WaitGroup
	for _, h := range victims {
		off.Go(func() {
			if err := h.m.Shutdown(); err != nil {
				p.t.Error(err)
			}
		})
	}
	off.Wait()
	cancel()
	wg.Wait()
	select {
	case s := <-early:
		p.t.Fatalf("%s: %s", p.what, s)
	default:
	}
	for _, h := range victims {
		h.stop()
		h.db.Close() // whatever it says
	}
}

// restart turns the victims' power on. A leader shows nothing that its follower's disk does not have, before they have
// found each other again.
func (p *pair) restart(victims []*half) {
	p.t.Helper()
	for _, h := range victims {
		if err := h.m.Restart(); err != nil {
			p.t.Fatal(err)
		}
		if h == p.leader {
			p.openLeader()
		} else {
			p.openFollower()
		}
	}
	if victims[0] != p.leader {
		return
	}
	if v, f := p.leader.db.Visible(), p.follower.db.Log().Durable(); v > f {
		p.t.Fatalf("%s: the leader came up with %v visible, the follower's disk has %v", p.what, v, f)
	}
	p.serve()
}

// read returns the number that the counter shows, 0 for none.
func (c *cutCounter) read(db *engine.DB) (int64, error) {
	v, err := db.Get([]byte(c.key))
	if errors.Is(err, engine.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	s, _, _ := strings.Cut(string(v), ":")
	return strconv.ParseInt(s, 10, 64)
}

// check waits until both nodes show everything, and compares it with what was acknowledged and seen.
func (p *pair) check() {
	p.t.Helper()
	p.until("the pair is whole again", func() bool {
		return p.leader.db.Put([]byte("ready"), []byte(p.what)) == nil
	})
	head := p.leader.db.Log().Head()
	p.until("the follower shows everything", func() bool { return p.follower.db.Visible() >= head })
	for _, db := range []*engine.DB{p.leader.db, p.follower.db} {
		for _, c := range p.counters {
			n, err := c.read(db)
			if acked, seen, tried := c.acked.Load(), c.seen.Load(), c.tried.Load(); err != nil || n < acked || n < seen || n > tried {
				p.t.Fatalf("%s: %s is %d, %v; %d was acknowledged, %d seen, %d tried", p.what, c.key, n, err, acked, seen, tried)
			}
		}
	}
}

func (p *pair) until(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%s: %s: not within 30 s", p.what, what)
		}
	}
}

func (p *pair) sameLogs() {
	p.t.Helper()
	end := min(p.leader.db.Log().Head(), p.follower.db.Log().Head())
	var logs [2][]byte
	for i, db := range []*engine.DB{p.leader.db, p.follower.db} {
		logs[i] = make([]byte, end)
		for at := wal.LSN(0); at < end; {
			n, err := db.Log().ReadAt(logs[i][at:], at)
			if err != nil {
				p.t.Fatal(err)
			}
			at += wal.LSN(n)
		}
	}
	if !bytes.Equal(logs[0], logs[1]) {
		p.t.Error("the logs differ")
	}
}
