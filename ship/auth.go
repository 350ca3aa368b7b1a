package ship

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"net"
)

// The labels keep the proofs of the two sides, and the keys, apart: a proof that is reflected, or taken from
// another session, is wrong.
const (
	labelDialer   = "shiplog ship 1 dialer\x00"
	labelAcceptor = "shiplog ship 1 acceptor\x00"
	labelSession  = "shiplog ship 1 session\x00"
)

// transcript is what both sides saw of the handshake: the two Hellos, and what TLS binds the connection by.
type transcript struct {
	hellos  [2 * HelloSize]byte
	binding []byte
}

// prove returns the proof of the side with that label.
func (t *transcript) prove(secret []byte, label string) (mac [macSize]byte) {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(label))
	h.Write(t.hellos[:])
	h.Write(t.binding)
	h.Sum(mac[:0])
	return mac
}

// verify compares in constant time.
func (t *transcript) verify(secret []byte, label string, mac [macSize]byte) bool {
	want := t.prove(secret, label)
	return hmac.Equal(want[:], mac[:])
}

// keys returns the keys of the checks of the two directions.
func (t *transcript) keys(secret []byte) (dialer, acceptor uint64) {
	k := t.prove(secret, labelSession)
	return binary.LittleEndian.Uint64(k[:]), binary.LittleEndian.Uint64(k[8:])
}

// channelBinding returns what names this TLS connection and no other (RFC 9266), so that proofs cannot be relayed
// through a man in the middle who holds a certificate of his own. It is empty on plain connections.
func channelBinding(nc net.Conn) ([]byte, error) {
	t, ok := nc.(*tls.Conn)
	if !ok {
		return nil, nil
	}
	s := t.ConnectionState()
	return s.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
}

// negotiate returns the highest protocol version that both sides speak, or an error that names both ranges.
func negotiate(mine, theirs Hello) (uint16, error) {
	proto := min(mine.MaxProtocol, theirs.MaxProtocol)
	if proto < mine.MinProtocol || proto < theirs.MinProtocol {
		return 0, refuse(CodeVersion, "protocol: this side speaks %d to %d, the peer %d to %d",
			mine.MinProtocol, mine.MaxProtocol, theirs.MinProtocol, theirs.MaxProtocol)
	}
	format := min(mine.MaxFormat, theirs.MaxFormat)
	if format < mine.MinFormat || format < theirs.MinFormat {
		return 0, refuse(CodeVersion, "log format: this side ships %d to %d, the peer %d to %d",
			mine.MinFormat, mine.MaxFormat, theirs.MinFormat, theirs.MaxFormat)
	}
	return proto, nil
}
