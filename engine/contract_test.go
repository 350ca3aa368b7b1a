package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestBadOptionsCreateNothing: options out of range are one error that matches ErrInvalidOption, and no file is made.
func TestBadOptionsCreateNothing(t *testing.T) {
	names := func(n int) (s []string) {
		for i := range n {
			s = append(s, fmt.Sprint("voter-", i))
		}
		return s
	}
	for what, o := range map[string]engine.Options{
		"segment of 63 KiB":        {SegmentSize: 63 << 10},
		"segment of 32 KiB":        {SegmentSize: 32 << 10},
		"segment of 2 GiB":         {SegmentSize: 2 << 30},
		"compression":              {Compression: 3},
		"level":                    {Commit: 9},
		"level with a count":       {Commit: engine.Durable | 1<<8},
		"received by none":         {Commit: engine.Received(0)},
		"received by 65":           {Commit: engine.Received(65)},
		"received by -1":           {Commit: engine.Received(-1)},
		"too few":                  {TooFew: 3},
		"degrade after":            {DegradeAfter: -1},
		"pending":                  {MaxPending: -1},
		"flush interval":           {FlushInterval: -1},
		"index memory below":       {MemIndexSize: 1<<20 - 1},
		"index memory above":       {MemIndexSize: 16<<30 + 1},
		"space factor":             {SpaceFactor: 119},
		"pinned":                   {MaxPinned: -1},
		"pinned age":               {MaxPinnedAge: -time.Second},
		"65 voters":                {Voters: names(65)},
		"a voter without a name":   {Voters: []string{""}},
		"a voter's name too long":  {Voters: []string{strings.Repeat("n", wal.MaxName+1)}},
		"a voter twice":            {Voters: []string{"a", "a"}},
		"a rule for more than all": {Commit: engine.Replicated(2), Voters: names(1)},
		"first of nobody":          {FirstVoters: true},
	} {
		disk := waltest.NewDisk()
		o.FS = disk
		db, err := engine.Open("db", &o)
		if err == nil {
			t.Errorf("%s: opens", what)
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, engine.ErrInvalidOption) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := disk.Stat("db"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was created (%v): %q", what, err, disk.Files())
		}
	}
}

