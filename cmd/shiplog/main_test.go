package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/goleak"

	"shiplog/cmd/shiplog/internal/etcdtest"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/engine"
	"shiplog/ship/nettest"
	"shiplog/wal"
)

// runAsMain makes the test binary be the program.
const runAsMain = "SHIPLOG_TEST_RUN_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsMain) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// process is a node in a process of its own.
type process struct {
	t                testing.TB
	cmd              *exec.Cmd
	stderr           output
	dir              string
	resp, ship, http string
	scheme           string
	web              http.Client
	args             []string
	under            []string      // a command that runs the program, in place of the test
	host             *nettest.Host // where it runs; nil: here
}

// output is what a process has written so far.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func startNode(t testing.TB, dir string, args ...string) *process {
	t.Helper()
	return startTLSNode(t, dir, nil, args...)
}

// startTLSNode is startNode for a node that serves TLS with a certificate of the pool's; nil: plain.
func startTLSNode(t testing.TB, dir string, pool *x509.CertPool, args ...string) *process {
	t.Helper()
	p := newNode(t, dir, args...)
	if pool != nil {
		p.scheme = "https"
		p.web.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	}
	p.start()
	return p
}

// newNode is a node that is not running yet.
func newNode(t testing.TB, dir string, args ...string) *process {
	t.Helper()
	addrs := etcdtest.Addrs(t, 3)
	p := &process{t: t, dir: dir, resp: addrs[0], ship: addrs[1], http: addrs[2], scheme: "http"}
	p.args = append([]string{"serve", "--dir", dir, "--listen", p.resp, "--ship", p.ship, "--http", p.http}, args...)
	if !slices.Contains(args, "--follow") && !slices.Contains(args, "--segment-size") {
		p.args = append(p.args, "--segment-size", fmt.Sprint(4<<20)) // recovery reads whole segments, and there are many
	}
	return p
}

// start runs the node and waits until it serves.
func (p *process) start() {
	p.t.Helper()
	p.launch()
	p.until("answers", func() bool {
		res, err := p.web.Get(p.scheme + "://" + p.http + "/healthz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK || len(p.args) > 0 && slices.Contains(p.args, "--follow")
	})
}

// kill ends the node's process with SIGKILL.
func (p *process) kill() {
	p.t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	p.cmd.Wait()
}

// suspend stops the node's process and waits until each of its threads stands: on a busy machine one may run on for a while.
func (p *process) suspend() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		p.t.Fatal(err)
	}
	p.until("stands still", func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		if err != nil || len(tasks) == 0 {
			return err == nil // no such files on this system
		}
		return !slices.ContainsFunc(tasks, func(path string) bool {
			stat, err := os.ReadFile(path)
			_, rest, _ := bytes.Cut(stat, []byte(") "))
			return err == nil && !bytes.HasPrefix(rest, []byte("T"))
		})
	})
}

// launch runs the node and waits for nothing.
func (p *process) launch() {
	p.t.Helper()
	line := append(append(slices.Clone(p.under), os.Args[0]), p.args...)
	p.cmd = exec.Command(line[0], line[1:]...)
	p.cmd.Env = append(os.Environ(), runAsMain+"=1")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &p.stderr
	start := p.cmd.Start
	if p.host != nil {
		start = func() error { return p.host.Start(p.cmd) }
	}
	if err := start(); err != nil {
		p.t.Fatal(err)
	}
	cmd := p.cmd
	p.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
		}
	})
}

// stop sends SIGTERM and expects exit code 0.
func (p *process) stop() {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("after SIGTERM: %v\n%s", err, p.stderr.String())
	}
}

func (p *process) until(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%s: not within a minute", what)
		}
	}
}

