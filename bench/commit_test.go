package bench

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"shiplog/engine"
)

// BenchmarkWritten is one operation a commit, not synced, in key order and in random order, by one writer and by two. cpu-ns/op
// is the processor time of all threads, the system's included: on a machine that is busy with other things it says more than the
// time that has passed.
func BenchmarkWritten(b *testing.B) {
	for _, writers := range []int{1, 2} {
		for _, order := range []string{"sequential", "random"} {
			b.Run(fmt.Sprintf("writers=%d/order=%s", writers, order), func(b *testing.B) {
				db := open(b, &engine.Options{Commit: engine.Written})
				vals := newValues()
				const space = 1 << 22
				b.SetBytes(keySize + valueSize)
				b.ReportAllocs()
				var next atomic.Uint64
				cpu := cpuTime()
				work := func(more func() bool) {
					k := make([]byte, 0, keySize)
					for more() {
						i := next.Add(1) - 1
						n := i
						if order == "random" {
							n = scatter(i&(space-1), space)
						}
						k = key(k, n)
						if err := db.Put(k, vals.get(i, valueSize)); err != nil {
							b.Error(err)
							return
						}
					}
				}
				if writers == 1 {
					work(b.Loop)
				} else {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(writers))
					b.RunParallel(func(pb *testing.PB) { work(pb.Next) })
				}
				b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(next.Load()), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkBatch is batches of 100 operations, not synced.
func BenchmarkBatch(b *testing.B) {
	db := open(b, &engine.Options{Commit: engine.Written})
	vals := newValues()
	k := make([]byte, 0, keySize)
	batch := db.NewBatch()
	b.SetBytes(100 * (keySize + valueSize))
	i := uint64(0)
	for b.Loop() {
		batch.Reset()
		for range 100 {
			k = key(k, scatter(i&(1<<22-1), 1<<22))
			batch.Put(k, vals.get(i, valueSize))
			i++
		}
		if _, err := db.Commit(context.Background(), batch, engine.Default); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkDurable is durable commits of one operation by 1 to 256 writers, in slices that alternate
// with bare pwrite + fdatasync of a record of the same size by one writer. The ratio is commits a
// second over bare writes a second.
func BenchmarkDurable(b *testing.B) {
	for _, writers := range []int{1, 8, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			db := open(b, nil)
			bare := newBareLog(b, 160)
			vals := newValues()
			var ours, floor, ratios []float64
			i := 0
			for b.Loop() {
				n := 100 * writers
				o := timed(1, func() {
					parallel(writers, n, func(_, j int) {
						if err := db.Put(key(nil, uint64(i+j)), vals.get(uint64(i+j), valueSize)); err != nil {
							b.Error(err)
						}
					})
				}) / float64(n)
				i += n
				f := timed(100, func() { bare.write(b) })
				ours, floor, ratios = append(ours, o), append(floor, f), append(ratios, f/o)
			}
			b.ReportMetric(1e9/quantile(ours, 0.5), "commits/s")
			b.ReportMetric(1e9/quantile(floor, 0.5), "bare-syncs/s")
			b.ReportMetric(quantile(ratios, 0.5), "ratio-bare")
			b.ReportMetric(0, "ns/op")
		})
	}
}
