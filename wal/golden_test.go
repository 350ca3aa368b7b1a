package wal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"shiplog/wal"
)

// goldenDir is a log directory that an earlier build of this format version has written; goldenText is what is in it.
// They stay as they are while the version does: -rewrite is for a new one.
const (
	goldenDir  = "testdata/v1"
	goldenText = "testdata/v1.txt"
)

// TestGoldenDirectory reads a directory that was written once, and one that this build writes by the same steps, with a
// decoder made from FORMAT.md alone: what it finds in either is the same, and is what is written down. The log opens the old one.
func TestGoldenDirectory(t *testing.T) {
	fresh := t.TempDir()
	writeGolden(t, fresh)
	if *rewrite {
		keepGolden(t, fresh)
	}
	b, err := os.ReadFile(goldenText)
	if err != nil {
		t.Fatal(err)
	}
	want := string(b)
	if got := decodeDirectory(t, goldenDir); got != want {
		t.Errorf("the golden directory holds\n%s\nwant\n%s", got, want)
	}
	// Another version of a compressor may pack tighter, which moves what is behind.
	number := regexp.MustCompile(`\d{3,}`)
	if got, want := number.ReplaceAllString(decodeDirectory(t, fresh), "#"), number.ReplaceAllString(want, "#"); got != want {
		t.Errorf("a directory that is written now holds\n%s\nwant\n%s", got, want)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(goldenDir)); err != nil {
		t.Fatal(err)
	}
	l, err := wal.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if r := l.Recovery(); r.Cut || r.MarkLost || r.PreviousNode.IsZero() || l.Epoch() != wal.MakeEpoch(1, 2) || len(l.History()) != 3 {
		t.Errorf("%+v, epoch %v, history %v", r, l.Epoch(), l.History())
	}
	r := l.NewReader(0)
	records := 0
	for r.Next() {
		if !r.Frame().Control() {
			records += r.Frame().Records
		}
	}
	if r.Err() != nil || records != 7 {
		t.Errorf("%d records, %v", records, r.Err())
	}
}

// writeGolden makes a log with everything that the format has.
func writeGolden(t *testing.T, dir string) {
	clock := time.UnixMilli(1_700_000_000_000)
	o := &wal.Options{SegmentSize: wal.MinSegmentSize, Inline: true, Now: func() time.Time { clock = clock.Add(time.Millisecond); return clock }}
	var l *wal.Log
	open := func() (err error) { l, err = wal.Open(dir, o); return err }
	put := func(key string, value []byte) []byte {
		rec := append([]byte{1, byte(len(key))}, key...)
		return append(binary.AppendUvarint(rec, uint64(len(value))), value...)
	}
	add := func(batches ...[][]byte) func() error {
		return func() error {
			var all []*wal.Batch
			for _, records := range batches {
				b := new(wal.Batch)
				for _, rec := range records {
					b.Add(rec)
				}
				all = append(all, b)
			}
			if _, err := l.Append(all, true); err != nil {
				return err
			}
			_, err := l.Sync()
			return err
		}
	}
	control := func(c wal.Control) func() error {
		return func() error { _, err := l.AppendControl(c, true); return err }
	}
	rule := wal.Rule{Level: 0x105, Voters: []wal.Voter{{Name: "b"}, {ID: wal.NodeID{0xb}, Name: "c", Addr: "c:7380"}}}
	ttl := binary.LittleEndian.AppendUint64([]byte{2, 1, 't'}, 1_800_000_000_000)
	moved := append(binary.LittleEndian.AppendUint64([]byte{5}, 1<<20), put("m", []byte("1"))...)
	boundary := wal.LSN(0)
	steps(t,
		open,
		func() error { return l.Create(rule) },
		add([][]byte{put("a", []byte("1")), {3, 1, 'b'}}, [][]byte{append(ttl, 1, '2')}),
		add([][]byte{put("s", bytes.Repeat([]byte("s2"), 300))}),
		func() error { return l.Close() },
		func() error { o.Compression = wal.Zstd; return open() },
		add([][]byte{put("z", bytes.Repeat([]byte("zstd"), 300))}),
		add([][]byte{put("long", bytes.Repeat([]byte("0123456789abcdef"), 2500))}), // over three frames
		func() error { clock = clock.Add(50 * 24 * time.Hour); return nil },        // seals the segment
		add([][]byte{moved}),
		func() error { _, err := l.StartEpoch(wal.MakeEpoch(1, 1), rule); return err },
		control(&wal.RuleRecord{Rule: wal.Rule{Level: 3}}),
		control(&wal.DegradedRecord{Begin: true, From: 128}),
		control(&wal.DegradedRecord{From: 128}),
		control(&wal.FormatRecord{Level: 1}),
		func() error {
			return control(&wal.TailRecord{History: l.History(), Rule: rule, FormatLevel: 1, DegradedFrom: 128, ClockFloor: 1_700_000_000_000})()
		},
		func() error { boundary = l.Head(); return nil },
		add([][]byte{{4, 1, 'a', 1, 'b'}}),
		func() error { return l.Truncate(boundary) }, // into diverged/
		func() error { _, err := l.StartEpoch(wal.MakeEpoch(1, 2), rule); return err },
		func() error { _, err := l.Sync(); l.SetCommitted(boundary); return err },
		func() error { return l.Close() },
	)
}

