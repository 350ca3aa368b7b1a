package wal

import (
	"encoding/binary"
	"fmt"
)

// Control types, the first byte of a control frame's payload.
const (
	controlEpoch         = 1
	controlTail          = 2
	controlRule          = 3
	controlDegradedBegin = 4
	controlDegradedEnd   = 5
	controlFormat        = 6
	controlNewest        = controlFormat
)

// Limits of control records.
const (
	MaxVoters  = 64
	MaxName    = 255  // bytes of a voter's name or address
	MaxHistory = 1024 // epochs in a tail record
	maxControl = 64<<10 - 1

	epochFields = 4 + 8 + 16 + 8 // of an epoch record, between its type and its rule
	ruleFields  = 4 + 1 + 1      // of a rule, before its voters
	historySize = 4 + 8 + 8 + 16
)

// HistoryEntry is one epoch of a history.
type HistoryEntry struct {
	Epoch  Epoch
	Start  LSN // of the epoch record; of the epoch in which the log's first byte was written, no more than its tail
	ID     HistoryID
	Leader NodeID
}

// Voter is a node that counts for the commit rule.
type Voter struct {
	ID   NodeID
	Name string // at most MaxName bytes
	Addr string // advertised address, host:port; at most MaxName bytes
}

// Rule is what must hold before a write becomes visible, and the nodes that count.
type Rule struct {
	Level  uint32 // the engine's level; the log does not interpret it
	First  bool   // the first n connected of Voters in order, instead of any n
	Voters []Voter
}

// Control is a control record: *EpochRecord, *TailRecord, *RuleRecord, *DegradedRecord or *FormatRecord.
type Control interface {
	appendBody(dst []byte) ([]byte, error)
	decodeBody(p []byte) error
}

// EpochRecord begins an epoch.
type EpochRecord struct {
	Epoch   Epoch
	Start   LSN // of the frame that holds the record
	Leader  NodeID
	History HistoryID
	Rule    Rule
}

// TailRecord moves the tail and carries all that is needed of what stood before it.
type TailRecord struct {
	Tail         LSN
	History      []HistoryEntry
	Rule         Rule
	FormatLevel  uint32
	DegradedFrom LSN            // where the open degraded span began; 0: none
	ClockFloor   int64          // log time, unix ms
	Spans        []DegradedSpan // the newest that there were, oldest first, the open one included
}

// RuleRecord changes the commit rule or the voters.
type RuleRecord struct{ Rule Rule }

// DegradedRecord opens or ends a span in which writes were acknowledged with too few voters.
type DegradedRecord struct {
	Begin   bool
	From    LSN            // where the span begins
	Reason  DegradedReason // of a beginning: why
	Missing []string       // of a beginning with a Reason: names of the voters that are not there
}

// FormatRecord raises the format level: nodes that do not know it stop applying here.
type FormatRecord struct{ Level uint32 }

// AppendControl appends the encoding of c, type byte and body, to dst.
func AppendControl(dst []byte, c Control) ([]byte, error) {
	var t byte
	switch c := c.(type) {
	case *EpochRecord:
		t = controlEpoch
	case *TailRecord:
		t = controlTail
	case *RuleRecord:
		t = controlRule
	case *DegradedRecord:
		t = controlDegradedEnd
		if c.Begin {
			t = controlDegradedBegin
		}
	case *FormatRecord:
		t = controlFormat
	default:
		return dst, fmt.Errorf("wal: encode control record: unknown type %T", c)
	}
	out, err := c.appendBody(append(dst, t))
	if err == nil && len(out)-len(dst) > maxControl {
		err = fmt.Errorf("%w: control record of %d bytes", ErrTooLarge, len(out)-len(dst))
	}
	if err != nil {
		return dst, err
	}
	return out, nil
}

// DecodeControl decodes the payload of a control frame. An unknown type gives a [*VersionError]; anything that does
// not decode to its last byte gives [ErrInvalid].
func DecodeControl(p []byte) (Control, error) {
	if len(p) == 0 {
		return nil, fmt.Errorf("%w: empty control record", ErrInvalid)
	}
	var c Control
	switch p[0] {
	case controlEpoch:
		c = new(EpochRecord)
	case controlTail:
		c = new(TailRecord)
	case controlRule:
		c = new(RuleRecord)
	case controlDegradedBegin, controlDegradedEnd:
		c = &DegradedRecord{Begin: p[0] == controlDegradedBegin}
	case controlFormat:
		c = new(FormatRecord)
	default:
		return nil, &VersionError{What: "control record", Have: controlNewest, Need: uint32(p[0])}
	}
	if err := c.decodeBody(p[1:]); err != nil {
		return nil, fmt.Errorf("decode control record of type %d: %w", p[0], err)
	}
	return c, nil
}

func (r *EpochRecord) appendBody(dst []byte) ([]byte, error) {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.Epoch))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Start))
	dst = append(dst, r.Leader[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.History))
	return r.Rule.append(dst)
}

func (r *EpochRecord) decodeBody(p []byte) error {
	d := decoder{p: p}
	r.Epoch, r.Start = Epoch(d.u32()), LSN(d.u64())
	copy(r.Leader[:], d.bytes(16))
	r.History = HistoryID(d.u64())
	r.Rule = d.rule()
	return d.finish()
}

