package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestFollowerAtAMovedTail: a new follower of a leader whose log does not begin at its beginning any more answers LOADING until it
// has got as far as the record that moved the tail: what it has before that is no state that the database was ever in. Then it
// answers as the leader does.
func TestFollowerAtAMovedTail(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	leader := startNode(t, filepath.Join(dir, "leader"), "--segment-size", "65536", "--commit", "written", "--compression", "none")
	client := leader.client()
	const keys = 50
	key := func(i int) string { return fmt.Sprint("key", i) }
	for round := 0; leader.status().Tail == 0; round++ {
		pipe := client.Pipeline()
		for i := range keys {
			pipe.Set(ctx, key(i), strings.Repeat(fmt.Sprint(round, " "), 1000), 0)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Set(ctx, "last", "word", 0).Err(); err != nil {
		t.Fatal(err)
	}

	line := startGate(t, leader.ship)
	line.leave(40 << 10)
	follower := newNode(t, filepath.Join(dir, "follower"), "--follow", line.ln.Addr().String(), "--name", "f")
	follower.launch()
	reader := follower.client()
	follower.until("has begun at the tail", func() bool {
		return reader.Ping(ctx).Err() == nil && follower.status().Head > leader.status().Tail
	})
	for i := range 5 { // the client tries each a few times
		if v, err := reader.Get(ctx, key(i)).Result(); err == nil || !strings.HasPrefix(err.Error(), "LOADING ") {
			t.Fatalf("%s: %.20q, %v", key(i), v, err)
		}
	}
	if n, err := reader.DBSize(ctx).Result(); err == nil || !strings.HasPrefix(err.Error(), "LOADING ") {
		t.Fatalf("DBSIZE: %d, %v", n, err)
	}

	line.set(false)
	follower.until("shows the last write", func() bool { return reader.Get(ctx, "last").Val() == "word" })
	for i := range keys {
		if want, got := client.Get(ctx, key(i)).Val(), reader.Get(ctx, key(i)).Val(); got != want || want == "" {
			t.Errorf("%s: %.20q, the leader has %.20q", key(i), got, want)
		}
	}
	head := leader.status().Head
	follower.until("has all", func() bool { return follower.status().Head >= head })
	follower.stop()
	leader.stop()
	sameUpTo(t, leader.dir, follower.dir, head) // the leader may have moved its tail once more since
}
