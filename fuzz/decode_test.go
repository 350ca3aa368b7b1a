package fuzz

import (
	"bytes"
	"testing"

	"shiplog/engine"
	"shiplog/wal"
)

// FuzzSegmentHeader: a header that decodes is exactly what it encodes to.
func FuzzSegmentHeader(f *testing.F) {
	h := wal.Header{Salt: 7, SegmentSize: 64 << 10, Epoch: wal.MakeEpoch(1, 0), Leader: wal.NodeID{1}, Time: 1}
	good := h.Marshal()
	f.Add(good[:])                                        // valid
	f.Add(good[:wal.HeaderSize-1])                        // cut short
	f.Add(append([]byte("SHIPLOG\x01"), good[8:100]...))  // no checksum
	f.Add(bytes.Repeat([]byte{0xff}, wal.HeaderSize))     // no header
	f.Add(append(good[:119:119], good[119]^1, good[120])) // damaged behind the fields
	f.Fuzz(func(t *testing.T, b []byte) {
		var h wal.Header
		if h.Unmarshal(b) != nil {
			return
		}
		if got := h.Marshal(); !bytes.Equal(got[:], b[:wal.HeaderSize]) {
			t.Errorf("%x decodes, and encodes to %x", b, got)
		}
	})
}

// FuzzControl: a control record that decodes is exactly what it encodes to.
func FuzzControl(f *testing.F) {
	rule := wal.Rule{Level: 5, First: true, Voters: []wal.Voter{{ID: wal.NodeID{2}, Name: "b", Addr: "b:1"}}}
	for _, c := range []wal.Control{
		&wal.EpochRecord{Epoch: wal.MakeEpoch(2, 1), Start: 4096, Leader: wal.NodeID{1}, History: 9, Rule: rule},
		&wal.TailRecord{Tail: 64 << 10, History: []wal.HistoryEntry{{Epoch: 1, Start: 8, ID: 3}}, Rule: rule, FormatLevel: 1},
		&wal.RuleRecord{Rule: rule},
		&wal.DegradedRecord{Begin: true, From: 77},
		&wal.DegradedRecord{Begin: true, From: 77, Reason: wal.DegradedTooFew, Missing: []string{"f", "g"}},
		&wal.TailRecord{Tail: 65536, Spans: []wal.DegradedSpan{{From: 77, To: 99, Reason: wal.DegradedForced, Missing: []string{"f"}}}},
		&wal.FormatRecord{Level: 3},
	} {
		b, err := wal.AppendControl(nil, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])                // cut short
		f.Add(append(bytes.Clone(b), 0xA)) // a byte too many
	}
	f.Add([]byte{3, 1, 0, 0, 0, 0, 255}) // more voters than bytes
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := wal.DecodeControl(b)
		if err != nil {
			return
		}
		got, err := wal.AppendControl(nil, c)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%x decodes, and encodes to %x, %v", b, got, err)
		}
	})
}

// FuzzRecord: a record that decodes is exactly what it encodes to, and nothing in it lies outside of the input.
func FuzzRecord(f *testing.F) {
	for _, r := range []engine.Record{
		{Op: engine.OpPut, Key: []byte("key"), Value: []byte("value"), Last: true},
		{Op: engine.OpPutTTL, Key: []byte("key"), Expiry: 1 << 40},
		{Op: engine.OpDelete},
		{Op: engine.OpDeleteRange, Key: []byte("a"), Value: []byte("b")},
		{Op: engine.OpPut, Orig: 1 << 20, Key: []byte("moved"), Value: []byte("v")},
	} {
		f.Add(engine.AppendRecord(nil, r))
	}
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}) // a key of 2^64 bytes
	f.Add([]byte{1, 0x80, 0})                                                 // a length longer than it need be
	f.Add([]byte{5, 1, 0, 0, 0, 0, 0, 0, 0, 5})                               // relocated in relocated
	f.Add([]byte{0x41, 0, 0})                                                 // the reserved bit
	f.Fuzz(func(t *testing.T, b []byte) {
		r, n, err := engine.DecodeRecord(b)
		if err != nil {
			return
		}
		if got := engine.AppendRecord(nil, r); n > len(b) || !bytes.Equal(got, b[:n]) {
			t.Errorf("%x decodes as %d bytes, and encodes to %x", b, n, got)
		}
	})
}
