package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
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

// scaleKeys is how many keys BenchmarkScale writes, a power of two: 2^18 with -short, 2^22, or SHIPLOG_KEYS.
func scaleKeys(tb testing.TB) uint64 {
	if s := os.Getenv("SHIPLOG_KEYS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n&(n-1) != 0 {
			tb.Fatalf("SHIPLOG_KEYS=%s is not a power of two: %v", s, err)
		}
		return n
	}
	if testing.Short() {
		return 1 << 18
	}
	return 1 << 22
}

// BenchmarkScale fills a database with keys of 16 bytes and values of 8 in random order, in a process of its own with an index
// memory of 64 MiB, and reports what that process holds in memory, what the index takes on the disk, and how long it takes from
// the start of Open to the first read after a clean close and after kill -9.
func BenchmarkScale(b *testing.B) {
	n := scaleKeys(b)
	for b.Loop() {
		dir := b.TempDir()
		fill := scaleChild(b, "fill", dir, n)
		b.ReportMetric(float64(n)/fill["fill_s"], "fill-keys/s")
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
	start := time.Now()
	db, err := engine.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	figures := map[string]float64{}
	switch part {
	case "fill":
		scaleFill(t, db, n, 1)
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

func scaleFill(t *testing.T, db *engine.DB, n, salt uint64) {
	t.Helper()
	batch := db.NewBatch()
	for i := uint64(0); i < n; {
		batch.Reset()
		for range min(100, n-i) {
			batch.Put(key(nil, scatter(i, n)), strconv.AppendUint(nil, 10_000_000+(i*salt)%80_000_000, 10))
			i++
		}
		if _, err := db.Commit(context.Background(), batch, engine.Default); err != nil {
			t.Fatal(err)
		}
	}
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

func size(t *testing.T, dir string) (n float64) {
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
