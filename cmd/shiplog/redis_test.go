package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"shiplog/cmd/shiplog/internal/etcdtest"
)

// The scripts in testdata/redis hold commands and the replies that Debian's redis-server 7.0 gave to them, byte for byte. They are
// played to a node, and where redis-server is installed to it as well. -rewrite takes the replies from redis-server.
//
//	# a comment
//	1> SET k v            a command on connection 1, with redis-cli's quoting
//	"+OK\r\n"             its reply
//	1>~ TTL k             integers in the reply may be up to 2 off, times up to a minute
//	1>% KEYS *            likewise, and the lines of the reply are compared sorted
//	1>? GET k             asked again until the reply is the one that follows
//	1<                    a message that connection 1 is sent without asking
//
// Each script starts with no keys and fresh connections.
var rewrite = flag.Bool("rewrite", false, "take the replies in testdata/redis from redis-server")

// redisServer starts redis-server, or returns "" where it is not installed.
func redisServer(t testing.TB) (addr string) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return ""
	}
	addr = etcdtest.Addrs(t, 1)[0]
	_, port, _ := net.SplitHostPort(addr)
	dir := t.TempDir()
	cmd := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no", "--daemonize", "no")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return addr
		}
		if time.Now().After(end) {
			t.Fatal("redis-server does not listen")
		}
	}
}

// dialogue is a connection that takes commands as redis-cli does, and gives back raw replies.
type dialogue struct {
	nc net.Conn
	r  *bufio.Reader
}

func dialogueWith(t testing.TB, addr string) *dialogue {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &dialogue{nc, bufio.NewReader(nc)}
}

// do sends lines and reads as many replies; an empty line only reads.
func (d *dialogue) do(lines ...string) (replies []string, err error) {
	d.nc.SetDeadline(time.Now().Add(time.Minute))
	if _, err := d.nc.Write([]byte(strings.Join(lines, "\r\n") + "\r\n")); err != nil {
		return nil, err
	}
	for range lines {
		var b strings.Builder
		err := readReply(d.r, &b)
		replies = append(replies, b.String())
		if err != nil {
			return replies, err
		}
	}
	return replies, nil
}

// readReply copies one reply.
func readReply(r *bufio.Reader, w *strings.Builder) error {
	line, err := r.ReadString('\n')
	w.WriteString(line)
	if err != nil {
		return err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	switch line[0] {
	case '$', '=':
		if n < 0 {
			return nil
		}
		_, err := io.CopyN(w, r, int64(n)+2)
		return err
	case '%':
		n *= 2
	case '*', '~', '>':
	default:
		return nil
	}
	for range n {
		if err := readReply(r, w); err != nil {
			return err
		}
	}
	return nil
}

// step is a command of a script and its reply.
type step struct {
	line int
	conn string
	mode byte // ~, %, ? or 0
	cmd  string
	want string
}

// readScript returns the steps, and for each line of the file the step whose reply it is, or nil.
func readScript(t testing.TB, path string) (steps []*step, lines []string, replies map[int]*step) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replies = map[int]*step{}
	lines = strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	for i, line := range lines {
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '"':
			s := steps[len(steps)-1]
			if s.want, err = strconv.Unquote(line); err != nil {
				t.Fatalf("%s:%d: %v", path, i+1, err)
			}
			replies[i] = s
		default:
			conn, cmd, sent := strings.Cut(strings.TrimSuffix(line, "<"), ">")
			s := &step{line: i + 1, conn: conn}
			if sent && cmd[0] != ' ' {
				s.mode, cmd = cmd[0], cmd[1:]
			}
			s.cmd = strings.TrimSpace(cmd)
			steps = append(steps, s)
		}
	}
	return steps, lines, replies
}

// play runs a script against a server and hands over the replies; pipelined: consecutive commands of a connection are sent
// together.
func play(t testing.TB, addr string, steps []*step, pipelined bool, got func(s *step, reply string)) {
	t.Helper()
	conns := map[string]*dialogue{}
	if _, err := dialogueWith(t, addr).do("FLUSHALL"); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(steps); {
		s := steps[i]
		if conns[s.conn] == nil {
			conns[s.conn] = dialogueWith(t, addr)
		}
		lines := []string{s.cmd}
		for n := 1; pipelined && s.mode != '?' && i+n < len(steps) && steps[i+n].conn == s.conn && steps[i+n].mode != '?'; n++ {
			lines = append(lines, steps[i+n].cmd)
		}
		replies, err := conns[s.conn].do(lines...)
		for end := time.Now().Add(time.Minute); s.mode == '?' && err == nil && replies[0] != s.want && time.Now().Before(end); {
			time.Sleep(2 * time.Millisecond)
			replies, err = conns[s.conn].do(s.cmd)
		}
		if err != nil {
			t.Fatalf("line %d and %d more: %s: %q, %v", s.line, len(lines)-1, s.cmd, replies, err)
		}
		for j := range lines {
			got(steps[i+j], replies[j])
		}
		i += len(lines)
	}
}

