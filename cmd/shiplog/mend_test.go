package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// verified is the verdict of verify --json on a directory.
func verified(t *testing.T, dir string) verdict {
	t.Helper()
	var all []verdict
	_, out, errs := command("verify", dir, "--json")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	return all[0]
}

// segmentFiles reads the files of a log by their names.
func segmentFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "log", "*"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, path := range paths {
		if files[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// spoil damages the log of a node that is stopped, below an LSN, and says how.
func spoil(t *testing.T, rng *rand.Rand, dir string, segment, below int64) string {
	t.Helper()
	const block = 4096
	files, err := filepath.Glob(filepath.Join(dir, "log", "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	open := func(at int64) (path string, b []byte, off int64) {
		for _, path := range files {
			base, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(path), ".seg"), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			if base == at/segment*segment {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				return path, b, at - base
			}
		}
		return "", nil, 0 // removed before
	}
	save := func(path string, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := rng.Int64N(below/block+1) * block
	if rng.IntN(4) == 0 {
		at = at / segment * segment // a header
	}
	path, b, off := open(at)
	if path == "" || at >= below || off >= int64(len(b)) {
		return "none"
	}
	p := b[off:min(off+block, int64(len(b)), off+below-at)]
	was := bytes.Clone(p)
	kind := []string{"flip", "zero", "swap", "missing", "short"}[rng.IntN(5)]
	switch kind {
	case "flip":
		p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
	case "zero":
		clear(p)
	case "swap":
		other := rng.Int64N(below/block) * block
		otherPath, b2, off2 := open(other)
		if otherPath == "" || off2+block > int64(len(b2)) || len(p) < block {
			clear(p)
			break
		}
		if otherPath == path {
			b2 = b
		}
		q := b2[off2 : off2+block]
		copy(p, bytes.Clone(q))
		copy(q, was)
		save(otherPath, b2)
	case "missing":
		if len(files) > 1 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return kind
		}
		clear(p)
	case "short":
		save(path, b[:off])
		return kind
	}
	if kind != "swap" && bytes.Equal(p, was) { // zeros, in a block of zeros
		p[0] ^= 1
	}
	save(path, b)
	return kind
}

// TestMendStopped damages the log of a node of three that is stopped, the leader's too, after a clean end and after a kill: bits flipped, blocks zeroed
// or at each other's place, files shortened or gone. One call mends it from any other node, to the bytes that there were; once more there is nothing to mend; the
// node starts, and all logs are the same. SHIPLOG_SEED reruns one; SHIPLOG_DAMAGE sets the number of rounds.
func TestMendStopped(t *testing.T) {
	rounds, seed := 6, uint64(time.Now().UnixNano())%1e9
	if testing.Short() {
		rounds = 3
	}
	for name, to := range map[string]func(n int){"SHIPLOG_DAMAGE": func(n int) { rounds = n }, "SHIPLOG_SEED": func(n int) { seed = uint64(n) }} {
		if s := os.Getenv(name); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			to(n)
		}
	}
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	const segment = 128 << 10
	dir := t.TempDir()
	common := []string{"--space-factor", "-1", "--scrub-interval", "0"}
	a := newNode(t, filepath.Join(dir, "a"), append([]string{"--commit", "replicated:1", "--segment-size", strconv.Itoa(segment), "--name", "a"}, common...)...)
	a.relaunch()
	b := startNode(t, filepath.Join(dir, "b"), append([]string{"--follow", a.ship, "--name", "b"}, common...)...)
	c := startNode(t, filepath.Join(dir, "c"), append([]string{"--follow", a.ship, "--name", "c"}, common...)...)
	nodes := []*process{a, b, c}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	allCount(a, b, c)
	kinds := map[string]int{}
	for round := range rounds {
		size := int64(a.status().Head) + 600<<10
		fill(t, a.client(), func(int64) bool { return int64(a.status().Head) >= size })
		head := a.status().Head
		for _, p := range nodes {
			p.until("it has all", func() bool { s := p.status(); return s.Committed >= head && s.Durable >= head })
		}
		victim := nodes[rng.IntN(len(nodes))]
		peer := nodes[(slices.Index(nodes, victim)+1+rng.IntN(len(nodes)-1))%len(nodes)]
		how := "stopped"
		if rng.IntN(2) == 0 {
			how = "killed"
			victim.kill()
		} else {
			victim.stop()
		}
		sound := verified(t, victim.dir)
		before := segmentFiles(t, victim.dir)
		below := max(sound.Durable, sound.Head/segment*segment) // a header says that all before it was durable
		hits := []string{}
		for range 1 + rng.IntN(5) {
			hits = append(hits, spoil(t, rng, victim.dir, segment, int64(below)))
			kinds[hits[len(hits)-1]]++
		}
		what := fmt.Sprintf("round %d: %s, %s, durable to %d, head %d; damage %v; from %s", round, victim.name(), how, sound.Durable, sound.Head, hits, peer.name())
		code, out, errs := command("repair", victim.dir, "--from", peer.ship)
		if code != exitOK {
			t.Fatalf("%s: repair: %d\n%s%s", what, code, out, errs)
		}
		t.Logf("%s\n%s", what, out)
		after := segmentFiles(t, victim.dir)
		for name, was := range before {
			base, _ := strconv.ParseUint(strings.TrimSuffix(name, ".seg"), 16, 64)
			n := min(uint64(len(was)), sound.Head-min(base, sound.Head))
			if now := after[name]; uint64(len(now)) < n || !bytes.Equal(now[:n], was[:n]) {
				t.Errorf("%s: %s is not what it was: %d bytes, want %d", what, name, len(now), n)
			}
		}
		if now := verified(t, victim.dir); !now.OK || now.Head < sound.Head || now.Head == sound.Head && now.Digest != sound.Digest {
			t.Errorf("%s: verify: %+v, before the damage %+v", what, now, sound)
		}
		if code, out, errs := command("repair", victim.dir, "--from", "127.0.0.1:1"); code != exitOK || !strings.Contains(out, "nothing to mend") {
			t.Errorf("%s: once more: %d %s%s", what, code, out, errs)
		}
		victim.relaunch()
		if victim == a {
			allCount(a, b, c)
		}
		for _, p := range nodes {
			p.until("it has all again", func() bool { s := p.status(); return s.Committed >= head && s.Durable >= head })
		}
	}
	for _, p := range nodes[1:] {
		code, out, errs := command("compare", a.http, p.http)
		if code != exitOK {
			t.Errorf("compare: %d %s%s", code, out, errs)
		}
		p.stop()
	}
	a.stop()
	t.Log("damage:", kinds)
}

// TestMendStoppedRefused: what cannot be mended is said in a line, and the directory stays as it was: no node there, another database, another secret,
// another history, and a node that runs. The same directory is mended at last by the node that can.
func TestMendStoppedRefused(t *testing.T) {
	dir := t.TempDir()
	secret, other := filepath.Join(dir, "secret"), filepath.Join(dir, "other")
	for _, path := range []string{secret, other} {
		if err := os.WriteFile(path, []byte(filepath.Base(path)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const segment = 64 << 10
	args := []string{"--secret-file", secret, "--scrub-interval", "0"}
	leading := append(args, "--segment-size", strconv.Itoa(segment), "--space-factor", "-1")
	a := startNode(t, filepath.Join(dir, "a"), leading...)
	b := startNode(t, filepath.Join(dir, "b"), append(args, "--follow", a.ship)...)
	stranger := startNode(t, filepath.Join(dir, "stranger"), leading...)
	fill(t, a.client(), func(n int64) bool { return n >= 300<<10 })
	b.until("has all", func() bool { return b.status().Durable == a.status().Head })
	b.stop()
	forked := verified(t, b.dir).Head
	if err := os.CopyFS(filepath.Join(dir, "fork"), os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	fork := startNode(t, filepath.Join(dir, "fork"), leading...)
	if code, out, errs := command("promote", "--force", "--http", fork.http); code != exitOK { // it leads in an epoch of its own
		t.Fatal(out, errs)
	}
	fill(t, fork.client(), func(n int64) bool { return n >= 100<<10 })
	fill(t, a.client(), func(n int64) bool { return n >= 100<<10 })
	b.start()
	b.until("has all", func() bool { return b.status().Durable == a.status().Head })
	if code, out, errs := command("repair", b.dir, "--from", a.ship, "--secret-file", secret); code != exitFailure || !strings.Contains(out, "a node uses it") {
		t.Errorf("a running node: %d %s%s", code, out, errs)
	}
	b.stop()
	name := fmt.Sprintf("%016x.seg", forked/segment*segment)
	path := filepath.Join(b.dir, "log", name)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	clear(bad[256:600]) // before the fork, the first frame behind the header
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	before := segmentFiles(t, b.dir)
	for _, test := range []struct{ from, secret, want string }{
		{"127.0.0.1:1", secret, "connection refused"},
		{stranger.ship, secret, "another database"},
		{a.ship, other, "secret"},
		{fork.ship, secret, "the histories differ"}, // the segment begins before the fork
	} {
		code, out, errs := command("repair", b.dir, "--from", test.from, "--secret-file", test.secret)
		if code != exitFailure || !strings.Contains(out, test.want) || strings.Count(out, "\n") != 1 || errs != "shiplog: see above\n" && errs != "" {
			t.Errorf("from %s: %d %q %q, want %q", test.from, code, out, errs, test.want)
		}
		if now := segmentFiles(t, b.dir); !maps.EqualFunc(now, before, bytes.Equal) {
			t.Fatalf("from %s: the log was changed", test.from)
		}
	}
	var m mended
	code, out, errs := command("repair", b.dir, "--from", a.ship, "--secret-file", secret, "--json")
	if err := json.Unmarshal([]byte(out), &m); err != nil || code != exitOK || !m.OK || m.Damaged != 1 || m.Bytes != 4096 || len(m.Mended) != 1 {
		t.Errorf("%d %s%s %v", code, out, errs, err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
		t.Errorf("not as it was: %v", err)
	}
}
