package ship_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

// line is one message of the transcript.
type line struct {
	who  byte // '>' follower, '<' leader
	name string
	b    []byte
}

// transcriptLines makes the session of PROTOCOL.md.
func transcriptLines() []line {
	nonce := func(b byte) (n [32]byte) {
		for i := range n {
			n[i] = b + byte(i)
		}
		return n
	}
	hello := func(s ship.Side, b byte) []byte {
		return ship.AppendHello(nil, ship.Hello{
			MinProtocol: 1, MaxProtocol: 1, MinFormat: 1, MaxFormat: 1, Side: s, Kind: ship.KindStream, Nonce: nonce(b),
		})
	}
	h1, h2 := hello(ship.Dialer, 0x10), hello(ship.Acceptor, 0x80)
	tr := ship.Transcript(h1, h2)
	up, down := tr.Keys(secret)
	leader := wal.NodeID(id(0xb2))
	epoch := wal.MakeEpoch(1, 0)
	segment := wal.Header{
		Version: 1, Database: id(0xdb), Salt: 0x0123456789abcdef, SegmentSize: 64 << 10, Epoch: epoch, Leader: leader, History: 0x1111,
		Time: 1790000000000,
	}
	bytes := segment.Marshal()
	history := []wal.HistoryEntry{{Epoch: epoch, ID: 0x1111, Leader: leader}}
	data := ship.AppendHeader(nil, ship.Header{Type: ship.TypeData, Flags: ship.DataHead | ship.DataSync, Length: 128}, down, 1)
	return []line{
		{'>', "Hello", h1},
		{'<', "Hello", h2},
		{'>', "Proof", ship.AppendProof(nil, ship.Proof{MAC: tr.DialerProof(secret)})},
		{'<', "Proof", ship.AppendProof(nil, ship.Proof{MAC: tr.AcceptorProof(secret)})},
		{'>', "Join", ship.AppendMessage(nil, &ship.Join{Node: id(0xf1), Role: ship.RoleVoter, Empty: true, Name: "f1"}, up, 0)},
		{'<', "Welcome", ship.AppendMessage(nil, &ship.Welcome{
			Database: id(0xdb), Node: leader, Leader: leader, Epoch: epoch, Head: 128, SegmentSize: 64 << 10, HeartbeatMS: 1000,
			TimeoutMS: 5000, Name: "l", History: history,
		}, down, 0)},
		{'>', "Ack", ship.AppendMessage(nil, &ship.Ack{}, up, 1)},
		{'<', "Data", append(data, bytes[:]...)},
		{'<', "Mark", ship.AppendMessage(nil, &ship.Mark{
			Committed: 128, Head: 128, Clock: 1790000000001, Probe: 7, HasDigest: true, DigestLSN: 128, Digest: 0x0102030405060708, Epoch: epoch,
		}, down, 2)},
		{'>', "Ack", ship.AppendMessage(nil, &ship.Ack{Received: 128, Durable: 128, Applied: 128, Echo: 7, Epoch: epoch}, up, 2)},
		{'<', "Refusal", ship.AppendMessage(nil, &ship.Refusal{Code: ship.CodeShutdown}, down, 3)},
	}
}

var (
	transcriptBlock = regexp.MustCompile("(?s)```transcript\n(.*?)```")
	transcriptHead  = regexp.MustCompile(`^([<>]) (\w+)$`)
)

// The page and the code agree: the transcript is decoded out of PROTOCOL.md, every proof and check is verified, and
// encoding what was decoded gives the same bytes.
func TestTranscriptInTheSpecification(t *testing.T) {
	page, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	if *rewrite {
		var b strings.Builder
		b.WriteString("```transcript\n")
		for _, l := range transcriptLines() {
			fmt.Fprintf(&b, "%c %s\n", l.who, l.name)
			for i := 0; i < len(l.b); i += 32 {
				b.WriteString("  " + hex.EncodeToString(l.b[i:min(i+32, len(l.b))]) + "\n")
			}
		}
		b.WriteString("```")
		page = transcriptBlock.ReplaceAllLiteral(page, []byte(b.String()))
		if err := os.WriteFile("PROTOCOL.md", page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []line
	for _, s := range strings.Split(string(transcriptBlock.FindSubmatch(page)[1]), "\n") {
		if m := transcriptHead.FindStringSubmatch(s); m != nil {
			got = append(got, line{who: m[1][0], name: m[2]})
		} else if s = strings.TrimSpace(s); s != "" {
			b, err := hex.DecodeString(s)
			if err != nil {
				t.Fatalf("%q: %v", s, err)
			}
			got[len(got)-1].b = append(got[len(got)-1].b, b...)
		}
	}
	want := transcriptLines()
	if len(got) != len(want) {
		t.Fatalf("%d messages, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i].who != want[i].who || got[i].name != want[i].name || !bytes.Equal(got[i].b, want[i].b) {
			t.Errorf("message %d: %c %s %x\nwant %c %s %x", i, got[i].who, got[i].name, got[i].b, want[i].who, want[i].name, want[i].b)
		}
	}
	takeApart(t, got)
}

// takeApart reads the transcript as the two sides do.
func takeApart(t *testing.T, lines []line) {
	tr := ship.Transcript(lines[0].b, lines[1].b)
	for i, want := range [][32]byte{tr.DialerProof(secret), tr.AcceptorProof(secret)} {
		p, err := ship.DecodeProof(lines[2+i].b)
		if err != nil || p.MAC != want {
			t.Errorf("proof %d: %v, %x, want %x", i, err, p.MAC, want)
		}
	}
	up, down := tr.Keys(secret)
	seq := map[byte]uint64{}
	for _, l := range lines[4:] {
		key := up
		if l.who == '<' {
			key = down
		}
		h, m, err := decode(l.b, key, seq[l.who])
		if err != nil {
			t.Errorf("%s: %v", l.name, err)
			continue
		}
		if l.name == "Data" {
			var seg wal.Header
			if err := seg.Unmarshal(l.b[ship.HeaderSize:]); err != nil || seg.Database != id(0xdb) {
				t.Errorf("segment header: %v, %+v", err, seg)
			}
		} else if again := ship.AppendMessage(nil, m, key, seq[l.who]); !bytes.Equal(again, l.b) {
			t.Errorf("%s: encodes to\n%x, was\n%x", l.name, again, l.b)
		}
		if n := binary.LittleEndian.Uint32(l.b[12:]); n != h.Length {
			t.Errorf("%s: length %d", l.name, n)
		}
		seq[l.who]++
	}
}

// The tables of codes in the page and in the code agree.
func TestCodesInTheSpecification(t *testing.T) {
	page, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| [a-z ]+ \| [a-z]+ \| (yes|no)`).FindAllSubmatch(page, -1)
	if len(rows) != int(ship.CodeUnsupported) {
		t.Fatalf("%d rows, want %d", len(rows), ship.CodeUnsupported)
	}
	for i, r := range rows {
		c := ship.Code(i + 1)
		if got := string(r[1]); got != fmt.Sprint(i+1) {
			t.Errorf("row %d is code %s", i, got)
		}
		if final := string(r[2]) == "yes"; final != c.Final() {
			t.Errorf("code %d (%v): final is %v in the page, %v in the code", c, c, final, c.Final())
		}
	}
}
