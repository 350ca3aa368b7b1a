package ship_test

import (
	"net"
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

// BenchmarkRoundTrip appends 128 bytes, pushes them, and waits until the follower's acknowledgement is there.
func BenchmarkRoundTrip(b *testing.B) {
	for _, level := range []string{"received", "durable", "both"} {
		for _, push := range []bool{true, false} {
			name := "level=" + level + "/push=false"
			if push {
				name = "level=" + level + "/push=true"
			}
			b.Run(name, func(b *testing.B) { roundTrip(b, level, push) })
		}
	}
}

// roundTrip is one of these. both: the leader syncs at the same time, and the wait is for both disks.
func roundTrip(b *testing.B, level string, push bool) {
	l := diskNode(b, 64<<20)
	if err := l.log.Create(wal.Rule{}); err != nil {
		b.Fatal(err)
	}
	l.commit()
	acks := &ackNode{node: l, acked: make(chan ship.Positions, 64)}
	leader, err := ship.NewLeader(acks, nil)
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go leader.Serve(ln)
	defer leader.Shutdown(b.Context())
	n := diskNode(b, 64<<20)
	f := startFollower(b, n, ship.FollowerOptions{Upstream: ln.Addr().String()})
	until(b, "voter", func() bool { return l.isVoter(n.log.NodeID()) })
	var batch wal.Batch
	rec := make([]byte, 128)
	rec[0] = 1
	for b.Loop() {
		batch.Reset()
		batch.Add(rec)
		r, err := l.log.Append([]*wal.Batch{&batch}, true)
		if err != nil {
			b.Fatal(err)
		}
		if push {
			leader.Push()
		}
		if level == "both" {
			if _, err := l.log.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		for p := range acks.acked {
			if p.Durable >= r.End || level == "received" && p.Received >= r.End {
				break
			}
		}
		if level == "both" {
			l.moveCommitted(r.End)
		}
	}
	f.stop()
}

// ackNode tells the benchmark of each acknowledgement.
type ackNode struct {
	*node
	acked chan ship.Positions
}

func (a *ackNode) PeerAck(id wal.NodeID, received, durable, applied, visible wal.LSN) {
	a.node.PeerAck(id, received, durable, applied, visible)
	select {
	case a.acked <- ship.Positions{Received: received, Durable: durable, Applied: applied, Visible: visible}:
	default:
	}
}
