package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"shiplog/engine"
)

// TestRepair damages blocks of the log of running nodes, the leader's too: bits are flipped, blocks zeroed, blocks swapped. Every
// answer stays right, because a read that meets damage is made again after the segment was mended from a peer; the verb repair finds
// what nobody has read; no other node's bytes change; and a follower that copies from the damaged one is not given it. At the end all
// logs hold the same, sound bytes. SHIPLOG_SEED reruns one; SHIPLOG_DAMAGE sets the number of rounds.
func TestRepair(t *testing.T) {
	rounds, seed := 6, uint64(time.Now().UnixNano())%1e9
	if testing.Short() {
		rounds = 3
	}
	for name, to := range map[string]*int{"SHIPLOG_DAMAGE": &rounds} {
		if s := os.Getenv(name); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			*to = n
		}
	}
	if s := os.Getenv("SHIPLOG_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	common := []string{"--cache", "-1", "--scrub-interval", "0", "--index-memory", "1048576"}
	a := newNode(t, filepath.Join(dir, "a"), append([]string{"--commit", "replicated:1", "--segment-size", "131072", "--space-factor", "-1", "--name", "a"}, common...)...)
	a.relaunch()
	b := startNode(t, filepath.Join(dir, "b"), append([]string{"--follow", a.ship, "--name", "b", "--space-factor", "-1"}, common...)...)
	c := startNode(t, filepath.Join(dir, "c"), append([]string{"--follow", a.ship, "--name", "c", "--space-factor", "-1"}, common...)...)
	nodes := []*process{a, b, c}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	allCount(a, b, c)
	model := map[string]string{}
	write := func(n int) {
		pipe := a.client().Pipeline()
		for range n {
			k, v := fmt.Sprint("key", rng.IntN(2000)), strconv.FormatUint(rng.Uint64(), 36)+strings.Repeat("half of it is compressible ", rng.IntN(20))
			model[k] = v
			pipe.Set(context.Background(), k, v, 0)
		}
		if _, err := pipe.Exec(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for range 40 {
		write(500)
	}
	kinds := map[string]int{}
	for round := range rounds {
		write(1000)
		head := a.status().Committed
		for _, p := range nodes {
			p.until("it has all", func() bool { s := p.status(); return s.Visible >= head && s.Durable >= head })
		}
		victim := nodes[rng.IntN(len(nodes))]
		for range 1 + rng.IntN(4) {
			kinds[damage(t, rng, victim, head)]++
		}
		before := victim.status().Repairs
		if round%2 == 0 { // found by reads
			readAll(t, victim, model)
		}
		r := repairNode(t, victim)
		after := victim.status().Repairs
		if after.Repaired == before.Repaired || after.Failed != before.Failed {
			t.Fatalf("%d: %s: %+v, then %+v; %+v", round, victim.name(), before, after, r)
		}
		for _, p := range nodes {
			readAll(t, p, model)
			if r := repairNode(t, p); r.Damaged != 0 {
				t.Errorf("%d: damage spread from %s to %s: %+v", round, victim.name(), p.name(), r)
			}
		}
	}

	// What the leader sends while its log is damaged is refused by the follower, and mended on the leader.
	head := a.status().Committed
	damage(t, rng, a, head)
	d := startNode(t, filepath.Join(dir, "d"), append([]string{"--follow", a.ship, "--name", "d", "--space-factor", "-1"}, common...)...)
	d.until("the new follower has all", func() bool { return d.status().Visible >= head })
	readAll(t, d, model)
	nodes = append(nodes, d)
	allCount(a, b, c, d) // its admission is the last that is written
	head = a.status().Committed
	for _, p := range nodes[1:] {
		p.until("it has the admission", func() bool { return p.status().Durable >= head })
		p.stop()
	}
	a.stop()
	for _, p := range nodes {
		if code, out, errs := command("verify", p.dir); code != exitOK {
			t.Errorf("verify %s: %s%s", p.name(), out, errs)
		}
		if p != a {
			sameUpTo(t, a.dir, p.dir, head)
		}
	}
	t.Log("damage:", kinds)
}

// damage changes a block of a node's log below an LSN, and says how.
func damage(t *testing.T, rng *rand.Rand, p *process, below uint64) string {
	t.Helper()
	const block, segment = 4096, 128 << 10
	files, err := filepath.Glob(filepath.Join(p.dir, "log", "*.seg"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err, below)
	}
	slices.Sort(files)
	at := uint64(rng.Int64N(int64(below/block-1))) * block
	f, err := os.OpenFile(files[at/segment], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p1, off := make([]byte, block), int64(at%segment)
	if _, err := f.ReadAt(p1, off); err != nil {
		t.Fatal(err)
	}
	was := slices.Clone(p1)
	kind := []string{"flip", "zero", "swap"}[rng.IntN(3)]
	switch kind {
	case "flip":
		p1[rng.IntN(block)] ^= 1 << rng.IntN(8)
	case "zero":
		clear(p1)
	case "swap":
		other := int64(uint64(off) ^ block)
		if uint64(other)+at/segment*segment+block > below {
			clear(p1)
			break
		}
		p2 := make([]byte, block)
		if _, err := f.ReadAt(p2, other); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(p1, other); err != nil {
			t.Fatal(err)
		}
		p1 = p2
	}
	if slices.Equal(p1, was) { // zeros, in a block of zeros
		p1[0] ^= 1
	}
	if _, err := f.WriteAt(p1, off); err != nil {
		t.Fatal(err)
	}
	return kind
}

// readAll expects a node to answer what the model says.
func readAll(t *testing.T, p *process, model map[string]string) {
	t.Helper()
	pipe := p.client().Pipeline()
	got := map[string]*redis.StringCmd{}
	for k := range model {
		got[k] = pipe.Get(context.Background(), k)
	}
	_, _ = pipe.Exec(context.Background()) // errors are those of the commands
	for k, cmd := range got {
		if v, err := cmd.Result(); err != nil || v != model[k] {
			t.Errorf("%s: %s is %.40q, %v; want %.40q", p.name(), k, v, err, model[k])
		}
	}
}

func repairNode(t *testing.T, p *process) (r repaired) {
	t.Helper()
	code, out, errs := command("repair", "--http", p.http, "--json")
	if code != exitOK {
		t.Fatalf("repair %s: %d %s%s", p.name(), code, out, errs)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRepairWaitsNoLongerThanItsCaller: a repair that waits for another one ends with its context, and is not held against the segment.
func TestRepairWaitsNoLongerThanItsCaller(t *testing.T) {
	db, err := engine.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	n := &node{db: db}
	r := &repairer{n: n, mending: make(chan struct{}, 1)}
	r.mending <- struct{}{} // another repair, whose peer does not answer
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.heal(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a repair whose caller has gone ends with %v", err)
	}
	<-r.mending
	if err := r.heal(context.Background(), 0); err != nil {
		t.Errorf("the next one, of what is sound, ends with %v", err)
	}
}
