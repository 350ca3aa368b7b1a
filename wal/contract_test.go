package wal_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// These tests hold the log to what its docstrings say at the edges: what is refused, with which error, and that a refusal
// leaves nothing behind.

// TestClosedLogIsLetAlone: after Close another process may have the directory, so nothing of it is written any more.
func TestClosedLogIsLetAlone(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) })
	l, boundary := w.log, w.items[1].start
	steps(t, w.close)
	changes := d.Count(waltest.Changes)
	_, append := l.Append([]*wal.Batch{batch(1, 10)}, true)
	_, control := l.AppendControl(&wal.FormatRecord{Level: 1}, true)
	_, raw := l.AppendRaw(l.Head(), make([]byte, 100))
	_, start := l.StartEpoch(wal.MakeEpoch(9, 0), wal.Rule{})
	_, repair := l.Repair(0, make([]byte, 1000))
	for what, err := range map[string]error{
		"Append": append, "AppendControl": control, "AppendRaw": raw, "StartEpoch": start, "Repair": repair,
		"Promise": l.Promise(wal.MakeEpoch(7, 0)), "Truncate": l.Truncate(boundary), "Reset": l.Reset(),
		"TrimBefore": l.TrimBefore(0), "Create": l.Create(wal.Rule{}), "Scrub": l.Scrub(0),
	} {
		if !errors.Is(err, wal.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", what, err)
		}
	}
	l.SetCommitted(l.Head())
	l.AcceptMark()
	if n := d.Count(waltest.Changes) - changes; n != 0 {
		t.Errorf("a closed log has made %d calls that change its directory", n)
	}
}

// TestReadOnlyLogIsLetAlone: a log that is opened for reading is not locked, and so may be another process's.
func TestReadOnlyLogIsLetAlone(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) }, w.close)
	w.opts.ReadOnly = true
	steps(t, w.open)
	l, changes := w.log, d.Count(waltest.Changes)
	for what, err := range map[string]error{
		"Promise": l.Promise(wal.MakeEpoch(7, 0)), "Truncate": l.Truncate(w.items[1].start), "Reset": l.Reset(),
		"TrimBefore": l.TrimBefore(0), "Create": l.Create(wal.Rule{}),
	} {
		if !errors.Is(err, wal.ErrReadOnly) {
			t.Errorf("%s: %v, want ErrReadOnly", what, err)
		}
	}
	l.SetCommitted(l.Head())
	l.AcceptMark()
	steps(t, l.Close)
	if n := d.Count(waltest.Changes) - changes; n != 0 {
		t.Errorf("a log opened for reading has made %d calls that change its directory", n)
	}
}

// TestRefusedCreateLeavesNothing: a rule that no record can hold founds no database.
func TestRefusedCreateLeavesNothing(t *testing.T) {
	long := make([]byte, wal.MaxName+1)
	for what, rule := range map[string]wal.Rule{
		"too many voters": {Voters: make([]wal.Voter, wal.MaxVoters+1)},
		"a name too long": {Voters: []wal.Voter{{Name: string(long)}}},
		"too large together": {Voters: func() (v []wal.Voter) {
			for range wal.MaxVoters {
				v = append(v, wal.Voter{Name: string(long[1:]), Addr: string(long[1:])})
			}
			return v
		}()},
	} {
		d := waltest.NewDisk()
		w := newWorld(d, dbDir)
		steps(t, w.open)
		if err := w.log.Create(rule); !errors.Is(err, wal.ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", what, err)
		}
		if !w.log.Empty() || w.log.Promised() != 0 {
			t.Errorf("%s: a refused Create has founded a database", what)
		}
		if err := w.log.Create(wal.Rule{}); err != nil {
			t.Errorf("%s: the next Create: %v", what, err)
		}
		steps(t, w.log.Close)
	}
}