func (r *TailRecord) appendBody(dst []byte) ([]byte, error) {
	if len(r.History) > MaxHistory {
		return dst, fmt.Errorf("%w: %d epochs in a tail record", ErrTooLarge, len(r.History))
	}
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Tail))
	dst = binary.LittleEndian.AppendUint32(dst, r.FormatLevel)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.DegradedFrom))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.ClockFloor))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.History)))
	for _, e := range r.History {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(e.Epoch))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Start))
		dst = binary.LittleEndian.AppendUint64(dst, uint64(e.ID))
		dst = append(dst, e.Leader[:]...)
	}
	dst, err := r.Rule.append(dst)
	if err != nil || len(r.Spans) == 0 {
		return dst, err
	}
	if len(r.Spans) > 1<<16-1 {
		return dst, fmt.Errorf("%w: %d degraded spans in a tail record", ErrTooLarge, len(r.Spans))
	}
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Spans)))
	for i := range r.Spans {
		if dst, err = r.Spans[i].append(dst); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func (r *TailRecord) decodeBody(p []byte) error {
	d := decoder{p: p}
	r.Tail, r.FormatLevel = LSN(d.u64()), d.u32()
	r.DegradedFrom, r.ClockFloor = LSN(d.u64()), int64(d.u64())
	n := int(d.u16())
	if n > MaxHistory || n*historySize > len(d.p) {
		return fmt.Errorf("%w: %d epochs", ErrInvalid, n)
	}
	for range n {
		e := HistoryEntry{Epoch: Epoch(d.u32()), Start: LSN(d.u64()), ID: HistoryID(d.u64())}
		copy(e.Leader[:], d.bytes(16))
		r.History = append(r.History, e)
	}
	r.Rule = d.rule()
	if len(d.p) > 0 { // what has never been degraded says nothing of it
		r.Spans = d.spans()
	}
	return d.finish()
}

func (r *RuleRecord) appendBody(dst []byte) ([]byte, error) { return r.Rule.append(dst) }

func (r *RuleRecord) decodeBody(p []byte) error {
	d := decoder{p: p}
	r.Rule = d.rule()
	return d.finish()
}

func (r *DegradedRecord) appendBody(dst []byte) ([]byte, error) {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.From))
	if !r.Begin || r.Reason == DegradedUnknown {
		return dst, nil
	}
	return appendWhy(dst, r.Reason, r.Missing)
}

func (r *DegradedRecord) decodeBody(p []byte) error {
	d := decoder{p: p}
	r.From = LSN(d.u64())
	if r.Begin && len(d.p) > 0 {
		r.Reason, r.Missing = d.why()
		d.short = d.short || r.Reason == DegradedUnknown
	}
	return d.finish()
}

func (r *FormatRecord) appendBody(dst []byte) ([]byte, error) {
	return binary.LittleEndian.AppendUint32(dst, r.Level), nil
}

func (r *FormatRecord) decodeBody(p []byte) error {
	d := decoder{p: p}
	r.Level = d.u32()
	return d.finish()
}

// append encodes a rule: u32 level, u8 first, u8 voters, and for each voter its ID, name and address, the two with
// a length byte.
func (r *Rule) append(dst []byte) ([]byte, error) {
	if len(r.Voters) > MaxVoters {
		return dst, fmt.Errorf("%w: %d voters, at most %d", ErrTooLarge, len(r.Voters), MaxVoters)
	}
	dst = binary.LittleEndian.AppendUint32(dst, r.Level)
	first := byte(0)
	if r.First {
		first = 1
	}
	dst = append(dst, first, byte(len(r.Voters)))
	for _, v := range r.Voters {
		if len(v.Name) > MaxName || len(v.Addr) > MaxName {
			return dst, fmt.Errorf("%w: name or address of a voter, at most %d bytes", ErrTooLarge, MaxName)
		}
		dst = append(dst, v.ID[:]...)
		dst = append(append(dst, byte(len(v.Name))), v.Name...)
		dst = append(append(dst, byte(len(v.Addr))), v.Addr...)
	}
	return dst, nil
}

// decoder takes fields off the front of p. After the first shortage it gives zeros and finish reports it.
type decoder struct {
	p     []byte
	short bool
}

func (d *decoder) bytes(n int) []byte {
	if d.short || n > len(d.p) {
		d.short = true
		return nil
	}
	b := d.p[:n]
	d.p = d.p[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) rule() Rule {
	r := Rule{Level: d.u32()}
	first := d.u8()
	n := int(d.u8())
	if first > 1 || n > MaxVoters {
		d.short = true
		return r
	}
	r.First = first == 1
	for range n {
		var v Voter
		copy(v.ID[:], d.bytes(16))
		v.Name = string(d.bytes(int(d.u8())))
		v.Addr = string(d.bytes(int(d.u8())))
		if d.short {
			return r
		}
		r.Voters = append(r.Voters, v)
	}
	return r
}

func (d *decoder) finish() error {
	if d.short || len(d.p) != 0 {
		return fmt.Errorf("%w: control record does not decode to its last byte", ErrInvalid)
	}
	return nil
}
