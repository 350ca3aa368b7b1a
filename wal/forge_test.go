package wal_test

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// What follows writes the format a second time, from its description, so that tests can forge bytes that validate.

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xBF58476D1CE4E5B9
	x ^= x >> 27
	x *= 0x94D049BB133111EB
	return x ^ x>>31
}

// bind is what ties a checksum to a database and a position.
func bind(salt, lsn uint64) uint64 { return mix(salt + lsn*0x9E3779B97F4A7C15) }

// resum gives a segment, whose header was changed, the checksum that fits.
func resum(segment []byte) []byte {
	salt, base := binary.LittleEndian.Uint64(segment[32:]), binary.LittleEndian.Uint64(segment[40:])
	binary.LittleEndian.PutUint64(segment[120:], xxhash.Sum64(segment[:120])^bind(salt, base))
	return segment
}

// forged is a frame header to be.
type forged struct {
	stored, raw uint32
	codec       byte
	epoch, time uint32
	distance    uint32
	count       uint16
	flags       byte
}

// frame encodes a frame at a position, valid in every checksum, whatever its fields say. The payload may be shorter than
// stored.
func (f forged) frame(salt, lsn uint64, payload []byte) []byte {
	p := make([]byte, 32, 32+len(payload)+8)
	binary.LittleEndian.PutUint32(p[8:], f.stored)
	binary.LittleEndian.PutUint32(p[12:], f.raw|uint32(f.codec)<<24)
	binary.LittleEndian.PutUint32(p[16:], f.epoch)
	binary.LittleEndian.PutUint32(p[20:], f.time)
	binary.LittleEndian.PutUint32(p[24:], f.distance)
	binary.LittleEndian.PutUint16(p[28:], f.count)
	p[30] = f.flags
	b := bind(salt, lsn)
	a, m, c := binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint64(p[24:])
	p[31] = byte(mix(b^mix(a^mix(m^mix(c)))) >> 56)
	p = append(p, payload...)
	binary.LittleEndian.PutUint64(p, xxhash.Sum64(p[8:])^b)
	for len(p)%8 != 0 {
		p = append(p, 0)
	}
	return p
}
