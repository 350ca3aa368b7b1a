package resp_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"shiplog/cmd/shiplog/internal/resp"
)

const (
	ok     = "+OK\r\n"
	queued = "+QUEUED\r\n"
)

// TestTransactionsOfAPipeline: EXECs of a pipeline are one commit with the writes around them, whatever they hold; those that
// only read, or that hold other commands, commit what came before.
func TestTransactionsOfAPipeline(t *testing.T) {
	transfer := command("MULTI") + command("SET", "a", "1") + command("SET", "b", "2") + command("EXEC")
	counted := command("MULTI") + command("INCR", "n") + command("GET", "n") + command("EXEC")
	tests := []struct {
		name    string
		send    string
		want    string
		commits int64
		plain   bool // not decided in a transaction of the store
	}{
		{"plain", strings.Repeat(transfer, 50), strings.Repeat(ok+queued+queued+"*2\r\n"+ok+ok, 50), 1, true},
		{"plain with bad arguments", command("MULTI") + command("SET", "a", "1", "FOO") + command("SET", "a", "1") + command("EXEC"), ok + queued + queued + "*2\r\n-ERR syntax error\r\n" + ok, 1, true},
		{"deciding", repeat(50, func(int) string { return counted }), repeat(50, func(i int) string {
			n := strconv.Itoa(i + 1)
			return ok + queued + queued + "*2\r\n:" + n + "\r\n$" + strconv.Itoa(len(n)) + "\r\n" + n + "\r\n"
		}), 1, false},
		{"among others", command("SET", "n", "1") + counted + command("PING") + transfer + command("INCR", "a"), ok + ok + queued + queued + "*2\r\n:2\r\n$1\r\n2\r\n+PONG\r\n" + ok + queued + queued + "*2\r\n" + ok + ok + ":2\r\n", 1, false},
		{"only reads", command("SET", "n", "1") + command("MULTI") + command("GET", "n") + command("EXEC") + command("SET", "n", "2"), ok + ok + queued + "*1\r\n$1\r\n1\r\n" + ok, 2, true},
		{"others", command("SET", "n", "1") + command("MULTI") + command("INCR", "n") + command("CLIENT", "SETNAME", "joe") + command("GET", "n") + command("CLIENT", "GETNAME") + command("EXEC") + command("INCR", "n"), ok + ok + strings.Repeat(queued, 4) + "*4\r\n:2\r\n" + ok + "$1\r\n2\r\n$3\r\njoe\r\n:3\r\n", 3, false},
		{"none", command("MULTI") + command("EXEC") + command("MULTI") + command("PING") + command("EXEC"), ok + "*0\r\n" + ok + queued + "*1\r\n+PONG\r\n", 0, true},
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
			if st := s.Stats(); (st.CombinedRuns == 0) != test.plain {
				t.Errorf("%d runs decided in transactions", st.CombinedRuns)
			}
			until(t, func() bool { return s.Stats().ClientMemory == 0 })
		})
	}
}

// TestTransactionErrors: a transaction that is not committed says why, and executes nothing.
func TestTransactionErrors(t *testing.T) {
	abort := "-EXECABORT Transaction discarded because of: "
	tests := []struct {
		err  error
		want string
	}{
		{resp.ErrReadOnly, abort + "READONLY You can't write against a read only replica.\r\n"},
		{resp.ErrTooFewFollowers, abort + "NOREPLICAS Not enough good replicas to write.\r\n"},
		{resp.ErrTooLarge, abort + "string exceeds maximum allowed size (proto-max-bulk-len)\r\n"},
		{resp.ErrConflict, abort + "TRYAGAIN resp: transaction conflict\r\n"},
		{resp.ErrUnknownOutcome, "-UNKNOWNOUTCOME resp: outcome of the write is unknown\r\n"},
	}
	for _, test := range tests {
		for _, kind := range []string{"SET", "APPEND"} {
			t.Run(kind+" "+test.err.Error(), func(t *testing.T) {
				s := start(t, nil)
				s.m.failure = test.err
				c := s.dial(t)
				c.send(command("MULTI") + command(kind, "a", "1") + command(kind, "b", "2") + command("EXEC") + command("PING") + command("GET", "a"))
				c.expect(ok + queued + queued + test.want + "+PONG\r\n$-1\r\n")
				c.send(command("MULTI") + command(kind, "a", "1") + command("CLIENT", "SETNAME", "joe") + command("EXEC") + command("CLIENT", "GETNAME"))
				c.expect(ok + queued + queued + test.want + "$-1\r\n")
			})
		}
	}
}

