package engine_test

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// seeds gives n fresh seeds, or the one in SHIPLOG_SEED. Tests put them into their subtests' names.
func seeds(t testing.TB, n int) []uint64 {
	t.Helper()
	if s := os.Getenv("SHIPLOG_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	if testing.Short() {
		n = (n + 3) / 4
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(time.Now().UnixNano())%1e9 + uint64(i)
	}
	return out
}
