package ship_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files and the transcript in PROTOCOL.md")

func id(b byte) (n [16]byte) {
	for i := range n {
		n[i] = b
	}
	return n
}

var history = []wal.HistoryEntry{
	{Epoch: wal.MakeEpoch(1, 0), Start: 0x80, ID: 0x1111, Leader: id(0xa1)},
	{Epoch: wal.MakeEpoch(1, 1), Start: 0x4400, ID: 0x2222, Leader: id(0xa1)},
	{Epoch: wal.MakeEpoch(2, 0), Start: 0x9000, ID: 0x3333, Leader: id(0xb2)},
}

// messages holds one of each kind, and the ones whose fields take another path.
var messages = map[string]ship.Message{
	"join": &ship.Join{
		Database: id(0xdb), Node: id(0xf0), End: 0x9a00, Digest: 0x0123456789abcdef, Durable: 0x9900, Committed: 0x9800,
		Promised: wal.MakeEpoch(2, 0), Role: ship.RoleVoter, LogOnly: true, Features: 5, Name: "f1", Addr: "10.0.0.2:7380",
		History: history,
	},
	"join-piece": &ship.Join{Database: wal.DatabaseID(id(0xdb)), Node: id(0xf2), Role: ship.RoleObserver, LogOnly: true, Piece: true, End: 1 << 26, Until: 2 << 26},
	"join-empty": &ship.Join{Node: id(0xf0), Role: ship.RoleObserver, Empty: true, Name: "straße"},
	"welcome": &ship.Welcome{
		Database: id(0xdb), Node: id(0xb2), Leader: id(0xb2), Epoch: wal.MakeEpoch(2, 0), Hops: 1, Start: 0x9a00,
		Digest: 0x0123456789abcdef, Tail: 0x4000, Head: 0xa000, Committed: 0x9fc0, SegmentSize: 1 << 26, Features: 4,
		HeartbeatMS: 1000, TimeoutMS: 5000, Name: "l", Addr: "10.0.0.1:6380", History: history,
	},
	"refusal": &ship.Refusal{
		Code: ship.CodeDiverged, Final: true, Epoch: wal.MakeEpoch(2, 0), LSN: 0x9000, Digest: 7, Mine: 0x3333, Theirs: 0x4444,
		Node: id(0xb2), DB: id(0xdb), Text: "fork at 0000000000009000",
	},
	"refusal-bare": &ship.Refusal{Code: ship.CodeBusy},
	"mark": &ship.Mark{
		Committed: 0x9fc0, Head: 0xa000, Tail: 0x4000, Clock: 1790000000123, Probe: 99, HasDigest: true, DigestLSN: 0x9fc0,
		Digest: 0xfedcba9876543210, Epoch: wal.MakeEpoch(2, 0), Hops: 1,
	},
	"mark-plain": &ship.Mark{Head: 8, Clock: -1, Epoch: wal.MakeEpoch(1, 0)},
	"call": &ship.Call{
		Op: ship.CallPromise, Epoch: wal.MakeEpoch(3, 0), Database: id(0xdb), Node: id(0xf0), Name: "f1", Addr: "10.0.0.2:7380",
	},
	"call-report": &ship.Call{Op: ship.CallReport, Database: id(0xdb), Node: id(0xf0)},
	"vote": &ship.Vote{
		Granted: true, Promised: wal.MakeEpoch(3, 0), Last: wal.MakeEpoch(2, 1), Node: id(0xf1), End: 0xa000, Durable: 0x9fc0,
		Committed: 0x9f00, Tail: 0x4000, Name: "f2", Addr: "10.0.0.3:7380",
	},
	"vote-leads": &ship.Vote{Leads: true, Node: id(0xf1)},
	"ack": &ship.Ack{
		Received: 0xa000, Durable: 0x9fc0, Applied: 0x9fc0, Visible: 0x9f00, Echo: 99, Epoch: wal.MakeEpoch(2, 0),
	},
}

const testKey, testSeq = 0x5eed5eed5eed5eed, 3

// decode takes one message apart as a connection does.
func decode(p []byte, key, seq uint64) (ship.Header, ship.Message, error) {
	h, err := ship.DecodeHeader(p)
	if err != nil {
		return h, nil, err
	}
	if h.Type == ship.TypeData {
		return h, nil, ship.CheckMessage(p[:ship.HeaderSize], key, seq)
	}
	if len(p) < ship.HeaderSize+int(h.Length) {
		return h, nil, ship.ErrProtocol
	}
	p = p[:ship.HeaderSize+int(h.Length)]
	if err := ship.CheckMessage(p, key, seq); err != nil {
		return h, nil, err
	}
	m, err := ship.DecodeMessage(h, p[ship.HeaderSize:])
	return h, m, err
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name+".hex")
	if *rewrite {
		var b strings.Builder
		for i := 0; i < len(got); i += 16 {
			b.WriteString(hex.EncodeToString(got[i:min(i+16, len(got))]) + "\n")
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: encoded differently from the golden file\n got %x\nwant %x", name, got, want)
	}
}

