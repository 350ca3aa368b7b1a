package wal

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

const (
	// minCompress is the raw size below which no compression is tried: below it an attempt costs more time than
	// the storing of what it saves, and a lone small record seldom shrinks by an eighth.
	minCompress = 256
	// maxSkip bounds how many frames pass without an attempt while attempts keep failing.
	maxSkip = 64
)

// compressor packs payloads. While attempts fail it tries ever more rarely, up to one frame in maxSkip; the first
// success makes it try every frame again. It belongs to the appender.
type compressor struct {
	kind   Compression
	zstd   *zstd.Encoder
	skip   int // frames to pass without an attempt
	failed int // attempts that failed in a row
}

func newCompressor(kind Compression) (*compressor, error) {
	c := &compressor{kind: kind}
	if kind != Zstd {
		return c, nil
	}
	var err error
	c.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(MaxFrameRaw))
	return c, err
}

// bound returns how much room compress needs in dst for n bytes.
func (c *compressor) bound(n int) int {
	if c.kind == NoCompression || n < minCompress {
		return n
	}
	return max(s2.MaxEncodedLen(n), n+n/128+64)
}

// compress puts src into dst, which has at least bound(len(src)) bytes, and returns the length and the codec.
func (c *compressor) compress(dst, src []byte) (int, Codec) {
	if c.kind == NoCompression || len(src) < minCompress {
		return copy(dst, src), CodecNone
	}
	if c.skip > 0 {
		c.skip--
		return copy(dst, src), CodecNone
	}
	var n int
	codec := CodecS2
	if c.kind == S2 {
		n = len(s2.Encode(dst, src))
	} else {
		codec = CodecZstd
		out := c.zstd.EncodeAll(src, dst[:0])
		if n = len(out); n > len(dst) {
			n = len(src) // it moved to another array: longer than any use we have for it
		}
	}
	if n > len(src)-len(src)/8 {
		c.failed++
		c.skip = min(1<<min(c.failed, 10)-2, maxSkip)
		return copy(dst, src), CodecNone
	}
	c.failed = 0
	return n, codec
}

// zstdDecoder is shared: DecodeAll may be called concurrently. Output is limited by the capacity of the buffer given.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxFrameRaw), zstd.WithDecoderMaxWindow(MaxFrameRaw), zstd.WithDecodeAllCapLimit(true))
})

// unpack decodes a payload into dst's memory, grown if need be to raw bytes, which the caller has checked against the
// limit. What decodes to another length is an error, found before more than raw bytes are written.
func unpack(dst, stored []byte, codec Codec, raw int) ([]byte, error) {
	dst = sized(dst, raw)
	switch codec {
	case CodecNone:
		if len(stored) != raw {
			return nil, fmt.Errorf("%w: plain payload of %d bytes, header says %d", ErrInvalid, len(stored), raw)
		}
		copy(dst, stored)
		return dst, nil
	case CodecS2:
		n, err := s2.DecodedLen(stored)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if n != raw {
			return nil, fmt.Errorf("%w: S2 payload of %d raw bytes, header says %d", ErrInvalid, n, raw)
		}
		out, err := s2.Decode(dst, stored)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return out, nil
	case CodecZstd:
		dec, err := zstdDecoder()
		if err != nil {
			return nil, err
		}
		out, err := dec.DecodeAll(stored, dst[:0:raw])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if len(out) != raw {
			return nil, fmt.Errorf("%w: Zstd payload of %d raw bytes, header says %d", ErrInvalid, len(out), raw)
		}
		return out, nil
	}
	return nil, &VersionError{What: "codec", Have: uint32(CodecZstd), Need: uint32(codec)}
}

// sized returns a slice of n bytes that reuses b's memory where it is large enough.
func sized(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	return make([]byte, n, max(n, MaxSmallFrame))
}
