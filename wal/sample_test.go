package wal_test

import (
	"errors"
	"fmt"
	"testing"

	"shiplog/wal"
)

// FrameFrom finds, from any place in the log, the frame that a reader meets next.
func TestFrameFrom(t *testing.T) {
	log, err := wal.Open(t.TempDir(), &wal.Options{SegmentSize: 64 << 10, Compression: wal.NoCompression})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := log.Create(wal.Rule{Level: 3}); err != nil {
		t.Fatal(err)
	}
	for i := range 900 {
		var b wal.Batch
		b.Add(fmt.Appendf(nil, "record %d %0*d", i, i%700, i))
		if _, err := log.Append([]*wal.Batch{&b}, false); err != nil {
			t.Fatal(err)
		}
	}
	var frames []wal.LSN
	r := log.NewReader(log.Tail())
	for r.Next() {
		frames = append(frames, r.Frame().LSN)
	}
	if r.Err() != nil || log.Head() < 3*64<<10 {
		t.Fatalf("%v, head %v", r.Err(), log.Head())
	}
	for i, at := 0, wal.LSN(0); at < log.Head(); at += 5 {
		for i < len(frames) && frames[i] < at {
			i++
		}
		got, err := log.FrameFrom(at)
		if i < len(frames) && frames[i]/(64<<10) == at/(64<<10) {
			if seal := err == nil && got < frames[i]; err != nil || got != frames[i] && !seal {
				t.Fatalf("from %v: %v, %v, want %v", at, got, err, frames[i])
			}
		} else if err == nil && got < at || err != nil && !errors.Is(err, wal.ErrBeyondEnd) {
			t.Fatalf("from %v: %v, %v, want the seal or ErrBeyondEnd", at, got, err)
		}
	}
	if _, err := log.FrameFrom(log.Head()); !errors.Is(err, wal.ErrBeyondEnd) {
		t.Fatalf("from the head: %v", err)
	}
}
