package resp_test

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shiplog/cmd/shiplog/internal/resp"
)

// memory is a store in memory. Writes wait for gate when it is set, as they would for a disk.
type memory struct {
	mu       sync.RWMutex // guards data, lsn, failure
	data     map[string]value
	lsn      uint64
	offset   atomic.Int64 // of the clock, in ns
	failure  error        // of commits
	gate     chan struct{}
	commits  atomic.Int64
	waiting  atomic.Int64 // commits at the gate
	follower atomic.Bool
	loading  atomic.Bool
	maxBatch int
}

type value struct {
	p      string
	expiry time.Time
}

func newMemory() *memory { return &memory{data: map[string]value{}, maxBatch: 64 << 20} }

func (m *memory) Now() time.Time          { return time.Now().Add(time.Duration(m.offset.Load())) }
func (m *memory) advance(d time.Duration) { m.offset.Add(int64(d)) }

func (m *memory) get(key []byte) (value, error) {
	if m.loading.Load() {
		return value{}, resp.ErrLoading
	}
	v, ok := m.data[string(key)]
	if !ok || (!v.expiry.IsZero() && !v.expiry.After(m.Now())) {
		return value{}, resp.ErrNotFound
	}
	return v, nil
}

func (m *memory) View(key []byte, fn func([]byte) error) error {
	m.mu.RLock()
	v, err := m.get(key)
	m.mu.RUnlock()
	if err != nil {
		return err
	}
	return fn([]byte(v.p))
}