func TestMessagesGoldenAndRoundTrip(t *testing.T) {
	for name, m := range messages {
		t.Run(name, func(t *testing.T) {
			p := ship.AppendMessage(nil, m, testKey, testSeq)
			golden(t, name, p)
			_, got, err := decode(p, testKey, testSeq)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, m) {
				t.Errorf("decoded\n got %+v\nwant %+v", got, m)
			}
		})
	}
}

func TestDataHeaderGolden(t *testing.T) {
	h := ship.Header{Type: ship.TypeData, Flags: ship.DataHead | ship.DataSync, Length: 4096, LSN: 0x9a00}
	p := ship.AppendHeader(nil, h, testKey, testSeq)
	golden(t, "data", p)
	got, _, err := decode(p, testKey, testSeq)
	if err != nil || got != h {
		t.Errorf("decoded %+v, %v; want %+v", got, err, h)
	}
}

func TestHandshakeMessagesGolden(t *testing.T) {
	h := ship.Hello{MinProtocol: 1, MaxProtocol: 3, MinFormat: 1, MaxFormat: 2, Side: ship.Dialer, Kind: ship.KindStream}
	for i := range h.Nonce {
		h.Nonce[i] = byte(i)
	}
	p := ship.AppendHello(nil, h)
	golden(t, "hello", p)
	if got, err := ship.DecodeHello(p); err != nil || got != h {
		t.Errorf("decoded %+v, %v; want %+v", got, err, h)
	}
	pr := ship.Proof{Code: ship.CodeAuth, MAC: h.Nonce}
	q := ship.AppendProof(nil, pr)
	golden(t, "proof", q)
	if got, err := ship.DecodeProof(q); err != nil || got != pr {
		t.Errorf("decoded %+v, %v; want %+v", got, err, pr)
	}
	for i := range 8 * len(p) {
		p[i/8] ^= 1 << (i % 8)
		if _, err := ship.DecodeHello(p); !errors.Is(err, ship.ErrProtocol) {
			t.Fatalf("hello with bit %d flipped: %v", i, err)
		}
		p[i/8] ^= 1 << (i % 8)
	}
	for i := range 8 * len(q) {
		q[i/8] ^= 1 << (i % 8)
		if _, err := ship.DecodeProof(q); !errors.Is(err, ship.ErrProtocol) {
			t.Fatalf("proof with bit %d flipped: %v", i, err)
		}
		q[i/8] ^= 1 << (i % 8)
	}
}

// A bit that changes on the way never yields another message.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	for name, m := range messages {
		p := ship.AppendMessage(nil, m, testKey, testSeq)
		for i := range 8 * len(p) {
			p[i/8] ^= 1 << (i % 8)
			if _, got, err := decode(p, testKey, testSeq); !errors.Is(err, ship.ErrProtocol) {
				t.Fatalf("%s: bit %d flipped: decoded %+v, error %v", name, i, got, err)
			}
			p[i/8] ^= 1 << (i % 8)
		}
	}
	h := ship.AppendHeader(nil, ship.Header{Type: ship.TypeData, Length: 4096, LSN: 0x9a00}, testKey, testSeq)
	for i := range 8 * len(h) {
		h[i/8] ^= 1 << (i % 8)
		if _, _, err := decode(h, testKey, testSeq); !errors.Is(err, ship.ErrProtocol) {
			t.Fatalf("data: bit %d flipped: %v", i, err)
		}
		h[i/8] ^= 1 << (i % 8)
	}
}

