package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// peer plays a follower that confirms what it is told to.
type peer struct {
	db *engine.DB
	id wal.NodeID
}

func join(t testing.TB, db *engine.DB, name string) *peer {
	t.Helper()
	p := &peer{db: db, id: wal.NodeID{name[0]}}
	voter, err := db.AdmitPeer(p.id, name, name+".example:7380")
	if err != nil || !voter {
		t.Fatalf("AdmitPeer = %v, %v", voter, err)
	}
	return p
}

// confirm acknowledges everything that is in the leader's log now.
func (p *peer) confirm() {
	end := p.db.Log().Head()
	p.db.PeerAck(p.id, end, end, end, end)
}

// write puts key=value in the background and returns once it is in the log.
func write(t testing.TB, db *engine.DB, key, value string) <-chan error {
	t.Helper()
	moved := make(chan struct{}, 1)
	defer db.Subscribe(moved)()
	before := db.Applied()
	done := make(chan error, 1)
	go func() { done <- db.Put([]byte(key), []byte(value)) }()
	for db.Applied() == before {
		select {
		case <-moved:
		case err := <-done:
			done <- err
			return done
		}
	}
	return done
}

// bubble runs fn in which synctest.Wait returns when everything has happened that can, so that what did not happen
// can be tested.
func bubble(t *testing.T, fn func(t *testing.T)) {
	engine.ForgetCommits()
	defer engine.ForgetCommits()
	synctest.Test(t, fn)
}

func TestWriteIsInvisibleUntilItsRuleHolds(t *testing.T) {
	for _, level := range []engine.Level{engine.Received(1), engine.Replicated(1), engine.Applied(1)} {
		t.Run(level.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				db := open(t, "db", &engine.Options{Commit: level, FS: waltest.NewDisk()})
				f := join(t, db, "f")
				f.confirm()
				done := write(t, db, "k", "v")
				synctest.Wait()
				s := db.Snapshot()
				defer s.Close()
				wantMissing(t, db.Get, "k")
				wantMissing(t, s.Get, "k")
				if got := keys(t, db.NewIter(nil)); len(got) != 0 {
					t.Errorf("iterator saw %q", got)
				}
				select {
				case err := <-done:
					t.Fatal("Put returned", err)
				default:
				}
				f.confirm()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				wantGet(t, db.Get, "k", "v")
				wantMissing(t, s.Get, "k")
			})
		})
	}
}

// TestReceivedIsNotReplicated: what a follower has received alone never commits under replicated.
func TestReceivedIsNotReplicated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: waltest.NewDisk()})
		f := join(t, db, "f")
		f.confirm()
		done := write(t, db, "k", "v")
		end, durable := db.Log().Head(), db.Committed()
		db.PeerAck(f.id, end, durable, end, durable)
		synctest.Wait()
		wantMissing(t, db.Get, "k")
		f.confirm()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestTooFewFollowers(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	head := db.Log().Head()
	if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Fatalf("Put without followers: %v", err)
	}
	if db.Log().Head() != head {
		t.Error("a refused write was appended")
	}
	f := join(t, db, "f")
	if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Fatalf("Put with a follower that has not caught up: %v", err)
	}
	f.confirm()
	done := write(t, db, "k", "v")
	f.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	db.PeerGone(f.id)
	if err := db.Put([]byte("k"), nil); !errors.Is(err, engine.ErrTooFewFollowers) {
		t.Fatalf("Put after the follower has gone: %v", err)
	}
}

func TestBlockWaitsForFollowers(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), TooFew: engine.Block})
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	b := db.NewBatch()
	b.Put([]byte("k"), []byte("v"))
	head := db.Log().Head()
	if _, err := db.Commit(short, b, engine.Default); !errors.Is(err, engine.ErrTooFewFollowers) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Commit without followers: %v", err)
	}
	if db.Log().Head() != head {
		t.Error("a refused write was appended")
	}
	done := make(chan error, 1)
	go func() {
		_, err := db.Commit(ctx, b, engine.Default)
		done <- err
	}()
	f := join(t, db, "f")
	for {
		f.confirm()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			wantGet(t, db.Get, "k", "v")
			return
		default:
		}
	}
}

