package ship

import (
	"encoding/binary"
	"unicode/utf8"

	"shiplog/wal"
)

// Role is what a follower wishes to be.
type Role uint8

// The roles.
const (
	RoleVoter    Role = 1 // counted by the commit rule once it has caught up, if the leader's node admits it
	RoleObserver Role = 2 // never counted
	// RoleCandidate is about to lead the epoch that it names as promised, which the upstream has promised too: it is sent everything.
	RoleCandidate Role = 3
)

// Join says who the follower is and where it stands.
type Join struct {
	Database  wal.DatabaseID // zero: none yet, and any is welcome
	Node      wal.NodeID
	End       wal.LSN    // end of the last verified frame
	Digest    wal.Digest // at End
	Durable   wal.LSN
	Committed wal.LSN   // the follower's own mark
	Promised  wal.Epoch // the highest epoch that it promised or saw
	Role      Role
	Empty     bool // the log holds nothing; End, Digest, Durable, Committed and History are zero
	LogOnly   bool // keeps the log without applying it: applied and visible mean nothing
	Piece     bool // wants [End, Until) alone, wherever it stands itself; Digest, Durable, Committed, Promised and History are zero
	Until     wal.LSN
	Features  uint64 // wishes, such as [FeatureReadLease]; unknown bits are ignored
	Name      string
	Addr      string // where this node serves its own followers; may be empty
	History   []wal.HistoryEntry
}

func (m *Join) showsLate() bool { return m.Features&FeatureShowsLate != 0 }

func (*Join) messageType() Type { return TypeJoin }
func (*Join) flags() uint8      { return 0 }

const (
	joinEmpty   = 1
	joinLogOnly = 2
	joinPiece   = 4
)

// 0    16   32    40       48        56          64         68     69      70     72         80     82     84        86     88      96
// | db | id | end | digest | durable | committed | promised | role | flags | zero | features | name | addr | history | zero | until | ...
func (m *Join) appendBody(dst []byte) []byte {
	dst = append(dst, m.Database[:]...)
	dst = append(dst, m.Node[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.End))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Digest))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Durable))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Committed))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Promised))
	dst = append(dst, byte(m.Role), flag(m.Empty, joinEmpty)|flag(m.LogOnly, joinLogOnly)|flag(m.Piece, joinPiece), 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, m.Features)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Name)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Addr)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.History)))
	dst = append(dst, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Until))
	dst = append(dst, m.Name...)
	dst = append(dst, m.Addr...)
	return appendHistory(dst, m.History)
}

func (d *decoder) join() *Join {
	m := &Join{
		Database: d.id(), Node: d.id(), End: d.lsn(), Digest: wal.Digest(d.u64()), Durable: d.lsn(), Committed: d.lsn(),
		Promised: wal.Epoch(d.u32()), Role: Role(d.u8()),
	}
	f := d.u8()
	m.Empty, m.LogOnly, m.Piece = f&joinEmpty != 0, f&joinLogOnly != 0, f&joinPiece != 0
	d.need(f&^(joinEmpty|joinLogOnly|joinPiece) == 0 && m.Role >= RoleVoter && m.Role <= RoleCandidate)
	d.zero(2)
	m.Features = d.u64()
	name, addr, history := int(d.u16()), int(d.u16()), int(d.u16())
	d.zero(2)
	m.Until = d.lsn()
	d.need(name <= MaxName && addr <= MaxName)
	m.Name, m.Addr = d.text(name), d.text(addr)
	m.History = d.history(history)
	d.need(!m.Node.IsZero() && m.Durable <= m.End)
	switch {
	case m.Piece:
		d.need(!m.Database.IsZero() && !m.Empty && m.Role == RoleObserver && m.Until >= m.End)
		d.need(m.Digest == 0 && m.Durable == 0 && m.Committed == 0 && m.Promised == 0 && history == 0)
	case m.Empty:
		d.need(m.End == 0 && m.Digest == 0 && m.Committed == 0 && history == 0 && m.Until == 0)
	default:
		d.need(!m.Database.IsZero() && history > 0 && m.Until == 0)
	}
	return m
}

