package wal_test

import (
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"shiplog/wal"
)

// TestDegradedGolden: what the records of degraded spans say of their reasons has these bytes, decodes to what was encoded, and in its short form, which says nothing,
// to that; a part of it is no record, and neither is one that names no reason.
func TestDegradedGolden(t *testing.T) {
	rule := wal.Rule{Level: 3}
	spans := []wal.DegradedSpan{
		{From: 128, To: 4096, Began: 1_700_000_000_000, Ended: 1_700_000_000_001, Reason: wal.DegradedForced},
		{From: 8192, Began: 1_700_000_000_002, Reason: wal.DegradedTooFew, Missing: []string{"f", "go"}},
	}
	tests := []struct {
		name        string
		long, short wal.Control
		want        string // of the long form, behind the short one
	}{
		{
			"degraded-begin", &wal.DegradedRecord{Begin: true, From: 4242, Reason: wal.DegradedTooFew, Missing: []string{"f", "go"}},
			&wal.DegradedRecord{Begin: true, From: 4242}, "01020166" + "02676f",
		},
		{
			"tail", &wal.TailRecord{Tail: 1 << 20, Rule: rule, Spans: spans}, &wal.TailRecord{Tail: 1 << 20, Rule: rule},
			"0200" + "8000000000000000" + "0010000000000000" + "0068e5cf8b010000" + "0168e5cf8b010000" + "0200" +
				"0020000000000000" + "0000000000000000" + "0268e5cf8b010000" + "0000000000000000" + "0102" + "0166" + "02676f",
		},
	}
	for _, test := range tests {
		short, err1 := wal.AppendControl(nil, test.short)
		long, err2 := wal.AppendControl(nil, test.long)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(long[len(short):]); !strings.HasPrefix(string(long), string(short)) || got != test.want {
			t.Errorf("%s: behind %x stands %s, want %s", test.name, short, got, test.want)
		}
		for n := range len(long) + 2 {
			p := append(slices.Clone(long), 0)[:n]
			got, err := wal.DecodeControl(p)
			switch n {
			case len(short):
				if !reflect.DeepEqual(got, test.short) || err != nil {
					t.Errorf("%s: the short form is %+v, %v", test.name, got, err)
				}
			case len(long):
				if !reflect.DeepEqual(got, test.long) || err != nil {
					t.Errorf("%s: the long form is %+v, %v", test.name, got, err)
				}
			default:
				if !errors.Is(err, wal.ErrInvalid) {
					t.Errorf("%s: %d bytes of %d: %v, want ErrInvalid", test.name, n, len(long), err)
				}
			}
		}
		zero := append(slices.Clone(short), 0, 0)
		if c, err := wal.DecodeControl(zero); !errors.Is(err, wal.ErrInvalid) {
			t.Errorf("%s: with nothing behind the short form: %+v, %v", test.name, c, err)
		}
	}
}

// TestNewestSpans: of many spans the newest stay, as many as there is room for.
func TestNewestSpans(t *testing.T) {
	var spans []wal.DegradedSpan
	for i := range 1000 {
		spans = append(spans, wal.DegradedSpan{From: wal.LSN(i), Missing: []string{strings.Repeat("n", 9)}})
	}
	got := wal.NewestSpans(spans)
	if len(got) < 80 || len(got) > 120 || got[len(got)-1].From != 999 {
		t.Errorf("%d spans, the last is %+v", len(got), got[len(got)-1])
	}
	if few := spans[:3]; len(wal.NewestSpans(few)) != 3 {
		t.Error("few spans are cut")
	}
}