// TestOptionsThatTheDatabaseHas: what was fixed when the database was created can be given again, or left out; anything else is refused, and changes nothing.
func TestOptionsThatTheDatabaseHas(t *testing.T) {
	disk := waltest.NewDisk()
	for i, o := range []engine.Options{
		{SegmentSize: 128 << 10, Commit: engine.Written},
		{SegmentSize: 128 << 10},
		{Commit: engine.Written},
		{SegmentSize: 64 << 10},
		{Commit: engine.Durable},
		{FirstVoters: true, Voters: []string{"a"}},
		{},
	} {
		o.FS = disk
		db, err := engine.Open("db", &o)
		if other := i >= 3 && i <= 5; other != errors.Is(err, engine.ErrInvalidOption) || !other && err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		if err == nil {
			if size := db.Log().SegmentSize(); size != 128<<10 {
				t.Errorf("segments have %d bytes", size)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestNoDatabaseIsFoundedOverAPromise: a directory that has followed, and has nothing of that database any more, founds no other one.
func TestNoDatabaseIsFoundedOverAPromise(t *testing.T) {
	for _, promised := range []wal.Epoch{wal.MakeEpoch(1, 0), wal.MakeEpoch(7, 2)} {
		disk := waltest.NewDisk()
		db := open(t, "db", &engine.Options{FS: disk, Follower: true})
		if err := db.Fence(promised); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := engine.Open("db", &engine.Options{FS: disk}); !errors.Is(err, engine.ErrNotLeader) || !strings.Contains(err.Error(), promised.String()) {
			t.Errorf("as the leader of a new database, after a promise of %v: %v", promised, err)
		}
		if err := open(t, "db", &engine.Options{FS: disk, Follower: true}).Close(); err != nil {
			t.Errorf("as a follower: %v", err)
		}
	}
}

// TestLargest: what is as large as it may be is stored and read again, over a restart; TestLimits has the other side.
func TestLargest(t *testing.T) {
	if testing.Short() {
		t.Skip("256 MiB are written")
	}
	dir := t.TempDir()
	db := open(t, dir, &engine.Options{CommitTimeout: -1})
	key, value := bytes.Repeat([]byte("k"), engine.MaxKeySize), make([]byte, engine.MaxValueSize)
	for i := 0; i < len(value); i += 1 << 10 {
		value[i] = byte(i >> 10)
	}
	if err := db.Put(key, value); err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch()
	b.DeleteRange([]byte("a"), key)
	for i := 0; engine.MaxBatchSize-b.Size() > engine.MaxValueSize+100; i++ {
		b.Put(fmt.Append(nil, "part ", i), value)
	}
	last := engine.MaxBatchSize - b.Size() - (1 + 1 + len("last") + 4)
	b.Put([]byte("last"), value[:last])
	if b.Size() != engine.MaxBatchSize {
		t.Fatalf("the batch has %d bytes", b.Size())
	}
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, dir, &engine.Options{CommitTimeout: -1})
	got, err := db.Get(key)
	if err != nil || !bytes.Equal(got, value) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	got, err = db.Get([]byte("last"))
	if err != nil || !bytes.Equal(got, value[:last]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestClosedSnapshot: a snapshot and its iterators that are closed, when their versions may be gone, say so instead of
// reading what is there now.
func TestClosedSnapshot(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "k", "v")
	s := db.Snapshot()
	it := s.NewIter(nil)
	own := db.NewIter(nil)
	if !it.First() || !own.First() {
		t.Fatal("nothing to see")
	}
	for _, it := range []*engine.Iterator{it, own} {
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if it.Valid() || it.Key() != nil || it.Value() != nil || it.Next() || it.Prev() {
			t.Error("a closed iterator stands on a key")
		}
		if it.First() || !errors.Is(it.Err(), engine.ErrClosed) {
			t.Errorf("a closed iterator moves: %v", it.Err())
		}
	}
	s.Close()
	s.Close()
	if v, err := s.Get([]byte("k")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("a closed snapshot answers %q, %v", v, err)
	}
	if it := s.NewIter(nil); it.First() || !errors.Is(it.Err(), engine.ErrClosed) {
		t.Errorf("an iterator of a closed snapshot moves: %v", it.Err())
	}
}

// TestIteratorOffItsKeys: an iterator that stands on no key has none, and no value.
func TestIteratorOffItsKeys(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "k", "v")
	it := db.NewIter(nil)
	defer it.Close()
	off := func(when string) {
		t.Helper()
		if it.Valid() || it.Key() != nil || it.Value() != nil || it.Err() != nil {
			t.Errorf("%s: valid %v, key %q, value %q, %v", when, it.Valid(), it.Key(), it.Value(), it.Err())
		}
	}
	off("before the first positioning")
	it.Last()
	it.Next()
	off("behind the last key")
	it.SeekLT([]byte("k"))
	off("before the first key")
}

// TestPromoteAtTheLastTerm: a peer that has promised the last term that there is leaves none to a candidate, which says so.
func TestPromoteAtTheLastTerm(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "k", "v")
	if err := db.Fence(wal.MakeEpoch(wal.MaxTerm, wal.MaxRestart)); err != nil {
		t.Fatal(err)
	}
	if err := db.Promote(ctx); !errors.Is(err, wal.ErrEpoch) {
		t.Errorf("promoted behind the last epoch: %v", err)
	}
}

// TestBatchLimit: a batch is full at its limit and not before, whatever the operation.
func TestBatchLimit(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	b, value := db.NewBatch(), make([]byte, engine.MaxValueSize)
	for range 3 {
		b.Put(nil, value)
	}
	key := make([]byte, engine.MaxKeySize)
	b.Put(nil, value[:engine.MaxBatchSize-b.Size()-engine.MaxKeySize-100])
	b.DeleteRange(key, key) // each of its keys alone would fit
	if _, err := db.Commit(ctx, b, engine.Default); !errors.Is(err, engine.ErrBatchTooLarge) {
		t.Errorf("a delete range over the limit: %v", err)
	}
	if n := b.Len(); n != 4 {
		t.Errorf("the batch holds %d operations, not the 4 that fit", n)
	}
}

// TestExpiryEdges: the zero time is no expiry, as GetEntry says it; the first millisecond of 1970 is one, long past.
func TestExpiryEdges(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	for _, tc := range []struct {
		key    string
		expiry time.Time
		want   error
	}{
		{"never", time.Time{}, nil},
		{"1970", time.UnixMilli(0), engine.ErrNotFound},
		{"1969", time.UnixMilli(-1), engine.ErrNotFound},
	} {
		b := db.NewBatch()
		b.PutTTL([]byte(tc.key), []byte("v"), tc.expiry)
		if _, err := db.Commit(ctx, b, engine.Default); err != nil {
			t.Fatal(err)
		}
		_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
			return tx.PutTTL([]byte(tc.key+" in a transaction"), []byte("v"), tc.expiry)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{tc.key, tc.key + " in a transaction"} {
			_, expiry, err := db.GetEntry([]byte(key))
			if !errors.Is(err, tc.want) || !expiry.IsZero() {
				t.Errorf("%s: %v, expires %v, want %v", key, err, expiry, tc.want)
			}
		}
	}
}

// TestDeletesOutliveARemovalThatFails: the tail has moved over a delete, and the index has forgotten it, before the files below
// are removed. If that does not happen, and the next open finds them, what was deleted stays deleted.
func TestDeletesOutliveARemovalThatFails(t *testing.T) {
	const versions = 100 // that a table holds
	defer engine.FreezeEvery(versions)()
	disk := waltest.NewDisk()
	opts := &engine.Options{FS: disk, SegmentSize: 64 << 10, SpaceFactor: -1, Compression: engine.NoCompression}
	db := open(t, "db", opts)
	fill := func(n int) {
		for i := range n {
			mustPut(t, db, fmt.Sprint("filler ", i%10), strings.Repeat("f", 5000))
		}
	}
	flushed := func(runs int) {
		t.Helper()
		waitFor(t, "tables are written out", func() bool { s := db.Stats().Index; return s.Tables == 1 && s.Runs >= runs })
	}
	mustPut(t, db, "key", "value")
	mustPut(t, db, "key of many", "value")
	fill(versions)
	flushed(1)
	b := db.NewBatch()
	b.Delete([]byte("key"))
	b.DeleteRange([]byte("key "), []byte("key~"))
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
	deleted := db.Stats().Head
	fill(20) // into another segment
	disk.Inject(waltest.Fault{Op: waltest.OpRemove, Path: "*.seg", Times: waltest.Forever})
	for db.IndexTail() < deleted {
		if more, err := db.Reclaim(); err != nil || !more {
			t.Fatal(more, err)
		}
	}
	if s := db.Stats().Index; s.Tables != 1 || s.RunEnd > deleted {
		t.Fatalf("the delete is in a run already: %+v", s)
	}
	fill(versions)
	waitFor(t, "the delete is in a run", func() bool { return db.Stats().Index.RunEnd > deleted })
	left := disk.Kill()
	if err := db.Close(); err != nil {
		t.Log(err)
	}
	opts.FS = left
	db = open(t, "db", opts)
	for _, key := range []string{"key", "key of many"} {
		if v, err := db.Get([]byte(key)); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("%s was deleted, and is there again: %q, %v", key, v, err)
		}
	}
}

// TestPositionsOfNothing: what is read of an empty database has the zero position, which no node is waited for.
func TestPositionsOfNothing(t *testing.T) {
	empty := open(t, t.TempDir(), &engine.Options{Follower: true})
	s := empty.Snapshot()
	p := s.Position()
	s.Close()
	if p != (engine.Position{}) {
		t.Fatalf("an empty database is read at %v", p)
	}
	db := open(t, t.TempDir(), nil)
	if err := db.WaitApplied(t.Context(), p); err != nil {
		t.Errorf("wait for the zero position: %v", err)
	}
}

// TestChangesOfClosed: a feed ends with ErrClosed, one that was waiting and one that begins.
func TestChangesOfClosed(t *testing.T) {
	db, err := engine.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Put([]byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	for _, when := range []string{"while it waits", "before it begins"} {
		var last error
		for c, err := range db.Changes(t.Context(), engine.Position{}) {
			if last = err; err == nil && string(c.Key) == "k" {
				go func() { closed <- db.Close() }() // once: a closed database gives out nothing
			}
		}
		if !errors.Is(last, engine.ErrClosed) {
			t.Errorf("closed %s: %v", when, last)
		}
		if when == "while it waits" {
			if err := <-closed; err != nil {
				t.Error(err)
			}
		}
	}
}

// TestTwoFollowersOfOneName: while both live, the first is the voter and stays it; when it has gone, the other takes its place.
func TestTwoFollowersOfOneName(t *testing.T) {
	var logs bytes.Buffer
	db := open(t, t.TempDir(), &engine.Options{Logger: slog.New(slog.NewTextHandler(&logs, nil))})
	first := join(t, db, "f")
	second := wal.NodeID{9}
	for range 3 { // it is asked again and again
		if voter, err := db.AdmitPeer(second, "f", "g.example:7380"); voter || err != nil {
			t.Fatalf("a second node of the name is a voter: %v, %v", voter, err)
		}
	}
	if !db.IsVoter(first.id) || db.IsVoter(second) {
		t.Error("the second took the first one's place")
	}
	if n := strings.Count(logs.String(), "two followers of one name"); n != 1 {
		t.Errorf("said %d times:\n%s", n, logs.String())
	}
	db.PeerGone(first.id)
	if voter, err := db.AdmitPeer(second, "f", "g.example:7380"); !voter || err != nil {
		t.Errorf("the first has gone: %v, %v", voter, err)
	}
	if db.IsVoter(first.id) || !db.IsVoter(second) {
		t.Error("a new node under an old name did not take its place")
	}
}
