package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"shiplog/engine"
)

// scaleKeys is how many keys BenchmarkScale writes: 2^18 with -short, 2^22, or SHIPLOG_KEYS.
func scaleKeys(tb testing.TB) uint64 {
	if s := os.Getenv("SHIPLOG_KEYS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n < 1000 {
			tb.Fatalf("SHIPLOG_KEYS=%s: at least 1000 are needed: %v", s, err)
		}
		return n
	}
	if testing.Short() {
		return 1 << 18
	}
	return 1 << 22
}

// BenchmarkScale fills a database with keys of 16 bytes and values of 8 in random order, in a process of its own with an index
// memory of 64 MiB, or SHIPLOG_INDEX_MEMORY, and reports what that process holds in memory at most and at the end, what
// the index takes on the disk, and how long it takes from the start of Open to the first read after a clean close and after kill -9.
func BenchmarkScale(b *testing.B) {
	n := scaleKeys(b)
	for b.Loop() {
		dir := b.TempDir()
		fill := scaleChild(b, "fill", dir, n)
		b.ReportMetric(float64(n)/fill["fill_s"], "fill-keys/s")
		b.ReportMetric(fill["peak"]/(1<<20), "peak-anon-MiB")
		b.ReportMetric(fill["anon"]/(1<<20), "anon-MiB")
		b.ReportMetric(fill["file"]/(1<<20), "mapped-MiB")
		b.ReportMetric(fill["run_bytes"]/float64(n), "index-B/key")
		b.ReportMetric(fill["log_bytes"]/float64(n), "log-B/key")
		b.ReportMetric(scaleChild(b, "open", dir, n)["open_ms"], "reopen-clean-ms")
		scaleChild(b, "kill", dir, n)
		killed := scaleChild(b, "open", dir, n)
		b.ReportMetric(killed["open_ms"], "reopen-killed-ms")
		b.ReportMetric(killed["replayed"], "replayed-B")
	}
}

// scaleChild runs one part in another process and returns what it says.
func scaleChild(b *testing.B, part, dir string, n uint64) map[string]float64 {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestScaleChild$", "-test.timeout", "30m")
	cmd.Env = append(os.Environ(), "SHIPLOG_SCALE="+part, "SHIPLOG_SCALE_DIR="+dir, fmt.Sprint("SHIPLOG_SCALE_KEYS=", n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if part == "kill" {
		return nil
	}
	if err != nil {
		b.Fatalf("%s: %v\n%s", part, err, out)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	figures := map[string]float64{}
	if err := json.Unmarshal([]byte(line), &figures); err != nil {
		b.Fatalf("%s: %v\n%s", part, err, out)
	}
	return figures
}

// TestScaleChild is the other process of BenchmarkScale.
func TestScaleChild(t *testing.T) {
	part, dir := os.Getenv("SHIPLOG_SCALE"), os.Getenv("SHIPLOG_SCALE_DIR")
	if part == "" {
		t.Skip("only BenchmarkScale runs it")
	}
	n, err := strconv.ParseUint(os.Getenv("SHIPLOG_SCALE_KEYS"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	opts := &engine.Options{Commit: engine.Written, MemIndexSize: 64 << 20, CacheSize: 16 << 20}
	if s := os.Getenv("SHIPLOG_INDEX_MEMORY"); s != "" {
		mib, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		opts.MemIndexSize = mib << 20
	}
	start := time.Now()
	db, err := engine.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	figures := map[string]float64{}
	switch part {
	case "fill":
		figures["peak"] = scaleFill(t, db, n, 1)
		figures["fill_s"] = time.Since(start).Seconds()
		figures["anon"], figures["file"] = resident(t)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		figures["run_bytes"] = size(t, filepath.Join(dir, "index"))
		figures["log_bytes"] = size(t, filepath.Join(dir, "log"))
	case "open":
		v, err := db.Get(key(nil, 0))
		figures["open_ms"] = float64(time.Since(start).Microseconds()) / 1e3
		if err != nil || len(v) != 8 {
			t.Fatal(len(v), err)
		}
		s := db.Stats()
		figures["replayed"] = float64(s.Head - s.Index.RunEnd)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	case "kill":
		scaleFill(t, db, n/8, 7)
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	line, err := json.Marshal(figures)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(line))
}

// scaleFill returns the most memory of its own that the process was seen to hold.
func scaleFill(t *testing.T, db *engine.DB, n, salt uint64) (peak float64) {
	t.Helper()
	batch := db.NewBatch()
	span := uint64(1) << bits.Len64(n-1) // of which n are written
	for i := uint64(0); i < span; {
		batch.Reset()
		for ; i < span && batch.Len() < 100; i++ {
			if at := scatter(i, span); at < n {
				batch.Put(key(nil, at), strconv.AppendUint(nil, 10_000_000+(i*salt)%80_000_000, 10))
			}
		}
		if _, err := db.Commit(context.Background(), batch, engine.Default); err != nil {
			t.Fatal(err)
		}
		if i%(1<<16) < 100 {
			anon, _ := resident(t)
			peak = max(peak, anon)
		}
	}
	return peak
}

// resident is this process's memory in bytes: its own, and mapped from files.
func resident(t *testing.T) (anon, file float64) {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib float64
		if _, err := fmt.Sscanf(lines.Text(), "RssAnon: %f kB", &kib); err == nil {
			anon = kib * 1024
		}
		if _, err := fmt.Sscanf(lines.Text(), "RssFile: %f kB", &kib); err == nil {
			file = kib * 1024
		}
	}
	return anon, file
}

func size(t testing.TB, dir string) (n float64) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		n += float64(st.Blocks * 512)
	}
	return n
}