// Welcome accepts a follower and says from where it is fed.
type Welcome struct {
	Database    wal.DatabaseID
	Node        wal.NodeID // the upstream
	Leader      wal.NodeID // of Epoch
	Epoch       wal.Epoch  // of the end of the upstream's log
	Hops        uint32     // upstreams between this one and the leader: 0 at the leader
	Start       wal.LSN    // LSN of the first byte that will be sent
	Digest      wal.Digest // at Start
	Tail        wal.LSN
	Head        wal.LSN
	Committed   wal.LSN
	SegmentSize uint64 // bytes
	Features    uint64 // granted
	HeartbeatMS uint32 // how often the upstream speaks at least, and wants to be spoken to
	TimeoutMS   uint32 // after how much silence it drops the connection
	Name        string
	Addr        string // where clients of this node's followers reach it; may be empty
	History     []wal.HistoryEntry
}

func (*Welcome) messageType() Type { return TypeWelcome }
func (*Welcome) flags() uint8      { return 0 }

func (m *Welcome) appendBody(dst []byte) []byte {
	dst = append(dst, m.Database[:]...)
	dst = append(dst, m.Node[:]...)
	dst = append(dst, m.Leader[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Epoch))
	dst = binary.LittleEndian.AppendUint32(dst, m.Hops)
	for _, v := range [...]uint64{
		uint64(m.Start), uint64(m.Digest), uint64(m.Tail), uint64(m.Head), uint64(m.Committed), m.SegmentSize, m.Features,
	} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = binary.LittleEndian.AppendUint32(dst, m.HeartbeatMS)
	dst = binary.LittleEndian.AppendUint32(dst, m.TimeoutMS)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Name)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Addr)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.History)))
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, m.Name...)
	dst = append(dst, m.Addr...)
	return appendHistory(dst, m.History)
}

func (d *decoder) welcome() *Welcome {
	m := &Welcome{
		Database: d.id(), Node: d.id(), Leader: d.id(), Epoch: wal.Epoch(d.u32()), Hops: d.u32(), Start: d.lsn(),
		Digest: wal.Digest(d.u64()), Tail: d.lsn(), Head: d.lsn(), Committed: d.lsn(), SegmentSize: d.u64(), Features: d.u64(),
		HeartbeatMS: d.u32(), TimeoutMS: d.u32(),
	}
	name, addr, history := int(d.u16()), int(d.u16()), int(d.u16())
	d.zero(18)
	d.need(name <= MaxName && addr <= MaxName)
	m.Name, m.Addr = d.text(name), d.text(addr)
	m.History = d.history(history)
	d.need(!m.Database.IsZero() && !m.Node.IsZero() && m.Start <= m.Head && m.Tail <= m.Head && history > 0)
	d.need(m.HeartbeatMS > 0 && m.TimeoutMS > m.HeartbeatMS)
	return m
}

// Refusal ends a connection and says why. The fields are those of [Error].
type Refusal struct {
	Code   Code
	Final  bool
	Epoch  wal.Epoch
	LSN    wal.LSN
	Digest wal.Digest
	Mine   wal.HistoryID
	Theirs wal.HistoryID
	Node   wal.NodeID
	DB     wal.DatabaseID
	Text   string
}

func (*Refusal) messageType() Type { return TypeRefusal }
func (*Refusal) flags() uint8      { return 0 }

func (m *Refusal) appendBody(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Code))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(flag(m.Final, 1)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Epoch))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.LSN))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Digest))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Mine))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Theirs))
	dst = append(dst, m.Node[:]...)
	dst = append(dst, m.DB[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Text)))
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	return append(dst, m.Text...)
}

func (d *decoder) refusal() *Refusal {
	m := &Refusal{Code: Code(d.u16())}
	f := d.u16()
	m.Final = f == 1
	m.Epoch, m.LSN, m.Digest = wal.Epoch(d.u32()), d.lsn(), wal.Digest(d.u64())
	m.Mine, m.Theirs = wal.HistoryID(d.u64()), wal.HistoryID(d.u64())
	m.Node, m.DB = d.id(), d.id()
	n := int(d.u16())
	d.zero(6)
	d.need(f <= 1 && m.Code != 0 && n == len(d.p))
	m.Text = d.text(n)
	return m
}

