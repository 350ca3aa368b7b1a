// Package etcdtest runs a real etcd for tests.
package etcdtest

import (
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"shiplog/ship/nettest"
)

// Server is an etcd of one member in a process of its own.
type Server struct {
	Endpoint string // HOST:PORT for clients

	t    testing.TB
	host *nettest.Host // where it runs; nil: here
	cmd  *exec.Cmd
	args []string
}

// Start runs Debian's etcd until the test ends, or skips the test where there is none. Its heartbeats are short, so that leases of a second
// are possible.
func Start(t testing.TB) *Server {
	t.Helper()
	addrs := Addrs(t, 2)
	return start(t, nil, addrs[0], addrs[1])
}

// StartOn is Start on a host of a test's network.
func StartOn(t testing.TB, host *nettest.Host) *Server {
	t.Helper()
	return start(t, host, host.IP+":2379", host.IP+":2380")
}

func start(t testing.TB, host *nettest.Host, addr, peerAddr string) *Server {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("etcd is not installed (Debian: etcd-server)")
	}
	client, peer := "http://"+addr, "http://"+peerAddr
	s := &Server{t: t, host: host, Endpoint: addr, args: []string{
		"--data-dir", t.TempDir(), "--name", "e", "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "e=" + peer,
		"--heartbeat-interval", "50", "--election-timeout", "250", "--log-level", "error",
	}}
	s.Run()
	return s
}

var (
	givenMu sync.Mutex
	given   = map[int]bool{} // ports that Addrs has returned
)

// Addrs returns n addresses of this machine for servers of the test to listen on, now and after a restart: nobody listens there, and neither a connection nor
// a listener that takes any port gets one of them, because they are below the range that those are taken from.
func Addrs(t testing.TB, n int) (addrs []string) {
	t.Helper()
	const lowest, highest = 12_000, 32_000 // Linux takes its own from 32768 on
	givenMu.Lock()
	defer givenMu.Unlock()
	var err error
	for range 1000 {
		if len(addrs) == n {
			return addrs
		}
		port := lowest + rand.IntN(highest-lowest)
		if given[port] {
			continue
		}
		var ln net.Listener
		if ln, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
			continue
		}
		given[port] = true
		addrs = append(addrs, ln.Addr().String())
		_ = ln.Close()
	}
	t.Fatal("no port is free: ", err)
	return nil
}

// Run starts the process, the first time or again, and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	s.cmd = exec.Command("etcd", s.args...)
	web := http.Client{Timeout: time.Second}
	defer web.CloseIdleConnections()
	run := s.cmd.Start
	if s.host != nil {
		run = func() error { return s.host.Start(s.cmd) }
		web.Transport = &http.Transport{DialContext: s.host.DialContext}
	}
	if err := run(); err != nil {
		s.t.Fatal(err)
	}
	cmd := s.cmd
	s.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		res, err := web.Get("http://" + s.Endpoint + "/health")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			s.t.Fatal("etcd does not answer: ", err)
		}
	}
}

// Kill ends the process with SIGKILL. Run starts it again with the same data.
func (s *Server) Kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	_ = s.cmd.Wait()
}
