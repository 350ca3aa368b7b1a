package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"shiplog/cmd/shiplog/internal/etcdtest"
)

// TestFailoverTimes kills the leader under 64 writers again and again, under replicated:1 and durable. It prints how long it takes until the next
// write is accepted, and what was lost: nothing under replicated:1; under durable what the new leader lacks, each write of which is
// in diverged/ of the old leader when that is back. Every other time under durable the followers are stopped shortly before. SHIPLOG_FAILOVERS sets how many kills (default 1 a rule), SHIPLOG_LEASE_TTL the lease.
func TestFailoverTimes(t *testing.T) {
	kills, ttl := 1, "1s"
	if s := os.Getenv("SHIPLOG_FAILOVERS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SHIPLOG_LEASE_TTL"); s != "" {
		ttl = s
	}
	for _, rule := range []string{"replicated:1", "durable"} {
		t.Run(rule, func(t *testing.T) {
			nodes := leased(t, etcdtest.Start(t), rule, ttl, "a", "b", "c")
			var took, promotions []time.Duration
			acked, lost := make([]int64, 64), 0
			total := int64(0)
			for i := range kills {
				old := whole(nodes)
				var lagging []*process
				if rule == "durable" && i%2 == 0 {
					lagging = without(nodes, old)
				}
				before, base := sumOf(acked), slices.Clone(acked)
				writeUntilKilled(t, old, lagging, acked, before+2000)
				d, leader := firstWrite(t, without(nodes, old))
				took = append(took, d)
				promotions = append(promotions, promotionOf(leader))
				missing := missingAt(t, leader, base, acked)
				if rule != "durable" && len(missing) > 0 {
					t.Fatalf("lost under %s: %q", rule, missing)
				}
				total += sumOf(acked) - before
				lost += len(missing)
				old.relaunch()
				old.until("the old leader follows", func() bool {
					s := old.status()
					return s.Role == "follower" && s.Upstream != nil && s.Upstream.Connected
				})
				for _, m := range missing {
					if !inDiverged(t, old, m) {
						t.Errorf("a lost write is not in diverged/: %q", m)
					}
				}
			}
			slices.Sort(took)
			slices.Sort(promotions)
			t.Logf("%s, lease %s, %d kills under 64 writers: first accepted write after %v (median), %v (worst); of that the promotion %v (median), %v (worst); %d writes acknowledged, %d lost, all in diverged/",
				rule, ttl, kills, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond),
				promotions[len(promotions)/2], promotions[len(promotions)-1], total, lost)
		})
	}
}

func sumOf(acked []int64) (n int64) {
	for _, a := range acked {
		n += a
	}
	return n
}

// writeUntilKilled has a writer for each key count it up at the leader, and kills the leader once enough is acknowledged, the last quarter of it
// while the lagging nodes are stopped. Values go on from acked.
func writeUntilKilled(t *testing.T, p *process, lagging []*process, acked []int64, enough int64) {
	t.Helper()
	var sum atomic.Int64
	sum.Store(sumOf(acked))
	quarter := (enough - sum.Load()) / 4
	var wg sync.WaitGroup
	for i := range acked {
		c := p.client()
		wg.Go(func() {
			for v := acked[i] + 2; ; v++ { // one more than what was tried: a value is written once
				if c.Set(context.Background(), fmt.Sprint("writer", i), v, 0).Err() != nil {
					return
				}
				sum.Add(v - acked[i])
				acked[i] = v // the gap before the first is one that was never written
			}
		})
	}
	p.until("writes", func() bool { return sum.Load() >= enough-quarter })
	for _, q := range lagging {
		sendSignal(t, q, syscall.SIGSTOP)
	}
	p.until("writes", func() bool { return sum.Load() >= enough })
	p.kill()
	for _, q := range lagging {
		sendSignal(t, q, syscall.SIGCONT)
	}
	wg.Wait()
}

// firstWrite waits for the first write that one of the nodes accepts.
func firstWrite(t *testing.T, nodes []*process) (time.Duration, *process) {
	t.Helper()
	began := time.Now()
	var by atomic.Pointer[process]
	var wg sync.WaitGroup
	for _, p := range nodes {
		c := p.client()
		wg.Go(func() {
			for by.Load() == nil && time.Since(began) < time.Minute {
				if c.Set(context.Background(), "probe", "x", 0).Err() == nil {
					by.CompareAndSwap(nil, p)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	nodes[0].until("a write is accepted", func() bool { return by.Load() != nil })
	d := time.Since(began)
	wg.Wait()
	return d, by.Load()
}

var promotion = regexp.MustCompile(`msg="took over".* promotion=(\S+)`)

// promotionOf is how long the last promotion of a node took, as its log says.
func promotionOf(p *process) time.Duration {
	all := promotion.FindAllStringSubmatch(p.stderr.String(), -1)
	if len(all) == 0 {
		return 0
	}
	d, _ := time.ParseDuration(all[len(all)-1][1])
	return d
}

// missingAt lists the records of acknowledged writes of this round that a node lacks, as they stand in a log that is not compressed.
func missingAt(t *testing.T, p *process, base, acked []int64) (missing []string) {
	t.Helper()
	c := p.client()
	for i, last := range acked {
		key := fmt.Sprint("writer", i)
		var got int64
		p.until("reads", func() bool {
			var err error
			got, err = c.Get(context.Background(), key).Int64()
			return err == nil || err == redis.Nil
		})
		for v := max(got+1, base[i]+2); v <= last; v++ {
			value := fmt.Sprint(v)
			missing = append(missing, key+string(rune(len(value)))+value)
		}
	}
	return missing
}

// inDiverged looks for a record in what a node has cut.
func inDiverged(t *testing.T, p *process, record string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "diverged", "*.cut"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(data, []byte(record))
	})
}
