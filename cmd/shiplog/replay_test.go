package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
)

// TestReplay: what was cut from a log is offered again key by key: what is there already is left, what is missing is written when
// that is asked for, what differs only when that is too. A damaged file is refused.
func TestReplay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "old")
	db, err := engine.Open(dir, &engine.Options{SegmentSize: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	put := func(key, value string) {
		t.Helper()
		if err := db.Put([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	put("before", "the fork")
	fork := db.Log().Head()
	long := strings.Repeat("long", 100_000)
	put("same", "1")
	put("missing", "0")
	put("missing", "1")
	put("conflict", "theirs")
	put("long", long)
	put("gone", "x")
	if err := db.Delete([]byte("gone")); err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch()
	b.PutTTL([]byte("expired"), []byte("1"), time.Now().Add(-time.Hour))
	b.PutTTL([]byte("expires"), []byte("1"), time.Now().Add(time.Hour))
	b.DeleteRange([]byte("x"), []byte("y"))
	if _, err := db.Commit(context.Background(), b, engine.Default); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := wal.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Truncate(fork); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	p := startNode(t, filepath.Join(t.TempDir(), "new"))
	c, ctx := p.client(), context.Background()
	for k, v := range map[string]string{"same": "1", "conflict": "ours", "gone": "still here"} {
		if err := c.Set(ctx, k, v, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	replay := func(want replayed, code int, more ...string) {
		t.Helper()
		got, out, errs := command(append([]string{"replay", filepath.Join(dir, "diverged"), "--to", p.resp, "--json"}, more...)...)
		var r replayed
		if err := json.Unmarshal([]byte(out), &r); err != nil || r != want || got != code {
			t.Fatalf("%d %+v, want %d %+v\n%s", got, r, code, want, errs)
		}
	}
	all := replayed{Keys: 7, Same: 1, Missing: 3, Conflicts: 2, Expired: 1, Ranges: 1}
	replay(all, exitFailure)
	all.Written = 3
	replay(all, exitFailure, "--apply")
	for k, v := range map[string]string{"missing": "1", "long": long, "conflict": "ours"} {
		if got := c.Get(ctx, k).Val(); got != v {
			t.Errorf("%s is %.40q", k, got)
		}
	}
	if ttl := c.TTL(ctx, "expires").Val(); ttl < 50*time.Minute || ttl > time.Hour {
		t.Errorf("expires in %v", ttl)
	}
	replay(replayed{Keys: 7, Same: 4, Conflicts: 2, Expired: 1, Ranges: 1, Written: 2}, exitFailure, "--apply", "--overwrite")
	replay(replayed{Keys: 7, Same: 6, Expired: 1, Ranges: 1}, exitFailure) // the range delete is left to decide
	if v, there := c.Get(ctx, "conflict").Val(), c.Exists(ctx, "gone").Val(); v != "theirs" || there != 0 {
		t.Errorf("conflict is %q, gone is there: %d", v, there)
	}

	files, _ := filepath.Glob(filepath.Join(dir, "diverged", "*.cut"))
	if len(files) != 1 {
		t.Fatal(files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(files[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := command("replay", files[0], "--to", p.resp); code != exitFailure || !strings.Contains(errs, "corrupt") {
		t.Errorf("a damaged file: %d %s%s", code, out, errs)
	}
	if code, _, errs := command("replay", dir, "--to", p.resp); code == exitOK || !strings.Contains(errs, "no .cut file") {
		t.Errorf("a directory without any: %d %s", code, errs)
	}
	p.stop()
}
