package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/ship"
	"shiplog/ship/nettest"
)

// startPair opens a leader here under a rule, with a follower in another process that has caught up.
func startPair(b *testing.B, rule engine.Level) *engine.DB {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return startPairOn(b, ln, nil, rule)
}

// startPairOn is startPair with a listener of the leader's, and a host for the follower; nil: here.
func startPairOn(b *testing.B, ln net.Listener, host *nettest.Host, rule engine.Level) *engine.DB {
	b.Helper()
	db := open(b, &engine.Options{Commit: rule, TooFew: engine.Block, CommitTimeout: time.Minute})
	leader, err := ship.NewLeader(db, &ship.LeaderOptions{Secret: secret})
	if err != nil {
		b.Fatal(err)
	}
	db.OnAppend(leader.Push)
	served := make(chan error, 1)
	go func() { served <- leader.Serve(ln) }() // ended by Shutdown
	b.Cleanup(func() {
		db.OnAppend(nil)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := leader.Shutdown(ctx); err != nil {
			b.Error(err)
		}
		if err := <-served; !errors.Is(err, ship.ErrLeaderClosed) {
			b.Error(err)
		}
	})
	child(b, host, "follower", b.TempDir(), ln.Addr().String())
	if err := db.Put([]byte("first"), nil); err != nil {
		b.Fatal(err)
	}
	return db
}

// BenchmarkReplicated is commits of one operation under the rule Replicated(1), leader and follower on this machine, by 1 to 64
// writers, in slices that alternate with commits under Durable on a node alone, and with bare writes and syncs of two files:
// both at the same time, and one after the other. of-durable is commits a second over those of Durable; of-both and of-sum
// are the time of a bare write to both files over that of a commit.
func BenchmarkReplicated(b *testing.B) {
	slice := 25
	if testing.Short() {
		slice = 5
	}
	for _, rule := range []engine.Level{engine.Received(1), engine.Replicated(1), engine.Applied(1)} {
		for _, writers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("rule=%v/writers=%d", rule, writers), func(b *testing.B) {
				pair, alone := startPair(b, rule), open(b, nil)
				here, there := newBareLog(b, 160), newBareLog(b, 160)
				start, ended := make(chan struct{}), make(chan struct{})
				go func() { // ended by the close of start
					for range start {
						there.write(b)
						ended <- struct{}{}
					}
				}()
				defer close(start)
				vals, r, i := newValues(), rates{}, uint64(0)
				commits := func(db *engine.DB) float64 {
					n := slice * writers
					defer func() { i += uint64(n) }()
					return timed(1, func() {
						parallel(writers, n, func(_, j int) {
							if err := db.Put(key(nil, i+uint64(j)), vals.get(i+uint64(j), valueSize)); err != nil {
								b.Error(err)
							}
						})
					}) / float64(n)
				}
				for b.Loop() {
					p, d := commits(pair), commits(alone)
					both := timed(slice, func() {
						start <- struct{}{}
						here.write(b)
						<-ended
					})
					sum := timed(slice, func() {
						here.write(b)
						there.write(b)
					})
					r.add("commits/s", 1e9/p)
					r.add("durable-commits/s", 1e9/d)
					r.add("of-durable", d/p)
					if writers == 1 {
						r.add("of-both", both/p)
						r.add("of-sum", sum/p)
					}
				}
				r.report(b)
			})
		}
	}
}
