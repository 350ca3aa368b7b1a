package ship

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"shiplog/wal"
)

// CallOp says what a [Call] asks for.
type CallOp uint8

// What can be asked. Unknown ones are refused.
const (
	// CallReport asks how far the node is, and who leads.
	CallReport CallOp = 1
	// CallPromise asks for a persisted promise to take part in no epoch below the one named.
	CallPromise CallOp = 2
	// CallTakeOver asks the node to become the leader.
	CallTakeOver CallOp = 3
	// CallClients asks where the node serves clients: the Addr of its Vote.
	CallClients CallOp = 4
)

// Call is the one message of a short connection between nodes, sent where a follower would send a [Join]. It is answered by a
// [Vote] or a [Refusal].
type Call struct {
	Op       CallOp
	Epoch    wal.Epoch // of CallPromise: the epoch that is to be promised
	Database wal.DatabaseID
	Node     wal.NodeID // who asks
	Name     string
	Addr     string // where the asking node serves followers
}

func (*Call) messageType() Type { return TypeCall }
func (*Call) flags() uint8      { return 0 }

// 0    1    4       8    24     40     42     44    48
// | op | zero | epoch | db | node | name | addr | zero | ...
func (m *Call) appendBody(dst []byte) []byte {
	dst = append(dst, byte(m.Op), 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Epoch))
	dst = append(dst, m.Database[:]...)
	dst = append(dst, m.Node[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Name)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Addr)))
	dst = append(dst, 0, 0, 0, 0)
	return append(append(dst, m.Name...), m.Addr...)
}

func (d *decoder) call() *Call {
	m := &Call{Op: CallOp(d.u8())}
	d.zero(3)
	m.Epoch, m.Database, m.Node = wal.Epoch(d.u32()), d.id(), d.id()
	name, addr := int(d.u16()), int(d.u16())
	d.zero(4)
	d.need(name <= MaxName && addr <= MaxName)
	m.Name, m.Addr = d.text(name), d.text(addr)
	d.need(m.Op >= CallReport && m.Op <= CallClients && !m.Node.IsZero() && !m.Database.IsZero())
	d.need((m.Op == CallPromise) == (m.Epoch != 0))
	return m
}

// Vote answers a [Call]: whether it was granted, and how far the answering node is. What it says of the log was read after the promise
// was persisted, and from then on no leader of an older epoch has the node append anything.
type Vote struct {
	Granted   bool // the promise is persisted, or the node leads now
	Leads     bool // the node leads the last epoch of its log, and nobody has fenced it
	Promised  wal.Epoch
	Last      wal.Epoch // of the end of the log
	Node      wal.NodeID
	End       wal.LSN // of the last whole batch in the log
	Durable   wal.LSN
	Committed wal.LSN
	Tail      wal.LSN
	Name      string
	Addr      string // where the node that the answering one takes for the leader serves followers; its own, if it leads
}

func (*Vote) messageType() Type { return TypeVote }
func (*Vote) flags() uint8      { return 0 }

const (
	voteGranted = 1
	voteLeads   = 2
)

// 0       1    4          8      12   16     32    40        48          56     64     66     68   72
// | flags | zero | promised | last | zero | node | end | durable | committed | tail | name | addr | zero | ...
func (m *Vote) appendBody(dst []byte) []byte {
	dst = append(dst, flag(m.Granted, voteGranted)|flag(m.Leads, voteLeads), 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Promised))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Last))
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, m.Node[:]...)
	for _, v := range [...]wal.LSN{m.End, m.Durable, m.Committed, m.Tail} {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(v))
	}
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Name)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(m.Addr)))
	dst = append(dst, 0, 0, 0, 0)
	return append(append(dst, m.Name...), m.Addr...)
}

func (d *decoder) vote() *Vote {
	f := d.u8()
	m := &Vote{Granted: f&voteGranted != 0, Leads: f&voteLeads != 0}
	d.zero(3)
	m.Promised, m.Last = wal.Epoch(d.u32()), wal.Epoch(d.u32())
	d.zero(4)
	m.Node, m.End, m.Durable, m.Committed, m.Tail = d.id(), d.lsn(), d.lsn(), d.lsn(), d.lsn()
	name, addr := int(d.u16()), int(d.u16())
	d.zero(4)
	d.need(name <= MaxName && addr <= MaxName)
	m.Name, m.Addr = d.text(name), d.text(addr)
	d.need(f&^(voteGranted|voteLeads) == 0 && !m.Node.IsZero())
	return m
}

