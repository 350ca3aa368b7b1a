package engine_test

import (
	"fmt"
	"testing"

	"shiplog/engine"
)

// TestColdSeeks: asking for what is not in memory changes no answer, wherever the frames are: in several segments, in some that are gone,
// in values longer than a frame.
func TestColdSeeks(t *testing.T) {
	db := open(t, t.TempDir(), &engine.Options{Commit: engine.Written, SegmentSize: 64 << 10, CacheSize: -1})
	for i := range 300 {
		mustPut(t, db, fmt.Sprintf("key%03d", i*7%300), fmt.Sprintf("%0*d", 1+i%5*1500, i*7%300))
	}
	step := 1
	if testing.Short() {
		step = 13
	}
	for i := 0; i < 300; i += step {
		it := db.NewIter(nil)
		n, ok := i, it.SeekGE(fmt.Appendf(nil, "key%03d", i))
		for ; ok; ok = it.Next() {
			db.SetCold()
			var got int
			if _, err := fmt.Sscanf(string(it.Value()), "%d", &got); err != nil || got != n {
				t.Fatalf("%s holds %d: %v, %v", it.Key(), got, err, it.Err())
			}
			n++
		}
		if err := it.Close(); err != nil || n != 300 {
			t.Fatalf("from %d to %d: %v", i, n, err)
		}
	}
}
