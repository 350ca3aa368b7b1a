package ship_test

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"shiplog/ship"
	"shiplog/wal"
)

// benchLog returns a leader with about size bytes of log in 64 MiB segments, in the page cache.
func benchLog(b *testing.B, size int) *node {
	l := diskNode(b, 64<<20)
	if err := l.log.Create(wal.Rule{}); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	rec := make([]byte, 4000)
	for i := range rec {
		rec[i] = byte(rng.Uint32())
	}
	rec[0] = 1
	var batches []*wal.Batch
	for range 64 {
		batch := new(wal.Batch)
		batch.Add(rec)
		batches = append(batches, batch)
	}
	for l.log.Head() < wal.LSN(size) {
		for _, batch := range batches {
			batch.Reset()
			batch.Add(rec)
		}
		if _, err := l.log.Append(batches, false); err != nil {
			b.Fatal(err)
		}
	}
	l.commit()
	return l
}

const benchSize = 512 << 20

// BenchmarkStream ships a log that is in the page cache to a new follower over loopback. received: until the follower
// has it; durable: until its disk has.
func BenchmarkStream(b *testing.B) {
	l := benchLog(b, benchSize)
	_, addr, stop := onTCP(b, l, nil)
	defer stop()
	b.SetBytes(int64(l.log.Head()))
	var received, durable time.Duration
	for b.Loop() {
		dir := b.TempDir()
		log, err := wal.Open(dir, nil)
		if err != nil {
			b.Fatal(err)
		}
		n := newNode(log)
		began := time.Now()
		f := startFollower(b, n, ship.FollowerOptions{Upstream: addr})
		for n.log.Head() < l.log.Head() {
			time.Sleep(time.Millisecond)
		}
		received += time.Since(began)
		for n.log.Durable() < l.log.Head() {
			time.Sleep(time.Millisecond)
		}
		durable += time.Since(began)
		b.StopTimer()
		f.stop()
		n.close()
		if err := os.RemoveAll(dir); err != nil { // so that the next round finds pages that the machine has used before
			b.Fatal(err)
		}
		b.StartTimer()
	}
	mb := float64(l.log.Head()) / 1e6 * float64(b.N)
	b.ReportMetric(mb/received.Seconds(), "received-MB/s")
	b.ReportMetric(mb/durable.Seconds(), "durable-MB/s")
}

// BenchmarkSendfile sends the same bytes from the same log over a bare socket to a reader that drops them.
func BenchmarkSendfile(b *testing.B) {
	l := benchLog(b, benchSize)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	b.SetBytes(int64(l.log.Head()))
	for b.Loop() {
		go func() {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = l.log.SendTo(c, 0, l.log.Head())
		}()
		c, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 256<<10)
		total := 0
		for {
			k, err := c.Read(buf)
			total += k
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		c.Close()
		if total != int(l.log.Head()) {
			b.Fatalf("%d bytes of %d", total, l.log.Head())
		}
	}
}

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