// TestTransactionOnFollower: reads are allowed, writes refused when they are queued, or by EXEC if the role has changed meanwhile.
func TestTransactionOnFollower(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	readOnly := "READONLY You can't write against a read only replica.\r\n"
	c.send(command("SET", "a", "1") + command("MULTI") + command("SET", "a", "2") + command("GET", "a"))
	c.expect(ok + ok + queued + queued)
	s.m.follower.Store(true)
	c.send(command("EXEC") + command("GET", "a"))
	c.expect("-EXECABORT Transaction discarded because of: " + readOnly + "$1\r\n1\r\n")
	c.send(command("MULTI") + command("SET", "a", "2") + command("EXEC"))
	c.expect(ok + "-" + readOnly + "-EXECABORT Transaction discarded because of previous errors.\r\n")
	c.send(command("WATCH", "a") + command("MULTI") + command("GET", "a") + command("DBSIZE") + command("EXEC"))
	c.expect(ok + ok + queued + queued + "*2\r\n$1\r\n1\r\n:1\r\n")
}

// TestTransactionReplyOff: CLIENT REPLY holds for the replies of a transaction, however it is executed.
func TestTransactionReplyOff(t *testing.T) {
	c := start(t, nil).dial(t)
	c.send(command("SET", "a", "1") + command("CLIENT", "REPLY", "OFF"))
	for _, inner := range [][]string{{"SET", "a", "2"}, {"INCR", "a"}, {"GET", "a"}, {"PING"}, {"NOPE"}} {
		c.send(command("MULTI") + command(inner...) + command("EXEC"))
	}
	c.send(command("CLIENT", "REPLY", "ON") + command("GET", "a") + command("SET", "b", "1") + command("MULTI") + command("INCR", "a") + command("PING") +
		command("CLIENT", "REPLY", "SKIP") + command("EXEC") + command("GET", "a") + command("GET", "a"))
	c.expect(ok + ok + "$1\r\n3\r\n" + ok + ok + queued + queued + queued + "*3\r\n:4\r\n+PONG\r\n$1\r\n4\r\n")
}

// TestTransactionMemory: what is queued and watched counts towards what clients may hold together, and is given back however it ends.
func TestTransactionMemory(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.ClientMemory = 1 << 20 })
	c := s.dial(t)
	value := strings.Repeat("v", 10_000)
	full := "-OOM client buffers of this node are full\r\n"
	watchALot := command(append([]string{"WATCH"}, strings.Fields(repeat(5000, func(i int) string { return "key" + strconv.Itoa(i) + " " }))...)...)
	for _, end := range []string{"EXEC", "DISCARD", "RESET"} {
		c.send(command("WATCH", "a", "b", "a") + command("MULTI"))
		c.expect(ok + ok)
		for range 90 {
			c.send(command("SET", "k", value))
			c.expect(queued)
		}
		held := s.Stats().ClientMemory
		if held < 90*10_000 || held > 1<<20 {
			t.Errorf("%d bytes are held", held)
		}
		c.send(strings.Repeat(command("SET", "k", value), 30) + command(end))
		reply := readLines(t, c, 31)
		if !strings.HasSuffix(strings.Join(reply[:30], ""), full) {
			t.Errorf("the last was queued: %q", reply[29])
		}
		want := map[string]string{"EXEC": "-EXECABORT Transaction discarded because of previous errors.\r\n", "DISCARD": ok, "RESET": "+RESET\r\n"}[end]
		if reply[30] != want {
			t.Errorf("%s: %q", end, reply[30])
		}
		until(t, func() bool { return s.Stats().ClientMemory == 0 && s.m.watches.Load() == 0 })
	}
	c.send(watchALot + command("UNWATCH"))
	c.expect(full + ok)
	until(t, func() bool { return s.Stats().ClientMemory == 0 && s.m.watches.Load() == 0 })
	c.send(command("WATCH", "a") + command("MULTI") + command("SET", "k", value) + command("EXEC"))
	c.expect(ok + ok + queued + "*1\r\n" + ok)
	until(t, func() bool { return s.Stats().ClientMemory == 0 && s.m.watches.Load() == 0 })
	c.send(command("WATCH", "a") + command("MULTI") + command("SET", "k", value))
	c.expect(ok + ok + queued)
	c.Close()
	until(t, func() bool { return s.Stats().ClientMemory == 0 && s.m.watches.Load() == 0 })
}

// readLines reads lines one by one.
func readLines(t *testing.T, c *client, n int) (lines []string) {
	t.Helper()
	var line []byte
	for p := make([]byte, 1); len(lines) < n; {
		if _, err := c.Read(p); err != nil {
			t.Fatal(err, lines)
		}
		if line = append(line, p[0]); p[0] == '\n' {
			lines, line = append(lines, string(line)), nil
		}
	}
	return lines
}