// same compares a reply with the one that is wanted.
func (s *step) same(got string) bool {
	want := s.want
	if s.mode == '%' {
		got, want = sorted(got), sorted(want)
	}
	if s.mode != '~' && s.mode != '%' {
		return got == want
	}
	return slices.EqualFunc(strings.Fields(got), strings.Fields(want), func(a, b string) bool {
		m, errA := strconv.Atoi(strings.TrimLeft(a, ":"))
		n, errB := strconv.Atoi(strings.TrimLeft(b, ":"))
		slack := 2
		if n > 1e9 { // a time
			slack = 60_000
		}
		return a == b || errA == nil && errB == nil && max(m-n, n-m) <= slack
	})
}

func sorted(reply string) string {
	lines := strings.SplitAfter(reply, "\r\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func TestRedisScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/redis/*.script")
	if err != nil || len(paths) == 0 {
		t.Fatal("no scripts", err)
	}
	redis := redisServer(t)
	if redis == "" {
		if *rewrite {
			t.Fatal("redis-server is not installed")
		}
		t.Log("redis-server is not installed: its replies are those on file")
	}
	node := startNode(t, t.TempDir(), "--commit", "written")
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".script"), func(t *testing.T) {
			steps, lines, replies := readScript(t, path)
			check := func(who string) func(s *step, reply string) {
				return func(s *step, reply string) {
					if !s.same(reply) {
						t.Errorf("%s:%d: %s\n%s\ngot  %q\nwant %q", path, s.line, s.cmd, who, reply, s.want)
					}
				}
			}
			if *rewrite {
				rewriteScript(t, path, redis, steps, lines, replies)
			} else if redis != "" {
				play(t, redis, steps, false, check("redis-server"))
			}
			play(t, node.resp, steps, false, check("node"))
			play(t, node.resp, steps, true, check("node, pipelined"))
		})
	}
	node.stop()
}

