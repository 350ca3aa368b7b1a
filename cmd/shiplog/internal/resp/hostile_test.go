package resp_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"shiplog/cmd/shiplog/internal/resp"
)

// TestProtocolErrors: each gets one error and the connection is closed.
func TestProtocolErrors(t *testing.T) {
	tests := []struct{ name, send, want string }{
		{"a billion arguments", "*1000000000\r\n", "invalid multibulk length"},
		{"more than 63 bits of arguments", "*99999999999999999999\r\n", "invalid multibulk length"},
		{"number of arguments is no number", "*x\r\n", "invalid multibulk length"},
		{"huge argument", "*1\r\n$999999999999\r\n", "invalid bulk length"},
		{"largest length", "*1\r\n$9223372036854775807\r\n", "invalid bulk length"},
		{"negative argument", "*1\r\n$-100000\r\n", "invalid bulk length"},
		{"argument that is no bulk", "*1\r\n:1\r\n", "expected '$', got ':'"},
		{"argument without line end", "*1\r\n$1\r\nab\r\n", "invalid bulk length"},
		{"length line without carriage return", "*1\n", "invalid multibulk length"},
		{"endless number of arguments", "*" + strings.Repeat("1", 100), "too big mbulk count string"},
		{"endless length", "*1\r\n$" + strings.Repeat("1", 100), "too big bulk count string"},
		{"endless inline command", strings.Repeat("a", 70_000), "too big inline request"},
		{"unbalanced quotes", "SET k \"v\r\n", "unbalanced quotes in request"},
		{"quote in a word", "SET k 'v'x\r\n", "unbalanced quotes in request"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, nil)
			c := s.dial(t)
			go c.Write([]byte(command("SET", "before", "1") + test.send)) // ends when it is read, or with the connection
			c.expect("+OK\r\n-ERR Protocol error: " + test.want + "\r\n")
			if rest, _ := io.ReadAll(c); len(rest) != 0 {
				t.Errorf("more than one error: %q", rest)
			}
		})
	}
}

func TestEmptyCommandsHaveNoReply(t *testing.T) {
	c := start(t, nil).dial(t)
	c.send("*0\r\n*-1\r\n\r\n  \r\n" + command("PING"))
	c.expect("+PONG\r\n")
}

func TestHTTPIsCutOff(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	c.send("POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n")
	if got, _ := io.ReadAll(c); strings.Contains(string(got), "OK") {
		t.Errorf("a request body was executed: %q", got)
	}
}

// TestGarbage: random bytes are answered with errors, cost little, and end.
func TestGarbage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := start(t, nil)
	pieces := []string{"*", "$", "\r\n", "1", "-1", "3", "99999999999", "SET", "GET", "k", " ", "\x00", "\"", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n", "$1\r\nv\r\n"}
	for range 300 {
		var b strings.Builder
		for range rng.IntN(60) {
			if rng.IntN(4) == 0 {
				b.WriteByte(byte(rng.Uint32()))
			} else {
				b.WriteString(pieces[rng.IntN(len(pieces))])
			}
		}
		nc, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		nc.Write([]byte(b.String()))
		nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("no end after %q", b.String())
		}
		nc.Close()
	}
	c := s.dial(t)
	c.send(command("PING"))
	c.expect("+PONG\r\n")
}

// TestAnnouncedBytesAreNotAllocated: lengths cost nothing until the bytes come.
func TestAnnouncedBytesAreNotAllocated(t *testing.T) {
	s := start(t, nil)
	before := heap()
	for range 200 {
		s.dial(t).send("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\nx")
	}
	for range 200 {
		s.dial(t).send("*1048576\r\n$0\r\n\r\n")
	}
	until(t, func() bool { return s.Stats().Clients == 400 && s.Stats().InBytes >= 200*31+200*16 })
	if grown := heap() - before; grown > 40<<20 {
		t.Errorf("400 clients that announced a lot hold %d MiB", grown>>20)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestClientMemory: what all clients buffer together is bounded; who comes too late is told so.
func TestClientMemory(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.ClientMemory = 4 << 20 })
	refused := 0
	for range 12 {
		c := s.dial(t)
		c.send("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048000\r\n")
		c.Write([]byte(strings.Repeat("x", 1_000_000)))
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		p := make([]byte, 100)
		if n, _ := c.Read(p); n > 0 {
			if want := "-OOM client buffers of this node are full\r\n"; string(p[:n]) != want {
				t.Fatalf("got %q, want %q", p[:n], want)
			}
			refused++
		}
	}
	if refused == 0 {
		t.Error("12 clients buffered 12 MB within 4 MiB")
	}
	if held := s.Stats().ClientMemory; held > 4<<20 {
		t.Errorf("%d bytes are held", held)
	}
}

