package wal_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"shiplog/wal"
)

var rewrite = flag.Bool("rewrite", false, "write golden files and the dump in FORMAT.md anew")

// exampleHeader is the header of the log in FORMAT.md.
func exampleHeader() wal.Header {
	h := wal.Header{
		Salt: 0x0123456789abcdef, SegmentSize: wal.MinSegmentSize, Epoch: wal.MakeEpoch(1, 0), History: 0xa1a2a3a4a5a6a7a8,
		Time: 1_700_000_000_000,
	}
	for i := range h.Database {
		h.Database[i], h.Leader[i] = byte(i), byte(0xf0+i)
	}
	return h
}

// exampleLog builds the bytes of the log in FORMAT.md with the second implementation of the format.
func exampleLog() []byte {
	h := exampleHeader()
	header := h.Marshal()
	log := header[:]
	add := func(f forged, payload []byte) {
		f.stored, f.epoch = uint32(len(payload)), uint32(h.Epoch)
		if f.raw == 0 {
			f.raw = f.stored
		}
		log = append(log, f.frame(h.Salt, uint64(len(log)), payload)...)
	}
	epoch := []byte{1}
	epoch = binary.LittleEndian.AppendUint32(epoch, uint32(h.Epoch))
	epoch = binary.LittleEndian.AppendUint64(epoch, wal.HeaderSize)
	epoch = append(epoch, h.Leader[:]...)
	epoch = binary.LittleEndian.AppendUint64(epoch, uint64(h.History))
	epoch = append(epoch, 3, 0, 0, 0, 0, 0) // level 3, no voters
	add(forged{count: 1, flags: 7, distance: wal.HeaderSize}, epoch)
	// Two batches in a frame: put a=1 and delete b; put c=2, until 1 s after the header's time.
	small := []byte{1, 1, 'a', 1, '1', 3 | 0x80, 1, 'b', 2 | 0x80, 1, 'c'}
	small = binary.LittleEndian.AppendUint64(small, uint64(h.Time+1000))
	small = append(small, 1, '2')
	add(forged{count: 3, flags: 3, time: 5}, small)
	// A batch compressed with S2: put d = 64 times x.
	add(forged{count: 1, flags: 3, time: 7, codec: 1, raw: 68, distance: 1<<32 - 1},
		[]byte{0x44, 0x10, 0x81, 0x01, 'd', 0x40, 'x', 0xfa, 0x01, 0x00})
	return log
}