// keepGolden copies a directory, without the zeros at the ends of segments, and what the decoder finds in it.
func keepGolden(t *testing.T, dir string) {
	if err := os.RemoveAll(goldenDir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(goldenDir, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(goldenDir + "/log/*")
	if err = errors.Join(err, os.Remove(goldenDir+"/node.tmp")); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(name, bytes.TrimRight(b, "\x00"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(goldenText, []byte(decodeDirectory(t, goldenDir)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// directory decodes the files of a log as FORMAT.md describes them. What is random gets a name at its first appearance.
type directory struct {
	t     *testing.T
	out   strings.Builder
	names map[string]string

	salt, digest uint64
	at           uint64
	epoch        uint32
	segTime      int64
	time         int64
	open         bool
	raw          []byte // of the records of an open batch
}

func decodeDirectory(t *testing.T, dir string) string {
	t.Helper()
	d := &directory{t: t, names: map[string]string{}}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	list := func(pattern string) []string {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for i := range names {
			names[i], _ = filepath.Rel(dir, names[i])
		}
		slices.Sort(names)
		return names
	}
	d.ok(len(read("LOCK")) == 0, "LOCK is not empty")
	d.node(read("node"))
	for _, name := range list("log/*.seg") {
		d.segment(name, read(name))
	}
	d.printf("end %d open %v\n", d.at, d.open)
	d.mark(read("mark"))
	for _, name := range list("diverged/*") {
		d.cut(name, read(name))
	}
	return d.out.String()
}

func (d *directory) printf(format string, args ...any) { fmt.Fprintf(&d.out, format, args...) }

func (d *directory) ok(holds bool, format string, args ...any) {
	d.t.Helper()
	if !holds {
		d.t.Fatalf(format, args...)
	}
}

// name names random bytes of a kind; all zeros are "none".
func (d *directory) name(kind string, id []byte) string {
	if isZero(id) {
		return "none"
	}
	key := kind + string(id)
	if d.names[key] == "" {
		n := 1
		for k := range d.names {
			if strings.HasPrefix(k, kind) {
				n++
			}
		}
		d.names[key] = fmt.Sprint(kind, n)
	}
	return d.names[key]
}

func (d *directory) bind() uint64 { return bind(d.salt, d.at) }

func (d *directory) step(checksum uint64) { d.digest = mix(d.digest^checksum) + 0x9E3779B97F4A7C15 }

var le = binary.LittleEndian

func isZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func epochText(e uint32) string { return fmt.Sprintf("%d.%d", e>>12, e&0xfff) }

func (d *directory) node(b []byte) {
	d.ok(len(b) == 128 && string(b[:8]) == "SHIPNODE" && le.Uint32(b[8:]) == 1, "node file: % x", b)
	d.ok(xxhash.Sum64(b[:120]) == le.Uint64(b[120:]), "checksum of the node file")
	d.ok(le.Uint64(b[32:]) != 0 && isZero(b[12:16]) && isZero(b[88:120]), "fields of the node file: % x", b)
	d.printf("node %s promised %s led %s clean %d cut %x database %s\n", d.name("node", b[16:32]), epochText(le.Uint32(b[48:])), epochText(le.Uint32(b[52:])),
		le.Uint64(b[56:]), le.Uint64(b[64:]), d.name("database", b[72:88]))
}

func (d *directory) mark(b []byte) {
	best := []byte(nil)
	for _, at := range []int{0, 4096} {
		s := b[at : at+88]
		valid := string(s[:8]) == "SHIPMARK" && xxhash.Sum64(s[:80]) == le.Uint64(s[80:])
		if valid && (best == nil || le.Uint64(s[8:]) > le.Uint64(best[8:])) {
			best = s
		}
	}
	d.ok(best != nil && isZero(best[52:56]), "no valid slot in the mark file")
	d.ok(le.Uint64(best[56:]) == 0 || le.Uint64(best[64:]) == d.digest, "the digest of the mark is not that of the log's end")
	d.printf("mark database %s durable %d committed %d epoch %s end %d time %d\n", d.name("database", best[16:32]), le.Uint64(best[32:]),
		le.Uint64(best[40:]), epochText(le.Uint32(best[48:])), le.Uint64(best[56:]), int64(le.Uint64(best[72:])))
}

// header decodes the header of the segment at the decoder's LSN.
func (d *directory) header(b []byte) {
	d.salt = le.Uint64(b[32:])
	d.ok(string(b[:8]) == "SHIPLOG\x01" && le.Uint32(b[8:]) == 1 && isZero(b[12:16]) && isZero(b[60:64]) && isZero(b[104:120]), "segment header at %d", d.at)
	d.ok(le.Uint64(b[40:]) == d.at && le.Uint64(b[48:]) == wal.MinSegmentSize, "base or size in the header at %d", d.at)
	d.ok(le.Uint64(b[120:]) == xxhash.Sum64(b[:120])^d.bind(), "checksum of the header at %d", d.at)
	d.epoch, d.segTime = le.Uint32(b[56:]), int64(le.Uint64(b[88:]))
	d.printf("segment %d database %s epoch %s leader %s history %s time %d\n", d.at, d.name("database", b[16:32]), epochText(d.epoch), d.name("node", b[64:80]),
		d.name("history", b[80:88]), d.segTime)
}

func (d *directory) segment(name string, b []byte) {
	d.ok(name == fmt.Sprintf("log/%016x.seg", d.at), "file %s, the log has come to %d", name, d.at)
	b = append(b, make([]byte, wal.MinSegmentSize-len(b))...) // what lies past the end of the file reads as zeros
	d.header(b)
	d.ok(le.Uint64(b[96:]) == d.digest, "digest in the header at %d", d.at)
	d.at += 128
	d.step(le.Uint64(b[120:]))
	d.time = d.segTime
	d.frames(b[128:])
}

// frames decodes frames up to zeros, a seal or the end of p, which ends with the segment or with the log.
func (d *directory) frames(p []byte) {
	for len(p) >= 32 && !isZero(p[:32]) {
		a, b, c := le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
		d.ok(byte(c>>56) == byte(mix(d.bind()^mix(a^mix(b^mix(c&(1<<56-1)))))>>56), "head check at %d", d.at)
		stored, raw, codec := int(le.Uint32(p[8:])), int(p[12])|int(p[13])<<8|int(p[14])<<16, p[15]
		epoch, time, distance, records, flags := le.Uint32(p[16:]), d.segTime+int64(le.Uint32(p[20:])), le.Uint32(p[24:]), le.Uint16(p[28:]), p[30]
		d.ok(le.Uint64(p) == xxhash.Sum64(p[8:32+stored])^d.bind(), "checksum at %d", d.at)
		padded := (32 + stored + 7) &^ 7
		d.ok(isZero(p[32+stored:padded]) && epoch >= d.epoch && time >= d.time, "padding, epoch or time at %d", d.at)
		promise := "none"
		if distance != 1<<32-1 {
			promise = fmt.Sprint(d.at - uint64(distance))
		}
		d.printf("%d flags %d codec %d raw %d records %d epoch %s time +%d promise %s", d.at, flags, codec, raw, records, epochText(epoch), time-d.segTime, promise)
		payload := p[32 : 32+stored]
		switch {
		case flags&8 != 0:
			d.ok(flags == 8 && isZero(payload) && (d.at+uint64(padded))%wal.MinSegmentSize == 0, "seal at %d", d.at)
			d.printf(": seal\n")
		case flags&4 != 0:
			d.printf(": ")
			d.control(payload)
		default:
			d.ok((flags&1 != 0) != d.open, "batches at %d", d.at)
			d.open = flags&2 == 0
			d.printf("\n")
			d.raw = append(d.raw, d.unpack(payload, codec, raw)...)
			if !d.open {
				d.records()
			}
		}
		d.epoch, d.time = epoch, time
		d.step(le.Uint64(p))
		d.at, p = d.at+uint64(padded), p[padded:]
	}
	d.ok(isZero(p), "bytes behind the last frame, at %d", d.at)
}

func (d *directory) unpack(p []byte, codec byte, raw int) []byte {
	var err error
	switch codec {
	case 1:
		p, err = s2.Decode(nil, p)
	case 2:
		var dec *zstd.Decoder
		if dec, err = zstd.NewReader(nil); err == nil {
			defer dec.Close()
			p, err = dec.DecodeAll(p, nil)
		}
	}
	d.ok(err == nil && len(p) == raw, "payload at %d: %d bytes, %v", d.at, len(p), err)
	return p
}

// take takes n bytes off the front of p.
func (d *directory) take(p *[]byte, n int) []byte {
	d.ok(n <= len(*p), "a record at %d is cut short", d.at)
	b := (*p)[:n]
	*p = (*p)[n:]
	return b
}

func (d *directory) bytes(p *[]byte) string {
	n, w := binary.Uvarint(*p)
	d.take(p, w)
	b := d.take(p, int(n))
	if len(b) > 20 {
		return fmt.Sprintf("%d bytes, XXH64 %016x", n, xxhash.Sum64(b))
	}
	return fmt.Sprintf("%q", b)
}

func (d *directory) records() {
	for p := d.raw; len(p) > 0; {
		op := d.take(&p, 1)[0]
		d.printf("    ")
		if op&0x3f == 5 {
			ref := le.Uint64(d.take(&p, 8))
			d.printf("from %d+%d ", ref>>12*8, ref&0xfff)
			op = op&0x80 | d.take(&p, 1)[0]
		}
		d.printf("%s %s", [...]string{"", "put", "put", "delete", "delete range"}[op&0x3f], d.bytes(&p))
		if op&0x3f == 2 {
			d.printf(" until %d", le.Uint64(d.take(&p, 8)))
		}
		if op&0x3f != 3 {
			d.printf(" %s", d.bytes(&p))
		}
		if op&0x80 != 0 {
			d.printf(" last")
		}
		d.printf("\n")
	}
	d.raw = d.raw[:0]
}

func (d *directory) control(p []byte) {
	u32 := func() uint32 { return le.Uint32(d.take(&p, 4)) }
	u64 := func() uint64 { return le.Uint64(d.take(&p, 8)) }
	id := func(kind string, n int) string { return d.name(kind, d.take(&p, n)) }
	rule := func() {
		d.printf(" rule %#x first %d", u32(), d.take(&p, 1)[0])
		for range d.take(&p, 1)[0] {
			node := id("node", 16)
			name := d.take(&p, int(d.take(&p, 1)[0]))
			addr := d.take(&p, int(d.take(&p, 1)[0]))
			d.printf(" voter %s %q %q", node, name, addr)
		}
	}
	switch t := d.take(&p, 1)[0]; t {
	case 1:
		d.printf("epoch %s start %d leader %s history %s", epochText(u32()), u64(), id("node", 16), id("history", 8))
		rule()
	case 2:
		d.printf("tail %d format %d degraded %d clock %d", u64(), u32(), u64(), u64())
		for range le.Uint16(d.take(&p, 2)) {
			d.printf(" (%s %d %s %s)", epochText(u32()), u64(), id("history", 8), id("node", 16))
		}
		rule()
	case 3:
		d.printf("rule")
		rule()
	case 4, 5:
		d.printf("degraded %d from %d", t, u64())
	case 6:
		d.printf("format %d", u32())
	default:
		d.t.Fatalf("control record of type %d", t)
	}
	d.ok(len(p) == 0, "a control record has %d bytes more", len(p))
	d.printf("\n")
}

// cut decodes what was cut: the header of its segment, then the bytes.
func (d *directory) cut(name string, b []byte) {
	var epoch, from, to string
	parts := strings.Split(strings.TrimSuffix(filepath.Base(name), ".cut"), "-")
	d.ok(len(parts) == 3, "name of %s", name)
	epoch, from, to = parts[0], parts[1], parts[2]
	d.printf("cut %s of epoch %s\n", name, epoch)
	_, err := fmt.Sscanf(from+" "+to, "%x %x", &d.at, new(uint64))
	d.ok(err == nil, "name of %s: %v", name, err)
	at := d.at
	d.at = d.at / wal.MinSegmentSize * wal.MinSegmentSize
	d.header(b)
	d.at, d.time = at, d.segTime
	d.frames(b[128:])
	d.ok(fmt.Sprintf("%016x", d.at) == to, "%s ends at %x", name, d.at)
}
