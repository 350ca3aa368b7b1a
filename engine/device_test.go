package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal/waltest"
)

// TestFailingDevice writes to file systems whose device begins to refuse writes: what meets the failed sync is not
// acknowledged, and nothing after it, also not once the device works again and syncs succeed that have lost the bytes;
// reads go on. What a restart of the program shows is on the disk, whatever the page cache had: taking the disk away
// and back changes nothing. No acknowledged write is lost.
func TestFailingDevice(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := waltest.NewFailingMount(t, kind, 64<<20)
			opts := &engine.Options{FS: m.FS(), SegmentSize: 4 << 20, Compression: engine.NoCompression}
			dir := filepath.Join(m.Dir, "db")
			db := open(t, dir, opts)
			const writers = 4
			var acked [writers]atomic.Int64
			var errs [writers]error
			var wg sync.WaitGroup
			key := func(w int, n int64) string { return fmt.Sprint("w", w, "/", n) }
			value := strings.Repeat("value ", 200)
			for w := range writers {
				wg.Go(func() {
					for n := int64(1); errs[w] == nil; n++ {
						if errs[w] = db.Put([]byte(key(w, n)), []byte(value)); errs[w] == nil {
							acked[w].Store(n)
						}
					}
				})
			}
			for end := time.Now().Add(time.Minute); acked[0].Load() < 50; time.Sleep(pause) {
				if time.Now().After(end) {
					t.Fatal("writes do not go on")
				}
			}
			if err := m.FailDevice(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			for w, err := range errs {
				if !errors.Is(err, engine.ErrPoisoned) {
					t.Errorf("writer %d ended with %v", w, err)
				}
			}
			if err := m.HealDevice(); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := db.Put([]byte("late"), nil); !errors.Is(err, engine.ErrPoisoned) || errors.Is(err, engine.ErrUnknownOutcome) {
					t.Fatalf("Put after a failed sync: %v", err)
				}
			}
			check := func(db *engine.DB, when string) model {
				t.Helper()
				got := state(t, db)
				for w := range writers {
					last := acked[w].Load()
					for n := int64(1); n <= last; n++ {
						if got[key(w, n)] != value {
							t.Fatalf("%s: %s is lost", when, key(w, n))
						}
					}
					if _, ok := got[key(w, last+2)]; ok {
						t.Fatalf("%s: %s was never written", when, key(w, last+2))
					}
				}
				if _, ok := got["late"]; ok {
					t.Fatalf("%s: a refused write is there", when)
				}
				return got
			}
			if db.Stats().Failed == nil {
				t.Error("Stats does not say that the log has failed")
			}
			check(db, "poisoned")
			if err := db.Close(); err != nil {
				t.Errorf("close of a poisoned database: %v", err)
			}
			db, err := engine.Open(dir, opts)
			if err != nil { // the file system's own log may have failed with the device
				t.Logf("open without mounting again: %v", err)
				if err := m.Restart(); err != nil {
					t.Fatal(err)
				}
				db = open(t, dir, opts)
			}
			shown := check(db, "after a restart")
			mustPut(t, db, "again", "written")
			shown["again"] = "written"
			if err := m.Shutdown(); err != nil { // no clean close: what is on the disk has to do
				t.Fatal(err)
			}
			db.Close() // whatever it says
			if err := m.Restart(); err != nil {
				t.Fatal(err)
			}
			db = open(t, dir, opts)
			if got := check(db, "with the disk alone"); !maps.Equal(got, shown) {
				t.Errorf("the restart showed %d keys, the disk has %d", len(shown), len(got))
			}
			db.Close()
		})
	}
}