// TestFormatPage takes the dump out of FORMAT.md, compares it with what the second implementation makes of the
// same content, and has the log read it.
func TestFormatPage(t *testing.T) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	want := exampleLog()
	dump := regexp.MustCompile(`(?m)^    [0-9a-f]{8}  .*\n`)
	if *rewrite {
		done := false
		page = dump.ReplaceAllFunc(page, func([]byte) []byte {
			if done {
				return nil
			}
			done = true
			return []byte(hexLines(want))
		})
		if err := os.WriteFile("FORMAT.md", page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := parseDump(t, dump.FindAllString(string(page), -1))
	if !bytes.Equal(got, want) {
		t.Fatalf("the page holds\n%s\nwant\n%s", hexLines(got), hexLines(want))
	}
	l, err := wal.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if n, err := l.AppendRaw(0, got); n != len(got) || err != nil {
		t.Fatalf("%d bytes of %d taken: %v", n, len(got), err)
	}
	r := l.NewReader(0)
	var lines []string
	for r.Next() {
		f := r.Frame()
		lines = append(lines, fmt.Sprintf("%d %d %s %d %d %v %q", f.LSN, f.Records, f.Codec, f.Time-1_700_000_000_000, f.Promise, f.HasPromise, r.Raw()))
	}
	if r.Err() != nil || len(lines) != 3 {
		t.Fatal(lines, r.Err())
	}
	if want := `264 1 s2 7 0 false "\x81\x01d@` + strings.Repeat("x", 64) + `"`; lines[2] != want {
		t.Errorf("got  %s\nwant %s", lines[2], want)
	}
	if d, err := l.DigestAt(l.Head()); err != nil || !strings.Contains(string(page), "`"+d.String()+"`") {
		t.Errorf("the digest at the end is %v, %v; the page says another", d, err)
	}
	if h := l.History(); len(h) != 1 || h[0].ID != exampleHeader().History || h[0].Epoch != wal.MakeEpoch(1, 0) {
		t.Errorf("history %+v", h)
	}
}

func hexLines(p []byte) string {
	var b strings.Builder
	for i := 0; i < len(p); i += 16 {
		fmt.Fprintf(&b, "    %08x  % x\n", i, p[i:min(i+16, len(p))])
	}
	return b.String()
}

func parseDump(t *testing.T, lines []string) []byte {
	t.Helper()
	var p []byte
	for _, line := range lines {
		fields := strings.Fields(line)
		if want := fmt.Sprintf("%08x", len(p)); fields[0] != want {
			t.Fatalf("line of the dump begins at %s, want %s", fields[0], want)
		}
		b, err := hex.DecodeString(strings.Join(fields[1:], ""))
		if err != nil {
			t.Fatal(err)
		}
		p = append(p, b...)
	}
	return p
}

// TestControlGolden encodes each control record, compares it with the file of this version, and decodes the file.
func TestControlGolden(t *testing.T) {
	id := exampleHeader().Leader
	rule := wal.Rule{Level: 7, First: true, Voters: []wal.Voter{{ID: id, Name: "a", Addr: "10.0.0.1:7380"}, {Name: "b"}}}
	for name, c := range map[string]wal.Control{
		"epoch": &wal.EpochRecord{Epoch: wal.MakeEpoch(3, 1), Start: 0x12a8, Leader: id, History: 77, Rule: rule},
		"tail": &wal.TailRecord{
			Tail: 1 << 20, Rule: rule, FormatLevel: 2, DegradedFrom: 99, ClockFloor: 1_700_000_000_123,
			History: []wal.HistoryEntry{{Epoch: wal.MakeEpoch(1, 0), Start: 128, ID: 5, Leader: id}, {Epoch: wal.MakeEpoch(2, 0), Start: 4096, ID: 6}},
		},
		"rule":           &wal.RuleRecord{Rule: rule},
		"degraded-begin": &wal.DegradedRecord{Begin: true, From: 4242},
		"degraded-end":   &wal.DegradedRecord{From: 4242},
		"format":         &wal.FormatRecord{Level: 2},
	} {
		got, err := wal.AppendControl(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "control", name+".v1.hex")
		if *rewrite {
			if err := os.WriteFile(file, []byte(hex.Dump(got)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if hex.Dump(got) != string(want) {
			t.Errorf("%s: got\n%swant\n%s", name, hex.Dump(got), want)
		}
		back, err := wal.DecodeControl(got)
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("%s: decoded %+v, %v, want %+v", name, back, err, c)
		}
		for n := range got {
			if _, err := wal.DecodeControl(got[:n]); !errors.Is(err, wal.ErrInvalid) {
				t.Errorf("%s: the first %d bytes: %v, want ErrInvalid", name, n, err)
			}
		}
		if _, err := wal.DecodeControl(append(got[:len(got):len(got)], 0)); !errors.Is(err, wal.ErrInvalid) {
			t.Errorf("%s: one byte more: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := wal.DecodeControl([]byte{200}); !errors.Is(err, wal.ErrVersion) {
		t.Errorf("unknown type: %v, want ErrVersion", err)
	}
}

// TestHeaderRoundTrip decodes what Marshal encodes, and nothing with a bit inverted.
func TestHeaderRoundTrip(t *testing.T) {
	h := exampleHeader()
	h.Base, h.Digest = 5*wal.MinSegmentSize, 0x1122334455667788
	b := h.Marshal()
	var got wal.Header
	if err := got.Unmarshal(b[:]); err != nil || got != h {
		t.Fatalf("got %+v, %v, want %+v", got, err, h)
	}
	for i := range len(b) * 8 {
		c := b
		c[i/8] ^= 1 << (i % 8)
		if err := got.Unmarshal(c[:]); !errors.Is(err, wal.ErrInvalid) {
			t.Errorf("bit %d inverted: %v, want ErrInvalid", i, err)
		}
	}
	for n := range b {
		if err := got.Unmarshal(b[:n]); !errors.Is(err, wal.ErrInvalid) {
			t.Errorf("%d bytes: %v, want ErrInvalid", n, err)
		}
	}
}

// TestNames reads back what the String methods write.
func TestNames(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		p := wal.Position{Epoch: wal.Epoch(rng.Uint32()), LSN: wal.LSN(rng.Uint64())}
		if got, err := wal.ParsePosition(p.String()); err != nil || got != p {
			t.Fatalf("%v: got %v, %v", p, got, err)
		}
		r := wal.MakeRef(wal.LSN(rng.Uint64N(uint64(wal.MaxRefLSN)))&^7, rng.IntN(4096))
		if back := wal.MakeRef(r.LSN(), r.Offset()); back != r {
			t.Fatalf("%v: got %v", r, back)
		}
	}
	id := exampleHeader().Database
	if got, err := wal.ParseDatabaseID(id.String()); err != nil || got != id {
		t.Errorf("%v: got %v, %v", id, got, err)
	}
	for _, s := range []string{"", "1", "1.", ".1", "1.2.3", "1048576.0", "1.4096", "-1.0", "x.y"} {
		if e, err := wal.ParseEpoch(s); err == nil {
			t.Errorf("%q is epoch %v", s, e)
		}
	}
	for _, s := range []string{"", "1/2", "1.0", "1.0/", "1.0/g", "1.0/00000000000000001"} {
		if p, err := wal.ParsePosition(s); err == nil {
			t.Errorf("%q is position %v", s, p)
		}
	}
}
