package ship

import (
	"errors"
	"fmt"
	"net"
	"time"

	"shiplog/wal"
)

// This file is the receiving half of a session: what a follower acknowledges, when it counts, and what is known of it.

// receive is the receiver's goroutine: acknowledgements.
func (s *session) receive() error {
	for {
		_, m, err := s.c.next()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *Ack:
			if err := s.ack(m); err != nil {
				return err
			}
		case *Refusal:
			return m.err()
		default:
			return refuse(CodeProtocol, "a follower sends acks")
		}
	}
}

// ack takes up an acknowledgement: believes it or not, tells the node, and asks for admission when it is time.
func (s *session) ack(m *Ack) error {
	p := Positions{Received: m.Received, Durable: m.Durable, Applied: m.Applied, Visible: m.Visible}
	now := time.Now()
	s.mu.Lock()
	if err := believe(s.acked, p, wal.LSN(s.sent.Load())); err != nil {
		s.mu.Unlock()
		return err
	}
	s.acked, s.seen = p, now
	if echo := time.Duration(m.Echo); echo > 0 && echo <= now.Sub(s.l.began) {
		s.rtt = now.Sub(s.l.began) - echo
	}
	admissible := s.join.Role == RoleVoter && s.caughtUp && p.Durable >= s.admitAt && !s.voter.Load() &&
		(now.Sub(s.askedAt) >= s.l.opts.Timeout || s.l.listed(s.join.Node))
	s.mu.Unlock()
	if m.Epoch > s.l.log.Epoch() && s.l.upstream() == nil {
		if err := s.l.node.Fence(m.Epoch); err != nil && !errors.Is(err, wal.ErrEpoch) {
			return fmt.Errorf("fence at epoch %s: %w", m.Epoch, err)
		}
		e := refuse(CodeFenced, "the follower is at epoch %s", m.Epoch)
		e.Epoch = m.Epoch
		return e
	}
	if admissible {
		if err := s.admit(p, now); err != nil {
			return err
		}
	}
	s.l.node.PeerAck(s.join.Node, p.Received, p.Durable, p.Applied, p.Visible)
	s.leased(m.Echo)
	return nil
}

// admit asks the node to count this follower, once it is durable up to what was committed when it had caught up.
func (s *session) admit(p Positions, now time.Time) error {
	voter, err := s.l.node.AdmitPeer(s.join.Node, s.join.Name, reachable(s.join.Addr, s.c.nc.RemoteAddr()))
	if err != nil {
		return &Error{Code: CodeNotAdmitted, Text: err.Error(), Err: err}
	}
	s.mu.Lock()
	s.askedAt = now
	s.mu.Unlock()
	s.eager.Store(voter)
	if !voter {
		return nil
	}
	s.l.mu.Lock()
	s.voter.Store(true)
	s.l.listVoters()
	s.l.mu.Unlock()
	s.l.opts.Logger.Info("voter admitted", "name", s.join.Name, "node", s.join.Node.String(), "durable_lsn", p.Durable.String())
	s.wake()
	return nil
}

// leased tells the node of the lease that an acknowledgement gives.
func (s *session) leased(echo uint64) {
	if s.leaser == nil {
		return
	}
	if from := s.leaseFrom.Load(); from != 0 && echo >= from {
		s.leaser.PeerLease(s.join.Node, s.l.began.Add(time.Duration(echo)))
	}
}

// reachable is where others can reach a peer that says that it serves at addr: an address of all interfaces is replaced by the one
// that it connects from.
func reachable(addr string, from net.Addr) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "" && !net.ParseIP(host).IsUnspecified() {
		return addr
	}
	if tcp, ok := from.(*net.TCPAddr); ok {
		return net.JoinHostPort(tcp.IP.String(), port)
	}
	return addr
}

// PeerStatus is what a leader knows of a follower.
type PeerStatus struct {
	Name     string
	ID       wal.NodeID
	Addr     string // as the follower advertises it
	Remote   string // as the connection shows it
	Voter    bool
	Observer bool // does not wish to be a voter
	LogOnly  bool // keeps the log without applying it: Applied and Visible mean nothing
	Delayed  bool // applies what it has later on purpose
	Sent     wal.LSN
	Received wal.LSN
	Durable  wal.LSN
	Applied  wal.LSN
	Visible  wal.LSN
	LastSeen time.Time     // last acknowledgement
	Since    time.Time     // connected since
	RTT      time.Duration // from a mark to the acknowledgement that echoed it; 0: not measured yet
}

func (s *session) status() PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return PeerStatus{
		Name: s.join.Name, ID: s.join.Node, Addr: s.join.Addr, Remote: s.c.nc.RemoteAddr().String(),
		Voter: s.voter.Load(), Observer: s.join.Role == RoleObserver, LogOnly: s.join.LogOnly, Delayed: s.join.showsLate(),
		Sent: wal.LSN(s.sent.Load()), Received: s.acked.Received, Durable: s.acked.Durable, Applied: s.acked.Applied,
		Visible: s.acked.Visible, LastSeen: s.seen, Since: s.since, RTT: s.rtt,
	}
}