func rewriteScript(t *testing.T, path, redis string, steps []*step, lines []string, replies map[int]*step) {
	play(t, redis, steps, false, func(s *step, reply string) {
		if s.mode != '?' && !s.same(reply) {
			s.want = reply
		}
	})
	var out bytes.Buffer
	byLine := map[int]*step{}
	for _, s := range steps {
		byLine[s.line] = s
	}
	for i, line := range lines {
		if replies[i] != nil {
			continue
		}
		fmt.Fprintln(&out, line)
		if s := byLine[i+1]; s != nil {
			fmt.Fprintln(&out, strconv.Quote(s.want))
		}
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestRedisRandom compares a node with redis-server over random commands of three clients, some of them pipelined.
func TestRedisRandom(t *testing.T) {
	redis := redisServer(t)
	if redis == "" {
		t.Skip("redis-server is not installed")
	}
	node := startNode(t, t.TempDir(), "--commit", "written")
	seed := rand.Uint64()
	if text := os.Getenv("SHIPLOG_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SHIPLOG_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 60 {
		var steps []*step
		for range 5 + rng.IntN(150) {
			steps = append(steps, randomSteps(rng)...)
		}
		for i, s := range steps {
			s.line = i
		}
		play(t, redis, steps, true, func(s *step, reply string) { s.want = reply })
		bad := false
		play(t, node.resp, steps, rng.IntN(2) == 0, func(s *step, reply string) {
			if !bad && !s.same(reply) {
				bad = true
				t.Errorf("%s\ngot  %q\nwant %q\nafter\n%s", s.cmd, reply, s.want, transcript(steps[max(0, s.line-60):s.line]))
			}
		})
		if bad {
			break
		}
	}
	node.stop()
}

func transcript(steps []*step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s> %s    %.80q\n", s.conn, s.cmd, s.want)
	}
	return b.String()
}

// randomSteps is one command, or a run of them of one connection. Nothing in it depends on when it is executed.
func randomSteps(rng *rand.Rand) []*step {
	conn := strconv.Itoa(1 + rng.IntN(3))
	var steps []*step
	add := func(format string, args ...any) {
		s := &step{conn: conn, cmd: fmt.Sprintf(format, args...)}
		if word := strings.Fields(strings.ToUpper(s.cmd))[0]; word == "KEYS" || word == "SCAN" || word == "EXEC" {
			s.mode = '%'
		} else {
			s.mode = '~'
		}
		steps = append(steps, s)
	}
	switch rng.IntN(12) {
	case 0:
		add("WATCH %s %s", randomKey(rng), randomKey(rng))
	case 1:
		for range 1 + rng.IntN(4) {
			add("%s", randomCommand(rng))
		}
	case 2, 3:
		if rng.IntN(3) == 0 {
			add("WATCH %s", randomKey(rng))
			add("%s", randomCommand(rng))
		}
		add("MULTI")
		for range rng.IntN(6) {
			add("%s", randomCommand(rng))
		}
		add("%s", []string{"EXEC", "EXEC", "EXEC", "DISCARD"}[rng.IntN(4)])
	case 4:
		add("%s", []string{"MULTI", "EXEC", "DISCARD", "UNWATCH", "MULTI", "EXEC", "NOSUCH", "SET a", "RESET"}[rng.IntN(9)])
	default:
		add("%s", randomCommand(rng))
	}
	return steps
}

func randomKey(rng *rand.Rand) string { return []string{"a", "b", "c", "d", "''"}[rng.IntN(5)] }

// randomCommand fills in a template: K a key, N an integer, F a float, V a value, T a time to live, O a word of options.
func randomCommand(rng *rand.Rand) string {
	words := strings.Fields(randomTemplates[rng.IntN(len(randomTemplates))])
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	for i, w := range words {
		switch w {
		case "K":
			words[i] = randomKey(rng)
		case "N":
			words[i] = pick("0", "1", "-1", "2", "-3", "5", "10", "100", "-100", "x", "1.0", "''", "9223372036854775807", "-9223372036854775808", "9223372036854775808")
		case "F":
			words[i] = pick("0", "1", "-1.5", "0.1", "0.2", "3.14159265358979", "1e3", "-1e-3", "1e17", "1e-18", "x", "inf", "1e400", "0x1f", fmt.Sprintf("%.*g", 1+rng.IntN(20), rng.NormFloat64()*1e3))
		case "V":
			words[i] = pick("v", "''", "1", "-7", "2.5", "hello", "'two words'", `"\x00\xff"`, strconv.Itoa(rng.IntN(100)), strings.Repeat("long", 30))
		case "T":
			words[i] = pick(strconv.Itoa(1000+rng.IntN(1<<20)), strconv.Itoa(1000+rng.IntN(1<<20)), "0", "-1", "x", "33177117420", "9223372036854775807")
		case "T000":
			words[i] = strconv.Itoa(1e6 + rng.IntN(1<<30))
		case "O":
			words[i] = pick("", "", "NX", "XX", "GT", "LT", "GET", "KEEPTTL", "PERSIST", "REPLACE", "EX 1000", "PX 5000000", "EXAT 33177117420", "PXAT 33177117420123", "EX 0", "FOO", "DB 0")
		}
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

var randomTemplates = []string{
	"GET K", "GET K", "SET K V", "SET K V", "SET K V O O", "SET K V O", "SETNX K V", "SETEX K T V", "PSETEX K T V", "GETSET K V", "GETDEL K", "GETEX K O O", "GETEX K O",
	"MGET K K K", "MSET K V K V", "MSET K V K", "MSETNX K V K V", "STRLEN K", "APPEND K V", "INCR K", "DECR K", "INCRBY K N", "DECRBY K N", "INCRBYFLOAT K F", "INCRBYFLOAT K F",
	"GETRANGE K N N", "SUBSTR K N N", "SETRANGE K 3 V", "SETRANGE K 0 V", "SETRANGE K -1 V", "DEL K", "DEL K K", "UNLINK K", "EXISTS K K K", "TOUCH K K", "TYPE K",
	"RENAME K K", "RENAMENX K K", "COPY K K O", "COPY K K", "EXPIRE K T O", "EXPIRE K T", "PEXPIRE K T000 O", "EXPIREAT K 33177117420 O", "PEXPIREAT K 33177117420123 O O", "EXPIRE K -1",
	"TTL K", "EXPIRETIME K", "PEXPIRETIME K", "PERSIST K", "DBSIZE", "KEYS *", "KEYS [ab]", "SCAN 0 COUNT 100", "FLUSHALL", "PING", "ECHO V",
}
