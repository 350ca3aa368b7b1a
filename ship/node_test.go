package ship_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"shiplog/ship"
	"shiplog/wal"
	"shiplog/wal/waltest"
)

// node is the least that a node can be: a real log, and marks that the test moves.
type node struct {
	log *wal.Log

	mu        sync.Mutex
	committed wal.LSN
	frozen    bool                         // applied stays where it is
	applied   wal.LSN                      // while frozen
	subs      map[chan<- struct{}]struct{} // of marks; the log has its own
	acks      map[wal.NodeID]ship.Positions
	voters    map[wal.NodeID]string
	out       map[wal.NodeID]bool // taken out of the rule
	refuseAll bool                // nobody is a voter
	gone      int
	fenced    wal.Epoch
	marks     int    // FollowMark calls
	clock     int64  // of the last mark
	onAck     func() // called before an acknowledgement is taken up
}

const testSegment = 64 << 10

func openNode(t testing.TB, disk *waltest.Disk, dir string) *node {
	t.Helper()
	o := &wal.Options{SegmentSize: testSegment}
	if disk != nil {
		o.FS = disk
	}
	l, err := wal.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(l)
	t.Cleanup(n.close)
	return n
}

func newNode(l *wal.Log) *node {
	return &node{
		log: l, committed: l.Committed(), subs: map[chan<- struct{}]struct{}{}, acks: map[wal.NodeID]ship.Positions{},
		voters: map[wal.NodeID]string{},
	}
}

// newLeaderNode returns a node with a database.
func newLeaderNode(t testing.TB) *node {
	t.Helper()
	n := openNode(t, waltest.NewDisk(), "leader")
	if err := n.log.Create(wal.Rule{}); err != nil {
		t.Fatal(err)
	}
	n.commit()
	return n
}

func newFollowerNode(t testing.TB) *node {
	t.Helper()
	return openNode(t, waltest.NewDisk(), "follower")
}

func (n *node) close() { _ = n.log.Close() }

func (n *node) Log() *wal.Log { return n.log }

func (n *node) Committed() wal.LSN {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.committed
}

func (n *node) Applied() wal.LSN {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen {
		return n.applied
	}
	return n.log.BatchEnd()
}

func (n *node) Visible() wal.LSN { return min(n.Applied(), n.Committed()) }

func (n *node) Subscribe(ch chan<- struct{}) func() {
	stop := n.log.Notify(ch)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.subs[ch] = struct{}{}
	return func() {
		stop()
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.subs, ch)
	}
}

func (n *node) moveCommitted(to wal.LSN) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if to <= n.committed {
		return
	}
	n.committed = to
	n.log.SetCommitted(to)
	for ch := range n.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (n *node) Fence(e wal.Epoch) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fenced = max(n.fenced, e)
	return n.log.Promise(e)
}

func (n *node) AdmitPeer(id wal.NodeID, name, _ string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuseAll || n.out[id] {
		return false, nil
	}
	n.voters[id] = name
	return true, nil
}

// IsVoter makes the node a ship.VoterLister.
func (n *node) IsVoter(id wal.NodeID) bool { return n.isVoter(id) }

// takeOut ends a follower's vote, as a change of the rule does; putBack gives it back.
func (n *node) takeOut(id wal.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.voters, id)
	n.out = map[wal.NodeID]bool{id: true}
}

func (n *node) putBack(id wal.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out = nil
	n.voters[id] = "back"
}

