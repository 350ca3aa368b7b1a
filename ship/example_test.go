package ship_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"shiplog/engine"
	"shiplog/ship"
)

// A database with one follower, in one process for once. The commit rule asks for the follower's disk, so no write that
// was acknowledged is lost with the leader: the follower takes over.
func Example() {
	dir, err := os.MkdirTemp("", "shiplog-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	// The leader ships its log to whoever connects. Block: writes wait for the follower instead of being refused.
	first, err := engine.Open(filepath.Join(dir, "first"), &engine.Options{
		Commit: engine.Replicated(1), Voters: []string{"second"}, TooFew: engine.Block, CommitTimeout: time.Minute,
	})
	if err != nil {
		log.Fatal(err)
	}
	leader, err := ship.NewLeader(first, nil) // other machines: set Secret, and TLS
	if err != nil {
		log.Fatal(err)
	}
	first.OnAppend(leader.Push) // both disks then work at the same time
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- leader.Serve(listener) }()

	// The follower copies it, and shows what is committed.
	second, err := engine.Open(filepath.Join(dir, "second"), &engine.Options{Follower: true})
	if err != nil {
		log.Fatal(err)
	}
	defer second.Close()
	follower, err := ship.NewFollower(second, &ship.FollowerOptions{Upstream: listener.Addr().String(), Name: "second"})
	if err != nil {
		log.Fatal(err)
	}
	following, stop := context.WithCancel(ctx)
	followed := make(chan error, 1)
	go func() { followed <- follower.Run(following) }()

	// On return the write is on both disks.
	b := first.NewBatch()
	b.Put([]byte("greeting"), []byte("hello"))
	position, err := first.Commit(ctx, b, engine.Default)
	if err != nil {
		log.Fatal(err)
	}
	// The position of a write has another node wait until its readers see it.
	if err := second.WaitApplied(ctx, position); err != nil {
		log.Fatal(err)
	}
	value, err := second.Get([]byte("greeting"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("the follower reads %s\n", value)
	fmt.Println(second.Put([]byte("greeting"), []byte("bye")))

	// The leader goes. Its follower stops following it, and leads: under this rule its own promise is enough.
	if err := leader.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	if err := <-served; !errors.Is(err, ship.ErrLeaderClosed) {
		log.Fatal(err)
	}
	if err := first.Close(); err != nil {
		log.Fatal(err)
	}
	stop()
	<-followed
	if err := second.Promote(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("the second node is", second.Role(), "of epoch", second.Stats().Epoch)
	// Output:
	// the follower reads hello
	// engine: this node is a follower
	// the second node is leader of epoch 2.0
}
