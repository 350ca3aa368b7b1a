package wal_test

import (
	"fmt"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// TestResetCrash loses power in each call of a reset: the next open finds the log as it was, or none at all, and a log that was reset
// can be founded again.
func TestResetCrash(t *testing.T) {
	for k := 0; ; k++ {
		disk := waltest.NewDisk()
		o := &wal.Options{FS: disk, SegmentSize: 64 << 10, Compression: wal.NoCompression, Inline: true}
		log, err := wal.Open("db", o)
		if err != nil {
			t.Fatal(err)
		}
		if err := log.Create(wal.Rule{Level: 3}); err != nil {
			t.Fatal(err)
		}
		for i := range 400 {
			var b wal.Batch
			b.Add(fmt.Appendf(nil, "\x01%0500d", i))
			if _, err := log.Append([]*wal.Batch{&b}, true); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := log.Sync(); err != nil {
			t.Fatal(err)
		}
		head, id := log.Head(), log.NodeID()
		disk.Inject(waltest.Fault{Skip: k, Crash: true})
		err = log.Reset()
		crashed := disk.Crashed()
		if err != nil && !crashed {
			t.Fatalf("call %d: %v", k, err)
		}
		disk.PowerOff()
		for seed := range uint64(3) {
			o.FS = disk.Crash(seed)
			for round := range 2 {
				l, err := wal.Open("db", o)
				if err != nil {
					t.Fatalf("call %d, survivors %d, open %d: %v", k, seed, round, err)
				}
				if !l.Empty() && (l.Head() != head || !crashed) {
					t.Fatalf("call %d, survivors %d: head %v, was %v", k, seed, l.Head(), head)
				}
				if l.NodeID() != id {
					t.Fatalf("call %d: another node ID", k)
				}
				if l.Empty() && round == 1 {
					if err := l.Create(wal.Rule{Level: 3}); err != nil {
						t.Fatalf("call %d, survivors %d: %v", k, seed, err)
					}
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !crashed {
			if k < 5 {
				t.Fatalf("only %d calls", k)
			}
			return
		}
	}
}
