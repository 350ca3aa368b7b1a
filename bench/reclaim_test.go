package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
)

const (
	reclaimValue  = 1 << 10
	reclaimRounds = 5
)

// reclaimSize is how many bytes of keys and values BenchmarkReclaim writes, and the segments' size: 128 MiB and 4 MiB with -short, 2 GiB and
// 64 MiB, or SHIPLOG_BYTES.
func reclaimSize(tb testing.TB) (bytes, segment int64) {
	if s := os.Getenv("SHIPLOG_BYTES"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 64<<20 {
			tb.Fatalf("SHIPLOG_BYTES=%s: %v; at least 64 MiB", s, err)
		}
		return n, 64 << 20
	}
	if testing.Short() {
		return 128 << 20, 4 << 20
	}
	return 2 << 30, 64 << 20
}

// churned is a database that is overwritten, deleted from and left to expire without end, and what is known of it.
type churned struct {
	db      *engine.DB
	vals    *values
	rng     *rand.Rand
	present []bool
	live    int         // how many are
	expires []time.Time // of those that will have expired soon, in order
	perKey  float64     // bytes of log for each
	written int64       // bytes of keys and values
	segment int64
	worst   float64 // the most that the log held beyond three segments, as a multiple of what lived
	batch   *engine.Batch
	k       []byte
}

// load opens the database and writes all its keys once.
func load(tb testing.TB, dir string, o *engine.Options, keys int) *churned {
	tb.Helper()
	db, err := engine.Open(dir, o)
	if err != nil {
		tb.Fatal(err)
	}
	c := &churned{db: db, vals: newValues(), rng: rand.New(rand.NewPCG(1, 1)), present: make([]bool, keys), segment: o.SegmentSize, batch: db.NewBatch()}
	before := db.Stats().Head
	for i := range keys {
		c.put(tb, i)
	}
	c.perKey = float64(db.Stats().Head-before) / float64(keys)
	return c
}

func (c *churned) put(tb testing.TB, i int) {
	c.k = key(c.k, uint64(i))
	if err := c.db.Put(c.k, c.vals.get(c.rng.Uint64N(1<<20), reclaimValue)); err != nil {
		tb.Fatal(err)
	}
	c.written += int64(len(c.k)) + reclaimValue
	if !c.present[i] {
		c.present[i] = true
		c.live++
	}
}

// write overwrites a random key; of twenty times it deletes one once, and writes one that expires soon once.
func (c *churned) write(tb testing.TB) {
	i := c.rng.IntN(len(c.present))
	switch c.rng.IntN(20) {
	case 0:
		c.k = key(c.k, uint64(i))
		if err := c.db.Delete(c.k); err != nil {
			tb.Fatal(err)
		}
		if c.present[i] {
			c.present[i] = false
			c.live--
		}
	case 1:
		c.batch.Reset()
		c.k = key(c.k, uint64(1<<40+i))
		c.expires = append(c.expires, time.Now().Add(200*time.Millisecond))
		c.batch.PutTTL(c.k, c.vals.get(c.rng.Uint64N(1<<20), reclaimValue), c.expires[len(c.expires)-1])
		if _, err := c.db.Commit(context.Background(), c.batch, engine.Default); err != nil {
			tb.Fatal(err)
		}
		c.written += int64(len(c.k)) + reclaimValue
	default:
		c.put(tb, i)
	}
}

// look compares what the log holds with what lives.
func (c *churned) look() {
	s := c.db.Stats()
	stored := float64(s.Head - s.Tail)
	for now := time.Now(); len(c.expires) > 0 && c.expires[0].Before(now); {
		c.expires = c.expires[1:]
	}
	c.worst = max(c.worst, (stored-3*float64(c.segment))/(float64(c.live+len(c.expires))*c.perKey))
}

// latencies are those of single operations, in seconds.
type latencies struct{ write, read []float64 }

