package engine_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// tailWriter is a log of four segments and more, written without the engine's own reclaim.
func tailWriter(t *testing.T) (leader *engine.DB, m model) {
	t.Helper()
	const segment = 64 << 10
	leader = open(t, t.TempDir(), &engine.Options{SegmentSize: segment, Compression: engine.NoCompression, SpaceFactor: -1})
	t.Cleanup(leader.Snapshot().Close) // it keeps its segments
	m = model{}
	for i := 0; leader.Log().Head() < 4*segment; i++ {
		k := fmt.Sprintf("key%03d", i)
		m[k] = strings.Repeat(k, 1000)
		mustPut(t, leader, k, m[k])
	}
	return leader, m
}

// follows gives a follower everything that the leader has, committed up to an LSN.
func follows(t *testing.T, leader, f *engine.DB, committed wal.LSN) {
	t.Helper()
	feed(t, leader, f, leader.Log().Head())
	if err := f.FollowMark(committed, 0); err != nil {
		t.Fatal(err)
	}
}

// otherHistory cuts the leader's log back and puts something else there, longer than what was cut.
func otherHistory(t *testing.T, leader *engine.DB, fork wal.LSN) {
	t.Helper()
	log := leader.Log()
	if err := log.Truncate(fork); err != nil {
		t.Fatal(err)
	}
	appendRecords(t, log, "other", "history")
}

func appendRecords(t *testing.T, log *wal.Log, keys ...string) {
	t.Helper()
	for _, k := range keys {
		var b wal.Batch
		b.Add(engine.AppendRecord(nil, engine.Record{Op: engine.OpPut, Key: []byte(k), Value: []byte(strings.Repeat(k, 100))}))
		if _, err := log.Append([]*wal.Batch{&b}, true); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCutTailRecord: a tail record that is cut gives nothing up, however far the log grows past its place in another history.
func TestCutTailRecord(t *testing.T) {
	const segment = 64 << 10
	leader, m := tailWriter(t)
	fork := leader.Log().Head()
	if err := leader.MoveTail(2 * segment); err != nil {
		t.Fatal(err)
	}
	dir, opts := t.TempDir(), &engine.Options{Follower: true}
	f := open(t, dir, opts)
	follows(t, leader, f, fork)
	if err := f.CutLog(fork); err != nil {
		t.Fatal(err)
	}
	otherHistory(t, leader, fork)
	follows(t, leader, f, leader.Log().Head())
	m["other"], m["history"] = strings.Repeat("other", 100), strings.Repeat("history", 100)
	waitFor(t, "the follower knows that all is committed", func() bool { return f.Committed() == leader.Log().Head() })
	f.Trim()
	if tail := f.Log().Tail(); tail != 0 {
		t.Errorf("the log begins at %v by a record that was cut", tail)
	}
	same(t, f, m, "after the cut")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir, opts)
	same(t, f, m, "after a reopen")
}

// TestCutBelowReclaim: under a rule that asks no followers a follower may have to take back a tail record that it has followed. What that
// gave up was written again behind the cut; until the new history gives it up too, the follower is loading.
func TestCutBelowReclaim(t *testing.T) {
	for _, runs := range []int{0, 10} {
		t.Run(fmt.Sprint("runs=", runs), func(t *testing.T) {
			defer engine.FreezeEvery(runs)()
			const segment = 64 << 10
			leader, m := tailWriter(t)
			fork := leader.Log().Head()
			dir, opts := t.TempDir(), &engine.Options{Follower: true}
			f := open(t, dir, opts)
			follows(t, leader, f, fork)
			waitFor(t, "there is a run", func() bool { return runs == 0 || f.Stats().Index.Runs > 0 })
			if _, err := leader.Reclaim(); err != nil {
				t.Fatal(err)
			}
			follows(t, leader, f, leader.Log().Head())
			waitFor(t, "the follower has removed a segment", func() bool { return f.Log().Tail() == segment })
			same(t, f, m, "after reclaim")
			if err := f.CutLog(fork); err != nil {
				t.Fatal(err)
			}
			loading := func(when string) {
				t.Helper()
				for _, k := range []string{"key000", fmt.Sprintf("key%03d", len(m)-1)} {
					if v, err := f.Get([]byte(k)); !errors.Is(err, engine.ErrLoading) {
						t.Errorf("%s: get %s: %d bytes, %v", when, k, len(v), err)
					}
				}
			}
			reopen := func() {
				t.Helper()
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				f = open(t, dir, opts)
			}
			loading("after the cut")
			// The new history: another write, and everything that the follower had given up again, as its leader's reclaim would.
			log := leader.Log()
			if err := log.Truncate(fork); err != nil {
				t.Fatal(err)
			}
			appendRecords(t, log, "other")
			follows(t, leader, f, log.Head())
			loading("in the new history")
			reopen()
			loading("after a reopen")
			for i := range 12 { // they fill the first segment
				k := fmt.Sprintf("key%03d", i)
				var b wal.Batch
				b.Add(engine.AppendRecord(nil, engine.Record{Op: engine.OpPut, Key: []byte(k), Value: []byte(m[k])}))
				if _, err := log.Append([]*wal.Batch{&b}, true); err != nil {
					t.Fatal(err)
				}
			}
			tail := &wal.TailRecord{Tail: segment, History: log.History(), Rule: wal.Rule{Level: uint32(engine.Durable)}}
			if _, err := log.AppendControl(tail, true); err != nil {
				t.Fatal(err)
			}
			m["other"] = strings.Repeat("other", 100)
			follows(t, leader, f, log.Head())
			same(t, f, m, "once it is given up again")
			reopen()
			same(t, f, m, "after another reopen")
		})
	}
}