// TestCancelledWait: the caller is told that the outcome is unknown, nobody sees the write because
// of that, and it becomes visible once the rule holds.
func TestCancelledWait(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1)})
	f := join(t, db, "f")
	f.confirm()
	short, cancel := context.WithCancel(ctx)
	b := db.NewBatch()
	b.Put([]byte("k"), []byte("v"))
	moved := make(chan struct{}, 1)
	stop := db.Subscribe(moved)
	go func() {
		<-moved
		cancel()
	}()
	_, err := db.Commit(short, b, engine.Default)
	stop()
	var unknown *engine.OutcomeError
	if !errors.As(err, &unknown) || !errors.Is(err, engine.ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Fatalf("Commit: %v", err)
	}
	b.Put([]byte("k"), []byte("the caller uses its batch again"))
	wantMissing(t, db.Get, "k")
	if out, err := db.Outcome(unknown.Position); out != engine.Pending || err != nil {
		t.Errorf("Outcome = %v, %v", out, err)
	}
	f.confirm()
	wantGet(t, db.Get, "k", "v")
	if out, err := db.Outcome(unknown.Position); out != engine.Committed || err != nil {
		t.Errorf("Outcome = %v, %v", out, err)
	}
}

func TestCommitTimeout(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), CommitTimeout: 5 * time.Millisecond})
	f := join(t, db, "f")
	f.confirm()
	if err := db.Put([]byte("k"), []byte("v")); !errors.Is(err, engine.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Put: %v", err)
	}
	wantMissing(t, db.Get, "k")
}

// TestRestartShowsNothingEarly: what was not confirmed before a restart, clean or not, is not shown
// after it until it is confirmed.
func TestRestartShowsNothingEarly(t *testing.T) {
	dir := t.TempDir()
	opts := &engine.Options{Commit: engine.Replicated(1)}
	db := open(t, dir, opts)
	f := join(t, db, "f")
	f.confirm()
	done := write(t, db, "old", "v")
	f.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	unconfirmed := write(t, db, "k", "v")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-unconfirmed; !errors.Is(err, engine.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	stale := *opts
	stale.StaleReads = true
	db = open(t, dir, &stale)
	wantGet(t, db.Get, "old", "v")
	wantMissing(t, db.Get, "k")
	db.Close()

	db = open(t, dir, opts)
	if v, err := db.Get([]byte("k")); !errors.Is(err, engine.ErrLoading) {
		t.Fatalf("Get after the restart = %q, %v", v, err)
	}
	f = join(t, db, "f")
	f.confirm()
	wantGet(t, db.Get, "k", "v")
	wantGet(t, db.Get, "old", "v")
}

// TestUncleanStopRaisesTheEpoch: what followers may hold beyond the end of a leader that has crashed is of another epoch
// than what it writes from now on.
func TestUncleanStopRaisesTheEpoch(t *testing.T) {
	disk := waltest.NewDisk()
	opts := &engine.Options{FS: disk}
	db := open(t, "db", opts)
	mustPut(t, db, "k", "v")
	epoch := db.Log().Epoch()
	opts.FS = disk.Kill()
	db.Close()
	db = open(t, "db", opts)
	if got := db.Log().Epoch(); got != epoch.NextRestart() {
		t.Errorf("epoch %v after an unclean stop in %v", got, epoch)
	}
	epoch = db.Log().Epoch()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, "db", opts)
	mustPut(t, db, "k", "w")
	if got := db.Log().Epoch(); got != epoch {
		t.Errorf("epoch %v after a clean stop in %v", got, epoch)
	}
}

func TestDegrade(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Replicated(1), TooFew: engine.Degrade, DegradeAfter: time.Millisecond})
	mustPut(t, db, "k", "v")
	wantGet(t, db.Get, "k", "v")
	if db.Stats().Degraded == 0 {
		t.Error("the degraded span is not open")
	}
	if got := spans(t, db); got != "begin write" {
		t.Errorf("the log has %q", got)
	}
	f := join(t, db, "f")
	f.confirm()
	if at := db.Stats().Degraded; at != 0 {
		t.Errorf("the degraded span from %v is still open", at)
	}
	if got := spans(t, db); got != "begin write end" {
		t.Errorf("the log has %q", got)
	}
	f.confirm()
	done := write(t, db, "k", "w")
	wantGet(t, db.Get, "k", "v")
	f.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantGet(t, db.Get, "k", "w")
}

