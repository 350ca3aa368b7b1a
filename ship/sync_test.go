package ship_test

import (
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"shiplog/ship"
	"shiplog/wal/waltest"
)

// Data that asks for a sync is acknowledged once, when it is durable; before that only if it says so. Data that has come
// whole behind it shares its sync, marks in between or not.
func TestSyncsAndReceipts(t *testing.T) {
	const sync = ship.DataHead | ship.DataSync
	for _, c := range []struct {
		name     string
		flags    []uint8 // of the messages, which come at once
		marks    bool    // with a mark between them
		syncs    int
		receipts int // acknowledgements of more than is durable
	}{
		{"one", []uint8{sync}, false, 1, 0},
		{"one, receipt asked for", []uint8{sync | ship.DataReceipt}, false, 1, 1},
		{"three share a sync", []uint8{sync, sync, sync}, false, 1, 0},
		{"three with marks between", []uint8{sync, sync, sync}, true, 1, 0},
		{"a sync does not wait for what needs none", []uint8{sync, ship.DataHead}, false, 2, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { syncsAndReceipts(t, c.flags, c.marks, c.syncs, c.receipts) })
		})
	}
}

func syncsAndReceipts(t *testing.T, flags []uint8, marks bool, syncs, receipts int) {
	rng := seeded(t, 41)
	l := newLeaderNode(t)
	disk := waltest.NewDisk()
	n := openNode(t, disk, "f")
	ln := newMemListener()
	up := make(chan *peer, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		p, err := prove(c, ship.Acceptor)
		if err != nil {
			t.Error(err)
		}
		up <- p
	}()
	f := startFollower(t, n, ship.FollowerOptions{Secret: secret, Dial: func(context.Context) (net.Conn, error) { return ln.dial(nil) }})
	p := <-up
	if _, _, err := p.next(); err != nil { // the join
		t.Fatal(err)
	}
	p.send(welcomeOf(l))
	start := l.log.Head()
	p.data(0, content(t, l.log, 0, start))
	for n.log.Durable() < start {
		if _, _, err := p.next(); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
	var synced atomic.Int32 // segments; the log's housekeeping syncs other files
	disk.Observe(func(c waltest.Call) {
		if c.Op == waltest.OpSync && filepath.Ext(c.Path) == ".seg" {
			synced.Add(1)
		}
	})

	var out []byte
	for _, flag := range flags {
		from := l.log.Head()
		to := l.write(t, 200, rng)
		h := ship.Header{Type: ship.TypeData, Flags: flag, LSN: from, Length: uint32(to - from)}
		out = append(ship.AppendHeader(out, h, p.out, p.sent), content(t, l.log, from, to)...)
		p.sent++
		if marks {
			out = ship.AppendMessage(out, &ship.Mark{Committed: start, Head: to, Epoch: l.log.Epoch()}, p.out, p.sent)
			p.sent++
		}
	}
	if _, err := p.c.Write(out); err != nil {
		t.Fatal(err)
	}
	end, early := l.log.Head(), 0
	for last := (ship.Ack{}); last.Durable < end; {
		_, m, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := m.(*ship.Ack); ok {
			if a.Received > start && a.Durable < a.Received && a.Durable == start {
				early++
			}
			last = *a
		}
	}
	if got := int(synced.Load()); got != syncs || early != receipts {
		t.Errorf("%d syncs, want %d; %d early acknowledgements, want %d", got, syncs, early, receipts)
	}
	f.stop()
	_ = p.c.Close()
	_ = ln.Close()
}

// What was received on a connection that broke before it was synced is synced on the next one, also when the upstream has nothing to add.
func TestReconnectSyncsWhatWasReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeaderNode(t)
		l.write(t, 200, seeded(t, 43))
		l.commit()
		n := openNode(t, waltest.NewDisk(), "f")
		end := l.log.Head()
		if _, err := n.log.AppendRaw(0, content(t, l.log, 0, end)); err != nil {
			t.Fatal(err)
		}
		if n.log.Durable() == end {
			t.Fatal("it is durable already")
		}
		c := startLeader(t, l, nil)
		f := c.follow(n, ship.FollowerOptions{}, nil)
		until(t, "it is durable", func() bool { return n.log.Durable() == end })
		f.stop()
		c.stop()
	})
}