// CallOptions configure [Ask].
type CallOptions struct {
	// Secret is shared by all nodes. Empty: none, and only loopback addresses are asked, unless Insecure or Dial.
	Secret   []byte
	Insecure bool
	// TLS, when set, is how the address is dialled.
	TLS *tls.Config
	// Dial, when set, makes the connection instead, TLS included.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Random gives nonces; nil: crypto/rand.
	Random io.Reader
}

// Ask sends one [Call] to the node that serves followers at addr and returns its answer. It ends with ctx. An *[Error] is the other
// node's refusal.
func Ask(ctx context.Context, addr string, o *CallOptions, c *Call) (*Vote, error) {
	conn, opts, hangUp, err := o.dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("ship: dial %s: %w", addr, err)
	}
	defer hangUp() // one answer: nothing is left to be sent
	m, err := conn.ask(c, opts)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("ship: ask %s: %w", addr, err)
	}
	switch m := m.(type) {
	case *Vote:
		return m, nil
	case *Refusal:
		return nil, fmt.Errorf("ship: ask %s: %w", addr, m.err())
	}
	return nil, fmt.Errorf("ship: ask %s: %w", addr, refuse(CodeProtocol, "want a vote or a refusal"))
}

// dial connects to the node that serves followers at addr. The connection ends with ctx, or by hangUp.
func (o *CallOptions) dial(ctx context.Context, addr string) (c *conn, opts *FollowerOptions, hangUp func(), err error) {
	f := FollowerOptions{Upstream: addr, Secret: o.Secret, Insecure: o.Insecure, TLS: o.TLS, Random: o.Random}
	if o.Dial != nil {
		f.Dial = func(ctx context.Context) (net.Conn, error) { return o.Dial(ctx, addr) }
	}
	if f, err = f.withDefaults(); err != nil {
		return nil, nil, nil, err
	}
	nc, err := dialUpstream(ctx, &f)
	if err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	return newConn(nc, f.Timeout), &f, func() { stop(); _ = nc.Close() }, nil
}

func (c *conn) ask(call *Call, o *FollowerOptions) (Message, error) {
	if err := c.present(o); err != nil {
		return nil, err
	}
	if err := c.nc.SetDeadline(time.Now().Add(takeOverTimeout)); err != nil {
		return nil, ioError("call", err)
	}
	return c.exchange(call)
}

// takeOverTimeout bounds the longest answer: a node that is asked to take over collects promises and copies what it lacks.
const takeOverTimeout = time.Minute

// errAnswered says that a connection was a call, and is over.
var errAnswered = errors.New("ship: call answered")

// answer answers a call.
func (l *Leader) answer(c *conn, call *Call) error {
	switch {
	case l.opts.Answer == nil:
		return refuse(CodeUnsupported, "this node answers no calls")
	case l.isClosing():
		return refuse(CodeShutdown, "")
	case l.log.Empty():
		return refuse(CodeNotReady, "no database yet")
	case call.Node == l.log.NodeID():
		return refuse(CodeSelf, "node %s", call.Node)
	case call.Database != l.log.DatabaseID():
		e := refuse(CodeDatabase, "this node has %s, the caller %s", l.log.DatabaseID(), call.Database)
		e.DB = l.log.DatabaseID()
		return e
	}
	if err := c.nc.SetDeadline(time.Now().Add(takeOverTimeout)); err != nil {
		return ioError("call", err)
	}
	if call.Addr != "" {
		call.Addr = reachable(call.Addr, c.nc.RemoteAddr())
	}
	ctx, cancel := context.WithTimeout(context.Background(), takeOverTimeout)
	defer cancel()
	v, err := l.opts.Answer(ctx, call)
	if err != nil {
		return &Error{Code: CodeInternal, Text: err.Error(), Err: err}
	}
	if _, err := c.nc.Write(c.appendMessage(nil, v)); err != nil {
		return ioError("send vote", err)
	}
	return errAnswered
}
