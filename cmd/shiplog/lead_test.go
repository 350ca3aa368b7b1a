package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// writers count keys up on whichever node of a group leads, and note what was acknowledged.
type writers struct {
	keys  []string
	acked []atomic.Int64
	stop  chan struct{}
	wg    sync.WaitGroup
}

func startWriters(nodes []*process, n int) *writers {
	w := &writers{acked: make([]atomic.Int64, n), stop: make(chan struct{})}
	for i := range n {
		w.keys = append(w.keys, fmt.Sprint("writer", i))
	}
	for i := range n {
		w.wg.Go(func() {
			clients := make([]*redis.Client, len(nodes))
			for j, p := range nodes {
				clients[j] = redis.NewClient(&redis.Options{Addr: p.resp, MaxRetries: -1, DialTimeout: 200 * time.Millisecond, ReadTimeout: 3 * time.Second})
				defer clients[j].Close()
			}
			for at, v := 0, int64(1); ; {
				select {
				case <-w.stop:
					return
				default:
				}
				if err := clients[at].Set(context.Background(), w.keys[i], v, 0).Err(); err != nil {
					at = (at + 1) % len(clients)
					time.Sleep(time.Millisecond)
					continue
				}
				w.acked[i].Store(v)
				v++
			}
		})
	}
	return w
}

// sum is how much was acknowledged in all.
func (w *writers) sum() (n int64) {
	for i := range w.acked {
		n += w.acked[i].Load()
	}
	return n
}

// goesOn waits until more is acknowledged than now.
func (w *writers) goesOn(p *process, what string) {
	p.t.Helper()
	n := w.sum()
	p.until(what, func() bool { return w.sum() > n+int64(len(w.keys)) })
}

// check reads every key at a node: no less than what was acknowledged. A leader shows it at once; a node that has lost the lead on a busy machine, or
// waits for its read leases, does in the end.
func (w *writers) check(p *process, floor []int64) {
	p.t.Helper()
	c := p.client()
	for i, key := range w.keys {
		if floor[i] == 0 { // nothing of it was acknowledged yet
			continue
		}
		var got int64
		var err error
		p.until(fmt.Sprintf("%s shows %s", p.dir, key), func() bool {
			led := role(c) == "master"
			got, err = c.Get(context.Background(), key).Int64()
			switch {
			case err != nil && !errors.Is(err, redis.Nil):
				return false
			case err == nil && got >= floor[i]:
				return true
			}
			return led && role(c) == "master"
		})
		if err != nil || got < floor[i] {
			p.t.Errorf("%s: %s is %d, %v; %d was acknowledged", p.dir, key, got, err, floor[i])
		}
	}
}

func (w *writers) floor() []int64 {
	out := make([]int64, len(w.acked))
	for i := range w.acked {
		out[i] = w.acked[i].Load()
	}
	return out
}

// promote runs the verb against a node.
func promote(p *process, args ...string) candidacy {
	p.t.Helper()
	var c candidacy
	p.until("promoted", func() bool {
		code, out, errs := command(append([]string{"promote", "--http", p.http, "--json"}, args...)...)
		if code != exitOK {
			p.t.Logf("promote: %d %s", code, errs)
			return false
		}
		return json.Unmarshal([]byte(out), &c) == nil
	})
	return c
}

