package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"shiplog/cmd/shiplog/internal/httpd"
)

// TestThreeNodesHoldTheSame writes 100,000 mixed operations through a Redis client. One follower is killed and started
// again in the middle, one joins in the middle. At the end the three give the answers of a model of the operations, and
// their logs hold the same bytes.
func TestThreeNodesHoldTheSame(t *testing.T) {
	const operations, piece = 100_000, 500
	ctx, dir := context.Background(), t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	w := &workload{rng: rand.New(rand.NewPCG(seed, 1)), model: map[string]string{}}
	leader := startNode(t, filepath.Join(dir, "leader"))
	a := startNode(t, filepath.Join(dir, "a"), "--follow", leader.ship, "--name", "a")
	nodes := []*process{leader, a}
	client := leader.client()
	for done := 0; done < operations; done += piece {
		pipe := client.Pipeline()
		for range piece {
			w.add(ctx, pipe)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			t.Fatal(err)
		}
		switch done {
		case operations * 3 / 10:
			a.kill()
		case operations * 5 / 10:
			a.launch()
			nodes = append(nodes, startNode(t, filepath.Join(dir, "b"), "--follow", leader.ship, "--name", "b"))
		}
	}
	leader.until("both followers confirm", func() bool { return client.Wait(ctx, 2, time.Second).Val() == 2 })
	for _, n := range nodes {
		c := n.client()
		n.until("as many keys as the model", func() bool { return c.DBSize(ctx).Val() == int64(len(w.model)) })
		for key, want := range w.model {
			if got, err := c.Get(ctx, key).Result(); err != nil || got != want {
				t.Fatalf("%s: %s has %d bytes, %v; want %d", n.dir, key, len(got), err, len(want))
			}
		}
	}
	head := leader.status().Head
	for _, n := range nodes[1:] {
		n.until("has all", func() bool { return n.status().Head >= head })
	}
	for i := len(nodes) - 1; i >= 0; i-- {
		nodes[i].stop()
	}
	for _, n := range nodes[1:] {
		sameUpTo(t, leader.dir, n.dir, head) // the leader may have reclaimed something since
	}
}

// sameLogs expects two directories to hold the same bytes up to the same head.
func sameLogs(t *testing.T, a, b string) {
	t.Helper()
	code, out, errs := command("compare", a, b)
	_, heads, _ := strings.Cut(out, "(heads ")
	one, two, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(heads), ")"), " and ")
	if code != exitOK || !strings.HasPrefix(out, "identical") || one == "" || one != two {
		t.Errorf("compare %s %s: %d %s%s", a, b, code, out, errs)
	}
}

// workload makes operations and applies them to a model.
type workload struct {
	rng   *rand.Rand
	model map[string]string
}

func (w *workload) add(ctx context.Context, pipe redis.Pipeliner) {
	key, n := fmt.Sprint("k", w.rng.IntN(5000)), fmt.Sprint("n", w.rng.IntN(500))
	value := strings.Repeat(strconv.Itoa(w.rng.IntN(1e6)), w.rng.IntN(30))
	switch w.rng.IntN(10) {
	case 0:
		pipe.Del(ctx, key)
		delete(w.model, key)
	case 1:
		pipe.Incr(ctx, n)
		i, _ := strconv.Atoi(w.model[n])
		w.model[n] = strconv.Itoa(i + 1)
	case 2:
		pipe.Append(ctx, key, value)
		w.model[key] += value
	case 3:
		other := key + "-"
		pipe.MSet(ctx, key, value, other, "x")
		w.model[key], w.model[other] = value, "x"
	case 4:
		pipe.SetNX(ctx, key, value, 0)
		if _, ok := w.model[key]; !ok {
			w.model[key] = value
		}
	default:
		pipe.Set(ctx, key, value, 0)
		w.model[key] = value
	}
}

// counter is a key that one writer counts up. What is read of it must be no older than the last acknowledged value and
// no newer than the last that was tried.
type counter struct {
	key          string
	acked, tried atomic.Int64
}

func (c *counter) value(n int64) string {
	s := fmt.Sprintf("%s:%d:%s", c.key, n, strings.Repeat("x", int(n%200)))
	return fmt.Sprintf("%s:%08x", s, crc32.ChecksumIEEE([]byte(s)))
}

