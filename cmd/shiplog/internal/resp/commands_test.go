package resp_test

import (
	"strings"
	"testing"
	"time"

	"shiplog/cmd/shiplog/internal/resp"
)

// TestReplies compares the bytes of replies with Redis's. Commands are inline: their arguments stand between blanks.
func TestReplies(t *testing.T) {
	const (
		ok      = "+OK\r\n"
		null    = "$-1\r\n"
		zero    = ":0\r\n"
		one     = ":1\r\n"
		syntax  = "-ERR syntax error\r\n"
		notInt  = "-ERR value is not an integer or out of range\r\n"
		badTime = "-ERR invalid expire time in 'set' command\r\n"
	)
	arity := func(name string) string { return "-ERR wrong number of arguments for '" + name + "' command\r\n" }
	tests := []struct {
		name  string
		steps []string // command, reply, command, reply...
	}{
		{"ping", []string{"PING", "+PONG\r\n", "ping hello", "$5\r\nhello\r\n", "PING a b", arity("ping")}},
		{"echo", []string{"ECHO hey", "$3\r\nhey\r\n", "ECHO", arity("echo")}},
		{"unknown", []string{"FOO a b", "-ERR unknown command 'FOO', with args beginning with: 'a' 'b' \r\n", "nope", "-ERR unknown command 'nope', with args beginning with: \r\n"}},
		{"select", []string{"SELECT 0", ok, "SELECT 1", "-ERR DB index is out of range\r\n", "SELECT x", notInt}},
		{"auth without password", []string{
			"AUTH x", "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?\r\n",
			"AUTH default x", ok, "AUTH joe x", "-WRONGPASS invalid username-password pair or user is disabled.\r\n", "AUTH a b c", syntax,
		}},
		{"get set", []string{"GET k", null, "SET k v", ok, "GET k", "$1\r\nv\r\n", "SET k ''", ok, "GET k", "$0\r\n\r\n", "GET", arity("get"), "SET k", arity("set")}},
		{"set nx xx", []string{"SET k v XX", null, "SET k v NX", ok, "SET k w NX", null, "SET k w XX", ok, "GET k", "$1\r\nw\r\n", "SET k v NX XX", syntax, "SET k v FOO", syntax}},
		{"set get", []string{"SET k v GET", null, "SET k w GET", "$1\r\nv\r\n", "SET k x NX GET", "$1\r\nw\r\n", "GET k", "$1\r\nw\r\n", "SET j x XX GET", null, "EXISTS j", zero, "SET j x NX GET", null, "EXISTS j", one}},
		{"set expiry errors", []string{
			"SET k v EX 0", badTime, "SET k v EX -1", badTime, "SET k v PX 0", badTime, "SET k v EX x", notInt, "SET k v EX", syntax,
			"SET k v EX 9223372036854775807", badTime, "SET k v PX 9223372036854775807", badTime, "SET k v EX 10 PX 10", syntax,
			"SET k v EX 10 KEEPTTL", syntax, "SET k v KEEPTTL EX 10", syntax, "SET k v EX 0 FOO", syntax, "EXISTS k", zero,
			"SET k v EX 100", ok, "SET k v px 100000", ok, "SET k v EXAT 99999999999", ok, "SET k v PXAT 99999999999999", ok, "GET k", "$1\r\nv\r\n",
			"SET k v EXAT 1", ok, "GET k", null,
		}},
		{"setnx", []string{"SETNX k v", one, "SETNX k w", zero, "GET k", "$1\r\nv\r\n"}},
		{"getset getdel", []string{"GETSET k v", null, "GETSET k w", "$1\r\nv\r\n", "GETDEL k", "$1\r\nw\r\n", "GETDEL k", null, "EXISTS k", zero}},
		{"mset mget", []string{"MSET a 1 b 2", ok, "MGET a b c a", "*4\r\n$1\r\n1\r\n$1\r\n2\r\n$-1\r\n$1\r\n1\r\n", "MSET a", arity("mset"), "MSET a 1 b", arity("mset")}},
		{"del exists", []string{"MSET a 1 b 2 c 3", ok, "EXISTS a b x a", ":3\r\n", "DEL a x a", one, "UNLINK b c", ":2\r\n", "DBSIZE", zero, "DEL", arity("del")}},
		{"type strlen", []string{"TYPE k", "+none\r\n", "STRLEN k", zero, "SET k hello", ok, "TYPE k", "+string\r\n", "STRLEN k", ":5\r\n"}},
		{"append", []string{"APPEND k ab", ":2\r\n", "APPEND k cd", ":4\r\n", "GET k", "$4\r\nabcd\r\n"}},
		{"incr", []string{
			"INCR n", one, "INCRBY n 41", ":42\r\n", "DECR n", ":41\r\n", "DECRBY n 50", ":-9\r\n", "GET n", "$2\r\n-9\r\n", "INCRBY n x", notInt, "INCRBY n 1.5", notInt,
			"SET n 9223372036854775807", ok, "INCR n", "-ERR increment or decrement would overflow\r\n",
			"SET n -9223372036854775808", ok, "DECR n", "-ERR increment or decrement would overflow\r\n", "DECRBY n -9223372036854775808", "-ERR decrement would overflow\r\n",
			"SET n abc", ok, "INCR n", notInt, "SET n 007", ok, "INCR n", notInt, "SET n ' 7'", ok, "INCR n", notInt, "SET n -0", ok, "INCR n", notInt,
		}},
		{"keys", []string{
			"KEYS *", "*0\r\n", "MSET a1 1 a2 2 b1 3 'x*y' 4", ok, "KEYS a*", "*2\r\n$2\r\na1\r\n$2\r\na2\r\n", "KEYS ?1", "*2\r\n$2\r\na1\r\n$2\r\nb1\r\n",
			"KEYS [^a]?", "*1\r\n$2\r\nb1\r\n", "KEYS [a-b]1", "*2\r\n$2\r\na1\r\n$2\r\nb1\r\n", `KEYS x\*y`, "*1\r\n$3\r\nx*y\r\n", "KEYS", arity("keys"),
		}},
		{"scan errors", []string{"SCAN x", "-ERR invalid cursor\r\n", "SCAN -1", "-ERR invalid cursor\r\n", "SCAN 0 COUNT 0", syntax, "SCAN 0 COUNT x", notInt, "SCAN 0 FOO 1", syntax, "SCAN 0 COUNT", syntax, "SCAN 0", "*2\r\n$1\r\n0\r\n*0\r\n"}},
		{"scan", []string{"MSET a 1 b 2", ok, "SCAN 0 COUNT 10", "*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n", "SCAN 0 MATCH b*", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nb\r\n", "SCAN 0 TYPE hash", "*2\r\n$1\r\n0\r\n*0\r\n"}},
		{"flush", []string{"SET a 1", ok, "FLUSHALL", ok, "DBSIZE", zero, "SET a 1", ok, "FLUSHDB ASYNC", ok, "EXISTS a", zero, "FLUSHALL NOW", syntax, "FLUSHALL a b", syntax}},
		{"client", []string{
			"CLIENT GETNAME", null, "CLIENT SETNAME joe", ok, "CLIENT GETNAME", "$3\r\njoe\r\n", "CLIENT SETNAME 'a b'", "-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
			"CLIENT SETINFO LIB-NAME x", ok, "CLIENT SETINFO FOO x", "-ERR Unrecognized option 'FOO'\r\n", "CLIENT NO-EVICT ON", ok, "CLIENT FOO", "-ERR unknown subcommand 'FOO'. Try CLIENT HELP.\r\n",
			"CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command\r\n", "CLIENT", arity("client"), "CLIENT KILL 1.2.3.4:5", "-ERR No such client\r\n", "CLIENT KILL ID 999", zero,
		}},
		{"client reply", []string{"CLIENT REPLY SKIP", "", "PING", "", "PING", "+PONG\r\n", "CLIENT REPLY OFF", "", "SET k v", "", "GET k", "", "CLIENT REPLY SKIP", "", "CLIENT REPLY ON", ok, "GET k", "$1\r\nv\r\n"}},
		{"config", []string{
			"CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n", "CONFIG GET appendonly", "*2\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n", "CONFIG GET nope", "*0\r\n", "CONFIG SET maxclients 100", ok,
			"CONFIG SET save x", "-ERR CONFIG SET failed (possibly related to argument 'save') - can't set immutable config\r\n", "CONFIG SET nope x", "-ERR Unknown option or number of arguments for CONFIG SET - 'nope'\r\n",
			"CONFIG SET maxclients 5 slave-priority 1 replica-priority 2", "-ERR CONFIG SET failed (possibly related to argument 'replica-priority') - duplicate parameter\r\n", "CONFIG GET maxclients", "*2\r\n$10\r\nmaxclients\r\n$3\r\n100\r\n",
			"CONFIG SET maxclients 0", "-ERR CONFIG SET failed (possibly related to argument 'maxclients') - argument must be between 1 and 1048576 inclusive\r\n",
			"CONFIG REWRITE", "-ERR The server is running without a config file\r\n",
		}},
		{"command", []string{"COMMAND INFO nope", "*1\r\n$-1\r\n", "COMMAND DOCS nope", "*0\r\n", "COMMAND INFO get", "*1\r\n*10\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n*3\r\n+@read\r\n+@string\r\n+@fast\r\n*0\r\n*0\r\n*0\r\n"}},
		{"hello", []string{
			"HELLO 4", "-NOPROTO unsupported protocol version\r\n", "HELLO x", "-ERR Protocol version is not an integer or out of range\r\n", "HELLO 2 FOO", "-ERR Syntax error in HELLO option 'FOO'\r\n",
			"HELLO 3 SETNAME a", "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n",
			"GET none", "_\r\n", "CONFIG GET save", "%1\r\n$4\r\nsave\r\n$0\r\n\r\n", "CLIENT GETNAME", "$1\r\na\r\n", "RESET", "+RESET\r\n", "GET none", null,
		}},
		{"role", []string{"ROLE", "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"}},
		{"wait", []string{"WAIT 0 0", zero, "WAIT 1 10", zero, "WAIT x 0", notInt, "WAIT 0 x", "-ERR timeout is not an integer or out of range\r\n", "WAIT 0 -1", "-ERR timeout is negative\r\n", "WAITAOF 1 0 0", "*2\r\n:1\r\n:0\r\n", "WAITAOF 2 0 0", "-ERR value is out of range, must be between 0 and 1\r\n"}},
		{"failover", []string{
			"FAILOVER", ok, "FAILOVER TO 10.0.0.1 6380 FORCE TIMEOUT 10", ok, "FAILOVER TIMEOUT 0", "-ERR FAILOVER timeout must be greater than 0\r\n",
			"FAILOVER TO h 1 FORCE", "-ERR FAILOVER with force option requires both a timeout and target HOST and IP.\r\n", "FAILOVER FORCE", "-ERR syntax error\r\n",
			"FAILOVER ABORT NOW", "-ERR syntax error\r\n", "FAILOVER ABORT", "-ERR resp: not available\r\n",
		}},
		{"replicaof", []string{"REPLICAOF NO ONE", "-ERR resp: not available\r\n", "REPLICAOF h x", "-ERR Invalid master port\r\n", "SLAVEOF 10.0.0.1 6380", ok}},
		{"quit", []string{"QUIT", ok}},
		{"quoting", []string{`SET k "a\x00\n"`, ok, "STRLEN k", ":3\r\n", "PING ''", "$0\r\n\r\n"}},
		{"key too large", []string{"SET " + strings.Repeat("k", 2000) + " v", "-ERR key exceeds maximum allowed size of 1024 bytes\r\n"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, nil).dial(t)
			for i := 0; i < len(test.steps); i += 2 {
				c.send(test.steps[i] + "\r\n")
				c.expect(test.steps[i+1])
			}
		})
		t.Run(test.name+" pipelined", func(t *testing.T) {
			c := start(t, nil).dial(t)
			var want strings.Builder
			var all strings.Builder
			for i := 0; i < len(test.steps); i += 2 {
				all.WriteString(test.steps[i] + "\r\n")
				want.WriteString(test.steps[i+1])
			}
			c.send(all.String())
			c.expect(want.String())
		})
	}
}

func TestExpiryIsKept(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	c.send("SET a 1 EX 100\r\nINCR a\r\nAPPEND a 0\r\nSET a 30 KEEPTTL\r\nSET b 1 EX 100\r\nSET b 2\r\nSET c 1 EX 100\r\nGETSET c 2\r\n")
	c.expect("+OK\r\n:2\r\n:2\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n$1\r\n1\r\n")
	s.m.advance(101 * time.Second)
	c.send("MGET a b c\r\n")
	c.expect("*3\r\n$-1\r\n$1\r\n2\r\n$1\r\n2\r\n")
}

func TestErrorsOfTheStore(t *testing.T) {
	tests := []struct {
		err  error
		want string
	}{
		{resp.ErrReadOnly, "-READONLY You can't write against a read only replica.\r\n"},
		{resp.ErrTooFewFollowers, "-NOREPLICAS Not enough good replicas to write.\r\n"},
		{resp.ErrNoSpace, "-MISCONF Errors writing to the AOF file: No space left on device\r\n"},
		{resp.ErrPoisoned, "-MISCONF Errors writing to the AOF file: resp: log is read only after a failed sync\r\n"},
		{resp.ErrUnknownOutcome, "-UNKNOWNOUTCOME resp: outcome of the write is unknown\r\n"},
		{resp.ErrConflict, "-TRYAGAIN resp: transaction conflict\r\n"},
		{resp.ErrTooLarge, "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"},
	}
	for _, test := range tests {
		t.Run(test.err.Error(), func(t *testing.T) {
			s := start(t, nil)
			s.m.failure = test.err
			c := s.dial(t)
			c.send("SET a 1\r\nPING\r\nSET a 2\r\nINCR a\r\nGET a\r\n")
			c.expect(test.want + "+PONG\r\n" + test.want + test.want + "$-1\r\n")
		})
	}
}

func TestFollower(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	c.send("SET k v\r\n")
	c.expect("+OK\r\n")
	s.m.follower.Store(true)
	readOnly := "-READONLY You can't write against a read only replica.\r\n"
	c.send("SET k w\r\nDEL k\r\nSET k v FOO\r\nGET k\r\nWAIT 0 0\r\nROLE\r\n")
	c.expect(readOnly + readOnly + readOnly + "$1\r\nv\r\n" +
		"-ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is configured to be writable (which is not the default) writes to replicas are just local and are not propagated.\r\n" +
		"*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6380\r\n$9\r\nconnected\r\n:2\r\n")
	s.n.leader.Store("10.0.0.1:6380")
	c.send("SET k w\r\n")
	c.expect("-READONLY You can't write against a read only replica. The leader is at 10.0.0.1:6380\r\n")
	s.m.loading.Store(true)
	c.send("GET k\r\nPING\r\n")
	c.expect("-LOADING Redis is loading the dataset in memory\r\n+PONG\r\n")
}

func TestPassword(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.Password = "secret" })
	c := s.dial(t)
	noAuth := "-NOAUTH Authentication required.\r\n"
	wrong := "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
	c.send("GET k\r\nSET k v\r\nPING\r\nHELLO 3\r\nAUTH wrong\r\nAUTH joe secret\r\n")
	c.expect(noAuth + noAuth + noAuth + "-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n" + wrong + wrong)
	c.send("AUTH secret\r\nSET k v\r\n")
	c.expect("+OK\r\n+OK\r\n")
	d := s.dial(t)
	d.send("*11\r\n")
	d.expect("-ERR Protocol error: unauthenticated multibulk length\r\n")
	e := s.dial(t)
	e.send("*2\r\n$20000\r\n")
	e.expect("-ERR Protocol error: unauthenticated bulk length\r\n")
}

func TestInfo(t *testing.T) {
	s := start(t, nil)
	s.n.replicas = 1
	c := s.dial(t)
	c.send("SET k v\r\nINFO\r\n")
	c.expect("+OK\r\n$")
	p := make([]byte, 64<<10)
	n, err := c.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# Server\r\n", "redis_version:7.2.0\r\n", "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n", "slave0:ip=127.0.0.1,port=6381,state=online,offset=2,lag=0",
		"master_replid:fedcba9876543210fedcba987654321000112233\r\n", "master_repl_offset:2\r\n", "# Shiplog\r\ndatabase_id:fedcba9876543210fedcba9876543210\r\n", "head_lsn:2\r\n",
		"digest:00000000000000aa\r\n", "ship_addr:127.0.0.1:7380\r\n", "db0:keys=1,",
	} {
		if !strings.Contains(string(p[:n]), want) {
			t.Errorf("INFO lacks %q in\n%s", want, p[:n])
		}
	}
}
