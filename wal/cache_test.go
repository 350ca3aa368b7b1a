package wal_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

// Reads through a cache far smaller than the log give what was written, by many readers at once, before and after the log is
// cut back and written anew at the same place.
func TestCache(t *testing.T) {
	log, err := wal.Open("db", &wal.Options{FS: waltest.NewDisk(), SegmentSize: 1 << 20, CacheSize: 300 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := log.Create(wal.Rule{Level: 3}); err != nil {
		t.Fatal(err)
	}
	write := func(round int) (refs []wal.Ref, records [][]byte, begin wal.LSN) {
		begin = log.Head()
		for i := range 200 {
			var b wal.Batch
			for j := range 40 {
				records = append(records, fmt.Appendf(nil, "\x01%d %d %d %s", round, i, j, bytes.Repeat([]byte("ab"), i%60)))
				b.Add(records[len(records)-1])
			}
			if i%50 == 49 { // one that is longer than a frame
				records = append(records, bytes.Repeat(fmt.Appendf(nil, "\x01%d long ", round), 2000))
				b.Add(records[len(records)-1])
			}
			if _, err := log.Append([]*wal.Batch{&b}, false); err != nil {
				t.Fatal(err)
			}
			for k := range b.Len() {
				refs = append(refs, b.Ref(k))
			}
		}
		return refs, records, begin
	}
	check := func(refs []wal.Ref, records [][]byte) {
		var readers sync.WaitGroup
		for seed := range uint64(4) {
			readers.Go(func() {
				rng := rand.New(rand.NewPCG(seed, 1))
				var b wal.Buffer
				for range 6000 {
					i := min(rng.IntN(len(refs)), rng.IntN(len(refs)))
					err := log.ReadRecord(refs[i], &b, func(p []byte) error {
						if want := records[i][1:]; len(p) < len(want)+1 || !bytes.Equal(p[1:1+len(want)], want) {
							return fmt.Errorf("record %d at %v is not what was written", i, refs[i])
						}
						return nil
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		readers.Wait()
	}
	refs, records, begin := write(1)
	check(refs, records)
	if err := log.Truncate(begin); err != nil {
		t.Fatal(err)
	}
	refs, records, _ = write(2)
	check(refs, records)
}
