package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowLine is a proxy before a port: all connections through it together bring back so many bytes a second, in order of their coming.
type slowLine struct {
	ln net.Listener

	mu    sync.Mutex // guards all below
	rate  float64    // bytes a second; 0: as many as come
	free  time.Time  // when the line is free again
	came  int        // bytes that have come back
	flip  int        // one bit in each so many bytes is another; 0: none
	conns map[net.Conn]bool
	over  bool
	wg    sync.WaitGroup
}

func startSlowLine(t testing.TB, to string, rate float64) *slowLine {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &slowLine{ln: ln, rate: rate, conns: map[net.Conn]bool{}}
	l.wg.Go(func() { // ended by the close of ln
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			// What waits in the system's buffers is on the line already; little does.
			near.(*net.TCPConn).SetWriteBuffer(64 << 10)
			far.(*net.TCPConn).SetReadBuffer(64 << 10)
			l.mu.Lock()
			l.conns[near], l.conns[far] = true, true
			if l.over {
				near.Close()
				far.Close()
			}
			l.mu.Unlock()
			l.wg.Go(func() { l.carry(far, near, false) }) // ended by the close of either
			l.wg.Go(func() { l.carry(near, far, true) })
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *slowLine) addr() string { return l.ln.Addr().String() }

// stop ends all connections, and takes no more.
func (l *slowLine) stop() {
	l.ln.Close()
	l.mu.Lock()
	l.over = true
	for c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *slowLine) carry(to, from net.Conn, back bool) {
	defer func() {
		to.Close()
		from.Close()
		l.mu.Lock()
		delete(l.conns, to)
		delete(l.conns, from)
		l.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if back && n > 0 {
			l.mu.Lock()
			if l.flip > 0 && (l.came+n)/l.flip > l.came/l.flip {
				buf[n-1] ^= 1
			}
			l.came += n
			wait := time.Duration(0)
			if l.rate > 0 {
				now := time.Now()
				if l.free.Before(now) {
					l.free = now
				}
				l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
				wait = l.free.Sub(now)
			}
			l.mu.Unlock()
			time.Sleep(wait)
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *slowLine) bytes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.came
}

// sources are a leader and siblings with the same log. They are no voters: a follower finds those by itself.
func sources(t *testing.T, dir string, size int64, segment, siblings int) (leader *process, others []*process) {
	t.Helper()
	leader = startNode(t, filepath.Join(dir, "leader"), "--name", "leader", "--commit", "written", "--voters", "nobody", "--space-factor", "-1", "--segment-size", strconv.Itoa(segment))
	for i := range siblings {
		name := fmt.Sprint("sibling", i)
		others = append(others, startNode(t, filepath.Join(dir, name), "--follow", leader.ship, "--name", name, "--space-factor", "-1"))
	}
	fill(t, leader.client(), func(int64) bool { return int64(leader.status().Head) >= size })
	leader.until("all of it is durable", func() bool { s := leader.status(); return s.Durable == s.Head })
	for _, p := range others {
		p.until("it has all", func() bool { return p.status().Durable == leader.status().Head })
	}
	return leader, others
}

// TestFirstCopyFromSeveral: a new follower with a slow line to the leader has most of its first copy from two siblings, one of which garbles what it
// sends and is left out, loudly. Killed in the middle, it goes on with what it has. Its log is the leader's.
func TestFirstCopyFromSeveral(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; the package ship tests the same in virtual time")
	}
	dir := t.TempDir()
	const size, segment = 12 << 20, 1 << 20
	leader, others := sources(t, dir, size, segment, 2)
	end := leader.status().Head
	slow := startSlowLine(t, leader.ship, 256<<10) // the first segment alone takes four seconds
	good := startSlowLine(t, others[0].ship, 12*(1<<20))
	bad := startSlowLine(t, others[1].ship, 0)
	bad.flip = 300_000
	follower := newNode(t, filepath.Join(dir, "follower"), "--follow", slow.addr(), "--name", "follower", "--copy-from", good.addr()+","+bad.addr(), "--copy-ahead", "1")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(follower.stderr.String())
		}
	})
	follower.launch()
	waiting := func() int {
		names, err := filepath.Glob(filepath.Join(follower.dir, aheadDir, "*.seg"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	follower.until("some segments wait", func() bool { return waiting() >= 3 })
	follower.kill()
	kept := waiting()
	before := good.bytes()
	slow.mu.Lock()
	slow.rate = 4 << 20
	slow.mu.Unlock()
	follower.launch()
	follower.until("answers", func() bool { return follower.client().Ping(context.Background()).Err() == nil })
	follower.until("has everything", func() bool { return follower.status().Durable >= end })
	t.Logf("%d bytes of log; %d segments waited at the kill; over the lines: leader %d, sibling %d and then %d, garbling sibling %d", end, kept, slow.bytes(), before, good.bytes()-before, bad.bytes())
	if n := slow.bytes(); n > int(end)-(kept-1)*segment {
		t.Errorf("%d of %d bytes came from the leader, though %d segments were here", n, end, kept)
	}
	// Each segment comes once, but what was on its way at the kill, and what the stream and a sibling were both at.
	if n := slow.bytes() + good.bytes(); n > int(end)+10*segment {
		t.Errorf("%d bytes came for a log of %d", n, end)
	}
	if log := follower.stderr.String(); !strings.Contains(log, "a sibling is not copied from any more") || !strings.Contains(log, "sibling="+bad.addr()) {
		t.Errorf("the garbling sibling was not named")
	}
	follower.until("the directory is gone", func() bool {
		_, err := os.Stat(filepath.Join(follower.dir, aheadDir))
		return errors.Is(err, os.ErrNotExist)
	})
	follower.until("has what its admission has added", func() bool { return leader.status().Head == follower.status().Head })
	follower.stop()
	for _, p := range others {
		p.stop()
	}
	leader.stop()
	sameLogs(t, leader.dir, follower.dir)
}

// TestFirstCopySources measures the first copy over lines of 40 MB/s each: from the leader alone, with one sibling, and with two, three times by
// turns. Only with SHIPLOG_COPY_BYTES.
func TestFirstCopySources(t *testing.T) {
	if os.Getenv("SHIPLOG_COPY_BYTES") == "" {
		t.Skip("takes minutes: only with SHIPLOG_COPY_BYTES")
	}
	dir := t.TempDir()
	leader, others := sources(t, dir, copyBytes(t), 64<<20, 2)
	end := leader.status().Head
	const rate = 40e6
	for turn := range 3 {
		for n := range len(others) + 1 {
			line := startSlowLine(t, leader.ship, rate)
			args := []string{"--follow", line.addr(), "--name", "follower"}
			lines := []*slowLine{line}
			for _, p := range others[:n] {
				lines = append(lines, startSlowLine(t, p.ship, rate))
				args = append(args, "--copy-from", lines[len(lines)-1].addr())
			}
			if n == 0 {
				args = append(args, "--copy-ahead", "0")
			}
			follower := newNode(t, filepath.Join(dir, fmt.Sprint("copy", turn, n)), args...)
			began := time.Now()
			follower.launch()
			follower.until("answers", func() bool { return follower.client().Ping(context.Background()).Err() == nil })
			for follower.status().Durable < end {
				time.Sleep(20 * time.Millisecond)
			}
			took := time.Since(began)
			text := ""
			for _, l := range lines {
				text += fmt.Sprintf(" %.1f", float64(l.bytes())/1e6)
			}
			t.Logf("%d sources: %.1f s for %.1f MB, %.1f MB/s; MB over the lines, the leader's first:%s", n+1, took.Seconds(), float64(end)/1e6, float64(end)/1e6/took.Seconds(), text)
			follower.stop()
			for _, l := range lines {
				l.stop()
			}
			if err := os.RemoveAll(follower.dir); err != nil {
				t.Fatal(err)
			}
		}
	}
}