// TestFailover kills the leader of three under replicated:1 and load, twice in a row, and promotes a follower each time. Nothing that was
// acknowledged is lost; the others go to the new leader by themselves; those that were killed come back as followers by themselves and
// end with the same bytes.
func TestFailover(t *testing.T) {
	dir := t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:1", "--name", "a")
	a.relaunch()
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	c := startNode(t, filepath.Join(dir, "c"), "--follow", a.ship, "--name", "c")
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range []*process{a, b, c} {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	allCount(a, b, c)
	w := startWriters([]*process{a, b, c}, 8)
	w.goesOn(a, "writes to a")

	a.kill()
	floor := w.floor()
	// Two of three, or, where c did not count yet when a was killed, b alone: it then has all that was acknowledged.
	if got := promote(b); got.Needed == 0 || len(got.Promises) < got.Needed {
		t.Errorf("b leads with %+v", got)
	}
	w.goesOn(b, "writes to b")
	w.check(b, floor)

	a.relaunch()
	a.until("a follows b", func() bool { s := a.status(); return s.Role == "follower" && s.Upstream != nil && s.Upstream.Connected })
	allCount(b, a, c)
	w.goesOn(b, "writes to b, confirmed by a or c")

	b.kill()
	floor = w.floor()
	promote(c)
	w.goesOn(c, "writes to c")
	w.check(c, floor)
	b.relaunch()
	for _, p := range []*process{a, b} {
		p.until("it follows c", func() bool {
			s := p.status()
			return s.Role == "follower" && s.Upstream != nil && s.Upstream.Connected && s.Epoch == c.status().Epoch
		})
	}
	close(w.stop)
	w.wg.Wait()
	floor = w.floor()
	head := c.status().Head
	for _, p := range []*process{a, b} {
		p.until("it has all", func() bool { s := p.status(); return s.Visible >= head && s.Head >= head })
		w.check(p, floor)
	}
	w.check(c, floor)
	a.stop()
	b.stop()
	c.stop()
	sameUpTo(t, c.dir, a.dir, head)
	sameUpTo(t, c.dir, b.dir, head)
}

// TestSwitchover hands the lead over under load without losing a write, and back; a refused one changes nothing.
func TestSwitchover(t *testing.T) {
	dir := t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:1", "--name", "a")
	a.relaunch()
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	c := startNode(t, filepath.Join(dir, "c"), "--follow", a.ship, "--name", "c")
	allCount(a, b, c)
	w := startWriters([]*process{a, b, c}, 4)
	w.goesOn(a, "writes to a")
	if code, _, errs := command("switchover", "--http", a.http, "--to", "nobody"); code != exitFailure {
		t.Errorf("switchover to nobody: %d %s", code, errs)
	}
	w.goesOn(a, "writes to a after a refused switchover")
	from := a
	for _, to := range []*process{b, a} {
		name := filepath.Base(to.dir)
		from.until("the target counts", func() bool { return leaderHas(from, name) })
		floor := w.floor()
		code, out, errs := command("switchover", "--http", from.http, "--to", name, "--json")
		if code != exitOK {
			t.Fatalf("switchover to %s: %d %s%s", name, code, out, errs)
		}
		t.Logf("to %s: %s", name, out)
		w.goesOn(to, "writes to "+name)
		w.check(to, floor)
		from = to
	}
	close(w.stop)
	w.wg.Wait()
	a.until("all follow a", func() bool { return b.status().Epoch == a.status().Epoch && c.status().Epoch == a.status().Epoch })
	w.check(a, w.floor())
}

// TestLeaderThatWasLeftBehind: a leader that was stopped while another was promoted steps down when it goes on, takes no write, keeps what
// it had alone in diverged, and follows.
func TestLeaderThatWasLeftBehind(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	a := startNode(t, filepath.Join(dir, "a"), "--commit", "durable", "--name", "a")
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("a:\n%s\nb:\n%s", a.stderr.String(), b.stderr.String())
		}
	})
	ac := a.client()
	if err := ac.Set(ctx, "shared", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	b.until("b has it", func() bool { return b.client().Get(ctx, "shared").Val() == "1" })
	a.until("b counts", func() bool { return leaderHas(a, "b") })
	b.stop()
	if err := ac.Set(ctx, "alone", "1", 0).Err(); err != nil { // acknowledged under durable: b does not have it
		t.Fatal(err)
	}
	a.kill()
	b.relaunch()
	if got := promote(b, "--force"); !got.MayLack {
		t.Errorf("nothing said of what may be missing: %+v", got)
	}
	if err := b.client().Set(ctx, "shared", "2", 0).Err(); err != nil {
		t.Fatal(err)
	}
	a.relaunch()
	a.until("a follows b", func() bool { s := a.status(); return s.Role == "follower" && s.Upstream != nil && s.Upstream.Connected })
	a.until("a has what b has", func() bool { return ac.Get(ctx, "shared").Val() == "2" })
	if err := ac.Get(ctx, "alone").Err(); err != redis.Nil {
		t.Errorf("what only the old leader had is still shown: %v", err)
	}
	if err := ac.Set(ctx, "shared", "3", 0).Err(); err == nil {
		t.Error("the old leader takes writes")
	}
	kept, err := filepath.Glob(filepath.Join(a.dir, "diverged", "*"))
	if err != nil || len(kept) == 0 {
		t.Errorf("nothing in diverged: %v", err)
	}
	b.until("a counts", func() bool { return leaderHas(b, "a") })
	a.until("a has all", func() bool { return a.status().Head == b.status().Head })
	a.stop()
	b.stop()
	sameLogs(t, b.dir, a.dir)
}

