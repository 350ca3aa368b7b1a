package wal

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Sizes and limits of the format, in bytes. FORMAT.md says why.
const (
	HeaderSize      = 128 // segment header
	FrameHeaderSize = 32
	frameAlign      = 8

	MinSegmentSize     = 64 << 10
	MaxSegmentSize     = 1 << 30
	DefaultSegmentSize = 64 << 20

	// MaxSmallFrame is how many raw bytes of whole records a frame holds; only a single record is longer.
	MaxSmallFrame = 4096
	// MaxFrameRaw is the most raw bytes in any frame. Segments below 1 MiB allow a quarter of their size.
	MaxFrameRaw = 256 << 10
	// MaxRecord is the longest record.
	MaxRecord = 64<<20 + 128<<10
	// MaxBatch is the most raw bytes of one batch.
	MaxBatch = 256 << 20

	formatVersion = 1
	noPromise     = 1<<32 - 1
	maxFrameTime  = 1<<32 - 1 // ms since the segment's header
)

var segmentMagic = [8]byte{'S', 'H', 'I', 'P', 'L', 'O', 'G', 1}

// Codec says how the stored bytes of a frame are packed.
type Codec uint8

// Codecs. Frames with another one are kept and forwarded, but cannot be read ([ErrVersion]).
const (
	CodecNone Codec = 0
	CodecS2   Codec = 1
	CodecZstd Codec = 2
)

// String returns the codec's name.
func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecS2:
		return "s2"
	case CodecZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// Flags of a frame.
type Flags uint8

// Frame flags.
const (
	FlagFirst        Flags = 1 << iota // a batch begins with this frame
	FlagLast                           // a batch ends with this frame
	FlagControl                        // the payload is a control record
	FlagSeal                           // ends the segment; the payload is zeros to its end
	FlagContinuation                   // the payload begins inside a record of an earlier frame
	flagsKnown       = FlagFirst | FlagLast | FlagControl | FlagSeal | FlagContinuation
)

// Frame describes a frame.
type Frame struct {
	LSN        LSN
	Stored     int // payload bytes in the log
	Raw        int // payload bytes when unpacked
	Records    int // records that begin in the frame
	Codec      Codec
	Flags      Flags
	Epoch      Epoch
	Time       int64 // log time, unix ms; never falls
	Promise    LSN   // the writer's durable mark when it wrote the frame, if HasPromise
	HasPromise bool
	Checksum   uint64
}

// End returns the LSN after the frame and its padding.
func (f Frame) End() LSN { return f.LSN + LSN(frameSize(f.Stored)) }

// First reports whether a batch begins with the frame.
func (f Frame) First() bool { return f.Flags&FlagFirst != 0 }

// Last reports whether a batch ends with the frame.
func (f Frame) Last() bool { return f.Flags&FlagLast != 0 }

// Control reports whether the frame holds a control record.
func (f Frame) Control() bool { return f.Flags&FlagControl != 0 }

// Seal reports whether the frame ends its segment.
func (f Frame) Seal() bool { return f.Flags&FlagSeal != 0 }

// Continuation reports whether the payload begins inside a record of an earlier frame.
func (f Frame) Continuation() bool { return f.Flags&FlagContinuation != 0 }

// frameSize returns the bytes that a frame takes: header, payload, padding.
func frameSize(stored int) int {
	return (FrameHeaderSize + stored + frameAlign - 1) &^ (frameAlign - 1)
}

// mix64 is the finaliser of splitmix64 (Steele, Lea, Flood 2014; constants of Stafford's variant 13): a bijection
// in which every input bit moves every output bit.
func mix64(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xBF58476D1CE4E5B9
	x ^= x >> 27
	x *= 0x94D049BB133111EB
	return x ^ x>>31
}

const golden = 0x9E3779B97F4A7C15

// binder binds a checksum to a database (its salt) and a position. Being bijective in the LSN for a salt, it gives
// no two positions the same value, so a frame that stands in the wrong place never validates by it. xxhash has no
// one-shot seeded sum, and hashing a prefix through its streaming state costs 30 ns more for a frame of 128 bytes.
func binder(salt uint64, at LSN) uint64 { return mix64(salt + uint64(at)*golden) }

// step chains one checksum into a digest.
func (d Digest) step(checksum uint64) Digest { return Digest(mix64(uint64(d)^checksum) + golden) }

// Header is the header of a segment.
//
//	 0        8    12   16               32       40       48       56   60
//	+--------+----+----+----------------+--------+--------+--------+----+----+
//	| magic  |ver | 0  |  database ID   |  salt  |  base  |  size  |epch| 0  |
//	+--------+----+----+----------------+--------+--------+--------+----+----+
//	 64               80       88       96       104              120      128
//	+----------------+--------+--------+--------+----------------+--------+
//	| leader node ID |history | time   | digest |       0        |checksum|
//	+----------------+--------+--------+--------+----------------+--------+
type Header struct {
	Version     uint32 // of the format
	Database    DatabaseID
	Salt        uint64 // seeds every checksum of the log; not for clients
	Base        LSN
	SegmentSize int64 // bytes
	Epoch       Epoch
	Leader      NodeID
	History     HistoryID
	Time        int64  // log time, unix ms
	Digest      Digest // of everything before Base
	Checksum    uint64 // set by Marshal and Unmarshal
}

