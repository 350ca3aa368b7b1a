package ship_test

import (
	"net"
	"runtime"
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

// A hundred followers that speak and take nothing cost the leader a fixed amount of memory each, however far behind they fall; and
// nothing of it stays when they are gone.
func TestMemoryOfFollowers(t *testing.T) {
	const followers, most = 100, 128 << 10
	rng := seeded(t, 1)
	l := diskNode(t, 1<<20)
	if err := l.log.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	l.commit()
	leader, addr, stop := onTCP(t, l, &ship.LeaderOptions{Secret: secret, Timeout: 1 << 40, MaxPeers: followers, MaxHandshakes: followers})
	rec := make([]byte, 100<<10)
	for i := range rec {
		rec[i] = byte(rng.Uint32())
	}
	rec[0] = 1
	write := func(total int) {
		t.Helper()
		for end := l.log.Head() + wal.LSN(total); l.log.Head() < end; {
			var b wal.Batch
			b.Add(rec)
			if _, err := l.log.Append([]*wal.Batch{&b}, true); err != nil {
				t.Fatal(err)
			}
			leader.Push()
		}
		l.commit()
	}
	memory := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what finalizers have let go
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	write(2 << 20)
	alone := memory()
	conns := make([]net.Conn, followers)
	for i := range conns {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = nc
		if err := nc.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		p, err := prove(nc, ship.Dialer)
		if err != nil {
			t.Fatal(err)
		}
		p.send(&ship.Join{Node: id(byte(i + 1)), Role: ship.RoleVoter, Empty: true})
		if _, m, err := p.next(); err != nil {
			t.Fatalf("welcome: %v, %v", m, err)
		}
	}
	until(t, "all are fed", func() bool {
		fed := 0
		for _, p := range leader.Peers() {
			if p.Sent > 0 {
				fed++
			}
		}
		return fed == followers
	})
	near := memory()
	write(16 << 20)
	far := memory()
	for _, p := range leader.Peers() {
		if p.Sent+8<<20 > l.log.Head() {
			t.Errorf("follower %s was sent up to %s of %s: it was not held up", p.ID, p.Sent, l.log.Head())
		}
	}
	t.Logf("bytes for each follower: %d when it joins, %d when it is %d behind", (near-alone)/followers, (far-alone)/followers, l.log.Head())
	if d := (far - alone) / followers; d > most {
		t.Errorf("each follower costs %d bytes, want at most %d", d, most)
	}
	for _, nc := range conns {
		_ = nc.Close()
	}
	until(t, "all are gone", func() bool { return len(leader.Peers()) == 0 })
	if d := memory() - alone; d > followers*most/4 {
		t.Errorf("%d bytes stay when the followers are gone", d)
	}
	stop()
}
