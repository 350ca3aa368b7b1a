package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
)

var ctx = context.Background()

func open(t testing.TB, dir string, opts *engine.Options) *engine.DB {
	t.Helper()
	db, err := engine.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func mustPut(t testing.TB, db *engine.DB, key, value string) {
	t.Helper()
	if err := db.Put([]byte(key), []byte(value)); err != nil {
		t.Fatalf("Put(%q): %v", key, err)
	}
}

func wantGet(t testing.TB, get func([]byte) ([]byte, error), key, want string) {
	t.Helper()
	v, err := get([]byte(key))
	if err != nil || string(v) != want {
		t.Fatalf("Get(%q) = %q, %v; want %q", key, v, err, want)
	}
}

func wantMissing(t testing.TB, get func([]byte) ([]byte, error), key string) {
	t.Helper()
	if v, err := get([]byte(key)); !errors.Is(err, engine.ErrNotFound) {
		t.Fatalf("Get(%q) = %q, %v; want ErrNotFound", key, v, err)
	}
}

func TestPutGetDelete(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir, nil)
	mustPut(t, db, "a", "1")
	mustPut(t, db, "b", "2")
	mustPut(t, db, "a", "3")
	mustPut(t, db, "", "empty key")
	mustPut(t, db, "empty value", "")
	if err := db.Delete([]byte("b")); err != nil {
		t.Fatal(err)
	}
	check := func(db *engine.DB) {
		wantGet(t, db.Get, "a", "3")
		wantMissing(t, db.Get, "b")
		wantMissing(t, db.Get, "c")
		wantGet(t, db.Get, "", "empty key")
		wantGet(t, db.Get, "empty value", "")
	}
	check(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Put([]byte("x"), nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Put after Close: %v", err)
	}
	if _, err := db.Get([]byte("a")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Get after Close: %v", err)
	}
	check(open(t, dir, nil))
}

// TestSizes writes values and keys from nothing to the limits, around every size at which the log
// treats them in another way, and reads them back before and after a reopen.
func TestSizes(t *testing.T) {
	dir := t.TempDir()
	opts := &engine.Options{SegmentSize: 1 << 20}
	db := open(t, dir, opts)
	rng := rand.New(rand.NewPCG(1, 1))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	type pair struct{ key, value []byte }
	var pairs []pair
	for _, n := range []int{0, 1, 100, 4050, 4090, 4096, 4100, 8192, 65536, 262100, 262144, 262200, 1 << 20, 3<<20 + 17} {
		pairs = append(pairs, pair{fmt.Appendf(nil, "random-%d", n), random(n)}, pair{fmt.Appendf(nil, "text-%d", n), bytes.Repeat([]byte("shiplog "), n/8+1)[:n]})
	}
	for _, n := range []int{0, 1, 4000, 4096, 5000, engine.MaxKeySize} {
		pairs = append(pairs, pair{append([]byte{byte(n)}, random(max(0, n-1))...)[:n], []byte("key of some size")})
	}
	for _, p := range pairs {
		if err := db.Put(p.key, p.value); err != nil {
			t.Fatalf("key %d, value %d: %v", len(p.key), len(p.value), err)
		}
	}
	check := func(db *engine.DB) {
		for _, p := range pairs {
			v, err := db.Get(p.key)
			if err != nil || !bytes.Equal(v, p.value) {
				t.Fatalf("key %d, value %d: got %d bytes, %v", len(p.key), len(p.value), len(v), err)
			}
		}
		it := db.NewIter(nil)
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			n++
		}
		if err := it.Close(); err != nil || n != len(pairs) {
			t.Fatalf("iterator saw %d of %d keys, %v", n, len(pairs), err)
		}
	}
	check(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, dir, nil))
}