// check reads the key at a node. lowest is what was acknowledged before the read began.
func (c *counter) check(t *testing.T, client *redis.Client) {
	t.Helper()
	lowest := c.acked.Load()
	var got string
	for end := time.Now().Add(time.Minute); ; {
		v, err := client.Get(context.Background(), c.key).Result()
		if err == nil || err == redis.Nil && lowest == 0 {
			got = v
			break
		}
		if err == redis.Nil || time.Now().After(end) {
			t.Fatalf("%s: %v, value %d was acknowledged", c.key, err, lowest)
		}
	}
	if got == "" {
		return
	}
	parts := strings.Split(got, ":")
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || got != c.value(n) {
		t.Fatalf("%s holds a torn value: %q", c.key, got)
	}
	if n < lowest || n > c.tried.Load() {
		t.Fatalf("%s holds value %d, %d was acknowledged, %d tried", c.key, n, lowest, c.tried.Load())
	}
}

// TestKills kills leader and follower by turns, 100 times under each rule, under load: no acknowledged write is lost, no
// value is torn, the logs stay the same, and opening again changes nothing.
func TestKills(t *testing.T) {
	kills := 100
	if testing.Short() {
		kills = 4
	}
	for _, rule := range []string{"durable", "replicated:1"} {
		t.Run(rule, func(t *testing.T) {
			dir := t.TempDir()
			leader := newNode(t, filepath.Join(dir, "leader"), "--commit", rule)
			leader.launch()
			follower := startNode(t, filepath.Join(dir, "follower"), "--follow", leader.ship, "--name", "f")
			counters := underLoad(t, leader, func(written func(), counters []*counter) {
				client := leader.client()
				for i := range kills {
					written()
					victim := []*process{leader, follower}[i%2]
					victim.kill()
					victim.launch()
					for _, c := range counters {
						c.check(t, client)
					}
				}
				written()
			})
			leaderClient := leader.client()
			for _, n := range []*process{leader, follower} {
				client := n.client()
				for _, c := range counters {
					want := leaderClient.Get(context.Background(), c.key).Val()
					n.until("shows the last write", func() bool { return client.Get(context.Background(), c.key).Val() == want })
					c.check(t, client)
				}
			}
			follower.stop()
			leader.stop()
			sameLogs(t, leader.dir, follower.dir)
			_, before, _ := command("verify", leader.dir)
			leader.launch()
			leader.until("answers", func() bool { return leaderClient.Ping(context.Background()).Err() == nil })
			leader.stop()
			if code, after, errs := command("verify", leader.dir); code != exitOK || after != before {
				t.Errorf("opening again has changed the log: %s%safter %s", after, errs, before)
			}
		})
	}
}

// underLoad runs body while four writers count their keys up. written returns once each writer has had another value
// acknowledged.
func underLoad(t *testing.T, leader *process, body func(written func(), counters []*counter)) []*counter {
	var counters []*counter
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for i := range 4 {
		c := &counter{key: fmt.Sprint("counter", i)}
		counters = append(counters, c)
		client := leader.client()
		wg.Go(func() {
			for ctx.Err() == nil {
				n := c.tried.Add(1)
				if client.Set(context.Background(), c.key, c.value(n), 0).Err() == nil {
					c.acked.Store(n)
				}
			}
		})
	}
	defer func() {
		cancel()
		wg.Wait()
	}()
	body(func() {
		for _, c := range counters {
			before := c.acked.Load()
			leader.until("writes go on", func() bool { return c.acked.Load() > before })
		}
	}, counters)
	return counters
}

