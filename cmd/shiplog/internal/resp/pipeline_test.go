package resp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"shiplog/cmd/shiplog/internal/resp"
)

func repeat(n int, fn func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(fn(i))
	}
	return b.String()
}

// TestPipelineIsOneCommit: consecutive writes of a pipeline are one commit, whatever kinds they are of.
func TestPipelineIsOneCommit(t *testing.T) {
	tests := []struct {
		name    string
		send    string
		want    string
		commits int64
	}{
		{"plain", repeat(100, func(i int) string { return command("SET", "k"+strconv.Itoa(i), "v") }), strings.Repeat("+OK\r\n", 100), 1},
		{"conditional", repeat(100, func(int) string { return command("INCR", "n") }), repeat(100, func(i int) string { return fmt.Sprintf(":%d\r\n", i+1) }), 1},
		{"mixed", repeat(20, func(int) string {
			return command("SET", "k", "v") + command("DEL", "k") + command("PING") + command("SETNX", "k", "w")
		}), strings.Repeat("+OK\r\n:1\r\n+PONG\r\n:1\r\n", 20), 1},
		{"errors between", command("SET", "a", "x") + command("NOPE") + command("INCR", "a") + command("GET") + command("SET", "b", "y"), "+OK\r\n-ERR unknown command 'NOPE', with args beginning with: \r\n-ERR value is not an integer or out of range\r\n-ERR wrong number of arguments for 'get' command\r\n+OK\r\n", 1},
		{"reads between", command("SET", "a", "1") + command("GET", "a") + command("SET", "a", "2") + command("SET", "b", "3") + command("MGET", "a", "b"), "+OK\r\n$1\r\n1\r\n+OK\r\n+OK\r\n*2\r\n$1\r\n2\r\n$1\r\n3\r\n", 2},
		{"flush stands alone", command("SET", "a", "1") + command("FLUSHALL") + command("SET", "b", "1") + command("DBSIZE"), "+OK\r\n+OK\r\n+OK\r\n:1\r\n", 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, nil)
			c := s.dial(t)
			c.send(test.send)
			c.expect(test.want)
			if got := s.m.commits.Load(); got != test.commits {
				t.Errorf("%d commits, want %d", got, test.commits)
			}
		})
	}
}

// TestLongPipeline: a pipeline far longer than the buffers is answered in order, with few commits.
func TestLongPipeline(t *testing.T) {
	const n = 10_000
	s := start(t, nil)
	c := s.dial(t)
	go c.Write([]byte(repeat(n, func(i int) string { return command("SET", fmt.Sprintf("key%06d", i), "value") }) + // ends when it is read
		repeat(n, func(i int) string { return command("GET", fmt.Sprintf("key%06d", i)) }) + command("DBSIZE")))
	c.expect(strings.Repeat("+OK\r\n", n))
	c.expect(strings.Repeat("$5\r\nvalue\r\n", n) + fmt.Sprintf(":%d\r\n", n))
	if got := s.m.commits.Load(); got > 200 {
		t.Errorf("%d commits for %d writes", got, n)
	}
	if held := s.Stats().ClientMemory; held > 1<<20 {
		t.Errorf("%d bytes are still held", held)
	}
}

// TestClientWritesBeforeItReads: a client may send a whole pipeline before it reads the first reply.
func TestClientWritesBeforeItReads(t *testing.T) {
	const n = 20_000
	s := start(t, nil)
	c := s.dial(t)
	value := strings.Repeat("x", 100)
	c.send(command("SET", "k", value))
	c.expect("+OK\r\n")
	c.send(repeat(n, func(int) string { return command("GET", "k") }))
	c.expect(strings.Repeat("$100\r\n"+value+"\r\n", n))
}

// TestConnectionsShareACommit: conditional writes of many connections that wait for one commit go into the next one
// together, and plain writes do not wait for each other.
func TestConnectionsShareACommit(t *testing.T) {
	const clients = 20
	s := start(t, nil)
	s.m.gate = make(chan struct{})
	var conns []*client
	for range clients {
		c := s.dial(t)
		c.send(command("INCR", "n"))
		conns = append(conns, c)
	}
	until(t, func() bool { return s.m.waiting.Load() == 1 && s.Stats().Clients == clients })
	s.m.gate <- struct{}{} // the first, with whoever came before it was taken
	until(t, func() bool { return s.m.waiting.Load() == 1 })
	// Those that have not come into the queue by now may take more rounds, never as many as there are clients.
	stop := make(chan struct{})
	go func() { // ends by stop
		for {
			select {
			case s.m.gate <- struct{}{}:
			case <-stop:
				return
			}
		}
	}()
	defer close(stop)
	seen := map[string]bool{}
	for _, c := range conns {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || seen[line] {
			t.Fatalf("reply %q twice, or %v", line, err)
		}
		seen[line] = true
	}
	if got := s.m.commits.Load(); got >= clients {
		t.Errorf("%d commits for %d clients", got, clients)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen within 20 s")
		}
	}
}

