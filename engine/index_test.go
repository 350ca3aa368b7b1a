package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"shiplog/engine"
)

// TestDamagedIndex: runs that are damaged on the disk are never served; reads answer loading at the most, and the index heals
// by itself while the database is open.
func TestDamagedIndex(t *testing.T) {
	for _, seed := range seeds(t, 3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			defer engine.FreezeEvery(2000)()
			rng := rand.New(rand.NewPCG(seed, 1))
			dir := t.TempDir()
			opts := &engine.Options{Commit: engine.Written}
			db := open(t, dir, opts)
			m := model{}
			for i := range 60 {
				b := db.NewBatch()
				for range 200 {
					k, v := fmt.Sprintf("key%06d", rng.IntN(20_000)), fmt.Sprint(rng.Uint64())
					b.Put([]byte(k), []byte(v))
					m[k] = v
				}
				if i%20 == 7 {
					lo, hi := fmt.Sprintf("key%06d", rng.IntN(20_000)), fmt.Sprintf("key%06d", rng.IntN(20_000))
					b.DeleteRange([]byte(lo), []byte(hi))
					for _, k := range m.sorted(lo, hi) {
						if lo < hi {
							delete(m, k)
						}
					}
				}
				if _, err := db.Commit(ctx, b, engine.Durable); err != nil {
					t.Fatal(err)
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			runs, err := filepath.Glob(filepath.Join(dir, "index", "*.run"))
			if err != nil || len(runs) == 0 {
				t.Fatal(runs, err)
			}
			for _, name := range runs {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for range 5 {
					b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
				}
				if err := os.WriteFile(name, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			db = open(t, dir, opts)
			for k := range 20_000 {
				key := fmt.Sprintf("key%06d", k)
				got, err := db.Get([]byte(key))
				want, ok := m[key]
				if errors.Is(err, engine.ErrLoading) {
					continue
				}
				if ok && (err != nil || string(got) != want) || !ok && !errors.Is(err, engine.ErrNotFound) {
					t.Fatalf("%s = %q, %v; want %q, %v", key, got, err, want, ok)
				}
			}
			waitFor(t, "the index is whole again", func() bool {
				it := db.NewIter(nil)
				for ok := it.First(); ok; ok = it.Next() {
				}
				return it.Close() == nil
			})
			if got := state(t, db); !maps.Equal(got, m) {
				t.Fatalf("%d keys, want %d", len(got), len(m))
			}
		})
	}
}
