package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shiplog/wal/waltest"
)

// TestFullDisk: Redis clients of a node on a full disk are told so, read and delete, and write again once there is room,
// without a restart; after a kill everything acknowledged is there.
func TestFullDisk(t *testing.T) {
	m := waltest.NewMount(t, "tmpfs", 16<<20)
	ballast := filepath.Join(m.Dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	n := newNode(t, filepath.Join(m.Dir, "db"), "--segment-size", "1048576", "--compression", "none")
	n.start()
	t.Cleanup(func() { // before the file system goes
		if n.cmd.ProcessState == nil {
			n.kill()
		}
	})
	client, value := n.client(), strings.Repeat("x", 10_000)
	fill := func(prefix string) (keys []string) {
		t.Helper()
		for i := range 10_000 {
			key := fmt.Sprint(prefix, i)
			err := client.Set(ctx, key, value, 0).Err()
			if err == nil {
				keys = append(keys, key)
				continue
			}
			if !strings.HasPrefix(err.Error(), "MISCONF") || !strings.Contains(err.Error(), "No space left on device") {
				t.Fatalf("SET on a full disk: %v", err)
			}
			return keys
		}
		t.Fatal("the disk is never full")
		return nil
	}
	keys := fill("a")
	n.until("the log says why writes are refused", func() bool {
		return strings.Contains(n.stderr.String(), "disk full, writes are refused until there is room")
	})
	if v, err := client.Get(ctx, keys[3]).Result(); err != nil || v != value {
		t.Fatalf("GET on a full disk: %d bytes, %v", len(v), err)
	}
	if gone, err := client.Del(ctx, keys[0], keys[1]).Result(); err != nil || gone != 2 {
		t.Fatalf("DEL on a full disk: %d, %v", gone, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	more := fill("b")
	if len(more) < 100 {
		t.Errorf("%d writes once there was room", len(more))
	}
	keys = append(keys[2:], more...)
	n.kill()
	n.start()
	if size, err := client.DBSize(ctx).Result(); err != nil || size != int64(len(keys)) {
		t.Errorf("%d keys after a kill, %v; want %d", size, err, len(keys))
	}
	for _, key := range keys {
		if v, err := client.Get(ctx, key).Result(); err != nil || v != value {
			t.Fatalf("%s after a kill: %d bytes, %v", key, len(v), err)
		}
	}
	n.kill()
}