// Marshal encodes the header and sets its checksum.
func (h *Header) Marshal() [HeaderSize]byte {
	var b [HeaderSize]byte
	copy(b[0:], segmentMagic[:])
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], h.Database[:])
	binary.LittleEndian.PutUint64(b[32:], h.Salt)
	binary.LittleEndian.PutUint64(b[40:], uint64(h.Base))
	binary.LittleEndian.PutUint64(b[48:], uint64(h.SegmentSize))
	binary.LittleEndian.PutUint32(b[56:], uint32(h.Epoch))
	copy(b[64:], h.Leader[:])
	binary.LittleEndian.PutUint64(b[80:], uint64(h.History))
	binary.LittleEndian.PutUint64(b[88:], uint64(h.Time))
	binary.LittleEndian.PutUint64(b[96:], uint64(h.Digest))
	h.Version = formatVersion
	h.Checksum = xxhash.Sum64(b[:120]) ^ binder(h.Salt, h.Base)
	binary.LittleEndian.PutUint64(b[120:], h.Checksum)
	return b
}

// Unmarshal decodes and validates a header. A header whose magic or checksum does not hold gives [ErrInvalid]; one of
// a newer format gives a [*VersionError] whatever the rest holds.
func (h *Header) Unmarshal(b []byte) error {
	if len(b) < HeaderSize {
		return fmt.Errorf("%w: segment header has %d bytes, want %d", ErrInvalid, len(b), HeaderSize)
	}
	b = b[:HeaderSize]
	if [8]byte(b[:8]) != segmentMagic {
		return fmt.Errorf("%w: no segment header", ErrInvalid)
	}
	*h = Header{
		Version:     binary.LittleEndian.Uint32(b[8:]),
		Database:    DatabaseID(b[16:32]),
		Salt:        binary.LittleEndian.Uint64(b[32:]),
		Base:        LSN(binary.LittleEndian.Uint64(b[40:])),
		SegmentSize: int64(binary.LittleEndian.Uint64(b[48:])),
		Epoch:       Epoch(binary.LittleEndian.Uint32(b[56:])),
		Leader:      NodeID(b[64:80]),
		History:     HistoryID(binary.LittleEndian.Uint64(b[80:])),
		Time:        int64(binary.LittleEndian.Uint64(b[88:])),
		Digest:      Digest(binary.LittleEndian.Uint64(b[96:])),
		Checksum:    binary.LittleEndian.Uint64(b[120:]),
	}
	if want := xxhash.Sum64(b[:120]) ^ binder(h.Salt, h.Base); want != h.Checksum {
		return fmt.Errorf("%w: segment header checksum is %016x, want %016x", ErrInvalid, h.Checksum, want)
	}
	if h.Version != formatVersion {
		return &VersionError{What: "segment format", Have: formatVersion, Need: h.Version}
	}
	if err := checkSegmentSize(h.SegmentSize); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	zero := binary.LittleEndian.Uint32(b[12:]) == 0 && binary.LittleEndian.Uint32(b[60:]) == 0 && allZero(b[104:120])
	if !zero || uint64(h.Base)%uint64(h.SegmentSize) != 0 || h.Base >= MaxRefLSN {
		return fmt.Errorf("%w: segment header fields", ErrInvalid)
	}
	return nil
}

func checkSegmentSize(size int64) error {
	if size < MinSegmentSize || size > MaxSegmentSize || size&(size-1) != 0 {
		return fmt.Errorf("segment size %d is not a power of two between %d and %d", size, MinSegmentSize, MaxSegmentSize)
	}
	return nil
}

// frameMeta is a frame header as it stands in the log.
//
//	 0                8        12     15   16       20       24       28     30   31  32
//	+----------------+--------+------+----+--------+--------+--------+------+----+----+
//	|    checksum    | stored | raw  |codc| epoch  |  time  |distance|count |flag|chck|
//	+----------------+--------+------+----+--------+--------+--------+------+----+----+
type frameMeta struct {
	checksum uint64
	stored   uint32
	raw      uint32 // 24 bits
	codec    Codec
	epoch    Epoch
	time     uint32 // ms since the segment's header
	distance uint32 // LSN of the frame less the writer's durable mark; noPromise: none
	count    uint16
	flags    Flags
	check    uint8
}

// words returns bytes 8 to 32 of the header without the head check.
func (m *frameMeta) words() (a, b, c uint64) {
	a = uint64(m.stored) | uint64(m.raw)<<32 | uint64(m.codec)<<56
	b = uint64(m.epoch) | uint64(m.time)<<32
	c = uint64(m.distance) | uint64(m.count)<<32 | uint64(m.flags)<<48
	return a, b, c
}

// headCheck is one byte over the header's fields, bound to the position. Who does not know the salt cannot write
// bytes that pass it more often than one time in 256.
func headCheck(bind, a, b, c uint64) uint8 {
	return uint8(mix64(bind^mix64(a^mix64(b^mix64(c)))) >> 56)
}

