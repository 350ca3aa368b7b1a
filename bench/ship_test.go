package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shiplog/engine"
	"shiplog/ship"
	"shiplog/ship/nettest"
	"shiplog/wal"
)

// source is a leader in a process of its own.
type source struct {
	addr, bare string        // it ships; it sends the bytes of its log
	forTLS     [2]string     // the same over TLS
	config     *tls.Config   // how to dial; nil: plain TCP
	from       *nettest.Host // where it is reached from; nil: here
	end        wal.LSN
	records    float64
}

// startSource starts a leader with a log of about size bytes.
func startSource(b *testing.B, size int64, valueSize int, packed string) source {
	b.Helper()
	return startSourceOn(b, nil, nil, size, valueSize, packed)
}

// startSourceOn is startSource on a host of a test's network, for followers on another.
func startSourceOn(b *testing.B, host, from *nettest.Host, size int64, valueSize int, packed string) source {
	b.Helper()
	ip := "127.0.0.1"
	if host != nil {
		ip = host.IP
	}
	said := child(b, host, "leader", b.TempDir(), strconv.FormatInt(size, 10), strconv.Itoa(valueSize), packed, ip)
	if len(said) != 6 {
		b.Fatal(said)
	}
	end, err := strconv.ParseUint(said[4], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	records, err := strconv.ParseFloat(said[5], 64)
	if err != nil {
		b.Fatal(err)
	}
	return source{addr: said[0], bare: said[1], forTLS: [2]string{said[2], said[3]}, from: from, end: wal.LSN(end), records: records}
}

// overTLS is the same source, reached over TLS.
func (s source) overTLS() source {
	s.addr, s.bare = s.forTLS[0], s.forTLS[1]
	s.config = &tls.Config{InsecureSkipVerify: true} // what is measured is the encryption
	return s
}

func (s source) dial(ctx context.Context, addr string) (net.Conn, error) {
	dial := new(net.Dialer).DialContext
	if s.from != nil {
		dial = s.from.DialContext
	}
	c, err := dial(ctx, "tcp", addr)
	if err == nil && s.config != nil {
		c = tls.Client(c, s.config)
	}
	return c, err
}

// receiveBare takes the bytes of the source's log over a bare connection and drops them.
func (s source) receiveBare(b *testing.B) {
	if err := s.receive(); err != nil {
		b.Fatal(err)
	}
}

func (s source) receive() error {
	c, err := s.dial(context.Background(), s.bare)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // only read from
	buf := make([]byte, 256<<10)
	total := 0
	for err == nil {
		var n int
		n, err = c.Read(buf)
		total += n
	}
	if err != io.EOF || total != int(s.end) {
		return fmt.Errorf("%d bytes of %v: %w", total, s.end, err)
	}
	return nil
}

// bareFile writes size bytes into a new file whose blocks are allocated, and syncs it.
func bareFile(b *testing.B, dir string, size int64) {
	f, err := os.Create(filepath.Join(dir, "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }() // it was synced
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		b.Fatal(err)
	}
	piece := make([]byte, 512<<10)
	for i := range piece {
		piece[i] = byte(i * 31)
	}
	for at := int64(0); at < size; at += int64(len(piece)) {
		if _, err := f.WriteAt(piece[:min(int64(len(piece)), size-at)], at); err != nil {
			b.Fatal(err)
		}
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		b.Fatal(err)
	}
}

// logNode is a follower that keeps the log and applies nothing.
type logNode struct{ log *wal.Log }

func (n logNode) Log() *wal.Log      { return n.log }
func (n logNode) Committed() wal.LSN { return n.log.Committed() }
func (n logNode) Applied() wal.LSN   { return n.log.BatchEnd() }
func (n logNode) Visible() wal.LSN   { return min(n.log.BatchEnd(), n.log.Committed()) }

func (n logNode) Subscribe(ch chan<- struct{}) (cancel func()) { return n.log.Notify(ch) }
func (n logNode) Fence(e wal.Epoch) error                      { return n.log.Promise(e) }

func (n logNode) FollowMark(committed wal.LSN, _ int64) error {
	n.log.SetCommitted(committed)
	return nil
}

// catchUp is how long, in seconds, a follower took for all of the source's log.
type catchUp struct{ received, durable, applied float64 }

// follow feeds a new follower in dir, an engine or a log alone, until it has everything.
func (s source) follow(b *testing.B, dir string, apply bool) catchUp {
	c, err := s.catchUp(dir, apply)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (s source) catchUp(dir string, apply bool) (c catchUp, err error) {
	var node ship.FollowerNode
	var closeNode func() error
	if apply {
		db, err := engine.Open(dir, &engine.Options{Follower: true})
		if err != nil {
			return c, err
		}
		node, closeNode = db, db.Close
	} else {
		log, err := wal.Open(dir, nil)
		if err != nil {
			return c, err
		}
		node, closeNode = logNode{log}, log.Close
	}
	defer func() { err = errors.Join(err, closeNode()) }()
	f, err := ship.NewFollower(node, &ship.FollowerOptions{
		Observer: true, Secret: secret, Dial: func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, s.addr) },
	})
	if err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- f.Run(ctx) }() // ended by cancel
	for _, m := range []struct {
		took *float64
		mark func() wal.LSN
	}{{&c.received, node.Log().Head}, {&c.durable, node.Log().Durable}, {&c.applied, node.Applied}} {
		for m.mark() < s.end && ctx.Err() == nil {
			time.Sleep(200 * time.Microsecond)
		}
		*m.took = time.Since(began).Seconds()
	}
	if at := node.Applied(); at < s.end {
		err = fmt.Errorf("stands at %v of %v", at, s.end)
	}
	cancel()
	if e := <-done; !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	return c, err
}