// refusalOf turns a local error into the message that tells the peer.
func refusalOf(e *Error) *Refusal {
	return &Refusal{
		Code: e.Code, Final: e.Final(), Epoch: e.Epoch, LSN: e.LSN, Digest: e.Digest, Mine: e.Mine, Theirs: e.Theirs,
		Node: e.Node, DB: e.DB, Text: clip(e.Text),
	}
}

// err turns what the peer told into an error of this side.
func (m *Refusal) err() *Error {
	return &Error{
		Code: m.Code, Remote: true, Epoch: m.Epoch, LSN: m.LSN, Digest: m.Digest, Mine: m.Mine, Theirs: m.Theirs,
		Node: m.Node, DB: m.DB, Text: m.Text, final: m.Final,
	}
}

// clip makes s fit into a Refusal: printable, at most MaxText bytes.
func clip(s string) string {
	b := make([]byte, 0, min(len(s), MaxText))
	for _, r := range s {
		if !printable(string(r)) {
			r = '?'
		}
		if len(b)+utf8.RuneLen(r) > MaxText {
			break
		}
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}

// Mark tells how far the upstream is. It is sent when the committed mark has moved, and as a heartbeat.
type Mark struct {
	Committed wal.LSN
	Head      wal.LSN
	Tail      wal.LSN
	Clock     int64  // the leader's clock, Unix milliseconds
	Probe     uint64 // to be returned in the next Ack
	HasDigest bool
	DigestLSN wal.LSN // end of the last byte sent before this message
	Digest    wal.Digest
	Epoch     wal.Epoch // of the end of the upstream's log
	Hops      uint32
	Stalled   bool // the sender's disk does not answer
	Lease     bool // the leader's reads rest on this follower's granting no promise; see [ReadLease]
}

func (*Mark) messageType() Type { return TypeMark }
func (m *Mark) flags() uint8 {
	return flag(m.HasDigest, MarkDigest) | flag(m.Lease, MarkLease) | flag(m.Stalled, MarkStalled)
}

func (m *Mark) appendBody(dst []byte) []byte {
	for _, v := range [...]uint64{
		uint64(m.Committed), uint64(m.Head), uint64(m.Tail), uint64(m.Clock), m.Probe, uint64(m.DigestLSN), uint64(m.Digest),
	} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Epoch))
	return binary.LittleEndian.AppendUint32(dst, m.Hops)
}

func (d *decoder) mark(flags uint8) *Mark {
	m := &Mark{
		Committed: d.lsn(), Head: d.lsn(), Tail: d.lsn(), Clock: int64(d.u64()), Probe: d.u64(),
		HasDigest: flags&MarkDigest != 0, Lease: flags&MarkLease != 0, Stalled: flags&MarkStalled != 0,
		DigestLSN: d.lsn(), Digest: wal.Digest(d.u64()), Epoch: wal.Epoch(d.u32()), Hops: d.u32(),
	}
	d.need(m.Committed <= m.Head && m.Tail <= m.Head && m.DigestLSN <= m.Head)
	d.need(m.HasDigest || (m.DigestLSN == 0 && m.Digest == 0))
	return m
}

// Ack tells how far the follower is. It is sent when one of its positions has moved, and as a heartbeat.
type Ack struct {
	Received wal.LSN
	Durable  wal.LSN
	Applied  wal.LSN
	Visible  wal.LSN
	Echo     uint64    // Probe of the last Mark
	Epoch    wal.Epoch // of the end of the follower's log
}

func (*Ack) messageType() Type { return TypeAck }
func (*Ack) flags() uint8      { return 0 }

func (m *Ack) appendBody(dst []byte) []byte {
	for _, v := range [...]uint64{uint64(m.Received), uint64(m.Durable), uint64(m.Applied), uint64(m.Visible), m.Echo} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Epoch))
	return append(dst, 0, 0, 0, 0)
}

func (d *decoder) ack() *Ack {
	m := &Ack{Received: d.lsn(), Durable: d.lsn(), Applied: d.lsn(), Visible: d.lsn(), Echo: d.u64(), Epoch: wal.Epoch(d.u32())}
	d.zero(4)
	d.need(m.Durable <= m.Received && m.Applied <= m.Received && m.Visible <= m.Applied)
	return m
}

func flag(on bool, bit uint8) uint8 {
	if on {
		return bit
	}
	return 0
}
