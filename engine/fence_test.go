package engine_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestFencedLeaderCommitsNothing: who waits when a higher epoch is heard of hears it at once, and what followers confirm
// afterwards changes nothing.
func TestFencedLeaderCommitsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: waltest.NewDisk()})
		f := join(t, db, "f")
		f.confirm()
		done := write(t, db, "k", "v")
		before := db.Committed()
		higher := db.Log().Epoch().NextTerm()
		if err := db.Fence(higher); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-done:
			if !errors.Is(err, engine.ErrFenced) || !errors.Is(err, engine.ErrUnknownOutcome) {
				t.Errorf("the write in flight: %v", err)
			}
		default:
			t.Error("the write in flight waits on")
		}
		f.confirm()
		wantMissing(t, db.Get, "k")
		if got := db.Committed(); got != before {
			t.Errorf("committed up to %v, was %v when it was fenced", got, before)
		}
		if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrFenced) {
			t.Errorf("a later write: %v", err)
		}
		if got := db.Log().Promised(); got != higher {
			t.Errorf("promised %v, want %v", got, higher)
		}
		if ok, err := db.GrantPromise(higher); ok || err != nil {
			t.Errorf("promised twice: %v, %v", ok, err)
		}
	})
}

// TestFollowEndsThePipeline: Follow returns only when nothing can be appended any more by what was under way, also where
// nobody waits for a disk.
func TestFollowEndsThePipeline(t *testing.T) {
	for _, level := range []engine.Level{engine.Written, engine.Durable} {
		t.Run(level.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				db := open(t, "db", &engine.Options{Commit: level, FS: waltest.NewDisk()})
				mustPut(t, db, "first", "1")
				held := make(chan struct{})
				var once sync.Once
				db.OnAppend(func() { once.Do(func() { <-held }) })
				wrote, followed := make(chan error, 2), make(chan error, 1)
				for range 2 {
					go func() { wrote <- db.Put([]byte("k"), []byte("v")) }()
				}
				synctest.Wait()
				go func() { followed <- db.Follow(context.Background()) }()
				synctest.Wait()
				select {
				case err := <-followed:
					t.Fatal("Follow returned while a group was being appended", err)
				default:
				}
				close(held)
				if err := <-followed; err != nil {
					t.Fatal(err)
				}
				head := db.Log().Head()
				for range 2 {
					if err := <-wrote; err != nil && !errors.Is(err, engine.ErrReadOnly) {
						t.Error(err)
					}
				}
				if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrReadOnly) {
					t.Error(err)
				}
				if got := db.Log().Head(); got != head {
					t.Errorf("the log went on from %v to %v", head, got)
				}
			})
		})
	}
}

// TestPromiseDuringPromotion: a node that promises a higher epoch while it begins to lead another is fenced from the first
// moment.
func TestPromiseDuringPromotion(t *testing.T) {
	var db *engine.DB
	var armed atomic.Bool
	higher := wal.MakeEpoch(9, 0)
	db = open(t, "db", &engine.Options{FS: waltest.NewDisk(), Now: func() time.Time {
		if armed.Load() && db.Log().Epoch() == wal.MakeEpoch(2, 0) { // the record is in the log, and nobody leads yet
			armed.Store(false)
			if err := db.Fence(higher); err != nil {
				t.Error(err)
			}
		}
		return time.Now()
	}})
	if err := db.Follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	if err := db.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if armed.Load() {
		t.Fatal("the promise was not made")
	}
	if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrFenced) {
		t.Errorf("a write in epoch %v after a promise of %v: %v", db.Log().Epoch(), db.Log().Promised(), err)
	}
}
