package ship_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// mender is a leader that is told of damage in its log, and mends the medium.
type mender struct {
	*node
	heal func()

	mu   sync.Mutex
	told []wal.LSN
}

func (m *mender) Damaged(at wal.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, at)
	m.heal()
}

// TestLeaderThatCannotRead: what a leader's disk does not give back is not only missing at the follower, again and again: the leader is told where it is, so that it
// is mended, and replication goes on. It is so for pieces of any size, and for what a reader of this node has never asked for.
func TestLeaderThatCannotRead(t *testing.T) {
	for name, at := range map[string]int64{"in the middle of a catch-up": 20_000, "at the head": -1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := seeded(t, 71)
				disk := waltest.NewDisk()
				m := &mender{node: openNode(t, disk, "leader")}
				if err := m.log.Create(wal.Rule{}); err != nil {
					t.Fatal(err)
				}
				m.fill(t, 4*testSegment, rng)
				base := wal.LSN(testSegment)
				if at < 0 { // what is sent in small pieces, to who has the rest
					base = m.log.Head() &^ (testSegment - 1)
				}
				l, err := ship.NewLeader(m, nil)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { // for when it fails
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					_ = l.Shutdown(ctx)
				})
				ln, served := newMemListener(), make(chan error, 1)
				go func() { served <- l.Serve(ln) }()
				n := newFollowerNode(t)
				follow := func() *following {
					return startFollower(t, n, ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return ln.dial(nil) }})
				}
				from, size := at, int64(8192)
				var f *following
				if at < 0 {
					f = follow()
					f.reaches(m.log.Head())
					m.write(t, 300, rng)
					m.commit()
					f.reaches(m.log.Head())
					from, size = int64(m.log.Head()-base), 300
				}
				name := filepath.Join("leader", "log", base.String()+".seg")
				if err := disk.FailRange(name, from, size, false); err != nil {
					t.Fatal(err)
				}
				m.heal = func() {
					if err := disk.HealRange(name); err != nil {
						t.Error(err)
					}
				}
				if at < 0 {
					m.write(t, 300, rng)
					m.commit()
				} else {
					f = follow()
				}
				f.reaches(m.log.Head())
				samePrefix(t, m.log, n.log)
				m.mu.Lock()
				if len(m.told) != 1 || m.told[0] > base+wal.LSN(from+size) || m.told[0] < base {
					t.Errorf("damage at %v: the leader was told of %v", base+wal.LSN(from), m.told)
				}
				m.mu.Unlock()
				f.stop()
				if err := l.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if err := <-served; err != ship.ErrLeaderClosed {
					t.Error(err)
				}
			})
		})
	}
}

// TestFollowerOnAFullDisk: a follower whose disk is full takes nothing, confirms nothing that it does not have, and stays as it is; once there is
// room it goes on by itself, in the same process, also where the disk was full before it had anything.
func TestFollowerOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 72)
		l := newLeaderNode(t)
		l.fill(t, 4*testSegment, rng)
		c := startLeader(t, l, nil)
		for _, room := range []int64{1, 40 << 10, 100 << 10, 200 << 10} {
			disk := waltest.NewDisk()
			n := openNode(t, disk, "follower")
			disk.SetCapacity(disk.Used() + room)
			f := c.follow(n, ship.FollowerOptions{}, nil)
			until(t, "it has met the full disk", func() bool { return f.f.Status().LastError != nil && !f.f.Status().Connected })
			if a := l.acked(n.log.NodeID()); a.Durable > n.log.Durable() || a.Received > n.log.Head() {
				t.Errorf("room for %d bytes: %+v is confirmed, the log is durable to %v of %v", room, a, n.log.Durable(), n.log.Head())
			}
			if n.log.Head() == l.log.Head() || n.log.Err() != nil {
				t.Errorf("room for %d bytes: the log ends at %v of %v, %v", room, n.log.Head(), l.log.Head(), n.log.Err())
			}
			samePrefix(t, l.log, n.log)
			disk.SetCapacity(0)
			f.reaches(l.log.Head())
			samePrefix(t, l.log, n.log)
			until(t, "it is durable there", func() bool { return l.acked(n.log.NodeID()).Durable == l.log.Head() })
			f.stop()
			n.close()
		}
		c.stop()
	})
}

// ends waits for the end of Run, a minute at the most.
func (r *following) ends() error {
	select {
	case err := <-r.done:
		return err
	case <-time.After(time.Minute):
		r.cancel()
		<-r.done
		return errors.New("it goes on")
	}
}

// TestFollowerWithAFailedDisk: a follower whose sync fails confirms nothing above what was durable before, though the next sync would succeed; it stops, and says why.
// Opened again it writes anew what its disk may lack, and goes on.
func TestFollowerWithAFailedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := seeded(t, 73)
		l := newLeaderNode(t)
		l.fill(t, 2*testSegment, rng)
		c := startLeader(t, l, nil)
		disk := waltest.NewDisk()
		n := openNode(t, disk, "follower")
		f := c.follow(n, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		until(t, "it is durable there", func() bool { return l.acked(n.log.NodeID()).Durable == l.log.Head() })
		durable := l.log.Head()
		disk.Inject(waltest.Fault{Op: waltest.OpSync, Path: "*.seg"})
		l.fill(t, 3000, rng)
		if err := f.ends(); !errors.Is(err, wal.ErrPoisoned) {
			t.Errorf("the follower ends with %v", err)
		}
		synctest.Wait()
		if a := l.acked(n.log.NodeID()); a.Durable != durable || n.log.Durable() != durable {
			t.Errorf("durable up to %v before the failed sync; %+v is confirmed, the log says %v", durable, a, n.log.Durable())
		}
		if _, err := n.log.Sync(); !errors.Is(err, wal.ErrPoisoned) {
			t.Errorf("the next sync: %v", err)
		}
		again := startFollower(t, n, ship.FollowerOptions{Dial: func(context.Context) (net.Conn, error) { return c.ln.dial(nil) }})
		if err := again.ends(); !errors.Is(err, wal.ErrPoisoned) {
			t.Errorf("it follows again with a failed disk: %v", err)
		}
		if a := l.acked(n.log.NodeID()); a.Durable != durable {
			t.Errorf("it has confirmed %v since", a.Durable)
		}
		left := disk.Kill() // the process ends, not the machine
		n.close()
		n = openNode(t, left, "follower")
		f = c.follow(n, ship.FollowerOptions{}, nil)
		f.reaches(l.log.Head())
		until(t, "it is durable there", func() bool { return l.acked(n.log.NodeID()).Durable == l.log.Head() })
		f.stop()
		n.close()
		n = openNode(t, left.Crash(0), "follower")
		if n.log.Head() != l.log.Head() {
			t.Errorf("after a power cut the follower ends at %v, it had confirmed %v", n.log.Head(), l.log.Head())
		}
		samePrefix(t, l.log, n.log)
		c.stop()
	})
}