func TestLimits(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	for _, tc := range []struct {
		name string
		err  error
		do   func() error
	}{
		{"key", engine.ErrKeyTooLarge, func() error { return db.Put(make([]byte, engine.MaxKeySize+1), nil) }},
		{"value", engine.ErrValueTooLarge, func() error { return db.Put(nil, make([]byte, engine.MaxValueSize+1)) }},
		{"delete", engine.ErrKeyTooLarge, func() error { return db.Delete(make([]byte, engine.MaxKeySize+1)) }},
		{"conditional key", engine.ErrKeyTooLarge, func() error {
			_, _, err := db.Increment(ctx, engine.Default, make([]byte, engine.MaxKeySize+1), 1)
			return err
		}},
		{"batch", engine.ErrBatchTooLarge, func() error {
			b, v := db.NewBatch(), make([]byte, engine.MaxValueSize)
			for range 4 {
				b.Put(nil, v)
			}
			_, err := db.Commit(ctx, b, engine.Default)
			return err
		}},
		{"level", engine.ErrInvalidOption, func() error {
			b := db.NewBatch()
			b.Put(nil, nil)
			_, err := db.Commit(ctx, b, engine.Replicated(0))
			return err
		}},
	} {
		before := db.Stats().Head
		if err := tc.do(); !errors.Is(err, tc.err) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.err)
		}
		if db.Stats().Head != before {
			t.Errorf("%s: something was written", tc.name)
		}
	}
}

func TestOptionsReportEverything(t *testing.T) {
	_, err := engine.Open(t.TempDir(), &engine.Options{SegmentSize: 12345, Commit: engine.Received(0), Voters: []string{"a", "a", ""}})
	if !errors.Is(err, engine.ErrInvalidOption) {
		t.Fatal(err)
	}
	for _, want := range []string{"segment size", "received", `"a"`, `""`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
}

func TestBatchIsAtomicAndOrdered(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "k1", "old")
	b := db.NewBatch()
	b.Put([]byte("k1"), []byte("new"))
	b.Put([]byte("k2"), []byte("x"))
	b.DeleteRange([]byte("k1"), []byte("k3"))
	b.Put([]byte("k2"), []byte("after"))
	if b.Len() != 4 {
		t.Errorf("Len = %d", b.Len())
	}
	pos, err := db.Commit(ctx, b, engine.Durable)
	if err != nil {
		t.Fatal(err)
	}
	wantMissing(t, db.Get, "k1")
	wantGet(t, db.Get, "k2", "after")
	if out, err := db.Outcome(pos); out != engine.Committed || err != nil {
		t.Errorf("Outcome = %v, %v", out, err)
	}
	if b.Len() != 4 {
		t.Error("Commit has changed the batch")
	}
	b.Reset()
	if b.Len() != 0 || b.Size() != 0 {
		t.Error("Reset left something")
	}
}

func TestExpiry(t *testing.T) {
	now := time.Now()
	db := open(t, t.TempDir(), &engine.Options{Now: func() time.Time { return now }})
	b := db.NewBatch()
	b.PutTTL([]byte("short"), []byte("v"), now.Add(time.Second))
	b.PutTTL([]byte("long"), []byte("v"), now.Add(time.Hour))
	b.PutTTL([]byte("past"), []byte("v"), now.Add(-time.Second))
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	wantGet(t, db.Get, "short", "v")
	wantMissing(t, db.Get, "past")
	s := db.Snapshot()
	defer s.Close()
	now = now.Add(2 * time.Second)
	wantMissing(t, db.Get, "short")
	wantGet(t, s.Get, "short", "v") // a snapshot stands at its own time
	wantGet(t, db.Get, "long", "v")
	if got := keys(t, db.NewIter(nil)); !slices.Equal(got, []string{"long"}) {
		t.Errorf("iterator: %q", got)
	}
	if ok, _, err := db.PutIfAbsent(ctx, engine.Default, []byte("short"), []byte("again")); !ok || err != nil {
		t.Errorf("PutIfAbsent over an expired key: %v, %v", ok, err)
	}
	// A wall clock that falls back revives nothing.
	now = now.Add(-time.Hour)
	wantMissing(t, db.Get, "past")
}

