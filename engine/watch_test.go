package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// unchanged asks in a transaction that writes nothing.
func unchanged(t testing.TB, db *engine.DB, w *engine.Watch) (same bool) {
	t.Helper()
	_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) (err error) {
		same, err = tx.Unchanged(w)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return same
}

func commit(t testing.TB, db *engine.DB, fill func(b *engine.Batch)) {
	t.Helper()
	b := db.NewBatch()
	fill(b)
	if _, err := db.Commit(ctx, b, engine.Default); err != nil {
		t.Fatal(err)
	}
}

// TestWatch: what is done between the taking up of a key and the question.
func TestWatch(t *testing.T) {
	k, other := []byte("k"), []byte("other")
	tests := []struct {
		name string
		key  string // that is watched; "k" has a value
		do   func(b *engine.Batch)
		same bool
	}{
		{"nothing", "k", nil, true},
		{"another key", "k", func(b *engine.Batch) { b.Put(other, nil); b.Delete([]byte("k2")); b.DeleteRange([]byte("l"), nil) }, true},
		{"put", "k", func(b *engine.Batch) { b.Put(k, []byte("2")) }, false},
		{"put of the same value", "k", func(b *engine.Batch) { b.Put(k, []byte("1")) }, false},
		{"put with an expiry", "k", func(b *engine.Batch) { b.PutTTL(k, []byte("1"), time.Now().Add(time.Hour)) }, false},
		{"delete", "k", func(b *engine.Batch) { b.Delete(k) }, false},
		{"delete and put", "k", func(b *engine.Batch) { b.Delete(k); b.Put(k, []byte("1")) }, false},
		{"range delete", "k", func(b *engine.Batch) { b.DeleteRange([]byte("a"), []byte("l")) }, false},
		{"delete of everything", "k", func(b *engine.Batch) { b.DeleteRange(nil, nil) }, false},
		{"range delete that ends before", "k", func(b *engine.Batch) { b.DeleteRange(nil, k) }, true},
		{"put of an absent key", "none", func(b *engine.Batch) { b.Put([]byte("none"), nil) }, false},
		{"put and delete of an absent key", "none", func(b *engine.Batch) { b.Put([]byte("none"), nil); b.Delete([]byte("none")) }, false},
		{"delete of an absent key", "none", func(b *engine.Batch) { b.Delete([]byte("none")); b.DeleteRange(nil, nil) }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			db := open(t, t.TempDir(), &engine.Options{Commit: engine.Written})
			mustPut(t, db, "k", "1")
			w := db.NewWatch()
			defer w.Close()
			if err := errors.Join(w.Add([]byte(test.key)), w.Add([]byte(test.key))); err != nil {
				t.Fatal(err)
			}
			if w.Len() != 1 {
				t.Errorf("%d keys", w.Len())
			}
			if test.do != nil {
				commit(t, db, test.do)
			}
			if got := unchanged(t, db, w); got != test.same {
				t.Errorf("unchanged %v, want %v", got, test.same)
			}
			w.Close()
			commit(t, db, func(b *engine.Batch) { b.Put([]byte(test.key), nil) })
			if got := unchanged(t, db, w); got != test.same {
				t.Errorf("after Close it noticed a write: %v", got)
			}
		})
	}
}

// TestWatchSeesOwnWrites: a transaction's own writes before the question are changes, later ones are not.
func TestWatchSeesOwnWrites(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	mustPut(t, db, "k", "1")
	none, k := []byte("none"), []byte("k")
	for _, test := range []struct {
		name string
		do   func(tx *engine.Tx) error
		same bool
	}{
		{"put", func(tx *engine.Tx) error { return tx.Put(k, nil) }, false},
		{"delete", func(tx *engine.Tx) error { return tx.Delete(k) }, false},
		{"delete of everything", func(tx *engine.Tx) error { return tx.DeleteRange(nil, nil) }, false},
		{"put of the absent, then delete of everything", func(tx *engine.Tx) error {
			return errors.Join(tx.Put(none, nil), tx.DeleteRange([]byte("l"), nil))
		}, false},
		{"put and delete of the absent", func(tx *engine.Tx) error { return errors.Join(tx.Put(none, nil), tx.Delete(none)) }, false},
		{"delete of the absent", func(tx *engine.Tx) error { return errors.Join(tx.Delete(none), tx.DeleteRange([]byte("l"), nil)) }, true},
		{"another", func(tx *engine.Tx) error { return tx.Put([]byte("other"), nil) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := db.NewWatch()
			defer w.Close()
			if err := errors.Join(w.Add(k), w.Add(none)); err != nil {
				t.Fatal(err)
			}
			stop := errors.New("stop")
			_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
				if err := test.do(tx); err != nil {
					return err
				}
				if same, err := tx.Unchanged(w); err != nil || same != test.same {
					t.Errorf("unchanged %v, %v, want %v", same, err, test.same)
				}
				return stop
			})
			if !errors.Is(err, stop) {
				t.Error(err)
			}
		})
	}
	if _, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		w := db.NewWatch()
		defer w.Close()
		if err := w.Add(k); err != nil {
			return err
		}
		if same, err := tx.Unchanged(w); !same || err != nil {
			t.Errorf("unchanged %v, %v", same, err)
		}
		return tx.Put(k, []byte("2"))
	}); err != nil {
		t.Error(err)
	}
	wantGet(t, db.Get, "k", "2")
}