func (p *process) client() *redis.Client {
	c := redis.NewClient(&redis.Options{
		Addr: p.resp, MaxRetries: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	p.t.Cleanup(func() { c.Close() })
	return c
}

func (p *process) status() (s httpd.Status) {
	p.t.Helper()
	code, out, errs := command("status", "--http", p.http, "--json")
	if code != exitOK {
		p.t.Fatalf("status: %d %s", code, errs)
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// command runs a command line in this process.
func command(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// TestLeaderAndFollower runs two nodes as processes, through writes, a restart of each, and REPLICAOF.
func TestLeaderAndFollower(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	leader := startNode(t, filepath.Join(dir, "leader"), "--name", "lead")
	follower := startNode(t, filepath.Join(dir, "follower"), "--name", "copy", "--follow", leader.ship)
	w, r := leader.client(), follower.client()

	pipe := w.Pipeline()
	for i := range 1000 {
		pipe.Set(ctx, fmt.Sprintf("key%04d", i), strings.Repeat("v", i), 0)
	}
	pipe.Incr(ctx, "counter")
	pipe.Del(ctx, "key0000")
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Wait(ctx, 1, 10*time.Second).Result(); n != 1 || err != nil {
		t.Errorf("WAIT: %d, %v", n, err)
	}
	if got, err := w.Do(ctx, "WAITAOF", 1, 1, 10000).Int64Slice(); err != nil || fmt.Sprint(got) != "[1 1]" {
		t.Errorf("WAITAOF: %v, %v", got, err)
	}
	caughtUp := func() bool {
		a, b := leader.status(), follower.status()
		return a.Committed == b.Visible && a.Digest == b.Digest && a.Head == b.Head
	}
	follower.until("follower catches up", caughtUp)
	if v, err := r.Get(ctx, "key0999").Result(); len(v) != 999 || err != nil {
		t.Errorf("read on the follower: %d bytes, %v", len(v), err)
	}
	if n, err := r.DBSize(ctx).Result(); n != 1000 || err != nil {
		t.Errorf("DBSIZE on the follower: %d, %v", n, err)
	}
	if err := r.Set(ctx, "a", "b", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "READONLY") {
		t.Errorf("write on the follower: %v", err)
	}
	if err := w.Do(ctx, "REPLICAOF", "127.0.0.1", "1").Err(); err == nil || !strings.Contains(err.Error(), "shipping address") {
		t.Errorf("REPLICAOF of a leader to nobody: %v", err)
	}
	other := startNode(t, filepath.Join(dir, "other"))
	for _, refused := range []struct {
		who  *process
		want string
	}{{leader, "is this node"}, {other, "holds another database"}, {follower, "follows this node: FAILOVER TO"}} {
		host, port, _ := net.SplitHostPort(refused.who.resp)
		if err := w.Do(ctx, "REPLICAOF", host, port).Err(); err == nil || !strings.Contains(err.Error(), refused.want) {
			t.Errorf("REPLICAOF of a leader to %s: %v, want %q", refused.who.resp, err, refused.want)
		}
	}
	other.stop()
	if err := w.Set(ctx, "still", "leads", 0).Err(); err != nil {
		t.Errorf("write after a refused REPLICAOF: %v", err)
	}
	follower.until("follower catches up", caughtUp)
	host, port, _ := net.SplitHostPort(leader.resp)
	if err := r.Do(ctx, "REPLICAOF", host, port).Err(); err != nil {
		t.Errorf("REPLICAOF: %v", err)
	}
	info := r.InfoMap(ctx, "replication").Val()["Replication"]
	if info["role"] != "slave" || info["master_host"] != host || info["master_port"] != port {
		t.Errorf("INFO replication: %v", info)
	}
	follower.until("following again", func() bool {
		return r.InfoMap(ctx, "replication").Val()["Replication"]["master_link_status"] == "up"
	})

	follower.stop()
	if err := w.Set(ctx, "while", "away", 0).Err(); err != nil {
		t.Fatal(err)
	}
	follower.start()
	follower.until("follower catches up after its restart", caughtUp)
	for _, args := range [][]string{{leader.http, follower.http}, {filepath.Join(dir, "leader"), follower.http}} {
		if code, out, errs := command("compare", args[0], args[1]); code != exitOK || !strings.HasPrefix(out, "identical from LSN 0 ") {
			t.Errorf("compare: %d %s%s", code, out, errs)
		}
	}
	leader.stop()
	follower.stop()
	code, out, _ := command("verify", filepath.Join(dir, "leader"), filepath.Join(dir, "follower"))
	if code != exitOK || strings.Count(out, ": ok, ") != 2 {
		t.Errorf("verify: %d %s", code, out)
	}
	leader.start()
	w = leader.client()
	if v, err := w.Get(ctx, "while").Result(); v != "away" || err != nil {
		t.Errorf("after the restart: %q, %v", v, err)
	}
	leader.stop()
}

// TestCompareFindsTheFirstDifference forks a log into two, and flips a byte.
func TestCompareFindsTheFirstDifference(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	p := startNode(t, a)
	for i := range 50 {
		if err := p.client().Set(ctx, fmt.Sprint(i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	p.stop()
	if err := os.CopyFS(b, os.DirFS(a)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(c, os.DirFS(a)); err != nil {
		t.Fatal(err)
	}
	var fork wal.LSN
	for _, d := range []string{b, c} {
		log, err := wal.Open(d, nil)
		if err != nil {
			t.Fatal(err)
		}
		fork = log.Head()
		if _, err := log.StartEpoch(wal.MakeEpoch(2, 0), wal.Rule{Level: uint32(engine.Durable)}); err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	code, out, _ := command("compare", a, b)
	if code != exitOK || !strings.HasPrefix(out, "identical from LSN 0 ") {
		t.Errorf("a prefix: %d %s", code, out)
	}
	code, out, errs := command("compare", b, c, "--json")
	var found comparison
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	if code != exitFailure || found.Identical || found.Differ != uint64(fork) {
		t.Errorf("fork: code %d, %+v, want a difference at %d", code, found, fork)
	}

	segment := filepath.Join(a, "log", strings.Repeat("0", 16)+".seg")
	raw, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	raw[300] ^= 1
	if err := os.WriteFile(segment, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ = command("verify", a)
	if code != exitFailure || !strings.Contains(out, ".seg offset ") || !strings.Contains(out, " LSN 0000000000000") {
		t.Errorf("verify of a flipped byte: %d %s", code, out)
	}
	code, out, errs = command("verify", "--json", a, b)
	var verdicts []verdict
	if err := json.Unmarshal([]byte(out), &verdicts); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	if code != exitFailure || len(verdicts) != 2 || verdicts[0].OK || !verdicts[1].OK || verdicts[1].Head == 0 {
		t.Fatalf("verify --json: %d %+v", code, verdicts)
	}
	if len(verdicts[0].Problems) == 0 {
		t.Error("verify --json names no place")
	}
	for _, p := range verdicts[0].Problems {
		if p.File != segment || p.Offset == nil || *p.Offset > 300 || p.Reason == "" {
			t.Errorf("verify --json of a flipped byte: %+v", p)
		}
	}
	if code, out, errs = command("verify", filepath.Join(dir, "nothing")); code != exitFailure || !strings.Contains(out, "no such file") {
		t.Errorf("verify of no directory: %d %s%s", code, out, errs)
	}
}

func TestDump(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "d")
	p := startNode(t, dir)
	c := p.client()
	c.Set(ctx, "plain", "value", 0)
	c.Set(ctx, "fading", "value", time.Hour)
	c.Set(ctx, "long", strings.Repeat("x", 1<<20), 0)
	c.Del(ctx, "plain")
	c.FlushAll(ctx)
	code, out, errs := command("dump", dir) // while the node runs
	if code != exitOK {
		t.Fatalf("dump: %s", errs)
	}
	for _, want := range []string{`put "plain" = "value" (5 bytes)`, `put-ttl "fading"`, " expires 20", `put "long" = "xxx`, "(1048576 bytes)", `delete "plain"`, `delete-range "" to ""`, `epoch {"epoch":"1.0"`} {
		if !strings.Contains(out, want) {
			t.Errorf("dump lacks %q in\n%s", want, out)
		}
	}
	code, out, errs = command("dump", dir, "--json", "--frames")
	if code != exitOK {
		t.Fatalf("dump: %s", errs)
	}
	var last frameLine
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, line := range lines {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
	}
	_, out, _ = command("dump", dir, "--json", "--frames", "--from", last.Frame)
	if strings.TrimSpace(out) != lines[len(lines)-1] {
		t.Errorf("--from %s gives %s, want %s", last.Frame, out, lines[len(lines)-1])
	}
	from, err := wal.ParseLSN(last.Frame)
	if err != nil {
		t.Fatal(err)
	}
	decimal := fmt.Sprint(uint64(from)) // as status prints it
	if _, out, _ = command("dump", dir, "--json", "--frames", "--from", decimal); strings.TrimSpace(out) != lines[len(lines)-1] {
		t.Errorf("--from %s gives %s, want %s", decimal, out, lines[len(lines)-1])
	}
	if code, _, errs = command("slot", "drop", "nobody", "--http", p.http); code != exitFailure || !strings.Contains(errs, `no slot has the name "nobody"`) {
		t.Errorf("slot drop of no slot: %d %s", code, errs)
	}
	p.stop()
}

// TestCredentials: with a password and a secret, nobody gets in without.
func TestCredentials(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pass, secret := write("pass", "hunter2\n"), write("secret", "between nodes\n")
	leader := startNode(t, filepath.Join(dir, "l"), "--requirepass-file", pass, "--secret-file", secret)
	if err := leader.client().Ping(ctx).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("PING without password: %v", err)
	}
	code, _, errs := command("status", "--http", leader.http)
	if code != exitFailure || !strings.Contains(errs, "--requirepass-file") {
		t.Errorf("status without password: %d %s", code, errs)
	}
	if code, _, errs = command("status", "--http", leader.http, "--requirepass-file", pass); code != exitOK {
		t.Errorf("status: %s", errs)
	}
	stranger := startNode(t, filepath.Join(dir, "s"), "--follow", leader.ship, "--secret-file", write("wrong", "guess"))
	stranger.until("a wrong secret is refused", func() bool {
		u := stranger.status().Upstream
		return u != nil && u.Error != "" && !u.Connected
	})
	stranger.stop()
	follower := startNode(t, filepath.Join(dir, "f"), "--follow", leader.ship, "--secret-file", secret, "--requirepass-file", pass)
	c := redis.NewClient(&redis.Options{Addr: follower.resp, Password: "hunter2", MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	defer c.Close()
	up := func() bool { return c.InfoMap(ctx, "replication").Val()["Replication"]["master_link_status"] == "up" }
	follower.until("the right secret is taken", up)
	host, port, _ := net.SplitHostPort(leader.resp)
	if err := c.Do(ctx, "REPLICAOF", host, port).Err(); err != nil {
		t.Errorf("REPLICAOF between nodes with a password: %v", err)
	}
	follower.until("following again", up)
	follower.stop()
	leader.stop()
}

func TestSecondNodeOnADirectory(t *testing.T) {
	dir := t.TempDir()
	p := startNode(t, dir)
	addrs := etcdtest.Addrs(t, 3)
	code, _, errs := command("serve", "--dir", dir, "--listen", addrs[0], "--ship", addrs[1], "--http", addrs[2])
	if code != exitFailure || !strings.Contains(errs, "locked") {
		t.Errorf("second node: %d %s", code, errs)
	}
	code, _, errs = command("serve", "--dir", filepath.Join(dir, "other"), "--listen", p.resp, "--ship", addrs[1], "--http", addrs[2])
	if code != exitFailure || !strings.Contains(errs, "address already in use") {
		t.Errorf("port taken: %d %s", code, errs)
	}
	res, err := http.Get("http://" + p.http + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if !strings.Contains(string(body), "\nshiplog_leader 1\n") {
		t.Errorf("metrics lack shiplog_leader:\n%.2000s", body)
	}
	p.stop()
}
