package wal_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestLogsPartWhereAnEpochBegins has a leader go on behind each of the last frames of a segment, while a node that holds what is before begins
// an epoch there, at once or months later: the two logs must be equal up to where the history says that the epoch begins, or up
// to the header right before it.
func TestLogsPartWhereAnEpochBegins(t *testing.T) {
	rule := wal.Rule{Level: 3}
	for i := range 12 {
		rule.Voters = append(rule.Voters, wal.Voter{ID: wal.NodeID{byte(i + 1)}, Name: fmt.Sprintf("voter-%d", i), Addr: "198.51.100.1:7654"})
	}
	old := newWorld(waltest.NewDisk(), "source")
	steps(t, old.open, func() error { return old.log.Create(rule) })
	var ends []wal.LSN
	for id := uint32(0); old.log.Head() < wal.MinSegmentSize+4096; id++ {
		var err error
		if id%16 == 15 {
			_, err = old.log.StartEpoch(old.log.Epoch().NextRestart(), rule)
		} else {
			_, err = old.log.Append([]*wal.Batch{batch(2*id, int(id%7)*30+1)}, false)
		}
		if err != nil {
			t.Fatal(err)
		}
		if h := old.log.Head(); h > wal.MinSegmentSize-8192 {
			ends = append(ends, h)
		}
	}
	p := make([]byte, old.log.Head())
	if _, err := old.log.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	steps(t, old.log.Close)
	ends = append(ends[:len(ends)-1], wal.MinSegmentSize, wal.MinSegmentSize+wal.HeaderSize)
	for _, later := range []time.Duration{0, 100 * 24 * time.Hour} {
		for _, end := range ends {
			w := newWorld(waltest.NewDisk(), dbDir)
			w.clock = w.clock.Add(later)
			steps(t, w.open, func() error { return receive(w.log, p, int(end), func() int { return 30_000 }) })
			if _, err := w.log.StartEpoch(wal.MakeEpoch(2, 0), rule); err != nil {
				t.Fatalf("%v, %v later: %v", end, later, err)
			}
			fork := w.log.History()[len(w.log.History())-1].Start
			if fork%wal.MinSegmentSize == wal.HeaderSize {
				fork -= wal.HeaderSize
			}
			mine := make([]byte, w.log.Head())
			if _, err := w.log.ReadAt(mine, 0); err != nil {
				t.Fatal(err)
			}
			if n := min(int(fork), len(p)); !bytes.Equal(mine[:n], p[:n]) {
				t.Errorf("an epoch that begins behind %v, %v later: it begins at %v, and the logs part before", end, later, fork)
			}
			_, err := w.log.Append([]*wal.Batch{batch(1, 100)}, true)
			steps(t, func() error { return err }, w.log.Close, w.open, w.log.Close)
		}
	}
}