// TestRefusedEpochCutsNothing: an epoch that cannot begin leaves the open batch of another leader where it is.
func TestRefusedEpochCutsNothing(t *testing.T) {
	source := newWorld(waltest.NewDisk(), dbDir)
	steps(t, source.open, source.create, func() error { return source.append(true, []int{3000, 3000, 3000}) })
	defer source.log.Close()
	p := make([]byte, source.log.Head())
	if _, err := source.log.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	l, err := openAhead(waltest.NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.AppendRaw(0, p[:len(p)-100]); err != nil || l.BatchEnd() == l.Head() {
		t.Fatalf("the log ends with a whole batch: %v", err)
	}
	head := l.Head()
	long := wal.Rule{Voters: make([]wal.Voter, wal.MaxVoters+1)}
	if _, err := l.StartEpoch(wal.MakeEpoch(1, 0), wal.Rule{}); !errors.Is(err, wal.ErrEpoch) || l.Head() != head {
		t.Errorf("an epoch that is not above the log's: %v, the head is %v, was %v", err, l.Head(), head)
	}
	if _, err := l.StartEpoch(wal.MakeEpoch(2, 0), long); !errors.Is(err, wal.ErrTooLarge) || l.Head() != head || l.Promised() != 0 {
		t.Errorf("a rule that is too large: %v, the head is %v, was %v; promised %v", err, l.Head(), head, l.Promised())
	}
	steps(t, func() error { return l.Promise(wal.MakeEpoch(3, 0)) })
	if _, err := l.StartEpoch(wal.MakeEpoch(2, 0), wal.Rule{}); !errors.Is(err, wal.ErrEpoch) || l.Head() != head {
		t.Errorf("an epoch below the promise: %v, the head is %v, was %v", err, l.Head(), head)
	}
	if _, err := l.StartEpoch(wal.MakeEpoch(3, 0), wal.Rule{}); err != nil {
		t.Error(err)
	}
}

// TestVerifyWithheld: an open log whose segments are ahead of its disk is sound.
func TestVerifyWithheld(t *testing.T) {
	p := sourceLog(t, 3)
	l, err := openAhead(waltest.NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	steps(t, func() error { return receive(l, p, len(p), func() int { return 20_000 }) })
	r, err := l.Verify(context.Background())
	if err != nil || !r.OK() || r.End != l.Head() {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestTrimFailsOnce: what could not be removed is removed by the next call.
func TestTrimFailsOnce(t *testing.T) {
	for _, op := range []waltest.Op{waltest.OpRemove, waltest.OpSyncDir} {
		for skip := range 3 {
			d := waltest.NewDisk()
			w := newWorld(d, dbDir)
			steps(t, w.open, w.create)
			for w.log.Head() < 4*wal.MinSegmentSize {
				steps(t, func() error { return w.append(true, repeat(10, 3000)...) })
			}
			target := w.log.TailBelow(w.log.Durable())
			d.Inject(waltest.Fault{Op: op, Skip: skip})
			if err := w.log.TrimBefore(target); err == nil {
				t.Fatalf("%v %d did not fail", op, skip)
			}
			if err := w.log.TrimBefore(target); err != nil {
				t.Errorf("%v %d: trim again: %v", op, skip, err)
			}
			names, err := d.ReadDir(filepath.Join(dbDir, "log"))
			if err != nil || len(names) == 0 || names[0] != target.String()+".seg" {
				t.Errorf("%v %d: there is %q, %v; want %v first", op, skip, names, err, target)
			}
			steps(t, w.log.Close)
		}
	}
}

// TestFullDiskAfterWeeks: a segment whose log time has run out is sealed early; on a full disk that is refused before
// anything is written, like any other append.
func TestFullDiskAfterWeeks(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create, func() error { return w.append(true, []int{100}) })
	w.clock = w.clock.Add(50 * 24 * time.Hour)
	d.SetCapacity(d.Used())
	head := w.log.Head()
	if err := w.append(true, []int{100}); !errors.Is(err, wal.ErrNoSpace) || w.log.Err() != nil || w.log.Head() != head {
		t.Fatalf("%v, the log is %v", err, w.log.Err())
	}
	if _, err := w.log.AppendControl(&wal.FormatRecord{Level: 1}, true); !errors.Is(err, wal.ErrNoSpace) || w.log.Err() != nil {
		t.Fatalf("%v, the log is %v", err, w.log.Err())
	}
	d.SetCapacity(1 << 30)
	w.drop()
	steps(t, func() error { return w.append(true, []int{100}) }, w.close)
}

// TestLimits: a record and a batch of the largest size are stored, and one byte more is refused with nothing written.
func TestLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("256 MiB are written")
	}
	l, err := wal.Open(t.TempDir(), &wal.Options{Inline: true, Compression: wal.S2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	steps(t, func() error { return l.Create(wal.Rule{}) })
	memory := make([]byte, wal.MaxBatch+1)
	batch := func(sizes ...int) *wal.Batch {
		b := new(wal.Batch)
		for _, n := range sizes {
			b.Buf = memory[:b.Size()+n]
			b.End()
		}
		return b
	}
	const quarter = wal.MaxBatch / 4
	for _, c := range []struct {
		what  string
		sizes []int
		want  error
	}{
		{"the longest record", []int{wal.MaxRecord}, nil},
		{"a longer record", []int{wal.MaxRecord + 1}, wal.ErrTooLarge},
		{"the largest batch", []int{quarter, quarter, quarter, quarter}, nil},
		{"a larger batch", []int{quarter, quarter, quarter, quarter, 1}, wal.ErrTooLarge},
	} {
		head, b := l.Head(), batch(c.sizes...)
		_, err := l.Append([]*wal.Batch{b}, false)
		if !errors.Is(err, c.want) || (err != nil) != (l.Head() == head) {
			t.Fatalf("%s: %v, the head went from %v to %v", c.what, err, head, l.Head())
		}
		if err != nil {
			continue
		}
		var buf wal.Buffer
		n, last := 0, b.Len()-1
		err = l.ReadRecord(b.Ref(last), &buf, func(rec []byte) error { n = len(rec); return nil })
		if err != nil || n != c.sizes[last] {
			t.Fatalf("%s: its last record has %d bytes, not %d: %v", c.what, n, c.sizes[last], err)
		}
	}
}

// TestReadCutAtASegmentsEnd: what is cut may begin with a segment's header, and go over the ends of segments.
func TestReadCutAtASegmentsEnd(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create)
	for w.log.Head() < 3*wal.MinSegmentSize {
		steps(t, func() error { return w.append(true, repeat(10, 3000)...) })
	}
	epoch, head := w.log.Epoch(), w.log.Head()
	want := 0
	for r := w.log.NewReader(wal.MinSegmentSize); r.Next(); want++ {
	}
	steps(t, func() error { return w.log.Truncate(wal.MinSegmentSize) })
	name := filepath.Join(dbDir, "diverged", fmt.Sprintf("%v-%v-%v.cut", epoch, wal.LSN(wal.MinSegmentSize), head))
	got, last := 0, wal.LSN(0)
	err := wal.ReadCut(d, name, func(f wal.Frame, _ []byte) error { got++; last = f.End(); return nil })
	if err != nil || got != want || last != head {
		t.Errorf("%d frames up to %v, want %d up to %v: %v", got, last, want, head, err)
	}
	steps(t, w.log.Close)
}

// TestTrimUnderAReader removes segments while their bytes are sent: that ends with ErrTrimmed, not as if the disk had lost a
// file.
func TestTrimUnderAReader(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	steps(t, w.open, w.create)
	for w.log.Head() < 4*wal.MinSegmentSize {
		steps(t, func() error { return w.append(true, repeat(10, 3000)...) })
	}
	near, far := net.Pipe()
	sent := make(chan error, 1)
	go func() {
		_, err := w.log.SendTo(near, 0, w.log.Durable())
		sent <- errors.Join(err, near.Close())
	}()
	if _, err := far.Read(make([]byte, 1)); err != nil { // it is inside the first segment
		t.Fatal(err)
	}
	target := w.log.TailBelow(w.log.Durable())
	steps(t, func() error { return w.log.TrimBefore(target) })
	if _, err := io.Copy(io.Discard, far); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; !errors.Is(err, wal.ErrTrimmed) || errors.Is(err, wal.ErrIO) {
		t.Errorf("%v, want ErrTrimmed", err)
	}
	steps(t, w.close)
}
