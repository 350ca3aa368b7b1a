package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
)

// keySize is the size of every key in bytes.
const keySize = 16

// headSize is the part of a value that says whose it is: key index and version, 8 bytes.
const headSize = 8

// poolSize is the stretch of half compressible bytes that values are cut from. It is large enough that the values of
// a block of 4 KiB overlap in about a hundredth of their bytes, and small enough to stay in a core's cache: making and
// checking values is part of what is measured.
const poolSize = 128 << 10

// dataset makes the keys and values of a workload, the same ones in every process. Existing keys have even numbers,
// odd ones lie between them and are missing until a workload inserts them. Safe for concurrent use.
type dataset struct {
	n    uint64 // existing keys
	size int    // bytes of a value
	pool []byte
	mask uint64 // permute works in [0, mask]
	half uint
}

func newDataset(n, size int) *dataset {
	d := &dataset{n: uint64(n), size: size, pool: make([]byte, poolSize)}
	width := max(2, bits.Len64(d.n-1))
	d.mask = 1<<width - 1
	d.half = uint(width+1) / 2
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < poolSize; i += 16 {
		binary.LittleEndian.PutUint64(d.pool[i:], 0x6162616261626162)
		binary.LittleEndian.PutUint64(d.pool[i+8:], rng.Uint64())
	}
	return d
}

// rawBytes is what the existing keys and values take without any overhead.
func (d *dataset) rawBytes() float64 { return float64(d.n) * float64(keySize+d.size) }

// key writes key number i of the order: existing ones are 2*index.
func key(dst []byte, i uint64) []byte {
	dst = append(dst[:0], "key-000000000000"...)
	for at := keySize - 1; i > 0; at-- {
		dst[at] = byte('0' + i%10)
		i /= 10
	}
	return dst
}

// existing writes the key with the given index, below n.
func existing(dst []byte, index uint64) []byte { return key(dst, 2*index) }

// missing writes a key that lies right above the existing key with that index.
func missing(dst []byte, index uint64) []byte { return key(dst, 2*index+1) }

// parseKey returns the number of a key.
func parseKey(k []byte) (uint64, error) {
	if len(k) != keySize || string(k[:4]) != "key-" {
		return 0, fmt.Errorf("foreign key %q", k)
	}
	var i uint64
	for _, c := range k[4:] {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("foreign key %q", k)
		}
		i = i*10 + uint64(c-'0')
	}
	return i, nil
}

// permute maps [0, n) to itself one to one, in an order without pattern.
func (d *dataset) permute(i uint64) uint64 {
	for {
		for range 3 {
			i = (i*0x9E3779B97F4A7C15 + 0x7F4A7C15) & d.mask
			i ^= i >> d.half
		}
		if i < d.n { // otherwise walk on along the cycle, which returns to [0, n)
			return i
		}
	}
}

// value writes the value of key number i in a version.
func (d *dataset) value(dst []byte, i uint64, version uint16) []byte {
	head := i<<16 | uint64(version)
	dst = binary.LittleEndian.AppendUint64(dst[:0], head)
	return append(dst, d.body(head)...)
}

func (d *dataset) body(head uint64) []byte {
	hash := head * 0xD6E8FEB86659FD93
	hash ^= hash >> 32
	hash *= 0xD6E8FEB86659FD93
	at := hash % uint64(poolSize-d.size)
	return d.pool[at : at+uint64(d.size-headSize)]
}

// checkValue compares v with the value of key number i, whatever its version, which it returns.
func (d *dataset) checkValue(i uint64, v []byte) (version uint16, err error) {
	if len(v) != d.size {
		return 0, fmt.Errorf("key number %d: value of %d bytes, want %d", i, len(v), d.size)
	}
	head := binary.LittleEndian.Uint64(v)
	if head>>16 != i {
		return 0, fmt.Errorf("key number %d: value of key number %d", i, head>>16)
	}
	if !bytes.Equal(v[headSize:], d.body(head)) {
		return 0, fmt.Errorf("key number %d: wrong value", i)
	}
	return uint16(head), nil
}

// zipf draws ranks from 0 to n-1 with a zipfian distribution, as YCSB does: Gray et al., "Quickly Generating
// Billion-Record Synthetic Databases", SIGMOD 1994. It is not changed by use.
type zipf struct {
	n, theta, zetan, alpha, eta float64
}

// zipfTheta is YCSB's constant.
const zipfTheta = 0.99

func newZipf(n uint64) *zipf {
	z := &zipf{n: float64(n), theta: zipfTheta, alpha: 1 / (1 - zipfTheta)}
	for i := uint64(1); i <= n; i++ {
		z.zetan += 1 / math.Pow(float64(i), z.theta)
	}
	zeta2 := 1 + math.Pow(0.5, z.theta)
	z.eta = (1 - math.Pow(2/z.n, 1-z.theta)) / (1 - zeta2/z.zetan)
	return z
}

func (z *zipf) rank(rng *rand.Rand) uint64 {
	u := rng.Float64()
	uz := u * z.zetan
	switch {
	case uz < 1:
		return 0
	case uz < 1+math.Pow(0.5, z.theta):
		return 1
	}
	return min(uint64(z.n*math.Pow(z.eta*u-z.eta+1, z.alpha)), uint64(z.n)-1)
}
