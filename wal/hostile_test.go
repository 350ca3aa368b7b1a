package wal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/metrics"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"shiplog/wal"
	"shiplog/wal/vfs"
	"shiplog/wal/waltest"
)

// TestTwoProcesses opens one directory in two processes, kills the first, and opens it in the second.
func TestTwoProcesses(t *testing.T) {
	const env = "SHIPLOG_TEST_HOLD"
	if dir := os.Getenv(env); dir != "" {
		if _, err := wal.Open(dir, nil); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		select {} // until it is killed
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestTwoProcesses$")
	cmd.Env = append(os.Environ(), env+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	said := make([]byte, 4)
	if _, err := out.Read(said); err != nil || string(said) != "open" {
		t.Fatalf("the other process says %q, %v", said, err)
	}
	if _, err := wal.Open(dir, nil); !errors.Is(err, wal.ErrLocked) {
		t.Errorf("while the other has it: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l, err := wal.Open(dir, nil)
	if err != nil {
		t.Fatalf("after the other was killed: %v", err)
	}
	if _, err := wal.Open(dir, nil); !errors.Is(err, wal.ErrLocked) {
		t.Errorf("twice in one process: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// allocated returns how many bytes fn allocates.
func allocated(fn func()) uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	before := s[0].Value.Uint64()
	fn()
	metrics.Read(s)
	return s[0].Value.Uint64() - before
}

// bomb packs zeros so that a decoder that believes the payload makes much of little.
func bomb(t *testing.T, codec byte) []byte {
	t.Helper()
	const size = 64 << 20
	if codec == 1 {
		return s2.Encode(nil, make([]byte, size))
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(make([]byte, size), nil)
}

// TestHostileFrames offers frames that are valid in every checksum and lie in their lengths, from a peer and on disk:
// nothing is allocated for what they claim.
func TestHostileFrames(t *testing.T) {
	const big = 1<<24 - 1
	for _, c := range []struct {
		name    string
		frame   forged
		payload []byte
		taken   bool // is stored, and fails when it is read
	}{
		{"stored length of 4 GiB", forged{stored: 1<<32 - 1, raw: 100, count: 1, flags: 3}, []byte("x"), false},
		{"stored length beyond the segment", forged{stored: 65536, raw: 65536, count: 1, flags: 3}, []byte("x"), false},
		{"raw length of 16 MiB", forged{stored: 100, raw: big, codec: 1, count: 1, flags: 3}, make([]byte, 100), false},
		{"raw length above a quarter of the segment", forged{stored: 100, raw: 16385, codec: 1, count: 1, flags: 3}, make([]byte, 100), false},
		{"plain with two lengths", forged{stored: 100, raw: 101, count: 1, flags: 3}, make([]byte, 100), false},
		{"empty", forged{count: 1, flags: 3}, nil, false},
		{"no records", forged{stored: 8, raw: 8, flags: 3}, make([]byte, 8), false},
		{"seal that does not reach the end", forged{stored: 8, flags: 8}, make([]byte, 8), false},
		{"unknown flag", forged{stored: 8, raw: 8, count: 1, flags: 0x83}, make([]byte, 8), false},
		{"continuation of nothing", forged{stored: 8, raw: 8, flags: 18}, make([]byte, 8), false},
		{"control record with two records", forged{stored: 8, raw: 8, count: 2, flags: 7}, make([]byte, 8), false},
		{"epoch that falls", forged{stored: 8, raw: 8, count: 1, flags: 3, epoch: 1}, make([]byte, 8), false},
		{"record of an epoch that falls", forged{stored: 7, raw: 7, count: 1, flags: 7, epoch: 1}, []byte{3, 0, 0, 0, 0, 0, 0}, false},
		{"batch without a beginning", forged{stored: 8, raw: 8, count: 1, flags: 2}, make([]byte, 8), false},
		{"log time that falls", forged{stored: 8, raw: 8, count: 1, flags: 3, time: 1}, make([]byte, 8), false},
		{"S2 payload that unpacks to 64 MiB", forged{raw: 4096, codec: 1, count: 1, flags: 3}, bomb(t, 1), true},
		{"Zstd payload that unpacks to 64 MiB", forged{raw: 4096, codec: 2, count: 1, flags: 3}, bomb(t, 2), true},
		{"S2 payload that claims 4 GiB", forged{raw: 4096, codec: 1, count: 1, flags: 3}, append(binary.AppendUvarint(nil, 1<<32-1), 0, 0), true},
		{"S2 payload that is none", forged{raw: 4096, codec: 1, count: 1, flags: 3}, bytes.Repeat([]byte{0xff}, 100), true},
		{"Zstd payload that is none", forged{raw: 4096, codec: 2, count: 1, flags: 3}, bytes.Repeat([]byte{0xff}, 100), true},
		{"unknown codec", forged{raw: 4096, codec: 9, count: 1, flags: 3}, bytes.Repeat([]byte{1}, 100), true},
	} {
		d := waltest.NewDisk()
		w := newWorld(d, dbDir)
		for _, err := range []error{w.open(), w.create()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		at := w.log.Head()
		head, err := d.ReadFile(filepath.Join(dbDir, "log", wal.LSN(0).String()+".seg"))
		if err != nil {
			t.Fatal(err)
		}
		salt := binary.LittleEndian.Uint64(head[32:])
		if c.frame.epoch == 0 {
			c.frame.epoch = uint32(w.log.Epoch())
		}
		if len(c.payload) > 16_000 {
			c.payload = c.payload[:16_000] // a limit that is checked elsewhere
		}
		if c.frame.time == 0 {
			c.frame.time = 60_000
		}
		if c.frame.stored == 0 && len(c.payload) > 0 {
			c.frame.stored = uint32(len(c.payload))
		}
		frame := c.frame.frame(salt, uint64(at), c.payload)
		var n int
		used := allocated(func() { n, err = w.log.AppendRaw(at, append(frame, make([]byte, 200)...)) })
		taken := 0
		if c.taken {
			taken = len(frame)
		}
		if !errors.Is(err, wal.ErrInvalid) || n != taken { // the zeros behind are not valid either
			t.Errorf("%s: took %d of %d bytes, %v", c.name, n, len(frame), err)
		}
		if c.taken {
			used += allocated(func() { _, _, err = w.log.ReadFrame(at, nil) })
			if !errors.Is(err, &wal.CorruptError{}) && !errors.Is(err, wal.ErrVersion) {
				t.Errorf("%s: read: %v", c.name, err)
			}
		}
		if err := w.log.Close(); err != nil {
			t.Error(err)
		}
		// The same on disk, where the segment is read in any case.
		d = d.Kill()
		if err := d.Overwrite(filepath.Join(dbDir, "log", wal.LSN(0).String()+".seg"), int64(at), frame); err != nil {
			t.Fatal(err)
		}
		w.opts.FS = d
		used += allocated(func() {
			if l, err := wal.Open(dbDir, &w.opts); err == nil {
				_, _ = contents(l)
				_ = l.Close()
			}
		})
		if used > 2<<20 {
			t.Errorf("%s: %d bytes were allocated", c.name, used)
		}
	}
}

// TestHostileTail fills what is behind the end of a log with what looks like the beginnings of long frames: the search
// for a later one must look at them all and still end soon. Were each payload hashed, this would take hours.
func TestHostileTail(t *testing.T) {
	d := waltest.NewDisk()
	w := newWorld(d, dbDir)
	w.opts.SegmentSize = 32 << 20
	if testing.Short() {
		w.opts.SegmentSize = 4 << 20
	}
	for _, err := range []error{w.open(), w.create(), w.append(true, []int{100})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	end := w.log.Head()
	d = d.Crash(0)
	_ = w.log.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, w.opts.SegmentSize-int64(end))
	for i := 0; i+32 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	for i := 0; i+32 <= len(p); i += 32 {
		binary.LittleEndian.PutUint32(p[i+8:], 250_000)        // stored
		binary.LittleEndian.PutUint32(p[i+12:], 250_000|1<<24) // raw, S2
		binary.LittleEndian.PutUint32(p[i+16:], 1<<12)         // epoch 1.0
		binary.LittleEndian.PutUint32(p[i+24:], 0)             // everything before was durable
		p[i+28], p[i+29], p[i+30] = 1, 0, 3
	}
	if err := d.Overwrite(filepath.Join(dbDir, "log", wal.LSN(0).String()+".seg"), int64(end), p); err != nil {
		t.Fatal(err)
	}
	w.opts.FS = d
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	if r := w.log.Recovery(); !r.Cut || r.CutFrom != end {
		t.Errorf("recovery %+v, want a cut at %v", r, end)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenLeavesNothing opens and closes a log on a real directory, and counts what it leaves open.
func TestOpenLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(vfs.OS, dir)
	for _, step := range []func() error{w.open, w.create, func() error { return w.append(true, repeat(60, 3000)...) }, w.close} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("this system does not tell which files are open: %v", err)
	}
	for range 3 {
		for _, step := range []func() error{w.open, func() error { return w.check(w.log) }, w.close} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after, err := os.ReadDir("/proc/self/fd"); err != nil || len(after) > len(files) {
		t.Errorf("%d files open before, %d after, %v", len(files), len(after), err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
	if err != nil || len(names) > 1 { // the next node file
		t.Errorf("left behind: %q, %v", names, err)
	}
}
