package run_test

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
)

// TestGolden: a run made of the same entries by the same version of the format has the same bytes for ever. Who changes
// this number raises the version.
func TestGolden(t *testing.T) {
	b, _, _ := small(t)
	if got := xxhash.Sum64(b); got != 0x4372775b573ead6e {
		t.Errorf("got %#x for %d bytes of format version %d", got, len(b), binary.LittleEndian.Uint32(b[len(b)-4096+8:]))
	}
}

func TestEntries(t *testing.T) {
	const base = 0x1000
	type v = memindex.Version
	for _, c := range []struct {
		name     string
		keys     []string
		versions []v
		want     string
	}{
		{"first, at the lowest ref", []string{"ab"}, []v{{Ref: base}}, "72 00 6162"},
		{"upwards", []string{"a", "b"}, []v{{Ref: base}, {Ref: base + 0x102}}, "71 00 61  71 02 0201 62"},
		{"downwards", []string{"a", "b"}, []v{{Ref: base + 0x10000}, {Ref: base + 0xfffe}}, "71 03 000001 61  71 11 02 62"},
		{"from the lowest", []string{"a", "b"}, []v{{Ref: base + 0x10000}, {Ref: base + 0x02}}, "71 03 000001 61  71 21 02 62"},
		{"kinds", []string{"a", "b"}, []v{{Ref: base, Kind: memindex.Delete}, {Ref: base, Kind: memindex.PutTTL}}, "71 80 61  71 40 62"},
		{"two versions", []string{"abc", "abc"}, []v{{Ref: base + 9}, {Ref: base + 5}}, "73 01 09 616263  a0 11 04"},
		{"shared", []string{"abc", "abd", "abe", "b"}, []v{{Ref: base}, {Ref: base}, {Ref: base}, {Ref: base}}, "73 00 616263  91 00 64  71 00 65  51 00 62"},
		{"shares many at once", []string{"0123456789", "0123456789a"}, []v{{Ref: base}, {Ref: base}}, "7a 00 30313233343536373839  f1 00 0a 61"},
		{"long rest", []string{"0123456789abcde"}, []v{{Ref: base + 1}}, "7f 01 0f 01 303132333435363738396162636465"},
		{"below the lowest ref", []string{"a"}, []v{{Ref: base - 1}}, "71 11 01 61"},
		{"a ref of 8 bytes", []string{"a"}, []v{{Ref: 1<<63 - 1}}, "71 08 ffefffffffffff7f 61"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := run.EncodeEntries(base, c.keys, c.versions); string(got) != string(want) {
			t.Errorf("%s: got %x, want %x", c.name, got, want)
		}
	}
}

// TestVerifyFinds: what has right checksums and is wrong all the same, as a writer with a fault would leave it.
func TestVerifyFinds(t *testing.T) {
	sound, _, _ := small(t)
	blocks := run.Blocks(sound)
	filter, root, bounds, foot := run.Footer(sound)
	put := func(b []byte, at int, v uint64) { binary.LittleEndian.PutUint64(b[at:], v) }
	children := int(binary.LittleEndian.Uint32(sound[root+8:]))
	for _, c := range []struct {
		want   string
		damage func(b []byte)
	}{
		{"entries: ", func(b []byte) { b[foot+48]++ }},
		{"keys: ", func(b []byte) { b[foot+56]++ }},
		{"deletes: ", func(b []byte) { b[foot+64]++ }},
		{"lowest ref: ", func(b []byte) { put(b, foot+72, 1<<62) }},
		{"highest ref: ", func(b []byte) { put(b, foot+80, 1<<62) }},
		{"not in the filter", func(b []byte) { clear(b[filter : filter+4088]) }},
		{"first separator", func(b []byte) { b[bounds+16], b[bounds+17], b[bounds+18], b[bounds+19] = 1, 'A', 1, 'z' }},
		{"largest key", func(b []byte) { b[bounds+18] = 'Z' }},
		{"head", func(b []byte) { b[16+2]++ }},
		{"common bytes", func(b []byte) { // the second block has the key m alone
			b[4096+12] = 0
			for g := range int(b[4096+2]) {
				b[4096+16+2*g+1] = 'm'
			}
		}},
		{"order of entries", func(b []byte) { // the second version lies above the first, instead of below
			at := 4096 + 16 + 4*int(b[4096+2]) + 2
			at += 2 + int(b[at+1]&15) + len("m")
			b[at+1] &^= 0x30
		}},
		{"separator", func(b []byte) { b[root+16+8*2+7] = 'z' }},
		{"order of separators", func(b []byte) { put(b, root+16+8*2, 0) }},
		{"continuation", func(b []byte) { b[root+16+8*children+4+3] ^= 0x80 }},
	} {
		b := append([]byte(nil), sound...)
		c.damage(b)
		run.Reseal(b, 99, blocks)
		r, err := run.Open(ram{b: b}, runPath)
		if err == nil {
			err = r.Verify(context.Background())
		}
		if !errors.Is(err, &run.CorruptError{}) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", c.want, err)
		}
	}
}

func TestVerifyStops(t *testing.T) {
	b, _, _ := small(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := open(t, ram{b: b}, runPath).Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
