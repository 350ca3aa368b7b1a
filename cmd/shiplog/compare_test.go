package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"shiplog/engine"
)

// TestCompareReadsDirectories: two directories whose digests agree are not identical if one does not hold, in a segment that no open looks
// at, what its digests speak of.
func TestCompareReadsDirectories(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	db, err := engine.Open(a, &engine.Options{SegmentSize: 64 << 10, Compression: engine.NoCompression})
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if err := db.Put([]byte("key"), make([]byte, 4000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(b, os.DirFS(a)); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := command("compare", a, b); code != exitOK {
		t.Fatalf("before: %d %s%s", code, out, errs)
	}
	const at = 30_000
	first := filepath.Join(b, "log", "0000000000000000.seg")
	raw, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	raw[at] ^= 1
	if err := os.WriteFile(first, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sides := range [][2]string{{a, b}, {b, a}} {
		code, out, errs := command("compare", sides[0], sides[1], "--json")
		var found comparison
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatalf("%v: %s%s", err, out, errs)
		}
		if code != exitFailure || found.Identical || found.Differ > at || found.Differ < at-4200 || found.To != found.Differ || found.Reason == "" {
			t.Errorf("after a flip at %d: %d %+v", at, code, found)
		}
	}
}
