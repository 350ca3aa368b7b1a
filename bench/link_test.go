package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/ship/nettest"
)

// farLink is a link of 100 ms, there and back, that loses one packet of a hundred in each direction.
func farLink(b *testing.B) nettest.Link {
	b.Helper()
	if testing.Short() {
		return nettest.Link{Delay: 2 * time.Millisecond, Loss: 0.01}
	}
	return nettest.Link{Delay: 50 * time.Millisecond, Loss: 0.01, Rate: linkNumber(b, "SHIPLOG_LINK_RATE", 0)}
}

// linkNumber is a number of the environment.
func linkNumber(b *testing.B, name string, otherwise int64) int64 {
	b.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// farHosts are two hosts at the ends of such a link, under a congestion control of the kernel's.
func farHosts(b *testing.B, control string) (n *nettest.Network, near, far *nettest.Host) {
	b.Helper()
	n = nettest.New(b)
	near, far = n.Host("near"), n.Host("far")
	n.SetBoth(near, far, farLink(b))
	for _, h := range []*nettest.Host{near, far} {
		if err := h.Sysctl("ipv4/tcp_congestion_control", control); err != nil {
			b.Skipf("congestion control %s: %v", control, err)
		}
		// What a connection has learnt of the link is not for the next one.
		if err := h.Sysctl("ipv4/tcp_no_metrics_save", "1"); err != nil {
			b.Fatal(err)
		}
	}
	return n, near, far
}

// BenchmarkLink is a leader and a follower 100 ms apart, over real TCP and a link that loses 1 % of the packets each way.
//
// stream: new followers take all of the leader's log; in each round, before them or after them by turns, as many bare connections take the same bytes, which come by sendfile. Where the
// link has no bound they are 8 at once under reno, which 1 % of loss slows down so much that the figures of single connections scatter. SHIPLOG_LINK_BYTES is how many bytes (default 4 MiB for reno,
// 64 MiB for bbr), SHIPLOG_LINK_RATE the link's bytes a second (default: no bound).
//
// write: commits of one operation by one writer under a rule, and at the same time as many exchanges of 160 bytes for 1 over a bare connection.
func BenchmarkLink(b *testing.B) {
	for _, c := range []struct {
		control string
		size    int64
		lanes   int
	}{{"reno", 4 << 20, 8}, {"bbr", 64 << 20, 1}} {
		b.Run("stream/"+c.control, func(b *testing.B) {
			size, lanes := linkNumber(b, "SHIPLOG_LINK_BYTES", c.size), c.lanes
			if testing.Short() {
				size = 256 << 10
			}
			if farLink(b).Rate > 0 {
				lanes = 1
			}
			n, near, far := farHosts(b, c.control)
			s := startSourceOn(b, near, far, size, 1000, "plain")
			r, round := rates{}, 0
			for b.Loop() {
				bare, ship := func() float64 { return lane(b, lanes, s.receive) }, func() float64 {
					return lane(b, lanes, func() error { _, err := s.catchUp(b.TempDir(), true); return err })
				}
				var took [2]float64
				if round%2 == 0 {
					took[0], took[1] = bare(), ship()
				} else {
					took[1], took[0] = ship(), bare()
				}
				round++
				r.add("bare-MB/s", float64(s.end)/1e6/took[0])
				r.add("applied-MB/s", float64(s.end)/1e6/took[1])
				r.add("applied-of-bare", took[0]/took[1])
				b.Logf("bare %.2f s, shipped, synced and applied %.2f s", took[0], took[1])
			}
			counts := n.Counts()
			b.ReportMetric(100*float64(counts.Lost)/float64(counts.Lost+counts.Delivered), "%-lost")
			r.report(b)
		})
	}
	for _, rule := range []engine.Level{engine.Durable, engine.Received(1), engine.Replicated(1), engine.Applied(1)} {
		b.Run(fmt.Sprintf("write/rule=%v", rule), func(b *testing.B) {
			_, near, far := farHosts(b, "reno")
			ln, err := near.Listen("tcp", near.IP+":0")
			if err != nil {
				b.Fatal(err)
			}
			db := startPairOn(b, ln, far, rule)
			exchange := startExchange(b, near, far)
			slice := 25
			if testing.Short() {
				slice = 5
			}
			vals, i := newValues(), uint64(0)
			var writes, exchanges []float64
			for b.Loop() {
				done := make(chan error, 1)
				go func() { // ends after its share
					for range slice {
						began := time.Now()
						if err := exchange(); err != nil {
							done <- err
							return
						}
						exchanges = append(exchanges, float64(time.Since(began)))
					}
					done <- nil
				}()
				for range slice {
					writes = append(writes, timed(1, func() {
						if err := db.Put(key(nil, i), vals.get(i, valueSize)); err != nil {
							b.Fatal(err)
						}
					}))
					i++
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			for _, q := range []float64{0.5, 0.99} {
				name := fmt.Sprintf("p%g-ms", q*100)
				b.ReportMetric(quantile(writes, q)/1e6, "write-"+name)
				b.ReportMetric(quantile(exchanges, q)/1e6, "bare-"+name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// lane runs fn several times at once, and returns how many seconds it took on average.
func lane(b *testing.B, n int, fn func() error) float64 {
	b.Helper()
	took, errs := make([]float64, n), make([]error, n)
	parallel(n, n, func(_, i int) {
		took[i] = timed(1, func() { errs[i] = fn() }) / 1e9
	})
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
	sum := 0.0
	for _, t := range took {
		sum += t
	}
	return sum / float64(n)
}

// startExchange connects two hosts. The function sends 160 bytes from the near one, and returns when the far one has answered with one byte.
func startExchange(b *testing.B, near, far *nettest.Host) (exchange func() error) {
	b.Helper()
	ln, err := far.Listen("tcp", far.IP+":0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // ends when the near end is closed
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		buf := make([]byte, 160)
		for err == nil {
			if _, err = io.ReadFull(c, buf); err == nil {
				_, err = c.Write(buf[:1])
			}
		}
		done <- errors.Join(c.Close(), ln.Close())
	}()
	var c net.Conn
	if c, err = near.DialContext(context.Background(), "tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(c.Close(), <-done); err != nil {
			b.Error(err)
		}
	})
	buf := make([]byte, 160)
	return func() error {
		_, err := c.Write(buf)
		if err == nil {
			_, err = io.ReadFull(c, buf[:1])
		}
		return err
	}
}