// spans lists writes and the control records around degraded spans, as they stand in the log.
func spans(t *testing.T, db *engine.DB) string {
	t.Helper()
	var out []string
	r := db.Log().NewReader(0)
	defer r.Close()
	for r.Next() {
		if !r.Frame().Control() {
			out = append(out, "write")
			continue
		}
		c, err := wal.DecodeControl(r.Raw())
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := c.(*wal.DegradedRecord); ok {
			out = append(out, map[bool]string{true: "begin", false: "end"}[d.Begin])
		}
	}
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	return strings.Join(out, " ")
}

// TestStrongerLevel: under an asynchronous rule one call can ask for more; readers see the write when
// the rule holds, the call returns when its level does.
func TestStrongerLevel(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	f := join(t, db, "f")
	f.confirm()
	b := db.NewBatch()
	b.Put([]byte("k"), []byte("v"))
	done := make(chan error, 1)
	go func() {
		_, err := db.Commit(ctx, b, engine.Applied(1))
		done <- err
	}()
	moved := make(chan struct{}, 1)
	stop := db.Subscribe(moved)
	for {
		if _, err := db.Get([]byte("k")); err == nil {
			break
		}
		<-moved
	}
	stop()
	select {
	case err := <-done:
		t.Fatal("Commit returned", err)
	default:
	}
	end := db.Log().Head()
	db.PeerAck(f.id, end, end, end, 0)
	select {
	case err := <-done:
		t.Fatal("Commit returned before the follower's readers see it", err)
	default:
	}
	f.confirm()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestRefusalWaitsForWhatItSaw: a conditional operation that is refused because of a write that is
// not confirmed says so only when that write is.
func TestRefusalWaitsForWhatItSaw(t *testing.T) {
	bubble(t, refusalWaits)
}

func refusalWaits(t *testing.T) {
	db := open(t, "db", &engine.Options{Commit: engine.Replicated(1), FS: waltest.NewDisk()})
	f := join(t, db, "f")
	f.confirm()
	put := write(t, db, "k", "v")
	refused := make(chan bool, 1)
	go func() {
		ok, _, err := db.PutIfAbsent(ctx, engine.Default, []byte("k"), []byte("mine"))
		if err != nil {
			t.Error(err)
		}
		refused <- !ok
	}()
	later := write(t, db, "other", "v") // behind the refusal or before it: both must wait
	synctest.Wait()
	select {
	case <-refused:
		t.Fatal("refused because of what nobody may see yet")
	default:
	}
	for range 2 {
		f.confirm()
	}
	if err := errors.Join(<-put, <-later); err != nil {
		t.Fatal(err)
	}
	if !<-refused {
		t.Error("PutIfAbsent succeeded over an existing key")
	}
	wantGet(t, db.Get, "k", "v")
}

func TestConditional(t *testing.T) {
	db := open(t, t.TempDir(), nil)
	k := []byte("k")
	if ok, _, err := db.PutIfAbsent(ctx, engine.Default, k, []byte("1")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, _, err := db.PutIfAbsent(ctx, engine.Default, k, []byte("2")); ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, _, err := db.CompareAndSwap(ctx, engine.Default, k, []byte("2"), []byte("3")); ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, _, err := db.CompareAndSwap(ctx, engine.Default, k, []byte("1"), []byte("7")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, _, err := db.CompareAndSwap(ctx, engine.Default, []byte("new"), nil, []byte("x")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if n, _, err := db.Increment(ctx, engine.Default, k, -10); n != -3 || err != nil {
		t.Fatal(n, err)
	}
	for _, tc := range []struct {
		value string
		delta int64
	}{{"x", 1}, {"", 1}, {"01", 1}, {"+1", 1}, {" 1", 1}, {"9223372036854775807", 1}, {"-9223372036854775808", -1}, {"9223372036854775808", 0}} {
		mustPut(t, db, "n", tc.value)
		if n, _, err := db.Increment(ctx, engine.Default, []byte("n"), tc.delta); !errors.Is(err, engine.ErrNotInteger) {
			t.Errorf("Increment of %q by %d = %d, %v", tc.value, tc.delta, n, err)
		}
		wantGet(t, db.Get, "n", tc.value)
	}
}

// TestConcurrentIncrements: conditional operations of one group see each other.
func TestConcurrentIncrements(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Written})
	const workers, each = 16, 200
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				level := engine.Default
				if i%50 == 0 {
					level = engine.Durable
				}
				if _, _, err := db.Increment(ctx, level, []byte("n"), 1); err != nil {
					t.Error(err)
				}
				if i%20 == w {
					b := db.NewBatch()
					b.DeleteRange([]byte("x"), nil)
					b.Put([]byte("y"), []byte("1"))
					if _, err := db.Commit(ctx, b, engine.Default); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	wantGet(t, db.Get, "n", fmt.Sprint(workers*each))
}

// TestTransfers runs optimistic transactions against each other and against readers: the sum never changes.
func TestTransfers(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Written})
	const accounts, workers, each, total = 8, 8, 100, 8 * 100
	name := func(i int) []byte { return fmt.Appendf(nil, "acc%d", i) }
	for i := range accounts {
		mustPut(t, db, string(name(i)), "100")
	}
	sum := func(it *engine.Iterator) (s int) {
		for ok := it.First(); ok; ok = it.Next() {
			var n int
			fmt.Sscan(string(it.Value()), &n)
			s += n
		}
		if err := it.Close(); err != nil {
			t.Error(err)
		}
		return s
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				from, to := name((w+i)%accounts), name((w*3+i*5+1)%accounts)
				_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
					return transfer(tx, from, to)
				})
				if err != nil && !errors.Is(err, engine.ErrConflict) {
					t.Error(err)
				}
				if i%10 == 0 {
					if s := sum(db.NewIter(nil)); s != total {
						t.Errorf("sum = %d, want %d", s, total)
					}
				}
			}
		})
	}
	wg.Wait()
	if s := sum(db.NewIter(nil)); s != total {
		t.Errorf("sum = %d, want %d", s, total)
	}
}

