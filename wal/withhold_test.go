package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// sourceLog is the bytes of another node's log of n segments and a bit, with a change of epoch in each segment.
func sourceLog(t testing.TB, n int) []byte {
	t.Helper()
	l, err := wal.Open("source", &wal.Options{FS: waltest.NewDisk(), SegmentSize: wal.MinSegmentSize, Inline: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for id := uint32(0); l.Head() < wal.LSN(n*wal.MinSegmentSize+5000); id++ {
		if id%11 == 10 {
			_, err = l.StartEpoch(l.Epoch().NextRestart(), wal.Rule{})
		} else {
			_, err = l.Append([]*wal.Batch{batch(2*id, rng.IntN(9000)+1)}, true)
		}
		if err == nil && rng.IntN(3) == 0 {
			_, err = l.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, l.Head())
	if _, err := l.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func openAhead(d *waltest.Disk) (*wal.Log, error) {
	return wal.Open(dbDir, &wal.Options{FS: d, SegmentSize: wal.MinSegmentSize, Inline: true})
}

// receive appends the bytes from the log's head on in pieces, as a peer sends them, up to end.
func receive(l *wal.Log, p []byte, end int, piece func() int) error {
	at := l.Head()
	for from := int(at); from < end; {
		to := min(from+piece(), end)
		n, err := l.AppendRaw(at, p[at:to])
		at += wal.LSN(n)
		if err != nil {
			return err
		}
		from = to
	}
	return nil
}

func segmentFile(base int) string {
	return path.Join(dbDir, "log", fmt.Sprintf("%016x.seg", base))
}

// headers counts the segments behind the first whose header is in its file.
func headers(t testing.TB, d *waltest.Disk, p []byte) (n int) {
	t.Helper()
	for base := wal.MinSegmentSize; base < len(p); base += wal.MinSegmentSize {
		b, err := d.ReadFile(segmentFile(base))
		if err == nil && len(b) >= wal.HeaderSize && bytes.Equal(b[:wal.HeaderSize], p[base:base+wal.HeaderSize]) {
			n++
		}
	}
	return n
}

// TestReceiveAhead receives segments while nothing is synced: they can be read, no header of theirs is in a file before
// what is before it is durable, and a sync makes all of it so.
func TestReceiveAhead(t *testing.T) {
	const segments = 5
	p := sourceLog(t, segments)
	d := waltest.NewDisk()
	l, err := openAhead(d)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := receive(l, p, len(p), func() int { return 20_000 }); err != nil {
		t.Fatal(err)
	}
	if l.Head() != wal.LSN(len(p)) || l.Durable() >= wal.MinSegmentSize || headers(t, d, p) != 0 {
		t.Fatalf("head %v of %d, durable %v, %d headers written", l.Head(), len(p), l.Durable(), headers(t, d, p))
	}
	r := l.NewReader(0)
	frames := 0
	for r.Next() {
		frames++
	}
	if r.Err() != nil || r.End() != l.Head() || frames == 0 {
		t.Fatalf("read %d frames up to %v: %v", frames, r.End(), r.Err())
	}
	d.Observe(func(c waltest.Call) {
		if c.Op == waltest.OpWrite && int64(l.Durable())%wal.MinSegmentSize != 0 {
			t.Errorf("a header was written while the log was durable up to %v", l.Durable())
		}
	})
	synced := d.Count(waltest.OpSync)
	if at, err := l.Sync(); err != nil || at != l.Head() {
		t.Fatalf("sync: %v, %v", at, err)
	}
	d.Observe(nil)
	if n := d.Count(waltest.OpSync) - synced; n != segments+1 || headers(t, d, p) != segments {
		t.Errorf("%d syncs, %d headers written", n, headers(t, d, p))
	}
}

// TestReadWithheld asks for raw bytes with headers among them that are not in their files.
func TestReadWithheld(t *testing.T) {
	p := sourceLog(t, 3)
	l, err := openAhead(waltest.NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := receive(l, p, len(p), func() int { return 1 << 20 }); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if n, err := l.ReadAt(got, 0); err != nil || !bytes.Equal(got[:n], p) {
		t.Fatalf("%d bytes, %v, equal: %v", n, err, bytes.Equal(got[:n], p))
	}
}

// TestReceiveFarAhead receives more than may run ahead of the disk.
func TestReceiveFarAhead(t *testing.T) {
	const segments = 80
	p := sourceLog(t, segments)
	d := waltest.NewDisk()
	l, err := openAhead(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := receive(l, p, len(p), func() int { return 300_000 }); err != nil {
		t.Fatal(err)
	}
	if n := headers(t, d, p); n != segments-64 || l.Durable() < wal.LSN(n*wal.MinSegmentSize) {
		t.Errorf("%d headers written, durable up to %v", n, l.Durable())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if open := d.Open(); len(open) > 0 {
		t.Errorf("left open: %q", open)
	}
}

// TestLeadFromAhead begins an epoch, or cuts, where segments are not synced.
func TestLeadFromAhead(t *testing.T) {
	p := sourceLog(t, 4)
	for name, act := range map[string]func(l *wal.Log) error{
		"start epoch": func(l *wal.Log) error {
			_, err := l.StartEpoch(wal.MakeEpoch(2, 0), wal.Rule{})
			return err
		},
		"truncate": func(l *wal.Log) error { return l.Truncate(l.BatchEnd() - wal.LSN(len(lastFrame(l)))) },
	} {
		t.Run(name, func(t *testing.T) {
			d := waltest.NewDisk()
			l, err := openAhead(d)
			if err != nil {
				t.Fatal(err)
			}
			if err := receive(l, p, len(p), func() int { return 50_000 }); err != nil {
				t.Fatal(err)
			}
			if err := act(l); err != nil {
				t.Fatal(err)
			}
			if n := headers(t, d, p); n != 4 {
				t.Errorf("%d headers are in their files", n)
			}
			head := l.Head()
			if at, err := l.Sync(); err != nil || at != head {
				t.Fatalf("sync: %v, %v", at, err)
			}
			d = d.Crash(0)
			_ = l.Close()
			l, err = openAhead(d)
			if err != nil {
				t.Fatal(err)
			}
			if l.Head() != head {
				t.Errorf("head %v after a crash, want %v", l.Head(), head)
			}
			_ = l.Close()
		})
	}
}

// TestLeadFromASealedEnd begins an epoch where what was received ends with a segment, and is not synced: its last bytes must be before the next
// header is, and before they count as durable.
func TestLeadFromASealedEnd(t *testing.T) {
	p := sourceLog(t, 3)
	for ends := 1; ends <= 3; ends++ {
		d := waltest.NewDisk()
		l, err := openAhead(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := receive(l, p, ends*wal.MinSegmentSize, func() int { return 50_000 }); err != nil {
			t.Fatal(err)
		}
		if want := wal.LSN(ends * wal.MinSegmentSize); l.Head() != want || l.Durable() == want {
			t.Fatalf("received up to %v of %v, durable up to %v", l.Head(), want, l.Durable())
		}
		if _, err := l.StartEpoch(wal.MakeEpoch(2, 0), wal.Rule{}); err != nil {
			t.Fatal(err)
		}
		head := l.Head()
		if l.Durable() != head {
			t.Errorf("durable up to %v of %v", l.Durable(), head)
		}
		d = d.Crash(0)
		_ = l.Close()
		if l, err = openAhead(d); err != nil {
			t.Fatalf("after a power cut, with %d segments: %v", ends, err)
		}
		got := make([]byte, ends*wal.MinSegmentSize)
		if _, err := l.ReadAt(got, 0); err != nil || l.Head() != head || !bytes.Equal(got, p[:len(got)]) {
			t.Errorf("after a power cut, with %d segments: head %v of %v, same bytes %v, %v", ends, l.Head(), head, bytes.Equal(got, p[:len(got)]), err)
		}
		_ = l.Close()
	}
}

// lastFrame returns the bytes of the last frame of a log.
func lastFrame(l *wal.Log) []byte {
	r := l.NewReader(l.Tail())
	var at wal.LSN
	for r.Next() {
		at = r.Frame().LSN
	}
	return make([]byte, l.Head()-at)
}

// TestCrashAhead lets the power fail at each change while a log is received ahead of its disk. What was durable is
// there, what is there is the source's, and the rest can be received.
func TestCrashAhead(t *testing.T) {
	t.Parallel()
	p := sourceLog(t, 5)
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	ahead := 0
	for k := 0; ; k++ {
		d := waltest.NewDisk()
		d.WriteBackAtRandom(uint64(k))
		d.Inject(waltest.Fault{Skip: k, Crash: true})
		durable, head, err := receiveAndSync(d, p, uint64(k))
		if !d.Crashed() {
			if err != nil {
				t.Fatalf("without a crash: %v", err)
			}
			break
		}
		if err != nil && !errors.Is(err, waltest.ErrCrashed) {
			t.Fatalf("crash at change %d: %v", k, err)
		}
		if head/wal.MinSegmentSize > durable/wal.MinSegmentSize+1 {
			ahead++
		}
		for seed := range seeds {
			if seed > 1 {
				seed += uint64(k) * 100
			}
			if err := receiveOn(d.Crash(seed), p, durable); err != nil {
				t.Errorf("crash at change %d, survivors %d: %v", k, seed, err)
			}
		}
		if t.Failed() {
			return
		}
	}
	if ahead < 10 {
		t.Errorf("the log was ahead of its disk at %d crashes only", ahead)
	}
}

// receiveAndSync receives all of p and syncs now and then. It returns how far the log was durable and received.
func receiveAndSync(d *waltest.Disk, p []byte, seed uint64) (durable, head wal.LSN, err error) {
	l, err := openAhead(d)
	if err != nil {
		return 0, 0, err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for err == nil && int(l.Head()) < len(p) {
		end := min(int(l.Head())+1+rng.IntN(90_000), len(p))
		if err = receive(l, p, end, func() int { return 1 + rng.IntN(70_000) }); err == nil && rng.IntN(4) == 0 {
			_, err = l.Sync()
		}
	}
	durable, head = l.Durable(), l.Head()
	if e := l.Close(); err == nil {
		durable, err = l.Durable(), e
	}
	return durable, head, err
}

// receiveOn opens what is left, compares it with the source and receives the rest.
func receiveOn(d *waltest.Disk, p []byte, durable wal.LSN) error {
	l, err := openAhead(d)
	if err != nil {
		return err
	}
	defer l.Close()
	if l.Head() < durable {
		return fmt.Errorf("durable was %v, the log ends at %v", durable, l.Head())
	}
	if err := receive(l, p, len(p), func() int { return 100_000 }); err != nil {
		return fmt.Errorf("receive from %v on: %w", l.Head(), err)
	}
	got := make([]byte, len(p))
	if _, err := l.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		return fmt.Errorf("read: %w, equal: %v", err, bytes.Equal(got, p))
	}
	return nil
}

// TestFailedSyncAhead makes each sync fail while the log is ahead of its disk: nothing behind it counts as durable, and
// its header is never written.
func TestFailedSyncAhead(t *testing.T) {
	p := sourceLog(t, 4)
	for k := range 5 {
		d := waltest.NewDisk()
		l, err := openAhead(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := receive(l, p, len(p), func() int { return 50_000 }); err != nil {
			t.Fatal(err)
		}
		d.Inject(waltest.Fault{Op: waltest.OpSync, Skip: k})
		at, err := l.Sync()
		if !errors.Is(err, wal.ErrPoisoned) || at/wal.MinSegmentSize != wal.LSN(k) && at >= wal.MinSegmentSize {
			t.Errorf("sync %d fails: durable up to %v, %v", k, at, err)
		}
		if _, err := l.Sync(); !errors.Is(err, wal.ErrPoisoned) {
			t.Errorf("sync again: %v", err)
		}
		if n := headers(t, d, p); n != k {
			t.Errorf("sync %d fails: %d headers written", k, n)
		}
		left := d.Kill()
		left.DropCache()
		_ = l.Close()
		if err := receiveOn(left, p, at); err != nil {
			t.Errorf("sync %d fails: %v", k, err)
		}
	}
}
