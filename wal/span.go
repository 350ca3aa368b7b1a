package wal

import (
	"encoding/binary"
	"fmt"
)

// DegradedReason says why a degraded span began.
type DegradedReason uint8

// The reasons. Others are of later builds: they are kept as they are.
const (
	DegradedUnknown DegradedReason = iota // the record does not say
	DegradedTooFew                        // too few voters were connected, for as long as the leader's options allow
	DegradedForced                        // an operator changed a rule that could not be met
)

// String gives the reason in words.
func (r DegradedReason) String() string {
	switch r {
	case DegradedUnknown:
		return "unknown"
	case DegradedTooFew:
		return "too few followers"
	case DegradedForced:
		return "rule changed by force"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// DegradedSpan is a stretch of the log that was acknowledged as Durable instead of by its rule.
type DegradedSpan struct {
	From    LSN   // where it begins
	To      LSN   // end of the record that ended it: the rule holds from there on; 0: it is open
	Began   int64 // log time of the record that opened it, unix ms; 0: not known
	Ended   int64 // log time of the one that ended it, unix ms; 0: it is open
	Reason  DegradedReason
	Missing []string // names of the voters that were not there when it began, at most MaxVoters
}

// append encodes a span: u64 from, u64 to, i64 began, i64 ended, then why.
func (s *DegradedSpan) append(dst []byte) ([]byte, error) {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.From))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.To))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.Began))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.Ended))
	return appendWhy(dst, s.Reason, s.Missing)
}

// NewestSpans is as much of a list of spans, oldest first, as a tail record carries: the newest that take up to 4 KiB.
func NewestSpans(spans []DegradedSpan) []DegradedSpan {
	const room = 4 << 10
	size := 0
	for i := len(spans) - 1; i >= 0; i-- {
		size += 4*8 + 2
		for _, name := range spans[i].Missing {
			size += 1 + len(name)
		}
		if size > room {
			return spans[i+1:]
		}
	}
	return spans
}

// appendWhy encodes a reason and names: u8 reason, u8 names, and each with a length byte before it.
func appendWhy(dst []byte, reason DegradedReason, missing []string) ([]byte, error) {
	if len(missing) > MaxVoters {
		return dst, fmt.Errorf("%w: %d missing voters, at most %d", ErrTooLarge, len(missing), MaxVoters)
	}
	dst = append(dst, byte(reason), byte(len(missing)))
	for _, name := range missing {
		if len(name) > MaxName {
			return dst, fmt.Errorf("%w: name of a voter, at most %d bytes", ErrTooLarge, MaxName)
		}
		dst = append(append(dst, byte(len(name))), name...)
	}
	return dst, nil
}

// why decodes what appendWhy has encoded.
func (d *decoder) why() (reason DegradedReason, missing []string) {
	reason = DegradedReason(d.u8())
	n := int(d.u8())
	if n > MaxVoters {
		d.short = true
		return reason, nil
	}
	for range n {
		missing = append(missing, string(d.bytes(int(d.u8()))))
	}
	return reason, missing
}

// spans decodes the spans behind the rule of a tail record: u16 spans, at least one, and each.
func (d *decoder) spans() (spans []DegradedSpan) {
	n := int(d.u16())
	if n == 0 || n*(4*8+2) > len(d.p) {
		d.short = true
		return nil
	}
	for range n {
		s := DegradedSpan{From: LSN(d.u64()), To: LSN(d.u64()), Began: int64(d.u64()), Ended: int64(d.u64())}
		s.Reason, s.Missing = d.why()
		spans = append(spans, s)
	}
	return spans
}
