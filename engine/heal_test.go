package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// TestHealEveryReader: whoever reads the log and meets damage has it mended, and goes on with the right bytes: a feed of changes and a scan as a
// point read. Without a healer each of them names the damage, and none skips it.
func TestHealEveryReader(t *testing.T) {
	const segment = 64 << 10
	dir := t.TempDir()
	db, err := engine.Open(dir, &engine.Options{SegmentSize: segment, CacheSize: -1, Compression: engine.NoCompression})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	value := func(i int) []byte { return bytes.Repeat(fmt.Append(nil, i, "."), 100) }
	const n = 1000
	for i := range n {
		if err := db.Put(fmt.Appendf(nil, "key%04d", i), value(i)); err != nil {
			t.Fatal(err)
		}
	}
	readers := map[string]func() error{
		"get": func() error {
			for i := range n {
				if v, err := db.Get(fmt.Appendf(nil, "key%04d", i)); err != nil || !bytes.Equal(v, value(i)) {
					return errors.Join(err, fmt.Errorf("key %d", i))
				}
			}
			return nil
		},
		"scan": func() error {
			it := db.NewIter(nil)
			defer it.Close()
			i := 0
			for ok := it.First(); ok; ok = it.Next() {
				if !bytes.Equal(it.Value(), value(i)) {
					return errors.Join(it.Err(), fmt.Errorf("key %d", i))
				}
				i++
			}
			if it.Err() == nil && i != n {
				return fmt.Errorf("%d keys", i)
			}
			return it.Err()
		},
		"changes": func() error {
			i := 0
			for c, err := range db.Changes(t.Context(), engine.Position{}) {
				if err != nil {
					return err
				}
				if !bytes.Equal(c.Value, value(i)) {
					return fmt.Errorf("change %d", i)
				}
				if i++; i == n {
					return nil
				}
			}
			return fmt.Errorf("%d changes", i)
		},
	}
	path := filepath.Join(dir, "log", wal.LSN(segment).String()+".seg")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range readers {
		db.SetHealer(nil)
		if err := read(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 5000), 20000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		var c *wal.CorruptError
		if err := read(); !errors.As(err, &c) {
			t.Errorf("%s: the damage is answered with %v", name, err)
		}
		var mu sync.Mutex // a scan reads on several goroutines: more than one of them may have met the damage before it was mended
		healed := 0
		var failed error // of the last repair
		db.SetHealer(func(_ context.Context, at wal.LSN) error {
			mu.Lock()
			defer mu.Unlock()
			now, err := os.ReadFile(path)
			if err != nil || bytes.Equal(now, good) {
				return err
			}
			healed++
			_, failed = db.Log().Repair(at/segment*segment, good)
			return failed
		})
		if err := read(); err != nil || healed != 1 {
			t.Errorf("%s: %v after %d repairs: %v", name, err, healed, failed)
		}
	}
}