// putFrame finishes a frame whose payload already stands at buf[32:32+stored]: header, padding, checksum. buf must
// hold the padded frame.
func putFrame(buf []byte, m *frameMeta, bind uint64) {
	a, b, c := m.words()
	m.check = headCheck(bind, a, b, c)
	c |= uint64(m.check) << 56
	binary.LittleEndian.PutUint64(buf[8:], a)
	binary.LittleEndian.PutUint64(buf[16:], b)
	binary.LittleEndian.PutUint64(buf[24:], c)
	end := FrameHeaderSize + int(m.stored)
	clear(buf[end:frameSize(int(m.stored))])
	m.checksum = xxhash.Sum64(buf[8:end]) ^ bind
	binary.LittleEndian.PutUint64(buf[0:], m.checksum)
}

// getFrame decodes a header from at least 32 bytes and reports whether its head check and layout hold. It does not
// look at the payload.
func getFrame(buf []byte, m *frameMeta, bind uint64) bool {
	_ = buf[FrameHeaderSize-1]
	a := binary.LittleEndian.Uint64(buf[8:])
	b := binary.LittleEndian.Uint64(buf[16:])
	c := binary.LittleEndian.Uint64(buf[24:])
	m.checksum = binary.LittleEndian.Uint64(buf[0:])
	m.stored, m.raw, m.codec = uint32(a), uint32(a>>32)&0xFFFFFF, Codec(a>>56)
	m.epoch, m.time = Epoch(b), uint32(b>>32)
	m.distance, m.count = uint32(c), uint16(c>>32)
	m.flags, m.check = Flags(c>>48), uint8(c>>56)
	return m.check == headCheck(bind, a, b, c&(1<<56-1))
}

// layout checks the fields of a header against each other and against room, the bytes from the frame's LSN to the
// end of its segment. It returns the reason why they cannot stand, or "".
func (m *frameMeta) layout(room int64, segmentSize int64) string {
	if m.flags&^flagsKnown != 0 {
		return "unknown frame flag"
	}
	if m.flags&FlagSeal != 0 {
		switch {
		case m.flags != FlagSeal || m.raw != 0 || m.count != 0 || m.codec != CodecNone:
			return "seal with payload fields"
		case int64(m.stored)+FrameHeaderSize != room:
			return "seal does not reach the segment's end"
		}
		return ""
	}
	limit := uint32(maxFrameRaw(segmentSize))
	switch {
	case m.stored == 0 || m.raw == 0:
		return "empty frame"
	case m.raw > limit || m.stored > limit:
		return "frame longer than the limit"
	case m.codec == CodecNone && m.stored != m.raw:
		return "plain frame with two lengths"
	case int64(frameSize(int(m.stored)))+FrameHeaderSize > room:
		return "frame leaves no room for the seal"
	case m.flags&FlagControl != 0 && (m.flags != FlagControl|FlagFirst|FlagLast || m.count != 1 || m.codec != CodecNone):
		return "control frame fields"
	case m.flags&FlagContinuation != 0 && (m.flags&FlagFirst != 0 || m.count != 0):
		return "continuation frame fields"
	case m.flags&FlagContinuation == 0 && m.count == 0:
		return "frame without a record"
	}
	return ""
}

// maxFrameRaw returns the most raw bytes of a frame in a log of this segment size.
func maxFrameRaw(segmentSize int64) int { return int(min(MaxFrameRaw, segmentSize/4)) }

// epochRoom returns how many bytes before a segment's last frame header only the record that begins an epoch may take: the
// largest one. Segments below 2 MiB have a 32nd of their size, and so smaller rules.
func epochRoom(segmentSize int64) int64 {
	const largest = epochFields + 1 + ruleFields + MaxVoters*(16+2*(1+MaxName))
	return min(int64(frameSize(largest)), segmentSize/32)
}

// maxControlSize returns the most bytes of a control record like c in a log of this segment size.
func maxControlSize(c Control, segmentSize int64) int {
	switch room := int(epochRoom(segmentSize)) - FrameHeaderSize; c.(type) {
	case *EpochRecord:
		return room
	case *RuleRecord: // the next epoch begins with its rule
		return room - epochFields
	}
	return maxFrameRaw(segmentSize)
}

// frame turns a header as stored into what callers see.
func (m *frameMeta) frame(at LSN, segmentTime int64) Frame {
	f := Frame{
		LSN: at, Stored: int(m.stored), Raw: int(m.raw), Records: int(m.count), Codec: m.codec, Flags: m.flags,
		Epoch: m.epoch, Time: segmentTime + int64(m.time), Checksum: m.checksum,
	}
	if m.distance != noPromise && uint64(m.distance) <= uint64(at) {
		f.Promise, f.HasPromise = at-LSN(m.distance), true
	}
	return f
}

// checkPayload reports whether checksum and padding hold for a frame whose bytes, header to padding, are in buf.
func (m *frameMeta) checkPayload(buf []byte, bind uint64) bool {
	end := FrameHeaderSize + int(m.stored)
	return xxhash.Sum64(buf[8:end])^bind == m.checksum && allZero(buf[end:frameSize(int(m.stored))])
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
