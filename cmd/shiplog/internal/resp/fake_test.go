package resp_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	changes  map[string]int // of each key
	lsn      uint64
	offset   atomic.Int64 // of the clock, in ns
	failure  error        // of commits
	damaged  string       // a key whose value cannot be read
	gate     chan struct{}
	commits  atomic.Int64
	waiting  atomic.Int64 // commits at the gate
	watches  atomic.Int64 // open
	follower atomic.Bool
	loading  atomic.Bool
	maxBatch int
}

type value struct {
	p      string
	expiry int64
}

func newMemory() *memory {
	return &memory{data: map[string]value{}, changes: map[string]int{}, maxBatch: 64 << 20}
}

func (m *memory) Now() int64              { return time.Now().Add(time.Duration(m.offset.Load())).UnixMilli() }
func (m *memory) advance(d time.Duration) { m.offset.Add(int64(d)) }

func (m *memory) get(key []byte) (value, error) {
	if m.loading.Load() {
		return value{}, resp.ErrLoading
	}
	if m.damaged != "" && string(key) == m.damaged {
		return value{}, errors.New("damaged")
	}
	v, ok := m.data[string(key)]
	if !ok || (v.expiry != 0 && v.expiry <= m.Now()) {
		return value{}, resp.ErrNotFound
	}
	return v, nil
}

// reader makes the other methods of a resp.Reader out of two.
type reader struct {
	get  func(key []byte) (value, error)
	list func() []string // of the keys, sorted
	m    *memory
}

func (r reader) View(key []byte, fn func([]byte) error) error {
	return r.Entry(key, func(p []byte, _ int64) error { return fn(p) })
}

func (r reader) Entry(key []byte, fn func([]byte, int64) error) error {
	v, err := r.get(key)
	if err != nil {
		return err
	}
	return fn([]byte(v.p), v.expiry)
}

func (r reader) Has(key []byte) (bool, error) {
	_, err := r.get(key)
	if err == resp.ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

func (r reader) Keys(from []byte, fn func([]byte) bool) error {
	for _, key := range r.list() {
		if key >= string(from) && !fn([]byte(key)) {
			return nil
		}
	}
	return nil
}

func (r reader) Len() (int64, error) { return int64(len(r.list())), nil }
func (r reader) Now() int64          { return r.m.Now() }

// present is the reader of what is there at each moment.
func (m *memory) present() reader {
	return reader{m: m, get: func(key []byte) (value, error) {
		m.mu.RLock()
		defer m.mu.RUnlock()
		return m.get(key)
	}, list: func() []string {
		m.mu.RLock()
		defer m.mu.RUnlock()
		return m.list()
	}}
}

func (m *memory) list() (keys []string) {
	for k := range m.data {
		if _, err := m.get([]byte(k)); err == nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (m *memory) View(key []byte, fn func([]byte) error) error { return m.present().View(key, fn) }
func (m *memory) Entry(key []byte, fn func([]byte, int64) error) error {
	return m.present().Entry(key, fn)
}
func (m *memory) Has(key []byte) (bool, error)                 { return m.present().Has(key) }
func (m *memory) Keys(from []byte, fn func([]byte) bool) error { return m.present().Keys(from, fn) }
func (m *memory) Len() (int64, error)                          { return m.present().Len() }

type snapshot struct{ reader }

func (snapshot) Close() {}

func (m *memory) Snapshot() resp.Snapshot {
	m.mu.RLock()
	defer m.mu.RUnlock()
	frozen := newMemory()
	maps.Copy(frozen.data, m.data)
	frozen.offset.Store(m.offset.Load())
	frozen.loading.Store(m.loading.Load())
	frozen.damaged = m.damaged
	return snapshot{frozen.present()}
}

// watch notices changes by the number of them.
type watch struct {
	m    *memory
	keys map[string]int
}

func (m *memory) NewWatch() resp.Watch {
	m.watches.Add(1)
	return &watch{m, map[string]int{}}
}

func (w *watch) Add(key []byte) error {
	w.m.mu.RLock()
	defer w.m.mu.RUnlock()
	if _, ok := w.keys[string(key)]; !ok {
		w.keys[string(key)] = w.m.changes[string(key)]
	}
	return nil
}

func (w *watch) Len() int { return len(w.keys) }
func (w *watch) Close()   { w.m.watches.Add(-1) }

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

func (b *batch) Put(key, p []byte) { b.PutTTL(key, p, 0) }
func (b *batch) PutTTL(key, p []byte, t int64) {
	b.add(operation{key: string(key), v: value{string(p), t}})
}
func (b *batch) Delete(key []byte) { b.add(operation{key: string(key), delete: true}) }
func (b *batch) DeleteAll()        { b.add(operation{all: true}) }
func (b *batch) Reset()            { *b = batch{} }

func (m *memory) NewBatch() resp.Batch { return &batch{} }

func (m *memory) Commit(ctx context.Context, b resp.Batch) (resp.Position, error) {
	if err := m.wait(ctx); err != nil {
		return resp.Position{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commit(b.(*batch))
}

func (m *memory) wait(ctx context.Context) error {
	if m.gate == nil {
		return nil
	}
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	select {
	case <-m.gate:
		return nil
	case <-ctx.Done():
		return resp.ErrUnknownOutcome
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
		m.changes[o.key]++
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
	reader
	b batch
}

func (m *memory) Update(ctx context.Context, fn func(resp.Tx) error) (resp.Position, error) {
	if err := m.wait(ctx); err != nil {
		return resp.Position{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	tx := &transaction{}
	tx.reader = reader{m: m, get: tx.get, list: func() []string {
		all := map[string]bool{}
		for k := range m.data {
			all[k] = true
		}
		for _, o := range tx.b.ops {
			all[o.key] = true
		}
		maps.DeleteFunc(all, func(k string, _ bool) bool { _, err := tx.get([]byte(k)); return err != nil })
		return slices.Sorted(maps.Keys(all))
	}}
	if err := fn(tx); err != nil {
		return resp.Position{}, err
	}
	if len(tx.b.ops) == 0 {
		return resp.Position{Epoch: 1, LSN: m.lsn}, nil
	}
	return m.commit(&tx.b)
}

func (t *transaction) get(key []byte) (value, error) {
	for _, o := range slices.Backward(t.b.ops) {
		if o.key == string(key) || o.all {
			if o.delete || o.all {
				return value{}, resp.ErrNotFound
			}
			return o.v, nil
		}
	}
	return t.m.get(key)
}

func (t *transaction) Put(key, p []byte, expiry int64) error {
	t.b.PutTTL(key, p, expiry)
	return nil
}

func (t *transaction) Delete(key []byte) error {
	t.b.Delete(key)
	return nil
}

func (t *transaction) DeleteAll() error {
	t.b.DeleteAll()
	return nil
}

func (t *transaction) Unchanged(w resp.Watch) (bool, error) {
	for key, n := range w.(*watch).keys {
		if t.m.changes[key] != n || slices.ContainsFunc(t.b.ops, func(o operation) bool { return o.key == key }) {
			return false, nil
		}
	}
	return true, nil
}

// node is what the server is told of the node around it.
type node struct {
	m        *memory
	replicas int // that have everything
	followed chan string
	leader   atomic.Value // string: where it says that the leader is
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

func (n *node) Failover(_ context.Context, f resp.Failover) error {
	n.leader.Store(fmt.Sprintf("%+v", f))
	return nil
}

func (n *node) AbortFailover() error { return resp.ErrUnavailable }

func (n *node) LeaderAddr() string {
	addr, _ := n.leader.Load().(string)
	return addr
}

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
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
