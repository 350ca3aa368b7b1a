package bench

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/ship"
	"shiplog/ship/nettest"
	"shiplog/wal"
)

// Nodes of a pair run in processes of their own, as they do in earnest: two nodes in one process would share Go's
// scheduler, which lets as many goroutines run as there are processors, and counts those inside system calls.

// childEnv makes this program one node instead of a test: what it is to do, and arguments.
const childEnv = "SHIPLOG_BENCH_CHILD"

func TestMain(m *testing.M) {
	if do := strings.Fields(os.Getenv(childEnv)); len(do) > 0 {
		if err := childMain(do); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", do[0]+":", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// secret is what nodes prove to each other.
var secret = []byte("of a benchmark, for nobody")

// childMain runs a node until standard input ends.
func childMain(do []string) error {
	switch do[0] {
	case "leader":
		return childLeader(do[1], do[2], do[3], do[4], do[5])
	case "follower":
		return childFollower(do[1], do[2])
	}
	return errors.New("unknown")
}

// child starts this program again as a node, on a host of a test's network or, where that is nil, here, and returns the first line that it prints. It ends with the test.
func child(tb testing.TB, host *nettest.Host, do ...string) []string {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(do, " "))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	start := cmd.Start
	if host != nil {
		start = func() error { return host.Start(cmd) }
	}
	if err := start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			tb.Error(do[0], err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatal(do[0], err)
	}
	return strings.Fields(line)
}

// childLeader fills a log, ships it, and sends it as it is to whoever connects to a second address. size is how many bytes
// of log it makes, of values of so many bytes, packed or not. It listens on an IP address, and prints both addresses, those for TLS, the log's end and the number of records.
func childLeader(dir, size, value, packed, ip string) error {
	wanted, err := strconv.ParseUint(size, 10, 64)
	if err != nil {
		return err
	}
	valueSize, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	o := &engine.Options{Commit: engine.Written, Compression: engine.NoCompression}
	if packed == "packed" {
		o.Compression = engine.S2
	}
	db, err := engine.Open(dir, o)
	if err != nil {
		return err
	}
	vals, batch, records := newValues(), db.NewBatch(), uint64(0)
	for uint64(db.Log().Head()) < wanted {
		batch.Reset()
		for range 100 {
			batch.Put(key(nil, scatter(records, 1<<24)), vals.get(records, valueSize))
			records++
		}
		if _, err := db.Commit(context.Background(), batch, engine.Default); err != nil {
			return err
		}
	}
	batch.Reset()
	batch.Put([]byte("end"), nil)
	if _, err := db.Commit(context.Background(), batch, engine.Durable); err != nil {
		return err
	}
	leader, err := ship.NewLeader(db, &ship.LeaderOptions{Secret: secret})
	if err != nil {
		return err
	}
	config, err := selfSigned()
	if err != nil {
		return err
	}
	served := make(chan error, 2)
	for _, config := range []*tls.Config{nil, config} {
		ln, err := listen(ip, config)
		if err != nil {
			return err
		}
		bare, err := listen(ip, config)
		if err != nil {
			return err
		}
		go func() { served <- leader.Serve(ln) }()  // ended by Shutdown
		go sendBare(bare, db.Log(), db.Committed()) // ends with the process
		fmt.Print(ln.Addr(), " ", bare.Addr(), " ")
	}
	fmt.Println(uint64(db.Committed()), records+1)
	_, err = io.Copy(io.Discard, os.Stdin)
	err = errors.Join(err, leader.Shutdown(context.Background()))
	for range cap(served) {
		if e := <-served; !errors.Is(e, ship.ErrLeaderClosed) {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, db.Close())
}

// listen listens on a port of its own, for TLS where there is a config.
func listen(ip string, config *tls.Config) (net.Listener, error) {
	ln, err := net.Listen("tcp", ip+":0")
	if err == nil && config != nil {
		ln = tls.NewListener(ln, config)
	}
	return ln, err
}

// selfSigned returns a server's config whose certificate nobody checks here.
func selfSigned() (*tls.Config, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, private)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}, nil
}

func sendBare(ln net.Listener, log *wal.Log, end wal.LSN) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() { // ends with what it sends
			if _, err := log.SendTo(c, 0, end); err != nil {
				fmt.Fprintln(os.Stderr, "send:", err)
			}
			_ = c.Close()
		}()
	}
}

// childFollower follows the node at addr.
func childFollower(dir, addr string) error {
	db, err := engine.Open(dir, &engine.Options{Follower: true})
	if err != nil {
		return err
	}
	f, err := ship.NewFollower(db, &ship.FollowerOptions{Upstream: addr, Name: "f", Secret: secret})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }() // ended by cancel
	fmt.Println("following")
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	if e := <-done; !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	return errors.Join(err, db.Close())
}