// rates collects figures of rounds and reports their medians.
type rates map[string][]float64

func (r rates) add(name string, v float64) { r[name] = append(r[name], v) }

func (r rates) report(b *testing.B) {
	for name, v := range r {
		b.ReportMetric(quantile(v, 0.5), name)
	}
	b.ReportMetric(0, "ns/op")
}

func shipSize(b *testing.B) int64 {
	b.Helper()
	if testing.Short() {
		return 4 << 20
	}
	return 512 << 20
}

// BenchmarkShip ships a log that is in the page cache of a leader in another process to a new follower over loopback. In each
// round, before it, the same bytes come over a bare connection, by sendfile or through TLS as the log will, and as many are written to a file and synced.
func BenchmarkShip(b *testing.B) {
	s := startSource(b, shipSize(b), 1000, "plain")
	mb := float64(s.end) / 1e6
	for _, kind := range []string{"log", "db", "log/tls", "db/tls"} {
		b.Run("follower="+kind, func(b *testing.B) {
			r := rates{}
			s, sent := s, "sendfile"
			if strings.HasSuffix(kind, "/tls") {
				s, sent = s.overTLS(), "tls"
			}
			for b.Loop() {
				dir := b.TempDir()
				unix.Sync() // what an earlier round has left to write
				disk := timed(1, func() { bareFile(b, dir, int64(s.end)) }) / 1e9
				if err := os.Remove(filepath.Join(dir, "bare")); err != nil {
					b.Fatal(err)
				}
				unix.Sync()
				bare := timed(1, func() { s.receiveBare(b) }) / 1e9
				c := s.follow(b, dir, strings.HasPrefix(kind, "db"))
				if err := os.RemoveAll(dir); err != nil { // so that the next round finds pages that the machine has used before
					b.Fatal(err)
				}
				r.add(sent+"-MB/s", mb/bare)
				r.add("disk-MB/s", mb/disk)
				r.add("received-MB/s", mb/c.received)
				r.add("durable-MB/s", mb/c.durable)
				r.add("received-of-"+sent, bare/c.received)
				r.add("durable-of-slower", max(bare, disk)/c.durable)
			}
			r.report(b)
		})
	}
}

// BenchmarkApply ships a log of records of 100 B in packed frames to a new follower, and opens that follower again: how fast
// records are applied as they come, beside how fast they are replayed from the disk.
func BenchmarkApply(b *testing.B) {
	s := startSource(b, shipSize(b)/8, valueSize, "packed")
	r := rates{}
	for b.Loop() {
		dir := b.TempDir()
		unix.Sync()
		c := s.follow(b, dir, true)
		// The index that the follower has written out would spare the replay.
		if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
			b.Fatal(err)
		}
		replay := timed(1, func() {
			db, err := engine.Open(dir, &engine.Options{Follower: true})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = db.Close() }) // nothing was written
		}) / 1e9
		r.add("applied-records/s", s.records/c.applied)
		r.add("replayed-records/s", s.records/replay)
		r.add("applied-of-replay", replay/c.applied)
	}
	r.report(b)
}
