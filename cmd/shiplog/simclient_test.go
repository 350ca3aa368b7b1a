package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/engine"
)

// This file is the clients of the simulation, and what they may expect. Each key has one writer, which writes 1, 2, 3 and so on, as a value
// that tells its number, or as a delete. So what a reader finds tells how many writes it reflects, and that must lie between the last one that
// was acknowledged before it read and the last one that was tried.

// simKey is a key and its writer's progress.
type simKey struct {
	name         string
	acked, tried atomic.Int64
}

// deletes reports whether write number n is a delete.
func (k *simKey) deletes(n int64) bool { return n%7 == 3 }

// value is that of write number n: mostly short, sometimes longer than a frame or many of them.
func (k *simKey) value(n int64) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), uint64(len(k.name))))
	size := rng.IntN(300)
	switch rng.IntN(20) {
	case 0:
		size = rng.IntN(20_000)
	case 1:
		size = 4000 + rng.IntN(200)
	}
	b := fmt.Appendf(nil, "%s:%d:", k.name, n)
	pad := make([]byte, size)
	for i := range pad {
		if pad[i] = 'x'; n%2 == 0 {
			pad[i] = byte(rng.Uint32())
		}
	}
	return append(b, pad...)
}

// judge says what is wrong with a value, or an absence, given the lowest number that it may show.
func (k *simKey) judge(value []byte, found bool, lowest int64) (n int64, wrong string) {
	tried := k.tried.Load()
	if !found {
		if lowest == 0 {
			return 0, ""
		}
		for n := lowest; n <= tried; n++ {
			if k.deletes(n) {
				return lowest, ""
			}
		}
		return 0, fmt.Sprintf("%s is not there: write %d was acknowledged, %d tried", k.name, lowest, tried)
	}
	parts := strings.SplitN(string(value), ":", 3)
	n, err := strconv.ParseInt(parts[min(1, len(parts)-1)], 10, 64)
	if err != nil || string(value) != string(k.value(n)) || k.deletes(n) {
		return 0, fmt.Sprintf("%s holds what nobody wrote: %.60q", k.name, value)
	}
	if n < lowest || n > tried {
		return n, fmt.Sprintf("%s shows write %d: %d was acknowledged, %d tried", k.name, n, lowest, tried)
	}
	return n, ""
}

// simClients are all clients.
type simClients struct {
	s       *sim
	keys    []*simKey
	counter struct{ acked, tried atomic.Int64 } // increments of one key by all
	paused  atomic.Bool
	stop    chan struct{}
	wg      sync.WaitGroup
	busy    atomic.Int64 // operations under way

	acked, unknown, refused, reads, strict atomic.Int64
}

const simCounter = "counter"

func startSimClients(s *sim, n int) *simClients {
	c := &simClients{s: s, stop: make(chan struct{})}
	for i := range n {
		var keys []*simKey
		for j := range 8 {
			keys = append(keys, &simKey{name: fmt.Sprintf("c%d.%d", i, j)})
		}
		c.keys = append(c.keys, keys...)
		rng := rand.New(rand.NewPCG(s.seed, uint64(1000+i)))
		c.wg.Go(func() { c.run(rng, keys) }) // ended by stop
	}
	return c
}

func (c *simClients) run(rng *rand.Rand, keys []*simKey) {
	for {
		pause := time.Duration(rng.ExpFloat64() * float64(c.s.cfg.think))
		if rng.IntN(4) == 0 {
			pause = 0 // bursts
		}
		select {
		case <-c.stop:
			return
		case <-time.After(pause):
		}
		if c.paused.Load() {
			continue
		}
		c.busy.Add(1)
		switch k := keys[rng.IntN(len(keys))]; rng.IntN(10) {
		case 0, 1, 2:
			c.read(rng, k)
		case 3:
			c.increment(rng)
		default:
			c.write(rng, k)
		}
		c.busy.Add(-1)
	}
}

// leader finds who takes writes. A client may have that from a node that does not know better: then it is an old leader.
func (c *simClients) leader(rng *rand.Rand) *simProcess {
	var found *simProcess
	for _, p := range c.s.processes() {
		if p.leads() && (found == nil || p.n.db.Log().Epoch() > found.n.db.Log().Epoch() || rng.IntN(3) == 0) {
			found = p
		}
	}
	return found
}

// done notes what came of a write at a node.
func (c *simClients) done(p *simProcess, err error) (acked bool) {
	switch {
	case err == nil && p.alive():
		c.acked.Add(1)
		return true
	case err == nil || errors.Is(err, engine.ErrUnknownOutcome):
		c.unknown.Add(1)
	default:
		c.refused.Add(1)
	}
	return false
}

func (c *simClients) write(rng *rand.Rand, k *simKey) {
	p := c.leader(rng)
	if p == nil {
		return
	}
	n := k.tried.Add(1)
	b := p.n.db.NewBatch()
	if k.deletes(n) {
		b.Delete([]byte(k.name))
	} else {
		b.Put([]byte(k.name), k.value(n))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	_, err := p.n.db.Commit(ctx, b, engine.Default)
	if c.done(p, err) {
		k.acked.Store(n)
	}
}

func (c *simClients) increment(rng *rand.Rand) {
	p := c.leader(rng)
	if p == nil {
		return
	}
	c.counter.tried.Add(1)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	_, _, err := p.n.db.Increment(ctx, engine.Default, []byte(simCounter), 1)
	if c.done(p, err) {
		c.counter.acked.Add(1)
	}
}

// read reads at any node. A follower may be behind, but never goes back while it runs. A leader with read leases, and one under a rule that asks no followers and
// is never replaced, shows everything that was acknowledged before the read began.
func (c *simClients) read(rng *rand.Rand, k *simKey) {
	ps := c.s.processes()
	if len(ps) == 0 {
		return
	}
	p := ps[rng.IntN(len(ps))]
	if !p.ready.Load() {
		return
	}
	p.mu.Lock()
	lowest := p.seen[k.name]
	p.mu.Unlock()
	acked, led := k.acked.Load(), p.n.db.Role() == engine.Leader
	value, err := p.n.db.Get([]byte(k.name))
	if err != nil && !errors.Is(err, engine.ErrNotFound) || !p.alive() {
		return
	}
	if led && p.n.db.Role() == engine.Leader && (c.s.cfg.leases || !c.s.cfg.failover) {
		lowest = max(lowest, acked)
		c.strict.Add(1)
	}
	n, wrong := k.judge(value, err == nil, lowest)
	if wrong != "" {
		c.s.failf("read at %s: %s", p.node.name, wrong)
	}
	c.reads.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[k.name] = max(p.seen[k.name], n)
}

// check reads everything at a process that must show all that was acknowledged.
func (c *simClients) check(p *simProcess) {
	for _, k := range c.keys {
		lowest := k.acked.Load()
		value, err := p.n.db.Get([]byte(k.name))
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			c.s.failf("%s: read %s: %v", p.node.name, k.name, err)
		}
		if _, wrong := k.judge(value, err == nil, lowest); wrong != "" {
			c.s.failf("%s: %s", p.node.name, wrong)
		}
	}
	lowest := c.counter.acked.Load()
	value, err := p.n.db.Get([]byte(simCounter))
	if errors.Is(err, engine.ErrNotFound) {
		value, err = []byte("0"), nil
	}
	n, bad := strconv.ParseInt(string(value), 10, 64)
	if err != nil || bad != nil || n < lowest || n > c.counter.tried.Load() {
		c.s.failf("%s: the counter is at %q (%v), %d increments were acknowledged, %d tried", p.node.name, value, err, lowest, c.counter.tried.Load())
	}
}