func transfer(tx *engine.Tx, from, to []byte) error {
	if string(from) == string(to) {
		return nil
	}
	var a, b int
	for _, x := range []struct {
		key []byte
		n   *int
	}{{from, &a}, {to, &b}} {
		v, err := tx.Get(x.key)
		if err != nil {
			return err
		}
		fmt.Sscan(string(v), x.n)
	}
	if err := tx.Put(from, fmt.Append(nil, a-1)); err != nil {
		return err
	}
	return tx.Put(to, fmt.Append(nil, b+1))
}

// TestPhantom: a key that appears in a range that a transaction walked is a conflict, as is a range delete.
func TestPhantom(t *testing.T) {
	for _, tc := range []struct {
		name     string
		do       func(b *engine.Batch)
		attempts int
	}{
		{"insert", func(b *engine.Batch) { b.Put([]byte("r5"), nil) }, 2},
		{"range delete", func(b *engine.Batch) { b.DeleteRange([]byte("r0"), []byte("r2")) }, 2},
		{"behind where the walk stopped", func(b *engine.Batch) { b.Put([]byte("r9"), nil) }, 1},
		{"outside", func(b *engine.Batch) { b.Put([]byte("z"), nil); b.DeleteRange([]byte("s"), nil) }, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := open(t, t.TempDir(), nil)
			mustPut(t, db, "r1", "x")
			mustPut(t, db, "r8", "x")
			attempts := 0
			_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) error {
				attempts++
				err := tx.Scan([]byte("r"), []byte("s"), func(key, _ []byte) bool { return string(key) != "r8" })
				if err != nil {
					return err
				}
				if attempts == 1 {
					b := db.NewBatch()
					tc.do(b)
					if _, err := db.Commit(ctx, b, engine.Default); err != nil {
						return err
					}
				}
				return tx.Put([]byte("out"), []byte("v"))
			})
			if err != nil || attempts != tc.attempts {
				t.Errorf("%d attempts, %v; want %d", attempts, err, tc.attempts)
			}
		})
	}
}