func (n *node) PeerAck(id wal.NodeID, received, durable, applied, visible wal.LSN) {
	if n.onAck != nil {
		n.onAck()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.acks[id] = ship.Positions{Received: received, Durable: durable, Applied: applied, Visible: visible}
}

func (n *node) PeerGone(id wal.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone++
	delete(n.voters, id)
}

func (n *node) FollowMark(committed wal.LSN, leaderTime int64) error {
	n.moveCommitted(committed)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.marks++
	n.clock = leaderTime
	return nil
}

// CutLog makes the node a ship.Cutter.
func (n *node) CutLog(to wal.LSN) error { return n.log.Truncate(to) }

func (n *node) goneCalls() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

func (n *node) fencedAt() wal.Epoch {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fenced
}

func (n *node) acked(id wal.NodeID) ship.Positions {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.acks[id]
}

func (n *node) isVoter(id wal.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.voters[id]
	return ok
}

// write appends a batch with a record of random bytes, not synced.
func (n *node) write(t testing.TB, size int, rng *rand.Rand) wal.LSN {
	t.Helper()
	rec := make([]byte, size)
	for i := range rec {
		rec[i] = byte(rng.Uint32())
	}
	rec[0] = 1
	var b wal.Batch
	b.Add(rec)
	r, err := n.log.Append([]*wal.Batch{&b}, true)
	if err != nil {
		t.Fatal(err)
	}
	return r.End
}

// commit syncs and commits all that is in the log.
func (n *node) commit() wal.LSN {
	at, err := n.log.Sync()
	if err != nil {
		panic(err)
	}
	n.moveCommitted(n.log.BatchEnd())
	return at
}

// fill writes and commits about total bytes in batches of different sizes.
func (n *node) fill(t testing.TB, total int, rng *rand.Rand) {
	t.Helper()
	for end := n.log.Head() + wal.LSN(total); n.log.Head() < end; {
		n.write(t, 1+rng.IntN(3000), rng)
	}
	n.commit()
}

func content(t testing.TB, l *wal.Log, from, to wal.LSN) []byte {
	t.Helper()
	p := make([]byte, to-from)
	if _, err := l.ReadAt(p, from); err != nil {
		t.Fatalf("read %s to %s: %v", from, to, err)
	}
	return p
}

// samePrefix fails the test unless b holds the bytes of a, as far as b goes.
func samePrefix(t testing.TB, a, b *wal.Log) {
	t.Helper()
	if b.Empty() {
		return
	}
	from, to := max(a.Tail(), b.Tail()), min(a.Head(), b.Head())
	if b.Head() > a.Head() {
		t.Fatalf("follower ends at %s, past its leader's %s", b.Head(), a.Head())
	}
	if x, y := content(t, a, from, to), content(t, b, from, to); !bytes.Equal(x, y) {
		i := 0
		for x[i] == y[i] {
			i++
		}
		t.Fatalf("logs differ at %s", from+wal.LSN(i))
	}
}

// cluster is a leader that serves on a network in memory.
type cluster struct {
	t      testing.TB
	node   *node
	leader *ship.Leader
	ln     *memListener
	served chan error
}

func startLeader(t testing.TB, n *node, o *ship.LeaderOptions) *cluster {
	t.Helper()
	l, err := ship.NewLeader(n, o)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, node: n, leader: l, ln: newMemListener(), served: make(chan error, 1)}
	go func() { c.served <- l.Serve(c.ln) }()
	t.Cleanup(func() { // for tests that fail; the others have stopped it
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.Shutdown(ctx)
	})
	return c
}

func (c *cluster) stop() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.leader.Shutdown(ctx); err != nil {
		c.t.Errorf("shutdown: %v", err)
	}
	if err := <-c.served; err != ship.ErrLeaderClosed {
		c.t.Errorf("serve: %v", err)
	}
}

// following is a Follower that runs.
type following struct {
	t      testing.TB
	node   *node
	f      *ship.Follower
	cancel context.CancelFunc
	done   chan error
}

// follow starts a follower of c. dial, when set, makes its connections.
func (c *cluster) follow(n *node, o ship.FollowerOptions, alter func(up, down *stream)) *following {
	c.t.Helper()
	if o.Dial == nil {
		o.Dial = func(context.Context) (net.Conn, error) { return c.ln.dial(alter) }
	}
	return startFollower(c.t, n, o)
}

// joined starts a follower of c with an empty log, and waits until it has what the leader has.
func (c *cluster) joined(o ship.FollowerOptions) (*node, *following) {
	c.t.Helper()
	n := newFollowerNode(c.t)
	f := c.follow(n, o, nil)
	f.reaches(c.node.log.Head())
	return n, f
}

func startFollower(t testing.TB, n *node, o ship.FollowerOptions) *following {
	t.Helper()
	f, err := ship.NewFollower(n, &o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &following{t: t, node: n, f: f, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- f.Run(ctx) }()
	t.Cleanup(cancel)
	return r
}

func (r *following) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; err != context.Canceled {
		r.t.Errorf("run: %v", err)
	}
}

// until waits for a condition: in a bubble virtual time passes, outside real time.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for range 60000 {
		if cond() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func (r *following) reaches(lsn wal.LSN) {
	r.t.Helper()
	until(r.t, fmt.Sprintf("follower reaches %s (is at %s, %+v)", lsn, r.node.log.Head(), r.f.Status()), func() bool {
		select {
		case err := <-r.done:
			r.t.Fatalf("follower ended: %v", err)
		default:
		}
		return r.node.log.Head() >= lsn && r.node.Committed() >= lsn
	})
}

func seeded(t testing.TB, seed uint64) *rand.Rand {
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
