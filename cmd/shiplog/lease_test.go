package main

import (
	"context"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"shiplog/engine"
	"shiplog/ship"
)

// TestReadsRestOnVoters: under replicated:1 a leader whose voters are all stopped refuses reads, as from a leader that may have been replaced, and
// answers them when one is back; under durable, and when told to, it answers alone.
func TestReadsRestOnVoters(t *testing.T) {
	if ship.ReadLease != engine.ReadLease {
		t.Fatalf("leases of %v and of %v", ship.ReadLease, engine.ReadLease)
	}
	for _, c := range []struct {
		name    string
		args    []string
		refuses bool
	}{
		{"replicated", []string{"--commit", "replicated:1"}, true},
		{"durable", []string{"--commit", "durable"}, false},
		{"old reads allowed", []string{"--commit", "replicated:1", "--read-leases=false"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, dir := context.Background(), t.TempDir()
			a := newNode(t, filepath.Join(dir, "a"), append(c.args, "--name", "a")...)
			a.relaunch()
			followers := []*process{
				startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b"), startNode(t, filepath.Join(dir, "c"), "--follow", a.ship, "--name", "c"),
			}
			client := a.client()
			a.until("a write", func() bool { return client.Set(ctx, "k", "v", 0).Err() == nil })
			a.until("a read", func() bool { return client.Get(ctx, "k").Val() == "v" })
			for _, p := range followers {
				send(t, p, syscall.SIGSTOP)
			}
			refused := func() bool {
				err := client.Get(ctx, "k").Err()
				if err != nil && !strings.HasPrefix(err.Error(), "MASTERDOWN") {
					t.Fatal(err)
				}
				return err != nil
			}
			if !c.refuses {
				for range 200 {
					if refused() {
						t.Fatal("a read was refused")
					}
				}
				return
			}
			a.until("reads are refused", refused)
			if err := client.Exists(ctx, "none").Err(); err == nil || err == redis.Nil {
				t.Error("EXISTS was answered")
			}
			if err := client.Keys(ctx, "*").Err(); err == nil {
				t.Error("KEYS was answered")
			}
			send(t, followers[0], syscall.SIGCONT)
			a.until("reads are answered", func() bool { return client.Get(ctx, "k").Val() == "v" })
			send(t, followers[1], syscall.SIGCONT)
		})
	}
}
