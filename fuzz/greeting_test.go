package fuzz_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cespare/xxhash/v2"

	"shiplog/ship"
)

// FuzzGreeting: the two messages of fixed size that a stranger may send, a Hello and a Proof. What decodes encodes to the
// same bytes, but for the six bytes of a Hello that are left to later versions.
func FuzzGreeting(f *testing.F) {
	hello := ship.Hello{MinProtocol: 1, MaxProtocol: 1, MinFormat: 1, MaxFormat: 1, Side: ship.Dialer, Kind: ship.KindStream}
	f.Add(ship.AppendHello(nil, hello))
	f.Add(ship.AppendProof(nil, ship.Proof{Code: ship.CodeProtocol, MAC: [32]byte{1}}))
	// Bytes that must be zero are not, under a checksum that holds: a fuzzer cannot make one.
	odd := ship.AppendProof(nil, ship.Proof{})
	odd[5] = 1
	binary.LittleEndian.PutUint64(odd[40:], xxhash.Sum64(odd[:40]))
	f.Add(odd)
	hello.MinProtocol = 2 // a range that is upside down
	f.Add(ship.AppendHello(nil, hello))
	f.Add(ship.AppendHello(nil, ship.Hello{Side: 3})) // neither side

	f.Fuzz(func(t *testing.T, p []byte) {
		if h, err := ship.DecodeHello(p); err == nil {
			if h.MinProtocol > h.MaxProtocol || h.MinFormat > h.MaxFormat {
				t.Fatalf("%+v decodes", h)
			}
			again := ship.AppendHello(nil, h)
			if !bytes.Equal(again[:18], p[:18]) || !bytes.Equal(again[24:56], p[24:56]) {
				t.Fatalf("%x decodes and encodes to %x", p, again)
			}
		}
		if proof, err := ship.DecodeProof(p); err == nil {
			if again := ship.AppendProof(nil, proof); !bytes.Equal(again, p) {
				t.Fatalf("%x decodes and encodes to %x", p, again)
			}
		}
	})
}