// TestTransactionReplyMemory: what a transaction reads counts before it is copied.
func TestTransactionReplyMemory(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.ClientMemory = 4 << 20 })
	c := s.dial(t)
	big := strings.Repeat("b", 1<<20)
	c.send(command("SET", "big", big))
	c.expect(ok)
	full := "-EXECABORT Transaction discarded because of: OOM client buffers of this node are full\r\n"
	many := strings.Repeat(command("GET", "big"), 10)
	c.send(command("MULTI") + many + command("EXEC") + command("PING"))
	c.expect(ok + strings.Repeat(queued, 10) + full + "+PONG\r\n")
	c.send(command("MULTI") + command("INCR", "n") + command(append([]string{"MGET"}, strings.Fields(strings.Repeat("big ", 10))...)...) + command("EXEC") + command("GET", "n"))
	c.expect(ok + queued + queued + full + "$-1\r\n")
	c.send(command("MULTI") + command("INCR", "n") + command("GET", "big") + command("EXEC"))
	c.expect(ok + queued + queued + "*2\r\n:1\r\n$1048576\r\n" + big + "\r\n")
	until(t, func() bool { return s.Stats().ClientMemory == 0 })
}

// TestUndecidedFailsAlone: a command that meets damage fails, and not those that were decided with it.
func TestUndecidedFailsAlone(t *testing.T) {
	s := start(t, nil)
	s.m.damaged = "bad"
	c := s.dial(t)
	damage := "ERR damaged\r\n"
	c.send(command("INCR", "n") + command("INCR", "bad") + command("INCR", "n") + command("MULTI") + command("INCR", "n") + command("GETDEL", "bad") + command("EXEC") +
		command("MULTI") + command("INCR", "n") + command("EXEC") + command("GET", "bad") + command("MGET", "n", "bad") + command("EXISTS", "n", "bad"))
	c.expect(":1\r\n-" + damage + ":2\r\n" + ok + queued + queued + "-EXECABORT Transaction discarded because of: damaged\r\n" +
		ok + queued + "*1\r\n:3\r\n-" + damage + "*2\r\n$1\r\n3\r\n-" + damage + "-" + damage)
	// Other connections' commands, decided in the same group.
	s.m.gate = make(chan struct{})
	open := sync.OnceFunc(func() { close(s.m.gate) })
	defer open()
	d, e := s.dial(t), s.dial(t)
	before := s.Stats().InBytes
	good, bad := command("INCR", "n"), command("INCR", "bad")
	c.send(good)
	until(t, func() bool { return s.m.waiting.Load() == 1 })
	d.send(bad)
	e.send(good)
	until(t, func() bool { return s.Stats().InBytes == before+int64(2*len(good)+len(bad)) })
	open()
	c.expect(":4\r\n")
	d.expect("-" + damage)
	e.expect(":5\r\n")
}

// TestSentinelTransaction is what Sentinel sends for a failover.
func TestSentinelTransaction(t *testing.T) {
	s := start(t, nil)
	c, other := s.dial(t), s.dial(t)
	other.send(command("PING"))
	other.expect("+PONG\r\n")
	c.send(command("MULTI") + command("SLAVEOF", "10.0.0.9", "6380") + command("CONFIG", "REWRITE") + command("CLIENT", "KILL", "TYPE", "normal") + command("CLIENT", "KILL", "TYPE", "pubsub") + command("EXEC"))
	c.expect(ok + strings.Repeat(queued, 4) + "*4\r\n" + ok + "-ERR The server is running without a config file\r\n:1\r\n:0\r\n")
	if got := <-s.n.followed; got != "10.0.0.9:6380" {
		t.Errorf("follows %s", got)
	}
	if _, err := other.Read(make([]byte, 1)); err == nil {
		t.Error("the other client was not killed")
	}
}

// TestGoRedisTransactions counts with WATCH, MULTI and EXEC from many goroutines.
func TestGoRedisTransactions(t *testing.T) {
	s := start(t, nil)
	ctx := t.Context()
	r := redis.NewClient(&redis.Options{Addr: s.addr, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	defer r.Close()
	const workers, each = 8, 50
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				err := r.Watch(ctx, func(tx *redis.Tx) error {
					n, err := tx.Get(ctx, "counter").Int()
					if err != nil && !errors.Is(err, redis.Nil) {
						return err
					}
					_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
						p.Set(ctx, "counter", n+1, 0)
						p.Incr(ctx, "commits")
						return nil
					})
					return err
				}, "counter")
				switch {
				case err == nil:
					done++
				case !errors.Is(err, redis.TxFailedErr):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := r.MGet(context.Background(), "counter", "commits").Result()
	if want := fmt.Sprint([]any{"400", "400"}); err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if n := s.m.watches.Load(); n != 0 {
		t.Errorf("%d watches are open", n)
	}
}
