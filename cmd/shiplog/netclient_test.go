package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

func init() { redis.SetLogger(quiet{}) }

// quiet drops what the client library logs of every connection that a fault breaks.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// netClients work on the keys of one history until they are stopped.
type netClients struct {
	g    *netGroup
	h    *history
	stop chan struct{}
	wg   sync.WaitGroup
}

// startClients starts writers, every second one on the clients' host, and readers: one on each node's host, and one that asks all from the clients' host.
func (g *netGroup) startClients(name string) *netClients {
	c := &netClients{g: g, h: newHistory(name, 6), stop: make(chan struct{})}
	const writers = 4
	for i := range writers {
		rng := rand.New(rand.NewPCG(g.rng.Uint64(), uint64(i)))
		c.wg.Go(func() { c.write(rng, i, name) }) // ended by stop
	}
	for i := range len(g.nodes) + 1 {
		rng := rand.New(rand.NewPCG(g.rng.Uint64(), uint64(i)))
		c.wg.Go(func() { c.read(rng, writers+i, i) }) // ended by stop
	}
	return c
}

func (c *netClients) now() int64 { return int64(time.Since(c.g.began)) }

// pause waits for a moment; false: it is over.
func (c *netClients) pause(d time.Duration) bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(d):
		return true
	}
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }

// connect makes clients of all nodes.
func (c *netClients) connect(near bool) (all []*redis.Client, done func()) {
	for _, p := range c.g.nodes {
		from := c.g.clients
		if near {
			from = p.host
		}
		all = append(all, c.g.redis(p, from))
	}
	return all, func() {
		for _, r := range all {
			_ = r.Close() // nothing waits in it
		}
	}
}

// write is a writer: it stays with a node that takes its writes.
func (c *netClients) write(rng *rand.Rand, id int, name string) {
	nodes, done := c.connect(id%2 == 0)
	defer done()
	at := rng.IntN(len(nodes))
	for i := 0; c.pause(upTo(rng, 6*time.Millisecond)); i++ {
		o := histOp{client: id, key: c.h.keys[rng.IntN(len(c.h.keys))], value: fmt.Sprintf("%s/%d/%d", name, id, i)}
		switch k := rng.IntN(20); {
		case k < 8:
			o.kind = histWrite
		case k < 13:
			o.kind = histSwap
		case k < 17:
			o.kind = histCAS
		case k == 17 && c.h.mayDelete(o.key):
			o.kind, o.value = histDelete, ""
		default:
			o.kind = histAbsent
		}
		o.call = c.now()
		if c.do(nodes[at], &o) {
			c.h.add(o)
			continue
		}
		c.h.refused()
		if at = rng.IntN(len(nodes)); !c.pause(upTo(rng, 10*time.Millisecond)) {
			return
		}
	}
}

// do executes an operation and notes what came of it; false: nothing, it was refused.
func (c *netClients) do(r *redis.Client, o *histOp) bool {
	ctx := context.Background()
	var err error
	switch o.kind {
	case histWrite:
		err = r.Set(ctx, o.key, o.value, 0).Err()
	case histSwap:
		o.seen, err = r.SetArgs(ctx, o.key, o.value, redis.SetArgs{Get: true}).Result()
	case histAbsent:
		o.seen, err = r.SetArgs(ctx, o.key, o.value, redis.SetArgs{Get: true, Mode: "NX"}).Result()
	case histDelete:
		o.seen, err = r.GetDel(ctx, o.key).Result()
	case histCAS:
		return c.compareAndSwap(r, o)
	}
	if errors.Is(err, redis.Nil) {
		err = nil // it was absent
	}
	return c.came(o, err)
}

// came notes what an answer says; false: the operation was refused.
func (c *netClients) came(o *histOp, err error) bool {
	o.ret = c.now()
	if err == nil {
		return true
	}
	o.seen, o.unknown = "", true
	return !refusal(err)
}

// refusal reports whether an error says that nothing was written.
func refusal(err error) bool {
	return errors.As(err, new(errDial)) || slices.ContainsFunc([]string{"READONLY ", "NOREPLICAS ", "MASTERDOWN ", "LOADING ", "TRYAGAIN ", "EXECABORT "}, func(p string) bool { return strings.HasPrefix(err.Error(), p) })
}

// compareAndSwap replaces what it has read, if nobody else has meanwhile.
func (c *netClients) compareAndSwap(r *redis.Client, o *histOp) bool {
	ctx, tried := context.Background(), false
	err := r.Watch(ctx, func(tx *redis.Tx) (err error) {
		if o.seen, err = tx.Get(ctx, o.key).Result(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		tried = true
		_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, o.key, o.value, 0).Err() })
		return err
	}, o.key)
	if !tried || errors.Is(err, redis.TxFailedErr) {
		return false
	}
	seen := o.seen
	executed := c.came(o, err)
	o.seen = seen // also if the outcome is unknown: it was that, or nothing has happened
	return executed
}

// read is a reader of one node on its own host, or of all nodes in turn from the clients' host.
func (c *netClients) read(rng *rand.Rand, id, at int) {
	near := at < len(c.g.nodes)
	nodes, done := c.connect(near)
	defer done()
	for c.pause(2*time.Millisecond + upTo(rng, 8*time.Millisecond)) {
		node := at
		if !near {
			node = rng.IntN(len(nodes))
		}
		c.look(nodes[node], id, node)
	}
}

// look looks at all keys of a node at once, and reports whether it led: if the node led one epoch before and after, what it showed was read from a leader.
func (c *netClients) look(r *redis.Client, id, node int) (led bool) {
	ctx := context.Background()
	var before, after *redis.StringCmd
	var values *redis.SliceCmd
	call := c.now()
	_, err := r.Pipelined(ctx, func(p redis.Pipeliner) error {
		before = p.Info(ctx, "server", "replication", "shiplog")
		values = p.MGet(ctx, c.h.keys...)
		after = p.Info(ctx, "server", "replication", "shiplog")
		return nil
	})
	ret := c.now()
	if err != nil {
		return false
	}
	s := histSample{client: id, node: node}
	for _, v := range values.Val() {
		text, _ := v.(string)
		if v != nil && text == "" {
			return false // an error in a value's place
		}
		s.values = append(s.values, text)
	}
	was, is := infoFields(before.Val()), infoFields(after.Val())
	var errs [3]error
	s.low, errs[0] = strconv.ParseUint(was["visible_lsn"], 10, 64)
	s.high, errs[1] = strconv.ParseUint(is["visible_lsn"], 10, 64)
	s.run, errs[2] = strconv.Atoi(was["process_id"])
	if errors.Join(errs[:]...) != nil {
		c.g.t.Errorf("INFO says %q and %q", was, is)
		return false
	}
	c.h.sample(s)
	if was["role"] != "master" || is["role"] != "master" || was["epoch"] != is["epoch"] {
		return false
	}
	for i, v := range s.values {
		c.h.add(histOp{kind: histRead, client: id, key: c.h.keys[i], seen: v, call: call, ret: ret})
	}
	return true
}

// end stops the clients, and looks at all keys once more at the leader.
func (c *netClients) end() {
	c.g.t.Helper()
	close(c.stop)
	c.wg.Wait()
	c.g.until("the leader answers", func() bool {
		leader := c.g.leading()
		if leader == nil {
			return false
		}
		r := c.g.redis(leader, leader.host)
		defer func() { _ = r.Close() }() // nothing waits in it
		return c.look(r, -1, slices.Index(c.g.nodes, leader))
	})
}