func keys(t testing.TB, it *engine.Iterator) []string {
	t.Helper()
	var out []string
	for ok := it.First(); ok; ok = it.Next() {
		out = append(out, string(it.Key()))
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSnapshotStandsStill(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Written})
	for i := range 100 {
		mustPut(t, db, fmt.Sprintf("k%02d", i), "before")
	}
	s := db.Snapshot()
	defer s.Close()
	it := s.NewIter(nil)
	it.First()
	for round := range 5 {
		for i := range 100 {
			mustPut(t, db, fmt.Sprintf("k%02d", i), fmt.Sprint("after", round))
			mustPut(t, db, fmt.Sprintf("new%d-%d", round, i), "x")
		}
	}
	b := db.NewBatch()
	b.DeleteRange(nil, nil)
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		wantGet(t, s.Get, fmt.Sprintf("k%02d", i), "before")
		wantMissing(t, db.Get, fmt.Sprintf("k%02d", i))
	}
	n := 0
	for ok := it.Valid(); ok; ok = it.Next() {
		if string(it.Value()) != "before" {
			t.Fatalf("%s = %s", it.Key(), it.Value())
		}
		n++
	}
	if err := it.Close(); err != nil || n != 100 {
		t.Errorf("iterator saw %d keys, %v", n, err)
	}
}

func TestTwoOpens(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, nil)
	if _, err := engine.Open(dir, nil); !errors.Is(err, engine.ErrLocked) {
		t.Errorf("second Open: %v", err)
	}
}

func TestFollowerRefusesWrites(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Follower: true})
	if err := db.Put([]byte("a"), nil); !errors.Is(err, engine.ErrReadOnly) {
		t.Errorf("Put: %v", err)
	}
	if _, err := db.Get([]byte("a")); !errors.Is(err, engine.ErrLoading) {
		t.Errorf("Get before anything was copied: %v", err)
	}
	if err := db.Promote(ctx); !errors.Is(err, engine.ErrLoading) {
		t.Errorf("Promote of an empty copy: %v", err)
	}
}

func TestChanges(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "a", "1")
	b := db.NewBatch()
	b.Put([]byte("b"), bytes.Repeat([]byte("large"), 100_000))
	b.Delete([]byte("a"))
	b.DeleteRange([]byte("x"), nil)
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	want := []string{"put a", "put b", "delete a", "delete-range x"}
	var got []string
	var resume engine.Position
	for c, err := range db.Changes(ctx, engine.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.Op.String()+" "+string(c.Key))
		if len(got) == 1 {
			resume = c.Position
		}
		if len(got) == len(want) {
			if !c.Last || len(c.Value) != 0 {
				t.Errorf("last change: %+v", c)
			}
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for c, err := range db.Changes(ctx, resume) {
		if err != nil || string(c.Key) != "b" || len(c.Value) != 500_000 {
			t.Errorf("resumed at %q with %d bytes, %v", c.Key, len(c.Value), err)
		}
		break
	}
	for _, err := range db.Changes(ctx, engine.Position{Epoch: resume.Epoch + 1, LSN: resume.LSN}) {
		if !errors.Is(err, engine.ErrLost) {
			t.Errorf("foreign position: %v", err)
		}
	}
}

// TestChangesWaits checks that a feed at the end is woken by the next commit, and ended by its context.
func TestChangesWaits(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	ctx, cancel := context.WithCancel(ctx)
	got := make(chan string)
	go func() {
		defer close(got)
		for c, err := range db.Changes(ctx, engine.Position{}) {
			if err != nil {
				got <- err.Error()
				return
			}
			got <- string(c.Key)
		}
	}()
	for i := range 3 {
		key := fmt.Sprint("k", i)
		mustPut(t, db, key, "v")
		if k := <-got; k != key {
			t.Fatalf("got %q, want %q", k, key)
		}
	}
	cancel()
	if e := <-got; e != context.Canceled.Error() {
		t.Errorf("got %q", e)
	}
}
