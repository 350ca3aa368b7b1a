package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// TestWrittenByManyWriters has writers at several levels, alone and together, and callers that give up at once. Each reads what
// it has written as soon as its call returns, and finds it behind what it wrote before.
func TestWrittenByManyWriters(t *testing.T) {
	dir := t.TempDir()
	db, err := engine.Open(dir, &engine.Options{Commit: engine.Written})
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 400
	levels := []engine.Level{engine.Default, engine.Buffered, engine.Written, engine.Durable}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for _, writers := range []int{1, 2, 7} {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				var last wal.LSN
				b := db.NewBatch()
				for i := range rounds {
					key := fmt.Appendf(nil, "%d/%d", writers, w)
					value := binary.LittleEndian.AppendUint32(nil, uint32(i))
					level := levels[(i+w)%len(levels)]
					if level == engine.Durable && i%40 != 0 {
						level = engine.Written
					}
					ctx := context.Background()
					if i%10 == 9 {
						ctx = gone
					}
					b.Reset()
					b.Put(key, value)
					pos, err := db.Commit(ctx, b, level)
					if ctx == gone {
						if !errors.Is(err, context.Canceled) || errors.Is(err, engine.ErrUnknownOutcome) || pos != (engine.Position{}) {
							t.Errorf("a commit that was given up before it began: %v, %v", pos, err)
						}
						continue
					}
					if err != nil || pos.LSN <= last {
						t.Errorf("commit %d of writer %d: %v behind %v, %v", i, w, pos, last, err)
						return
					}
					last = pos.LSN
					if got, err := db.Get(key); err != nil || string(got) != string(value) {
						t.Errorf("writer %d reads %x after %x, %v", w, got, value, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = engine.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, writers := range []int{1, 2, 7} {
		for w := range writers {
			got, err := db.Get(fmt.Appendf(nil, "%d/%d", writers, w))
			if err != nil || binary.LittleEndian.Uint32(got) != rounds-2 {
				t.Errorf("writer %d of %d: %x after the reopening, %v", w, writers, got, err)
			}
		}
	}
}

// TestRecordKey finds the key of every form of record without decoding it.
func TestRecordKey(t *testing.T) {
	for _, r := range []engine.Record{
		{Op: engine.OpPut, Key: []byte("k"), Value: []byte("v")},
		{Op: engine.OpPut, Key: []byte{}, Value: []byte("v"), Last: true},
		{Op: engine.OpPutTTL, Key: make([]byte, 300), Value: []byte{}, Expiry: 1 << 40},
		{Op: engine.OpDelete, Key: []byte("gone"), Last: true},
		{Op: engine.OpDeleteRange, Key: []byte("a"), Value: []byte("b")},
		{Op: engine.OpPut, Key: []byte("moved"), Value: []byte("v"), Orig: 1<<63 + 12345, Last: true},
		{Op: engine.OpPutTTL, Key: make([]byte, engine.MaxKeySize), Value: []byte("v"), Orig: 7, Expiry: 1},
	} {
		if got := engine.RecordKey(engine.AppendRecord(nil, r)); string(got) != string(r.Key) {
			t.Errorf("%v: key of %d bytes, want %d", r.Op, len(got), len(r.Key))
		}
	}
}
