package fuzz_test

import (
	"bytes"
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

const (
	messageKey = 0x5eed
	messageSeq = 7
)

var (
	someNode = wal.NodeID{1}
	someDB   = wal.DatabaseID{2}
	epochs   = []wal.HistoryEntry{
		{Epoch: wal.MakeEpoch(1, 0), Start: 128, ID: 3, Leader: someNode},
		{Epoch: wal.MakeEpoch(1, 1), Start: 4096, ID: 4, Leader: someNode},
	}
)

// messages has one of each type, with every optional part present.
func messages() []ship.Message {
	return []ship.Message{
		&ship.Join{Database: someDB, Node: someNode, End: 8192, Digest: 5, Durable: 8192, Committed: 4096, Role: ship.RoleVoter, Name: "copy", Addr: "127.0.0.1:7381", History: epochs},
		&ship.Join{Node: someNode, Role: ship.RoleObserver, Empty: true, LogOnly: true},
		&ship.Welcome{
			Database: someDB, Node: someNode, Leader: someNode, Epoch: wal.MakeEpoch(1, 1), Start: 4096, Head: 8192, SegmentSize: 64 << 20,
			HeartbeatMS: 1000, TimeoutMS: 5000, Name: "leader", Addr: "127.0.0.1:6380", History: epochs,
		},
		&ship.Refusal{Code: ship.CodeProtocol, Final: true, LSN: 4096, Node: someNode, Text: "no"},
		&ship.Mark{Committed: 4096, Head: 8192, Clock: 1, HasDigest: true, DigestLSN: 8192, Digest: 6, Epoch: wal.MakeEpoch(1, 1)},
		&ship.Mark{Committed: 4096, Head: 8192, Clock: 1, Lease: true, Stalled: true, Hops: 2},
		&ship.Ack{Received: 8192, Durable: 8192, Applied: 4096, Visible: 4096, Echo: 9, Epoch: wal.MakeEpoch(1, 1)},
		&ship.Call{Op: ship.CallPromise, Epoch: wal.MakeEpoch(2, 0), Database: someDB, Node: someNode, Name: "copy", Addr: "127.0.0.1:7381"},
		&ship.Call{Op: ship.CallReport, Database: someDB, Node: someNode},
		&ship.Vote{
			Granted: true, Leads: true, Promised: wal.MakeEpoch(2, 0), Last: wal.MakeEpoch(1, 1), Node: someNode, End: 8192, Durable: 8192, Committed: 4096,
			Name: "leader", Addr: "127.0.0.1:7380",
		},
	}
}

// FuzzMessage: a header and a body that decode are, encoded again, the same bytes, but for the check, which a fuzzer
// cannot guess, and for what is left to later versions; and no single bit of the encoding can change unnoticed. The text
// of what is refused is bounded.
func FuzzMessage(f *testing.F) {
	for _, m := range messages() {
		f.Add(ship.AppendMessage(nil, m, messageKey, messageSeq), uint16(100))
	}
	// A length far past what follows, of a type whose limit allows it.
	f.Add(ship.AppendHeader(nil, ship.Header{Type: ship.TypeWelcome, Length: 30000}, messageKey, messageSeq), uint16(0))
	// Data that would end past the last LSN.
	f.Add(ship.AppendHeader(nil, ship.Header{Type: ship.TypeData, Length: 64, LSN: ^wal.LSN(0) - 8}, messageKey, messageSeq), uint16(0))

	f.Fuzz(func(t *testing.T, p []byte, bit uint16) {
		h, err := ship.DecodeHeader(p)
		if err != nil || h.Type == ship.TypeData {
			if err == nil && h.LSN+wal.LSN(h.Length) < h.LSN {
				t.Fatalf("data of %d bytes at %s passes", h.Length, h.LSN)
			}
			return
		}
		body := p[ship.HeaderSize:]
		m, err := ship.DecodeMessage(h, body)
		if err != nil {
			return
		}
		again := ship.AppendMessage(nil, m, messageKey, messageSeq)
		if _, join := m.(*ship.Join); !bytes.Equal(again[ship.HeaderSize:], body) && !join {
			t.Fatalf("%T decodes from\n%x\nand encodes to\n%x", m, body, again[ship.HeaderSize:])
		}
		if err := ship.CheckMessage(again, messageKey, messageSeq); err != nil {
			t.Fatalf("%T fails its own check: %v", m, err)
		}
		if ship.CheckMessage(again, messageKey, messageSeq+1) == nil {
			t.Fatalf("%T passes as another message of the session", m)
		}
		again[int(bit)/8%len(again)] ^= 1 << (bit % 8)
		if ship.CheckMessage(again, messageKey, messageSeq) == nil {
			t.Fatalf("%T passes with bit %d changed", m, bit)
		}
	})
}
