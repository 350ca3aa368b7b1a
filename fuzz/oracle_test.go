package fuzz

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// This file reads the format of the log a second time, from its description in FORMAT.md alone, so that what the log
// takes for valid can be compared with what is.

const golden = 0x9E3779B97F4A7C15

var le = binary.LittleEndian

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xBF58476D1CE4E5B9
	x ^= x >> 27
	x *= 0x94D049BB133111EB
	return x ^ x>>31
}

// oracle walks the bytes of a log from LSN 0 on.
type oracle struct {
	salt, size uint64
	database   string
	at         uint64
	digest     uint64
	epoch      uint32
	time       int64 // of the last element
	segment    int64 // of the segment's header
	open       bool  // a batch is
	batchEnd   uint64
}

// validPrefix returns how many bytes of p are a log: whole headers and frames. The header of p is taken as it is.
func validPrefix(p []byte) *oracle {
	o := &oracle{salt: le.Uint64(p[32:]), size: le.Uint64(p[48:]), database: string(p[16:32])}
	for int(o.at) < len(p) {
		var ok bool
		if o.at%o.size == 0 {
			ok = o.header(p[o.at:])
		} else {
			ok = o.frame(p[o.at:])
		}
		if !ok {
			break
		}
	}
	return o
}

func (o *oracle) bind() uint64 { return mix(o.salt + o.at*golden) }

func (o *oracle) step(checksum uint64) {
	o.digest = mix(o.digest^checksum) + golden
}

func (o *oracle) header(p []byte) bool {
	if len(p) < 128 || string(p[:8]) != "SHIPLOG\x01" || le.Uint32(p[8:]) != 1 || !zeros(p[12:16]) || !zeros(p[60:64]) || !zeros(p[104:120]) {
		return false
	}
	epoch, time, sum := le.Uint32(p[56:]), int64(le.Uint64(p[88:])), le.Uint64(p[120:])
	if sum != xxhash.Sum64(p[:120])^o.bind() || string(p[16:32]) != o.database || le.Uint64(p[32:]) != o.salt || le.Uint64(p[48:]) != o.size || le.Uint64(p[40:]) != o.at ||
		le.Uint64(p[96:]) != o.digest || epoch < o.epoch || o.at > 0 && time < o.time {
		return false
	}
	o.epoch, o.time, o.segment = epoch, time, time
	o.at += 128
	o.step(sum)
	if !o.open {
		o.batchEnd = o.at
	}
	return true
}

// frame follows the numbered list in "When a frame is valid".
func (o *oracle) frame(p []byte) bool {
	room := o.size - o.at%o.size
	if len(p) < 32 || room < 32 { // 1
		return false
	}
	a, b, c := le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
	if byte(c>>56) != byte(mix(o.bind()^mix(a^mix(b^mix(c&(1<<56-1)))))>>56) {
		return false
	}
	stored, raw, codec := a&0xFFFFFFFF, a>>32&0xFFFFFF, a>>56
	epoch, time := uint32(b), o.segment+int64(b>>32)
	records, flags := c>>32&0xFFFF, c>>48&0xFF
	const first, last, control, seal, continuation = 1, 2, 4, 8, 16
	end := 32 + stored
	padded := (end + 7) &^ 7
	limit := min(256<<10, o.size/4)
	switch { // 2 and 3
	case flags&^31 != 0:
		return false
	case flags&seal != 0:
		if flags != seal || codec != 0 || raw != 0 || records != 0 || end != room {
			return false
		}
	case raw > limit || stored > limit || padded+32 > room || raw == 0 || stored == 0 || codec == 0 && raw != stored:
		return false
	case flags&control != 0 && (flags != control|first|last || codec != 0 || records != 1):
		return false
	case flags&continuation != 0 && (flags&first != 0 || records != 0), flags&continuation == 0 && records == 0:
		return false
	}
	// 4
	if uint64(len(p)) < padded || le.Uint64(p) != xxhash.Sum64(p[8:end])^o.bind() || !zeros(p[end:padded]) || flags == seal && !zeros(p[32:end]) {
		return false
	}
	// 5 and 6
	if epoch < o.epoch || time < o.time {
		return false
	}
	if flags != seal {
		if epoch != o.epoch && flags&control == 0 || flags&first == 0 != o.open || flags&continuation != 0 && !o.open {
			return false
		}
		o.open = flags&last == 0
	}
	o.epoch, o.time = epoch, time
	o.at += padded
	o.step(le.Uint64(p))
	if !o.open {
		o.batchEnd = o.at
	}
	return true
}

func zeros(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// reseal gives the frame at an LSN of a log, whose bytes were changed, the checks that fit, as far as it lies in p.
func reseal(p []byte, salt, at uint64) {
	f := p[at:]
	bind := mix(salt + at*golden)
	c := le.Uint64(f[24:]) & (1<<56 - 1)
	f[31] = byte(mix(bind^mix(le.Uint64(f[8:])^mix(le.Uint64(f[16:])^mix(c)))) >> 56)
	if end := 32 + uint64(le.Uint32(f[8:])); end <= uint64(len(f)) {
		le.PutUint64(f, xxhash.Sum64(f[8:end])^bind)
	}
}

// resealHeader gives a segment's header, whose bytes were changed, the checksum that fits.
func resealHeader(h []byte) {
	le.PutUint64(h[120:], xxhash.Sum64(h[:120])^mix(le.Uint64(h[32:])+le.Uint64(h[40:])*golden))
}
