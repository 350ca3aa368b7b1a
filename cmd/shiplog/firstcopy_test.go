package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"shiplog/cmd/shiplog/internal/etcdtest"
	"shiplog/ship"
)

// copyBytes is how large the log of a leader is that a new follower copies: 32 MiB, or SHIPLOG_COPY_BYTES.
func copyBytes(t testing.TB) int64 {
	text := os.Getenv("SHIPLOG_COPY_BYTES")
	if text == "" {
		return 32 << 20
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("SHIPLOG_COPY_BYTES: %v", err)
	}
	return n
}

// halfCompressible makes a value of 1 KiB of which every second half of 64 bytes is zeros.
func halfCompressible(rng *rand.Rand) []byte {
	v := make([]byte, 1<<10)
	for at := 0; at < len(v); at += 64 {
		for i := range 4 {
			binary.LittleEndian.PutUint64(v[at+8*i:], rng.Uint64())
		}
	}
	return v
}

// pipelined is how many values fill writes at once: a node commits them together.
const pipelined = 50

// fill writes about total bytes in values of 1 KiB through a client, in pipelines, until enough says so.
func fill(t testing.TB, c *redis.Client, enough func(written int64) bool) (keys int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	for !enough(int64(keys) << 10) {
		pipe := c.Pipeline()
		for range pipelined {
			pipe.Set(context.Background(), fmt.Sprintf("key%013d", keys), halfCompressible(rng), 0)
			keys++
		}
		if _, err := pipe.Exec(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// TestFirstCopyGoesOn: a new follower that is killed ten times on its way, its connection once more, goes on each time where its
// log ends, and never begins anew. What comes over the line is the log, and what was on its way at each kill.
func TestFirstCopyGoesOn(t *testing.T) {
	dir := t.TempDir()
	leader := startNode(t, filepath.Join(dir, "leader"), "--commit", "written", "--segment-size", strconv.Itoa(16<<20), "--space-factor", "-1")
	size := copyBytes(t)
	fill(t, leader.client(), func(int64) bool { return int64(leader.status().Head) >= size })
	leader.until("all of it is durable", func() bool { s := leader.status(); return s.Durable == s.Head })
	end := leader.status().Head

	line := startGate(t, leader.ship)
	follower := newNode(t, filepath.Join(dir, "follower"), "--follow", line.ln.Addr().String(), "--name", "f")
	kills := 10
	if testing.Short() {
		kills = 3
	}
	reached, synced := uint64(0), uint64(0)
	for i := 1; ; i++ {
		line.mu.Lock()
		line.left, line.shut = 0, false
		if i <= kills {
			line.left = int(end*uint64(i)/uint64(kills+1)) - int(reached)
		}
		line.mu.Unlock()
		line.open.Broadcast()
		follower.launch()
		follower.until("answers", func() bool { return follower.client().Ping(context.Background()).Err() == nil })
		if head := follower.status().Head; head+pipelined*(1<<10+64) < synced { // part of a batch is no use after a restart
			t.Fatalf("run %d begins at %d, the one before had come to %d, and to %d on its disk", i, head, reached, synced)
		}
		if i > kills {
			break
		}
		follower.until("has taken what came", func() bool {
			line.mu.Lock()
			defer line.mu.Unlock()
			return line.shut
		})
		follower.until("stands still", func() bool {
			before := follower.status().Head
			time.Sleep(20 * time.Millisecond)
			return follower.status().Head == before
		})
		reached, synced = follower.status().Head, follower.status().Durable
		follower.kill()
		line.hangUp()
	}
	follower.until("has everything", func() bool { return follower.status().Durable >= end }) // its admission adds to it
	line.mu.Lock()
	total := line.came
	line.mu.Unlock()
	t.Logf("%d bytes of log, %d kills, the last at %d; %d bytes over the line, %.3f of the log", end, kills, reached, total, float64(total)/float64(end))
	// A kill costs what was not synced of a segment whose header waits for the sync of the one before, and a message that was not complete.
	if most := int(end) + kills*(ship.DefaultSyncBytes+2*ship.MaxData); total > most {
		t.Errorf("%d bytes came for a log of %d, at most %d were wanted", total, end, most)
	}
	follower.until("has what its admission has added", func() bool {
		l := leader.status()
		return slices.Contains(l.Voters, "f") && l.Head == follower.status().Head
	})
	follower.stop()
	leader.stop()
	sameLogs(t, leader.dir, follower.dir)
}

// TestFirstCopyTimes compares, three times by turns: a new follower of a shiplog leader, a bare copy of the leader's log over
// a connection into a synced file, a new replica of redis-server, and pg_basebackup, each of the same keys and values on this machine, over
// loopback. Only with SHIPLOG_COPY_BYTES; what is not installed is left out.
func TestFirstCopyTimes(t *testing.T) {
	if os.Getenv("SHIPLOG_COPY_BYTES") == "" {
		t.Skip("takes minutes: only with SHIPLOG_COPY_BYTES")
	}
	dir := t.TempDir()
	size := copyBytes(t)
	leader := startNode(t, filepath.Join(dir, "leader"), "--commit", "written", "--space-factor", "-1", "--segment-size", strconv.Itoa(64<<20))
	keys := fill(t, leader.client(), func(written int64) bool { return written >= size })
	leader.until("all of it is durable", func() bool { s := leader.status(); return s.Durable == s.Head })
	copies := []struct {
		name string
		run  func(n int) (seconds float64, bytes int64)
	}{
		{"shiplog", func(n int) (float64, int64) {
			return copyShiplog(t, leader, filepath.Join(dir, fmt.Sprint("follower", n)))
		}},
		{"bare copy of the log", func(n int) (float64, int64) { return copyBare(t, leader, dir) }},
	}
	if master := redisServer(t); master != "" {
		c := redis.NewClient(&redis.Options{Addr: master})
		defer c.Close()
		fill(t, c, func(written int64) bool { return written >= size })
		copies = append(copies, struct {
			name string
			run  func(int) (float64, int64)
		}{"redis-server, into memory", func(int) (float64, int64) { return copyRedis(t, c, master, keys) }})
	}
	if pg := startPostgres(t, dir); pg != nil {
		pg.fill(keys)
		copies = append(copies, struct {
			name string
			run  func(int) (float64, int64)
		}{"pg_basebackup", func(n int) (float64, int64) { return pg.backup(filepath.Join(dir, "pg", fmt.Sprint("backup", n))) }})
	}
	for round := range 3 {
		for i := range copies {
			c := copies[(i+round)%len(copies)]
			seconds, n := c.run(round)
			t.Logf("%d keys: %s: %.2f s, %d MB, %.0f MB/s", keys, c.name, seconds, n/1e6, float64(n)/1e6/seconds)
		}
	}
}

// copyShiplog times a new follower until its disk has everything and it shows it.
func copyShiplog(t *testing.T, leader *process, dir string) (float64, int64) {
	end := leader.status()
	follower := newNode(t, dir, "--follow", leader.ship, "--name", filepath.Base(dir))
	began := time.Now()
	follower.launch()
	for {
		if follower.client().Ping(context.Background()).Err() == nil {
			if s := follower.status(); s.Durable >= end.Head && s.Visible >= end.Head {
				break
			}
		}
		if time.Since(began) > 5*time.Minute {
			t.Fatal("not copied within five minutes")
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(began).Seconds()
	follower.stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return took, int64(end.Head - end.Tail)
}

// copyBare sends the leader's log over a connection, which the receiving side writes to a file and syncs.
func copyBare(t *testing.T, leader *process, to string) (float64, int64) {
	size := int64(leader.status().Head - leader.status().Tail)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := make(chan error, 1)
	began := time.Now()
	go func() { sent <- sendFiles(ln, filepath.Join(leader.dir, "log"), size) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := os.Create(filepath.Join(to, "bare"))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	n, err := io.Copy(f, c)
	if err := errors.Join(err, f.Sync(), f.Close(), <-sent); err != nil {
		t.Fatal(err)
	}
	return time.Since(began).Seconds(), n
}

func sendFiles(ln net.Listener, dir string, size int64) error {
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		n, err := io.Copy(c, io.LimitReader(f, size))
		size -= n
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// copyRedis times a new replica until its link is up and it has all keys.
func copyRedis(t *testing.T, master *redis.Client, addr string, keys int) (float64, int64) {
	ctx := context.Background()
	out := func() int64 {
		for line := range strings.Lines(master.Info(ctx, "stats").Val()) {
			if v, ok := strings.CutPrefix(line, "total_net_repl_output_bytes:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				return n
			}
		}
		return 0
	}
	master.ConfigSet(ctx, "repl-diskless-sync-delay", "0")
	before := out()
	replica := redis.NewClient(&redis.Options{Addr: redisServer(t)})
	defer replica.Close()
	host, port, _ := net.SplitHostPort(addr)
	began := time.Now()
	if err := replica.SlaveOf(ctx, host, port).Err(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(replica.Info(ctx, "replication").Val(), "master_link_status:up") || replica.DBSize(ctx).Val() < int64(keys) {
		if time.Since(began) > 5*time.Minute {
			t.Fatal("redis-server: not copied within five minutes")
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(began).Seconds()
	replica.SlaveOf(ctx, "NO", "ONE")
	replica.ShutdownNoSave(ctx)
	return took, out() - before
}

// postgres is a server of Debian's package, run by its user.
type postgres struct {
	t         *testing.T
	bin, home string
	port      string
	as        *syscall.Credential
}

// startPostgres starts a server in a new directory below dir; nil: it is not installed, or cannot be run.
func startPostgres(t *testing.T, dir string) *postgres {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	who, err := user.Lookup("postgres")
	if len(bins) == 0 || err != nil || os.Getuid() != 0 {
		t.Log("PostgreSQL is not installed, or this is not root")
		return nil
	}
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	p := &postgres{t: t, bin: bins[len(bins)-1], home: filepath.Join(dir, "pg"), as: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	_, p.port, _ = net.SplitHostPort(etcdtest.Addrs(t, 1)[0])
	if err := os.Mkdir(p.home, 0o700); err != nil {
		t.Fatal(err)
	}
	for at := p.home; at != "/tmp" && at != "/"; at = filepath.Dir(at) { // its user must get there
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(p.home, uid, gid); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(p.home, "data")
	p.run("initdb", "-D", data, "-A", "trust", "-N")
	p.run("pg_ctl", "-D", data, "-w", "-l", filepath.Join(p.home, "log"), "-o", "-p "+p.port+" -c listen_addresses=127.0.0.1 -c max_wal_size=8GB -k "+p.home, "start")
	t.Cleanup(func() { p.run("pg_ctl", "-D", data, "-m", "immediate", "stop") })
	return p
}

func (p *postgres) run(name string, args ...string) {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = p.home, &syscall.SysProcAttr{Credential: p.as}
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// fill loads the keys and values that fill gives the others.
func (p *postgres) fill(keys int) {
	p.t.Helper()
	path := filepath.Join(p.home, "load")
	f, err := os.Create(path)
	if err != nil {
		p.t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range keys {
		if _, err := fmt.Fprintf(f, "key%013d\t\\\\x%x\n", i, halfCompressible(rng)); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		p.t.Fatal(err)
	}
	p.run("psql", "-q", "-h", "127.0.0.1", "-p", p.port, "-d", "postgres", "-c", "create table kv (k text primary key, v bytea)", "-c", "\\copy kv from '"+path+"'", "-c", "checkpoint")
	if err := os.Remove(path); err != nil {
		p.t.Fatal(err)
	}
}

// backup times pg_basebackup, which syncs what it has written.
func (p *postgres) backup(to string) (float64, int64) {
	began := time.Now()
	p.run("pg_basebackup", "-h", "127.0.0.1", "-p", p.port, "-D", to, "-X", "fetch", "-c", "fast")
	took := time.Since(began).Seconds()
	total := int64(0)
	err := filepath.WalkDir(to, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err := errors.Join(err, os.RemoveAll(to)); err != nil {
		p.t.Fatal(err)
	}
	return took, total
}