// TestSlowCommand: a command that is not completed in time ends its connection, and others are not disturbed.
func TestSlowCommand(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.PartialTimeout = 50 * time.Millisecond })
	idle := s.dial(t)
	slow := s.dial(t)
	slow.send("*2\r\n$3\r\nGET\r\n$1")
	if _, err := slow.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the slow connection got %v, want EOF", err)
	}
	idle.send(command("PING"))
	idle.expect("+PONG\r\n")
	if got := s.Stats().Timeouts; got != 1 {
		t.Errorf("%d timeouts, want 1", got)
	}
}

// TestByteByByte: a long command that arrives in single bytes costs time in proportion to its length.
func TestByteByByte(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	c.Conn.(*net.TCPConn).SetNoDelay(true)
	args := []string{"MSET"}
	for i := range 500 {
		args = append(args, fmt.Sprintf("k%d", i), "v")
	}
	for _, b := range []byte(command(args...)) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	c.expect("+OK\r\n")
}

// TestClientThatNeverReads: replies that nobody takes end the connection.
func TestClientThatNeverReads(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.WriteTimeout = 100 * time.Millisecond })
	c := s.dial(t)
	c.send(command("SET", "k", strings.Repeat("x", 1<<20)))
	c.expect("+OK\r\n")
	go c.Write([]byte(repeat(200, func(int) string { return command("GET", "k") }))) // ends with the connection
	until(t, func() bool { return s.Stats().Clients == 0 })
	if held := s.Stats().ClientMemory; held != 0 {
		t.Errorf("%d bytes are held for nobody", held)
	}
}

func TestTooManyClients(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.MaxClients = 2 })
	a, b := s.dial(t), s.dial(t)
	a.send(command("PING"))
	a.expect("+PONG\r\n")
	b.send(command("PING"))
	b.expect("+PONG\r\n")
	s.dial(t).expect("-ERR max number of clients reached\r\n")
	a.Close()
	until(t, func() bool { return s.Stats().Clients == 1 })
	c := s.dial(t)
	c.send(command("PING"))
	c.expect("+PONG\r\n")
}

// TestWaitEndsWithTheClient: a client that leaves during WAIT leaves nothing behind.
func TestWaitEndsWithTheClient(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	c.send(command("PING") + command("WAIT", "1", "0"))
	c.expect("+PONG\r\n")
	c.Close()
	until(t, func() bool { return s.Stats().Clients == 0 })
}

func TestPasswordsAreNotTriedForEver(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.Password = "secret" })
	c := s.dial(t)
	c.send(repeat(20, func(i int) string { return command("AUTH", fmt.Sprint(i)) }))
	got, _ := io.ReadAll(c)
	if n := strings.Count(string(got), "WRONGPASS"); n != 10 {
		t.Errorf("%d passwords were tried, want 10", n)
	}
}

func TestGlobIsNotExponential(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	c.send(command("SET", strings.Repeat("a", 1000), "v") + command("KEYS", strings.Repeat("a*", 400)+"b"))
	c.expect("+OK\r\n*0\r\n")
}

func FuzzProtocol(f *testing.F) {
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"))
	f.Add([]byte("*1\r\n$-5\r\n"))
	f.Add([]byte("PING 'a b' \"\\x41\"\r\n"))
	f.Add([]byte("*1000000000\r\n$1\r\n"))
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$9223372036854775807\r\n"))
	s := start(f, nil)
	f.Fuzz(func(t *testing.T, p []byte) {
		nc, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Skip(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		nc.Write(p)
		nc.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, nc); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Fatalf("no end after %q", p)
			}
		}
	})
}

// TestManySmallArguments: the slices of arguments count as memory too, and are given back.
func TestManySmallArguments(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.ClientMemory = 16 << 20 })
	c := s.dial(t)
	const n = 200_000
	c.send("*" + fmt.Sprint(n+1) + "\r\n$6\r\nEXISTS\r\n" + strings.Repeat("$1\r\nk\r\n", n))
	c.expect(":0\r\n")
	c.send("*" + fmt.Sprint(2*n+1) + "\r\n$6\r\nEXISTS\r\n" + strings.Repeat("$1\r\nk\r\n", 2*n))
	c.expect("-OOM client buffers of this node are full\r\n")
	until(t, func() bool { return s.Stats().Clients == 0 })
	if held := s.Stats().ClientMemory; held != 0 {
		t.Errorf("%d bytes are held for nobody", held)
	}
}