// TestWatchExpiry: a value that expires is a change, one that had expired before is not, nor its removal.
func TestWatchExpiry(t *testing.T) {
	now := time.Now()
	db := open(t, t.TempDir(), &engine.Options{Now: func() time.Time { return now }})
	commit(t, db, func(b *engine.Batch) {
		b.PutTTL([]byte("short"), nil, now.Add(time.Second))
		b.PutTTL([]byte("past"), nil, now.Add(-time.Second))
		b.PutTTL([]byte("long"), nil, now.Add(time.Hour))
	})
	watch := map[string]*engine.Watch{}
	for _, key := range []string{"short", "past", "long"} {
		w := db.NewWatch()
		defer w.Close()
		if err := w.Add([]byte(key)); err != nil {
			t.Fatal(err)
		}
		if watch[key] = w; !unchanged(t, db, w) {
			t.Errorf("%s has changed already", key)
		}
	}
	now = now.Add(2 * time.Second)
	commit(t, db, func(b *engine.Batch) { b.Delete([]byte("past")) })
	for key, want := range map[string]bool{"short": false, "past": true, "long": true} {
		if got := unchanged(t, db, watch[key]); got != want {
			t.Errorf("%s: unchanged %v, want %v", key, got, want)
		}
	}
}

// TestWatchNoticesDuringTransaction: a write between the question and the commit makes the function run again.
func TestWatchNoticesDuringTransaction(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	w := db.NewWatch()
	defer w.Close()
	if err := w.Add([]byte("k")); err != nil {
		t.Fatal(err)
	}
	var answers []bool
	_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		same, err := tx.Unchanged(w)
		if answers = append(answers, same); !same || err != nil {
			return err
		}
		mustPut(t, db, "k", "theirs")
		return tx.Put([]byte("out"), nil)
	})
	if err != nil || !slices.Equal(answers, []bool{true, false}) {
		t.Errorf("answers %v, %v", answers, err)
	}
	wantMissing(t, db.Get, "out")
}

// TestWatchOfWhatIsNotVisible: a write that was in the log when its key was taken up, and became visible later, is a
// change; the answer waits for it to become visible.
func TestWatchOfWhatIsNotVisible(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(fmt.Sprintf("before=%v", before), func(t *testing.T) {
			db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
			f := join(t, db, "f")
			f.confirm()
			w := db.NewWatch()
			defer w.Close()
			var put <-chan error
			if before {
				put = write(t, db, "k", "v")
			}
			if err := w.Add([]byte("k")); err != nil {
				t.Fatal(err)
			}
			if !before {
				put = write(t, db, "k", "v")
			}
			answer := make(chan bool, 1)
			asked := make(chan struct{})
			go func() {
				var same bool
				_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) (err error) {
					defer close(asked)
					same, err = tx.Unchanged(w)
					return err
				})
				if err != nil {
					t.Error(err)
				}
				answer <- same
			}()
			<-asked
			later := write(t, db, "other", "v")
			select {
			case <-answer:
				t.Fatal("answered because of what nobody may see yet")
			default:
			}
			short, cancel := context.WithCancel(ctx)
			cancel()
			_, err := db.Update(short, engine.Default, func(tx *engine.Tx) error {
				_, err := tx.Unchanged(w)
				return err
			})
			if !errors.Is(err, engine.ErrUnknownOutcome) {
				t.Errorf("a wait that was cut short: %v", err)
			}
			f.confirm()
			if err := errors.Join(<-put, <-later); err != nil {
				t.Fatal(err)
			}
			if <-answer {
				t.Error("the write was not noticed")
			}
		})
	}
}

