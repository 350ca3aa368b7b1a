package ship

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"shiplog/wal"
)

// collectBuffer is how many bytes a copy takes from its connection at once.
const collectBuffer = 64 << 10

// CopyRequest says which bytes of a log are wanted, and what is known of them.
type CopyRequest struct {
	Database wal.DatabaseID
	History  []wal.HistoryEntry // of this node's log; what began at or above From is left out. None: From must be where the other's log begins
	From     wal.LSN            // the base of a segment
	Digest   wal.Digest         // of everything before From
	To       wal.LSN
}

// Copy fetches log bytes from the node that serves followers at addr: as a nameless observer that stands at From, so that
// the node judges history and digest as for any follower, and sends nothing that is not committed. It returns when To is
// reached, or what is committed there, whichever is less: fewer bytes are no error. The bytes are as the other node sent
// them: not verified. They are held in memory, To - From of them. Ends with ctx.
func Copy(ctx context.Context, addr string, o *CallOptions, r *CopyRequest) ([]byte, error) {
	p, err := copyFrom(ctx, addr, o, r)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("ship: copy from %s: %w", addr, err)
	}
	return p, nil
}

func copyFrom(ctx context.Context, addr string, o *CallOptions, r *CopyRequest) ([]byte, error) {
	c, opts, hangUp, err := o.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer hangUp() // nothing is left to be sent
	if err := c.present(opts); err != nil {
		return nil, err
	}
	j := &Join{Database: r.Database, Role: RoleObserver, LogOnly: true, End: r.From, Digest: r.Digest, Durable: r.From, Committed: r.From}
	if _, err := rand.Read(j.Node[:]); err != nil { // a node of this one connection: the other may follow this node, or be followed by it
		return nil, err
	}
	for _, h := range newest(r.History) {
		if h.Start < r.From || len(j.History) == 0 {
			j.History = append(j.History, h)
		}
	}
	if r.From == 0 || len(r.History) == 0 {
		*j = Join{Database: r.Database, Role: RoleObserver, LogOnly: true, Node: j.Node, Empty: true}
	}
	m, err := c.exchange(j)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *Refusal:
		return nil, m.err()
	case *Welcome:
		if m.Database == r.Database && j.Empty && m.Start != r.From {
			e := refuse(CodeTrimmed, "the log begins at %s there", m.Start)
			e.LSN = m.Start
			return nil, e
		}
		if m.Database != r.Database || m.Start != r.From || !j.Empty && m.Digest != r.Digest {
			return nil, refuse(CodeProtocol, "welcome for %s at %s", m.Database, m.Start)
		}
	default:
		return nil, refuse(CodeProtocol, "want a welcome or a refusal")
	}
	if err := c.start(opts.Timeout); err != nil {
		return nil, err
	}
	var out []byte
	err = c.collect(r.From, r.To, opts, func(p []byte) error {
		out = append(out, p...)
		return nil
	})
	return out, err
}

// collect receives the bytes of [from, to), or up to what the upstream has committed, and gives them to sink, in pieces of a buffer that it
// uses again.
func (c *conn) collect(from, to wal.LSN, o *FollowerOptions, sink func(p []byte) error) error {
	at, buf := from, make([]byte, collectBuffer)
	for at < to {
		h, m, err := c.next()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case nil:
			if h.LSN != at {
				return refuse(CodeProtocol, "data for %s, wanted is %s", h.LSN, at)
			}
			for left := int(h.Length); left > 0 && at < to; {
				n, err := c.readData(buf[:min(len(buf), left)])
				if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
					return err
				}
				left -= n
				n = int(min(wal.LSN(n), to-at))
				at += wal.LSN(n)
				if err := sink(buf[:n]); err != nil {
					return err
				}
			}
		case *Mark:
			if at >= m.Committed {
				return nil
			}
			ack := c.appendMessage(nil, &Ack{Received: at, Durable: from, Echo: m.Probe, Epoch: m.Epoch})
			if _, err := c.write(ack, stallFactor*o.Timeout); err != nil {
				return err
			}
		case *Refusal:
			return m.err()
		default:
			return refuse(CodeProtocol, "an upstream sends data and marks")
		}
	}
	return nil
}
