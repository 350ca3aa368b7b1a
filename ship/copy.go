package ship

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"shiplog/wal"
)

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
	if err := c.nc.SetDeadline(time.Now().Add(opts.HandshakeTimeout)); err != nil {
		return nil, ioError("handshake", err)
	}
	if err := c.handshake(Dialer, opts.Secret, opts.Random); err != nil {
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
	if _, err := c.nc.Write(c.appendMessage(nil, j)); err != nil {
		return nil, ioError("send join", err)
	}
	_, m, err := c.next()
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
	return c.collect(r.From, r.To, opts)
}

// collect receives the bytes of [from, to), or up to what the upstream has committed.
func (c *conn) collect(from, to wal.LSN, o *FollowerOptions) ([]byte, error) {
	var out []byte
	at := func() wal.LSN { return from + wal.LSN(len(out)) }
	for at() < to {
		h, m, err := c.next()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case nil:
			if h.LSN != at() {
				return nil, refuse(CodeProtocol, "data for %s, wanted is %s", h.LSN, at())
			}
			start := len(out)
			out = append(out, make([]byte, h.Length)...)
			for n := start; n < len(out); {
				k, err := c.readData(out[n:])
				if err != nil && !(errors.Is(err, io.EOF) && n+k == len(out)) {
					return nil, err
				}
				n += k
			}
		case *Mark:
			if at() >= m.Committed {
				return out, nil
			}
			ack := c.appendMessage(nil, &Ack{Received: at(), Durable: from, Echo: m.Probe, Epoch: m.Epoch})
			if _, err := c.write(ack, stallFactor*o.Timeout); err != nil {
				return nil, err
			}
		case *Refusal:
			return nil, m.err()
		default:
			return nil, refuse(CodeProtocol, "an upstream sends data and marks")
		}
	}
	return out[:to-from], nil
}