// TestWatchOnFollower: what is shipped is noticed too, and what was written again by reclaim is no change.
func TestWatchOnFollower(t *testing.T) {
	leader := open(t, t.TempDir(), nil)
	mustPut(t, leader, "a", "1")
	mustPut(t, leader, "b", "1")
	f := open(t, t.TempDir(), &engine.Options{Follower: true})
	show := func() {
		t.Helper()
		end := leader.Log().Head()
		feed(t, leader, f, end)
		if err := f.FollowMark(end, 0); err != nil {
			t.Fatal(err)
		}
	}
	show()
	var watches []*engine.Watch
	for _, key := range []string{"a", "b", "none"} {
		w := f.NewWatch()
		defer w.Close()
		if err := w.Add([]byte(key)); err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	var b wal.Batch
	b.Add(engine.AppendRecord(nil, engine.Record{Op: engine.OpPut, Key: []byte("b"), Value: []byte("1"), Orig: wal.MakeRef(8, 0)}))
	if _, err := leader.Log().Append([]*wal.Batch{&b}, true); err != nil {
		t.Fatal(err)
	}
	show()
	mustPut(t, leader, "a", "1")
	commit(t, leader, func(b *engine.Batch) { b.DeleteRange([]byte("c"), nil) })
	show()
	for i, want := range []bool{false, true, true} {
		if got := unchanged(t, f, watches[i]); got != want {
			t.Errorf("watch %d: unchanged %v, want %v", i, got, want)
		}
	}
}

// TestWatchOutlivesReclaim: keys that are written again at the head, and whose old place is given up, have not changed.
func TestWatchOutlivesReclaim(t *testing.T) {
	const segment = 64 << 10
	db := open(t, "db", &engine.Options{
		Commit: engine.Written, SegmentSize: segment, Compression: engine.NoCompression, FS: waltest.NewDisk(),
	})
	mustPut(t, db, "k", "1")
	w := db.NewWatch()
	defer w.Close()
	if err := errors.Join(w.Add([]byte("k")), w.Add([]byte("none"))); err != nil {
		t.Fatal(err)
	}
	value := string(make([]byte, 16<<10))
	for db.Stats().Tail == 0 {
		mustPut(t, db, "churn", value)
	}
	if !unchanged(t, db, w) {
		t.Error("reclaim has changed a key")
	}
	mustPut(t, db, "k", "1")
	if unchanged(t, db, w) {
		t.Error("the write was not noticed")
	}
}

// TestWatchConcurrentCounter: increments that are guarded by watches alone are all counted, also where the counter is deleted and made
// again in between.
func TestWatchConcurrentCounter(t *testing.T) {
	db := open(t, t.TempDir(), nil) // durable: while one group is synced the next one gathers
	const workers, each = 8, 40
	key := []byte("counter")
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				w := db.NewWatch()
				if err := w.Add(key); err != nil {
					t.Error(err)
				}
				n := 0
				if v, err := db.Get(key); err == nil {
					fmt.Sscan(string(v), &n)
				}
				same := false
				_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) (err error) {
					if same, err = tx.Unchanged(w); !same || err != nil {
						return err
					}
					return errors.Join(tx.Delete(key), tx.Put(key, fmt.Append(nil, n+1)))
				})
				w.Close()
				if err != nil {
					t.Error(err)
					return
				}
				if same {
					done++
				}
			}
		})
	}
	wg.Wait()
	wantGet(t, db.Get, "counter", fmt.Sprint(workers*each))
}

// TestTxDeleteRange: a transaction sees its range deletes as it sees its other writes.
func TestTxDeleteRange(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	for _, key := range []string{"a", "b", "c", "d", "e"} {
		mustPut(t, db, key, key)
	}
	want := []string{"a", "bb", "c1", "d", "f"}
	_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		if n, err := tx.Len(); n != 5 || err != nil {
			t.Errorf("%d keys, %v", n, err)
		}
		err := errors.Join(tx.Put([]byte("c0"), nil), tx.Put([]byte("f"), nil), tx.Delete([]byte("e")), tx.Delete([]byte("none")))
		if n, lenErr := tx.Len(); n != 6 || lenErr != nil {
			t.Errorf("%d keys, %v", n, lenErr)
		}
		err = errors.Join(err, tx.DeleteRange([]byte("b"), []byte("d")), tx.Put([]byte("c1"), nil), tx.Put([]byte("bb"), []byte("new")))
		var got []string
		err = errors.Join(err, tx.Keys(nil, nil, func(key []byte) bool { got = append(got, string(key)); return true }))
		if !slices.Equal(got, want) {
			t.Errorf("sees %q, want %q", got, want)
		}
		if n, err := tx.Len(); n != 5 || err != nil {
			t.Errorf("%d keys, %v", n, err)
		}
		for key, want := range map[string]bool{"a": true, "b": false, "bb": true, "c": false, "c0": false, "d": true, "e": false} {
			if has, err := tx.Has([]byte(key)); has != want || err != nil {
				t.Errorf("has %s: %v, %v", key, has, err)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := keys(t, db.NewIter(nil)); !slices.Equal(got, want) {
		t.Errorf("keys %q, want %q", got, want)
	}
	attempts := 0
	_, err = db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		attempts++
		err := tx.DeleteRange([]byte("x"), nil)
		n, lenErr := tx.Len()
		mustPut(t, db, "a", "meanwhile") // what was only counted is no conflict
		return errors.Join(err, lenErr, tx.Put([]byte("n"), fmt.Append(nil, n)))
	})
	if err != nil || attempts != 1 {
		t.Errorf("%d attempts, %v", attempts, err)
	}
	wantGet(t, db.Get, "n", "5")
	_, err = db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
		err := errors.Join(tx.DeleteRange(nil, nil), tx.Put([]byte("only"), nil))
		var got []string
		err = errors.Join(err, tx.Scan(nil, nil, func(key, _ []byte) bool { got = append(got, string(key)); return true }))
		if !slices.Equal(got, []string{"only"}) {
			t.Errorf("sees %q", got)
		}
		return err
	})
	if got := keys(t, db.NewIter(nil)); err != nil || !slices.Equal(got, []string{"only"}) {
		t.Errorf("keys %q, %v", got, err)
	}
}