// TestGroupTooLarge: runs that are too large together are committed apart, commands that are too large by themselves
// fail alone.
func TestGroupTooLarge(t *testing.T) {
	s := start(t, nil)
	s.m.maxBatch = 1000
	c := s.dial(t)
	fits, not := strings.Repeat("x", 600), strings.Repeat("x", 2000)
	tooLarge := "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
	c.send(command("SET", "a", fits) + command("SET", "b", not) + command("PING") + command("SET", "c", fits))
	c.expect("+OK\r\n" + tooLarge + "+PONG\r\n+OK\r\n")
	c.send(command("SETNX", "d", fits) + command("SETNX", "e", not) + command("PING") + command("SETNX", "f", fits) + command("EXISTS", "a", "b", "c", "d", "e", "f"))
	c.expect(":1\r\n" + tooLarge + "+PONG\r\n:1\r\n:4\r\n")
}

// TestShutdownFinishesCommands: what has arrived is committed and answered before the connection is closed.
func TestShutdownFinishesCommands(t *testing.T) {
	s := start(t, nil)
	s.m.gate = make(chan struct{})
	idle, busy := s.dial(t), s.dial(t)
	busy.send(command("SET", "a", "1") + command("INCR", "a"))
	until(t, func() bool { return s.m.waiting.Load() == 1 && s.Stats().Clients == 2 })
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }() // ends when the client was answered
	if n, err := idle.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the idle connection got %d bytes, %v", n, err)
	}
	s.m.gate <- struct{}{}
	busy.expect("+OK\r\n:2\r\n")
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	s.m.gate = nil
}

// TestShutdownAnswersWhoWaits: a write that waits longer than the shutdown does is told that its outcome is unknown before its connection is closed, and a
// client that takes no answers holds up nothing.
func TestShutdownAnswersWhoWaits(t *testing.T) {
	s := start(t, nil)
	s.m.gate = make(chan struct{})
	waits, deaf := s.dial(t), s.dial(t)
	s.m.data["big"] = value{p: strings.Repeat("x", 32<<20)}
	deaf.send(command("GET", "big"))
	waits.send(command("SET", "a", "1"))
	until(t, func() bool { return s.m.waiting.Load() == 1 && s.Stats().Clients == 2 })
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(over); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	waits.expect("-UNKNOWNOUTCOME resp: outcome of the write is unknown\r\n")
	if n, err := waits.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection goes on: %d bytes, %v", n, err)
	}
	s.m.gate = nil
}

// TestScanGuarantee: what is there throughout an iteration is returned, while other keys come and go.
func TestScanGuarantee(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	const n = 2000
	c.send(repeat(n, func(i int) string { return command("SET", fmt.Sprintf("stay:%05d", i), "v") }))
	c.expect(strings.Repeat("+OK\r\n", n))
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() { // ends by stop
		d := s.dial(t)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d.send(command("SET", fmt.Sprintf("stay:%05d:x", i%n), "v") + command("DEL", fmt.Sprintf("stay:%05d:x", (i*7)%n)))
			r := bufio.NewReader(d)
			r.ReadString('\n')
			r.ReadString('\n')
		}
	})
	seen := map[string]bool{}
	cursor := "0"
	for {
		c.send(command("SCAN", cursor, "COUNT", "37", "MATCH", "stay:*"))
		r := bufio.NewReader(c)
		elements := readArray(t, r)
		cursor = elements[0]
		for _, key := range elements[1:] {
			seen[key] = true
		}
		if cursor == "0" {
			break
		}
	}
	close(stop)
	churn.Wait()
	for i := range n {
		if key := fmt.Sprintf("stay:%05d", i); !seen[key] {
			t.Fatalf("%s was not returned", key)
		}
	}
}

// readArray reads a reply and returns the bulk strings in it.
func readArray(t *testing.T, r *bufio.Reader) (all []string) {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	switch line[0] {
	case '*':
		for range n {
			all = append(all, readArray(t, r)...)
		}
	case '$':
		p := make([]byte, n+2)
		for at := 0; at < len(p); {
			m, err := r.Read(p[at:])
			if err != nil {
				t.Fatal(err)
			}
			at += m
		}
		all = append(all, string(p[:n]))
	default:
		t.Fatalf("unexpected reply %q", line)
	}
	return all
}

// TestLargeReplies: replies far above the buffers come whole, also to a client that reads slowly.
func TestLargeReplies(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.ClientMemory = 32 << 20 })
	c := s.dial(t)
	const n = 60_000
	key := func(i int) string { return fmt.Sprintf("%0100d", i) }
	s.m.mu.Lock()
	for i := range n {
		s.m.data[key(i)] = value{p: "v"}
	}
	s.m.mu.Unlock()
	c.send(command("KEYS", "*") + command("PING"))
	c.expect(fmt.Sprintf("*%d\r\n", n) + repeat(n, func(i int) string { return "$100\r\n" + key(i) + "\r\n" }) + "+PONG\r\n")
	big := strings.Repeat("b", 1<<20)
	c.send(command("SET", "big", big))
	c.expect("+OK\r\n")
	args := []string{"MGET"}
	for range 40 {
		args = append(args, "big")
	}
	c.send(command(args...))
	c.expect("*40\r\n")
	for range 40 {
		c.expect("$1048576\r\n" + big + "\r\n")
	}
	until(t, func() bool { return s.Stats().ClientMemory < 4<<20 })
}
