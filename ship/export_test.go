package ship

import (
	"context"
	"net"

	"shiplog/wal"
)

// The pure decisions, for the tables of the external tests.

type (
	View      = view
	Urgency   = urgency
	Freshness = freshness
)

const (
	Nothing = nothing
	Lazily  = lazily
	AtOnce  = atOnce
)

var (
	Place   = place
	MayCut  = mayCut
	Believe = believe
	Urgent  = urgent
	Final   = final
)

func NewView(h []wal.HistoryEntry, tail, end wal.LSN) View { return view{h, tail, end} }

func (p Positions) Ordered() Positions { return p.ordered() }

func (f *freshness) Mark(committed wal.LSN, clock int64) { f.mark(committed, clock) }
func (f *freshness) See(visible wal.LSN) int64           { return f.see(visible) }

// Transcript is what the proofs of a handshake are made of.
func Transcript(dialer, acceptor []byte) *transcript {
	var t transcript
	copy(t.hellos[:], dialer)
	copy(t.hellos[HelloSize:], acceptor)
	return &t
}

func (t *transcript) DialerProof(secret []byte) [32]byte   { return t.prove(secret, labelDialer) }
func (t *transcript) AcceptorProof(secret []byte) [32]byte { return t.prove(secret, labelAcceptor) }
func (t *transcript) Keys(secret []byte) (d, a uint64)     { return t.keys(secret) }

// PieceFrom asks for the bytes [from, until) over a connection, and returns them with the digest before them.
func PieceFrom(ctx context.Context, nc net.Conn, database wal.DatabaseID, from, until wal.LSN) (p []byte, digest wal.Digest, err error) {
	o, err := (&FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return nc, nil }}).withDefaults()
	if err != nil {
		return nil, 0, err
	}
	w, err := pieceFrom(ctx, nc, &o, database, from, until, func(b []byte) error {
		p = append(p, b...)
		return nil
	})
	if w != nil {
		digest = w.Digest
	}
	return p, digest, err
}