// round writes until so many bytes were written, reads a random key after each write, and times both.
func (c *churned) round(tb testing.TB, bytes int64) (l latencies) {
	until := c.written + bytes
	for n := 0; c.written < until; n++ {
		start := time.Now()
		c.write(tb)
		wrote := time.Now()
		i := c.rng.IntN(len(c.present))
		c.k = key(c.k, uint64(i))
		err := c.db.View(c.k, func(v []byte) error { return nil })
		l.read = append(l.read, time.Since(wrote).Seconds())
		l.write = append(l.write, wrote.Sub(start).Seconds())
		if found := err == nil; found != c.present[i] || err != nil && !errors.Is(err, engine.ErrNotFound) {
			tb.Fatalf("get %s: %v, written: %v", c.k, err, c.present[i])
		}
		if n%64 == 0 {
			c.look()
		}
	}
	return l
}

// settle waits until reclaim has come to rest.
func (c *churned) settle() {
	for last, since := c.db.Stats().Tail, time.Now(); time.Since(since) < 4*time.Second; time.Sleep(100 * time.Millisecond) {
		if tail := c.db.Stats().Tail; tail != last {
			last, since = tail, time.Now()
		}
	}
}

// BenchmarkReclaim overwrites, deletes and lets expire at random, in rounds with reclaim and without by turns, and reports the worst of
// the log's size (target: at most 2), p99 of single writes and reads as ratios with to without reclaim (below 2), bytes that went to the
// disk for each byte written (at most 2), and the disk's share of the raw bytes that live once all has settled (at most 1).
func BenchmarkReclaim(b *testing.B) {
	bytes, segment := reclaimSize(b)
	keys := int(bytes / 16 / reclaimValue)
	for b.Loop() {
		dir := b.TempDir()
		with := &engine.Options{Commit: engine.Written, SegmentSize: segment}
		without := &engine.Options{Commit: engine.Written, SegmentSize: segment, SpaceFactor: -1}
		disk := diskWrites(b)
		c := load(b, filepath.Join(dir, "with"), with, keys)
		toDisk := diskWrites(b) - disk
		ratios := map[string][]float64{}
		for i := range reclaimRounds {
			bare := func() latencies {
				where := filepath.Join(dir, fmt.Sprint("without", i))
				other := load(b, where, without, keys)
				l := other.round(b, bytes/reclaimRounds)
				if err := errors.Join(other.db.Close(), os.RemoveAll(where)); err != nil {
					b.Fatal(err)
				}
				return l
			}
			var l, base latencies
			if i%2 == 0 {
				base = bare()
			}
			disk := diskWrites(b)
			l = c.round(b, bytes/reclaimRounds)
			if i == reclaimRounds-1 {
				c.settle()
			}
			toDisk += diskWrites(b) - disk
			if i%2 == 1 {
				base = bare()
			}
			for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99, "p999": 0.999} {
				ratios["write-"+name] = append(ratios["write-"+name], quantile(l.write, q)/quantile(base.write, q))
				ratios["read-"+name] = append(ratios["read-"+name], quantile(l.read, q)/quantile(base.read, q))
			}
			b.Logf("round %d: p99 write %.1f us with, %.1f us without; read %.1f, %.1f; log at most %.2f of what lives and 3 segments", i,
				quantile(l.write, 0.99)*1e6, quantile(base.write, 0.99)*1e6, quantile(l.read, 0.99)*1e6, quantile(base.read, 0.99)*1e6, c.worst)
		}
		for name, r := range ratios {
			b.ReportMetric(quantile(r, 0.5), name+"-ratio")
		}
		raw := float64(c.live) * float64(keySize+reclaimValue)
		b.ReportMetric(c.worst, "worst-log/live")
		b.ReportMetric((size(b, filepath.Join(dir, "with", "log"))+size(b, filepath.Join(dir, "with", "index")))/raw, "settled-disk/raw")
		if err := c.db.Close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(toDisk/float64(c.written), "disk-writes/written")
	}
}

// diskWrites is how many bytes this process has made dirty for the disk.
func diskWrites(tb testing.TB) float64 {
	tb.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		tb.Skip(err)
	}
	var written, cancelled float64
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "write_bytes: %f", &written) // one of the lines is it
		_, _ = fmt.Sscanf(line, "cancelled_write_bytes: %f", &cancelled)
	}
	return written - cancelled
}