// A message that comes twice, or too early, or from another session or direction, fails its check.
func TestMessageOutOfPlaceIsRefused(t *testing.T) {
	p := ship.AppendMessage(nil, messages["ack"], testKey, testSeq)
	for _, c := range []struct {
		name     string
		key, seq uint64
	}{
		{"repeated", testKey, testSeq + 1}, {"early", testKey, testSeq - 1}, {"other session", testKey + 1, testSeq},
	} {
		if _, _, err := decode(p, c.key, c.seq); !errors.Is(err, ship.ErrProtocol) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Valid checks do not make fields valid: these come from a peer that knows the secret.
func TestMalformedMessagesAreRefused(t *testing.T) {
	long := strings.Repeat("x", ship.MaxName+1)
	many := make([]wal.HistoryEntry, ship.MaxHistory+1)
	for i := range many {
		many[i].Epoch = wal.Epoch(i + 1)
	}
	join := func(f func(*ship.Join)) ship.Message {
		m := *messages["join"].(*ship.Join)
		f(&m)
		return &m
	}
	piece := func(f func(*ship.Join)) ship.Message {
		m := *messages["join-piece"].(*ship.Join)
		f(&m)
		return &m
	}
	welcome := func(f func(*ship.Welcome)) ship.Message {
		m := *messages["welcome"].(*ship.Welcome)
		f(&m)
		return &m
	}
	for name, m := range map[string]ship.Message{
		"join: name too long":              join(func(m *ship.Join) { m.Name = long }),
		"join: address with a line break":  join(func(m *ship.Join) { m.Addr = "a\nb" }),
		"join: name is not UTF-8":          join(func(m *ship.Join) { m.Name = "\xff" }),
		"join: no node ID":                 join(func(m *ship.Join) { m.Node = wal.NodeID{} }),
		"join: no role":                    join(func(m *ship.Join) { m.Role = 0 }),
		"join: durable past the end":       join(func(m *ship.Join) { m.Durable = m.End + 8 }),
		"join: no history":                 join(func(m *ship.Join) { m.History = nil }),
		"join: history too long":           join(func(m *ship.Join) { m.History = many }),
		"join: epochs fall":                join(func(m *ship.Join) { m.History = []wal.HistoryEntry{history[1], history[0]} }),
		"join: empty with an end":          join(func(m *ship.Join) { m.Empty = true }),
		"join: an end of a piece":          join(func(m *ship.Join) { m.Until = m.End + 8 }),
		"join: piece of a voter":           piece(func(m *ship.Join) { m.Role = ship.RoleVoter }),
		"join: piece that ends before":     piece(func(m *ship.Join) { m.Until = m.End - 8 }),
		"join: piece with a digest":        piece(func(m *ship.Join) { m.Digest = 1 }),
		"join: piece with an epoch":        piece(func(m *ship.Join) { m.Promised = 1 }),
		"join: piece with a history":       piece(func(m *ship.Join) { m.History = history }),
		"join: piece of no database":       piece(func(m *ship.Join) { m.Database = wal.DatabaseID{} }),
		"join: empty piece":                piece(func(m *ship.Join) { m.Empty, m.End = true, 0 }),
		"welcome: starts past its head":    welcome(func(m *ship.Welcome) { m.Start = m.Head + 8 }),
		"welcome: no heartbeat":            welcome(func(m *ship.Welcome) { m.HeartbeatMS = 0 }),
		"welcome: timeout below heartbeat": welcome(func(m *ship.Welcome) { m.TimeoutMS = m.HeartbeatMS }),
		"refusal: no code":                 &ship.Refusal{},
		"refusal: text too long":           &ship.Refusal{Code: 1, Text: strings.Repeat("x", ship.MaxText+1)},
		"mark: committed past the head":    &ship.Mark{Committed: 16, Head: 8},
		"mark: digest past the head":       &ship.Mark{Head: 8, HasDigest: true, DigestLSN: 16},
		"mark: digest without the flag":    &ship.Mark{Head: 8, Digest: 1},
		"ack: durable past received":       &ship.Ack{Received: 8, Durable: 16},
		"ack: applied past received":       &ship.Ack{Received: 8, Applied: 16},
		"ack: visible past applied":        &ship.Ack{Received: 16, Applied: 8, Visible: 16},
	} {
		p := ship.AppendMessage(nil, m, testKey, testSeq)
		if _, got, err := decode(p, testKey, testSeq); !errors.Is(err, ship.ErrProtocol) {
			t.Errorf("%s: decoded %+v, error %v", name, got, err)
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for name, m := range messages {
		_ = name
		p := ship.AppendMessage(nil, m, 0, 0)
		f.Add(p[8], p[9], p[ship.HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, typ, flags byte, body []byte) {
		var head [ship.HeaderSize]byte
		head[8], head[9] = typ, flags
		head[12], head[13], head[14], head[15] = byte(len(body)), byte(len(body)>>8), byte(len(body)>>16), byte(len(body)>>24)
		h, err := ship.DecodeHeader(head[:])
		if err != nil {
			return
		}
		m, err := ship.DecodeMessage(h, body)
		if err != nil {
			if !errors.Is(err, ship.ErrProtocol) {
				t.Fatalf("error %v", err)
			}
			return
		}
		p := ship.AppendMessage(nil, m, 1, 2)
		if p[8] != typ || p[9] != flags || !bytes.Equal(p[ship.HeaderSize:], body) {
			t.Fatalf("encode(decode(x)) differs from x:\n%x\n%x", p[ship.HeaderSize:], body)
		}
	})
}

// A flag that this version does not know is refused with every type, whatever the check says.
func TestUnknownFlagsAreRefused(t *testing.T) {
	seen := map[ship.Type]bool{}
	for name, m := range messages {
		p := ship.AppendMessage(nil, m, testKey, testSeq)
		h, err := ship.DecodeHeader(p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		seen[h.Type] = true
		p[9] |= 0x80
		if _, err := ship.DecodeHeader(p); !errors.Is(err, ship.ErrProtocol) {
			t.Errorf("%s: an unknown flag: %v", name, err)
		}
	}
	data := ship.AppendHeader(nil, ship.Header{Type: ship.TypeData, Flags: 0x80, Length: 8}, testKey, testSeq)
	if _, err := ship.DecodeHeader(data); !errors.Is(err, ship.ErrProtocol) {
		t.Errorf("data: an unknown flag: %v", err)
	}
	for typ := ship.TypeJoin; typ <= ship.TypeVote; typ++ {
		if typ != ship.TypeData && !seen[typ] {
			t.Errorf("no message of type %d was tried", typ)
		}
	}
}