// TestReplicaOf turns two nodes round with Redis's commands.
func TestReplicaOf(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	a := startNode(t, filepath.Join(dir, "a"), "--name", "a")
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	ac, bc := a.client(), b.client()
	a.until("b counts", func() bool { return leaderHas(a, "b") })
	if err := ac.Set(ctx, "k", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	b.until("b has it", func() bool { return bc.Get(ctx, "k").Val() == "1" })
	if err := bc.Do(ctx, "REPLICAOF", "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if err := bc.Set(ctx, "k", "2", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if role := bc.Do(ctx, "ROLE").Val().([]any)[0]; role != "master" {
		t.Errorf("b is %v", role)
	}
	a.until("a follows b by itself", func() bool { return ac.Get(ctx, "k").Val() == "2" })
	if err := ac.Set(ctx, "k", "3", 0).Err(); err == nil {
		t.Error("a takes writes")
	}
	if err := ac.Do(ctx, "REPLICAOF", "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if err := ac.Set(ctx, "k", "4", 0).Err(); err != nil {
		t.Fatal(err)
	}
	b.until("b follows a", func() bool { return bc.Get(ctx, "k").Val() == "4" })
}

// relaunch starts a node again and waits until it can be asked.
func (p *process) relaunch() {
	p.t.Helper()
	p.launch()
	p.until("answers", func() bool {
		res, err := p.web.Get(p.scheme + "://" + p.http + "/status")
		if err != nil {
			return false
		}
		res.Body.Close()
		return true
	})
}

// TestPromoteWithoutQuorum: with too few promises a promotion is refused, the node goes on as it was, and force is said aloud.
func TestPromoteWithoutQuorum(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:1", "--name", "a")
	a.relaunch()
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	c := startNode(t, filepath.Join(dir, "c"), "--follow", a.ship, "--name", "c")
	allCount(a, b, c)
	ac := a.client()
	a.until("a write succeeds", func() bool { return ac.Set(ctx, "k", "1", 0).Err() == nil })
	for _, p := range []*process{b, c} {
		p.until("it has the write", func() bool { return p.client().Get(ctx, "k").Val() == "1" })
	}
	a.kill()
	c.kill()
	code, out, errs := command("promote", "--http", b.http)
	if code != exitFailure || !strings.Contains(errs, "too few promises") {
		t.Errorf("promote of one of three: %d %s%s", code, out, errs)
	}
	if s := b.status(); s.Role != "follower" {
		t.Errorf("after a refused promotion b is %s", s.Role)
	}
	if err := b.client().Set(ctx, "k", "2", 0).Err(); err == nil {
		t.Error("b takes writes after a refused promotion")
	}
	if got := promote(b, "--force"); !got.Forced {
		t.Errorf("a forced promotion: %+v", got)
	}
	if s := b.status(); s.Role != "leader" {
		t.Errorf("after a forced promotion b is %s", s.Role)
	}
	// Under its rule nothing is confirmed before another voter is there.
	c.relaunch()
	b.until("c counts and a write succeeds", func() bool { return b.client().Set(ctx, "k", "3", 0).Err() == nil })
	c.until("c has it", func() bool { return c.client().Get(ctx, "k").Val() == "3" })
}

// TestPromoteWaitsForTheRole: a node that is starting is not told to lead before it has asked the others: until then it may take itself for the leader that it was.
func TestPromoteWaitsForTheRole(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := &node{joined: make(chan struct{})}
	if got, err := n.Promote(ctx, false, false); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("promoted while it starts: %v, %v", got, err)
	}
}