// TestStoppedFollower: under replicated:1 a write that no follower has confirmed neither succeeds nor shows to any client
// on any node, in none of the ways to look, also not after a restart of the leader, until the follower has it.
func TestStoppedFollower(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	leader := newNode(t, filepath.Join(dir, "leader"), "--commit", "replicated:1", "--voters", "f", "--read-leases=false")
	leader.launch()
	follower := startNode(t, filepath.Join(dir, "follower"), "--follow", leader.ship, "--name", "f")
	observer := startNode(t, filepath.Join(dir, "observer"), "--follow", leader.ship, "--name", "o")
	client, other, far, third := leader.client(), leader.client(), follower.client(), observer.client()
	leader.until("a write succeeds", func() bool { return client.Set(ctx, "k", "old", 0).Err() == nil })
	observer.until("the observer shows it", func() bool { return third.Get(ctx, "k").Val() == "old" })
	far.Ping(ctx)

	follower.suspend()
	head := leader.status().Head
	done, asked := make(chan error, 1), make(chan error, 1)
	go func() { done <- redisNoTimeout(leader).MSet(ctx, "k", "new", "fresh", "1").Err() }()
	leader.until("the write is in the leader's log", func() bool { return leader.status().Head != head })
	go func() { asked <- redisNoTimeout(leader).SetNX(ctx, "fresh", "2", 0).Err() }() // "it is there" would tell
	for range 50 {
		showsOld(t, "the leader", other)
		showsOld(t, "a new connection", leader.client())
		showsOld(t, "another follower", third)
	}
	leader.kill()
	for what, c := range map[string]chan error{"the write": done, "SETNX": asked} {
		if err := <-c; err == nil {
			t.Fatalf("%s was answered", what)
		}
	}
	showsOld(t, "another follower, without the leader", third)
	leader.launch()
	leader.until("the leader answers", func() bool { return other.Ping(ctx).Err() == nil })
	observer.until("the observer is back", func() bool { return leaderFeeds(leader, "o") })
	for range 50 {
		if v, err := other.Get(ctx, "k").Result(); err == nil {
			t.Fatalf("after the restart, without the follower, a client of the leader sees %q", v)
		}
		if n, err := other.Exists(ctx, "fresh").Result(); err == nil {
			t.Fatalf("after the restart, without the follower, EXISTS answers %d", n)
		}
		showsOld(t, "another follower, after the restart", third)
	}
	if err := follower.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	leader.until("the leader shows a value", func() bool { return other.Get(ctx, "k").Err() == nil })
	v := other.Get(ctx, "k").Val()
	for what, c := range map[string]*redis.Client{"the follower": far, "the observer": third} {
		leader.until(what+" shows the same", func() bool { return c.Get(ctx, "k").Val() == v && c.Get(ctx, "fresh").Val() == "1" })
	}
	if v != "new" {
		t.Errorf("the leader's log had the write, and the value is %q", v)
	}
}

// showsOld looks for the unconfirmed write of TestStoppedFollower in every way that a client has.
func showsOld(t *testing.T, who string, c *redis.Client) {
	t.Helper()
	ctx := context.Background()
	if v, err := c.Get(ctx, "k").Result(); err != nil || v != "old" {
		t.Fatalf("%s: GET shows %q, %v", who, v, err)
	}
	if v, err := c.MGet(ctx, "fresh", "k").Result(); err != nil || v[0] != nil || v[1] != "old" {
		t.Fatalf("%s: MGET shows %v, %v", who, v, err)
	}
	if n, err := c.Exists(ctx, "fresh").Result(); err != nil || n != 0 {
		t.Fatalf("%s: EXISTS answers %d, %v", who, n, err)
	}
	if keys, _, err := c.Scan(ctx, 0, "*", 100).Result(); err != nil || len(keys) != 1 {
		t.Fatalf("%s: SCAN lists %q, %v", who, keys, err)
	}
}

// leaderHas reports whether a follower of that name is connected, and a voter.
func leaderHas(leader *process, name string) bool {
	return slices.ContainsFunc(leader.status().Followers, func(f httpd.Follower) bool { return f.Name == name && f.Voter })
}

// leaderFeeds reports whether a follower of that name is connected.
func leaderFeeds(leader *process, name string) bool {
	return slices.ContainsFunc(leader.status().Followers, func(f httpd.Follower) bool { return f.Name == name })
}

// allCount waits until all followers count, and each knows that all do: then each may be promoted without those that know more.
func allCount(leader *process, followers ...*process) {
	leader.t.Helper()
	for _, p := range followers {
		leader.until(p.name()+" counts", func() bool {
			return slices.ContainsFunc(leader.status().Followers, func(f httpd.Follower) bool { return f.Name == p.name() && f.Voter })
		})
	}
	for _, p := range followers {
		p.until(p.name()+" knows who counts", func() bool {
			voters := p.status().Voters
			return !slices.ContainsFunc(followers, func(q *process) bool { return !slices.Contains(voters, q.name()) })
		})
	}
}

// name is what the node was given as --name: by agreement its directory's.
func (p *process) name() string { return filepath.Base(p.dir) }

// redisNoTimeout is a client that waits as long as the server does.
func redisNoTimeout(p *process) *redis.Client {
	o := *p.client().Options()
	o.ReadTimeout = -1
	c := redis.NewClient(&o)
	p.t.Cleanup(func() { c.Close() })
	return c
}