func (m *memory) Has(key []byte) (bool, error) {
	err := m.View(key, func([]byte) error { return nil })
	if err == resp.ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

func (m *memory) Limits() (int, int) { return 1 << 10, 1 << 20 }
func (m *memory) Writable() bool     { return !m.follower.Load() }

type operation struct {
	key    string
	v      value
	delete bool
	all    bool
}

type batch struct {
	ops  []operation
	size int
}

func (b *batch) add(o operation) {
	b.ops = append(b.ops, o)
	b.size += len(o.key) + len(o.v.p)
}

func (b *batch) Put(key, p []byte) { b.PutTTL(key, p, time.Time{}) }
func (b *batch) PutTTL(key, p []byte, t time.Time) {
	b.add(operation{key: string(key), v: value{string(p), t}})
}
func (b *batch) Delete(key []byte) { b.add(operation{key: string(key), delete: true}) }
func (b *batch) DeleteAll()        { b.add(operation{all: true}) }
func (b *batch) Reset()            { *b = batch{} }

func (m *memory) NewBatch() resp.Batch { return &batch{} }

func (m *memory) Commit(_ context.Context, b resp.Batch) (resp.Position, error) {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commit(b.(*batch))
}

func (m *memory) wait() {
	if m.gate != nil {
		m.waiting.Add(1)
		<-m.gate
		m.waiting.Add(-1)
	}
}

func (m *memory) commit(b *batch) (resp.Position, error) {
	if m.failure != nil {
		return resp.Position{}, m.failure
	}
	if b.size > m.maxBatch {
		return resp.Position{}, resp.ErrTooLarge
	}
	for _, o := range b.ops {
		switch {
		case o.all:
			clear(m.data)
		case o.delete:
			delete(m.data, o.key)
		default:
			m.data[o.key] = o.v
		}
	}
	m.commits.Add(1)
	m.lsn += uint64(b.size)
	return resp.Position{Epoch: 1, LSN: m.lsn}, nil
}

type transaction struct {
	m *memory
	b batch
}

func (m *memory) Update(_ context.Context, fn func(resp.Tx) error) (resp.Position, error) {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	tx := &transaction{m: m}
	if err := fn(tx); err != nil {
		return resp.Position{}, err
	}
	return m.commit(&tx.b)
}

func (t *transaction) Get(key []byte) ([]byte, time.Time, error) {
	for _, o := range slices.Backward(t.b.ops) {
		if o.key == string(key) {
			if o.delete {
				return nil, time.Time{}, resp.ErrNotFound
			}
			return []byte(o.v.p), o.v.expiry, nil
		}
	}
	v, err := t.m.get(key)
	return []byte(v.p), v.expiry, err
}

func (t *transaction) Has(key []byte) (bool, error) {
	_, _, err := t.Get(key)
	if err == resp.ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

func (t *transaction) Put(key, p []byte, expiry time.Time) error {
	t.b.PutTTL(key, p, expiry)
	return nil
}

func (t *transaction) Delete(key []byte) error {
	t.b.Delete(key)
	return nil
}

type iterator struct {
	keys []string
	at   int
}

func (m *memory) NewIterator() (resp.Iterator, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	it := &iterator{at: -1}
	for k := range m.data {
		if _, err := m.get([]byte(k)); err == nil {
			it.keys = append(it.keys, k)
		}
	}
	slices.Sort(it.keys)
	return it, nil
}

func (it *iterator) SeekGE(key []byte) bool {
	it.at, _ = slices.BinarySearch(it.keys, string(key))
	return it.at < len(it.keys)
}

func (it *iterator) Next() bool {
	it.at++
	return it.at < len(it.keys)
}
func (it *iterator) Key() []byte  { return []byte(it.keys[it.at]) }
func (it *iterator) Err() error   { return nil }
func (it *iterator) Close() error { return nil }

// node is what the server is told of the node around it.
type node struct {
	m        *memory
	replicas int // that have everything
	followed chan string
}

func (n *node) Info() resp.NodeInfo {
	n.m.mu.RLock()
	defer n.m.mu.RUnlock()
	info := resp.NodeInfo{
		Version: "test", NodeID: "0123456789abcdef0123456789abcdef", DatabaseID: "fedcba9876543210fedcba9876543210",
		HistoryID: "0011223344556677", Epoch: "1.0", Rule: "durable", TooFew: "refuse", Leader: !n.m.follower.Load(),
		ShipAddr: "127.0.0.1:7380", Head: n.m.lsn, Durable: n.m.lsn, Committed: n.m.lsn, Applied: n.m.lsn, Visible: n.m.lsn,
		Digest: "00000000000000aa", DigestLSN: n.m.lsn, Keys: int64(len(n.m.data)),
	}
	if !info.Leader {
		info.Upstream = &resp.Upstream{Host: "10.0.0.1", Port: "6380", Connected: true, LastIO: time.Now()}
		return info
	}
	for i := range n.replicas {
		info.Replicas = append(info.Replicas, resp.Replica{
			NodeID: "aa", Name: "f" + strconv.Itoa(i), Host: "127.0.0.1", Port: "6381", State: "online", Received: n.m.lsn,
		})
	}
	return info
}

func (n *node) WaitReplicas(ctx context.Context, _ resp.Position, want int, _ bool) int {
	if want > n.replicas {
		<-ctx.Done()
	}
	return n.replicas
}

func (n *node) LocalDurable(context.Context, resp.Position, bool) bool { return true }

func (n *node) ReplicaOf(_ context.Context, host, port string) error {
	if host == "" {
		return resp.ErrUnavailable
	}
	n.followed <- net.JoinHostPort(host, port)
	return nil
}

// server is a server on a real listener.
type server struct {
	*resp.Server
	m    *memory
	n    *node
	addr string
	done chan error
}

func start(t testing.TB, change func(o *resp.Options)) *server {
	t.Helper()
	m := newMemory()
	s := &server{m: m, n: &node{m: m, followed: make(chan string, 1)}, done: make(chan error, 1)}
	o := resp.Options{Store: m, Node: s.n}
	if change != nil {
		change(&o)
	}
	s.Server = resp.New(o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	go func() { s.done <- s.Serve(ln) }() // ends with Shutdown
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-s.done; err != resp.ErrServerClosed {
			t.Errorf("serve returned %v, want ErrServerClosed", err)
		}
	})
	return s
}

// client is a raw connection.
type client struct {
	t testing.TB
	net.Conn
}

func (s *server) dial(t testing.TB) *client {
	t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { nc.Close() })
	return &client{t, nc}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// expect reads exactly the bytes of want.
func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, 0, len(want))
	for len(got) < len(want) {
		n, err := c.Read(got[len(got):cap(got)][:len(want)-len(got)])
		got = got[:len(got)+n]
		if err != nil || string(got) != want[:len(got)] {
			c.t.Fatalf("got  %.400q\nwant %.400q (%v)", got, want, err)
		}
	}
}

// command encodes a command.
func command(args ...string) string {
	p := "*" + strconv.Itoa(len(args)) + "\r\n"
	for _, a := range args {
		p += "$" + strconv.Itoa(len(a)) + "\r\n" + a + "\r\n"
	}
	return p
}
