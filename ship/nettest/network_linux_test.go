package nettest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"shiplog/ship/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers on a host until the test ends.
func echo(t *testing.T, h *nettest.Host) (addr string) {
	t.Helper()
	ln, err := h.Listen("tcp4", h.IP+":7")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() { // ends when ln is closed
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { // ends with the connection
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	return ln.Addr().String()
}

// exchange sends through a connection and expects it back.
func exchange(t *testing.T, c net.Conn, size int) {
	t.Helper()
	want := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go c.Write(want) // ends when all is read, or c closed
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(want) {
		t.Fatal("what came back is not what was sent")
	}
}

func dial(t *testing.T, h *nettest.Host, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := h.DialContext(ctx, "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLinks sends bytes over links without and with delay, loss and a rate, and over one that is cut in one direction and mended.
func TestLinks(t *testing.T) {
	n := nettest.New(t)
	a, b := n.Host("a"), n.Host("b")
	addr := echo(t, b)
	c := dial(t, a, addr)
	exchange(t, c, 1<<20)
	for name, l := range map[string]nettest.Link{
		"delay": {Delay: 5 * time.Millisecond},
		"loss":  {Delay: time.Millisecond, Loss: 0.05},
		"rate":  {Rate: 2 << 20, Queue: 5 * time.Millisecond},
	} {
		n.SetBoth(a, b, l)
		before, began := n.Counts(), time.Now()
		exchange(t, c, 256<<10)
		took, after := time.Since(began), n.Counts()
		switch {
		case name == "delay" && took < 10*time.Millisecond:
			t.Errorf("there and back over 2 x 5 ms in %v", took)
		case name == "loss" && after.Lost == before.Lost:
			t.Error("nothing was lost of more than 360 packets")
		case name == "rate" && took < 100*time.Millisecond:
			t.Errorf("256 KiB at 2 MiB/s each way took %v", took)
		}
		t.Logf("%s: %v, %+v", name, took, after)
	}
	for _, oneWay := range [][2]*nettest.Host{{a, b}, {b, a}} {
		n.Heal()
		n.Set(oneWay[0], oneWay[1], nettest.Link{Cut: true})
		cut := n.Counts().Cut
		c.Write([]byte("lost"))
		for end := time.Now().Add(time.Minute); n.Counts().Cut < cut+2; time.Sleep(time.Millisecond) { // TCP has tried again
			if time.Now().After(end) {
				t.Fatal("the link has cut nothing")
			}
		}
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if k, err := c.Read(make([]byte, 4)); err == nil {
			t.Fatalf("%d bytes through a link that is cut from %s", k, oneWay[0].Name)
		}
		n.Heal()
		c.SetReadDeadline(time.Time{})
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatalf("after the link was mended: %v", err)
		}
	}
}

// TestProcess runs a process on a host: it sees that host's devices, and this test's own are as before.
func TestProcess(t *testing.T) {
	n := nettest.New(t)
	a := n.Host("a")
	if err := a.Sysctl("ipv4/tcp_congestion_control", "reno"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat", "/proc/self/net/dev", "/proc/sys/net/ipv4/tcp_congestion_control")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := a.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "tun0") || !strings.HasSuffix(out.String(), "reno\n") {
		t.Errorf("on the host: %v %s", err, out.String())
	}
	if own, err := os.ReadFile("/proc/thread-self/net/dev"); err != nil || strings.Contains(string(own), "tun0") {
		t.Errorf("outside: %v %s", err, own)
	}
}

// TestPlug: a host whose device is off reaches nobody but itself, and is told so; connections live on when it is on again.
func TestPlug(t *testing.T) {
	n := nettest.New(t)
	a, b := n.Host("a"), n.Host("b")
	addr, own := echo(t, b), echo(t, a)
	c := dial(t, a, addr)
	exchange(t, c, 64)
	if err := a.Plug(false); err != nil {
		t.Fatal(err)
	}
	if far, err := a.DialContext(t.Context(), "tcp4", addr); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("connects to %v, %v", far, err)
	}
	exchange(t, dial(t, a, own), 64)
	if err := a.Plug(true); err != nil {
		t.Fatal(err)
	}
	exchange(t, c, 64)
	exchange(t, dial(t, b, own), 64)
}
