package ship

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"shiplog/wal"
)

// This file is how a stretch of the log is asked for, and given, without regard to where the asking node stands.

// piece answers a Join for a piece: where it begins must be the base of a segment that this log holds, and committed.
func (l *Leader) piece(j *Join) (wal.LSN, *Welcome, error) {
	size := uint64(l.log.SegmentSize())
	tail, head := l.log.Tail(), l.log.Head()
	committed := min(l.node.Committed(), l.log.Durable(), head)
	switch {
	case uint64(j.End)%size != 0:
		return 0, nil, refuse(CodeProtocol, "a piece from %s on: segments have %d bytes", j.End, size)
	case j.End < tail:
		e := refuse(CodeTrimmed, "a piece from %s on, the tail is %s", j.End, tail)
		e.LSN = tail
		return 0, nil, e
	case j.End > committed:
		e := refuse(CodeBehind, "a piece from %s on, committed is %s", j.End, committed)
		e.LSN = committed
		return 0, nil, e
	}
	digest, err := l.log.DigestAt(j.End)
	if err != nil {
		return 0, nil, fmt.Errorf("digest at %s: %w", j.End, err)
	}
	history := l.log.History()
	last := history[len(history)-1]
	return j.End, &Welcome{
		Database: l.log.DatabaseID(), Node: l.log.NodeID(), Leader: last.Leader, Epoch: last.Epoch, Hops: l.hops(),
		Start: j.End, Digest: digest, Tail: tail, Head: max(head, j.End), Committed: committed,
		SegmentSize: size, History: newest(history),
	}, nil
}

// pieceFrom asks for the bytes of [from, until) of a database over a connection that was just made, and gives them to sink. It returns the
// digest of everything before from that the other node has, and its epoch. Fewer bytes than asked for are an error. The connection is of no use afterwards.
func pieceFrom(ctx context.Context, nc net.Conn, o *FollowerOptions, database wal.DatabaseID, from, until wal.LSN, sink func(p []byte) error) (*Welcome, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	c := newConn(nc, o.Timeout)
	w, err := c.joinPiece(o, database, from, until)
	if err != nil || from == until {
		return w, err
	}
	if err := c.start(o.Timeout); err != nil {
		return nil, err
	}
	at := from
	err = c.collect(from, until, o, func(p []byte) error {
		at += wal.LSN(len(p))
		return sink(p)
	})
	if err == nil && at < until {
		err = fmt.Errorf("ship: the piece of [%s, %s) ends at %s", from, until, at)
	}
	return w, err
}

// joinPiece takes a connection through the handshake to the Welcome for a piece.
func (c *conn) joinPiece(o *FollowerOptions, database wal.DatabaseID, from, until wal.LSN) (*Welcome, error) {
	if err := c.present(o); err != nil {
		return nil, err
	}
	j := &Join{Database: database, Role: RoleObserver, LogOnly: true, Piece: true, End: from, Until: until}
	if _, err := rand.Read(j.Node[:]); err != nil { // a node of this one connection
		return nil, err
	}
	m, err := c.exchange(j)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *Welcome:
		if m.Database != database || m.Start != from {
			return nil, refuse(CodeProtocol, "welcome for %s at %s", m.Database, m.Start)
		}
		return m, nil
	case *Refusal:
		return nil, m.err()
	}
	return nil, refuse(CodeProtocol, "want a welcome or a refusal")
}

// errAlien is why a node is not asked for pieces again: it has sent what is none of the log.
var errAlien = errors.New("ship: a sibling sent bytes that are not the log's")
