package main

import (
	"bytes"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
)

func TestPermuteIsOneToOne(t *testing.T) {
	for _, n := range []int{100, 127, 128, 129, 1000, 1 << 16, 100_003} {
		d := newDataset(n, 100)
		seen := make([]bool, n)
		ascents := 0
		for i := range uint64(n) {
			p := d.permute(i)
			if p >= uint64(n) || seen[p] {
				t.Fatalf("n=%d: permute(%d) = %d, out of range or twice", n, i, p)
			}
			seen[p] = true
			if i > 0 && p > d.permute(i-1) {
				ascents++
			}
		}
		if share := float64(ascents) / float64(n); share < 0.35 || share > 0.65 {
			t.Errorf("n=%d: %.2f of the steps go up, want about half", n, share)
		}
	}
}

func TestKeys(t *testing.T) {
	var last []byte
	for _, i := range []uint64{0, 1, 9, 10, 99, 123_456, 1<<32 - 1, 999_999_999_999} {
		k := key(nil, i)
		if len(k) != keySize {
			t.Errorf("key %q has %d bytes, want %d", k, len(k), keySize)
		}
		if bytes.Compare(last, k) >= 0 {
			t.Errorf("key %q does not follow %q", k, last)
		}
		if got, err := parseKey(k); err != nil || got != i {
			t.Errorf("parseKey(%q) = %d, %v, want %d", k, got, err, i)
		}
		last = k
	}
	if a, m, b := existing(nil, 7), missing(nil, 7), existing(nil, 8); bytes.Compare(a, m) >= 0 || bytes.Compare(m, b) >= 0 {
		t.Errorf("missing key %q is not between %q and %q", m, a, b)
	}
	for _, bad := range []string{"", "key-00000000001", "key-00000000000x", "kex-000000000001", "key-0000000000001"} {
		if _, err := parseKey([]byte(bad)); err == nil {
			t.Errorf("parseKey(%q) took a foreign key", bad)
		}
	}
}

// TestValuesAreTheSameEverywhere holds the data fixed: figures of different versions of this program are comparable
// only while this sum stays.
func TestValuesAreTheSameEverywhere(t *testing.T) {
	d := newDataset(1000, 100)
	sum := crc32.NewIEEE()
	var v []byte
	for i := range uint64(1000) {
		v = d.value(v, d.permute(i), uint16(i))
		sum.Write(v)
	}
	if got, want := sum.Sum32(), uint32(0x6e57d2f5); got != want {
		t.Errorf("checksum of the data: %#x, want %#x", got, want)
	}
}

func TestValuesAreAboutHalfCompressible(t *testing.T) {
	for _, size := range []int{100, 1024} {
		d := newDataset(1000, size)
		var block []byte
		for i := uint64(0); len(block) < 4096; i++ {
			block = append(block, existing(nil, i)...)
			block = append(block, d.value(nil, 2*i, 0)...)
		}
		if ratio := float64(len(s2.Encode(nil, block))) / float64(len(block)); ratio < 0.45 || ratio > 0.7 {
			t.Errorf("%d B values: 4 KiB shrink to %.2f, want 0.45 to 0.7", size, ratio)
		}
	}
}

func TestCheckValue(t *testing.T) {
	d := newDataset(1000, 100)
	good := d.value(nil, 42, 7)
	if version, err := d.checkValue(42, good); err != nil || version != 7 {
		t.Fatalf("checkValue = %d, %v, want 7", version, err)
	}
	if _, err := d.checkValue(43, good); err == nil {
		t.Error("the value of another key passes")
	}
	if _, err := d.checkValue(42, good[:99]); err == nil {
		t.Error("a shorter value passes")
	}
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if _, err := d.checkValue(42, bad); err == nil {
			t.Errorf("a value with byte %d changed passes", at)
		}
	}
}

func TestZipf(t *testing.T) {
	const n, draws = 1000, 400_000
	z := newZipf(n)
	rng := rand.New(rand.NewPCG(1, 2))
	counts := make([]float64, n)
	for range draws {
		counts[z.rank(rng)]++ // panics out of range
	}
	// The first two ranks are exact in this algorithm, the rest a continuous approximation.
	for rank, tolerance := range []float64{0.03, 0.03, 0.3, 0.3, 0.3} {
		want := 1 / math.Pow(float64(rank+1), zipfTheta) / z.zetan
		if got := counts[rank] / draws; math.Abs(got/want-1) > tolerance {
			t.Errorf("rank %d: share %.4f, want %.4f within %.0f %%", rank, got, want, 100*tolerance)
		}
	}
	top, want := 0.0, 0.0
	for rank := range n / 10 {
		top += counts[rank] / draws
		want += 1 / math.Pow(float64(rank+1), zipfTheta) / z.zetan
	}
	if math.Abs(top-want) > 0.02 {
		t.Errorf("the first tenth of the keys gets %.3f of the requests, want %.3f", top, want)
	}
}
