package resp_test

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"shiplog/cmd/shiplog/internal/resp"
)

// TestPubSub: RESP3 clients get pushes, and may do other things meanwhile; messages come between replies, never within them.
func TestPubSub(t *testing.T) {
	s := start(t, nil)
	c, d := s.dial(t), s.dial(t)
	hello := command("HELLO", "3")
	c.send(hello)
	readHello(t, c)
	c.send(command("SUBSCRIBE", "a", "b") + command("PSUBSCRIBE", "[ab]") + command("SET", "k", "v") + command("GET", "k"))
	c.expect(">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n>3\r\n$10\r\npsubscribe\r\n$4\r\n[ab]\r\n:3\r\n" + ok + "$1\r\nv\r\n")
	d.send(command("PUBLISH", "a", "1"))
	d.expect(":2\r\n")
	c.expect(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n1\r\n>4\r\n$8\r\npmessage\r\n$4\r\n[ab]\r\n$1\r\na\r\n$1\r\n1\r\n")
	c.send(command("PING") + command("CLIENT", "LIST", "TYPE", "pubsub"))
	c.expect("+PONG\r\n=")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || line == "4\r\n" {
		t.Errorf("CLIENT LIST TYPE pubsub is empty: %q, %v", line, err)
	}
	d.send(command("CLIENT", "KILL", "TYPE", "pubsub"))
	d.expect(":1\r\n")
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
	until(t, func() bool { return s.Stats().Clients == 1 && s.Stats().ClientMemory == 0 })
	d.send(command("PUBLISH", "a", "1"))
	d.expect(":0\r\n")
}

// readHello reads the reply of HELLO 3.
func readHello(t *testing.T, c *client) {
	t.Helper()
	readLines(t, c, 26)
}

// TestMessagesBetweenReplies: while messages come as fast as they can, large replies stay whole, and nothing is lost or out of
// order, also while the client subscribes to other channels.
func TestMessagesBetweenReplies(t *testing.T) {
	s := start(t, nil)
	big := strings.Repeat("b", 300_000)
	s.m.data["big"] = value{p: big}
	c := s.dial(t)
	c.send(command("HELLO", "3"))
	readHello(t, c)
	c.send(command("SUBSCRIBE", "ch"))
	c.expect(">3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n")
	const messages, reads, changes = 5000, 40, 1000
	var wg sync.WaitGroup
	wg.Go(func() {
		d := s.dial(t)
		for i := range messages {
			d.send(command("PUBLISH", "ch", strconv.Itoa(i)))
			d.expect(":1\r\n")
		}
	})
	wg.Go(func() {
		c.send(strings.Repeat(command("GET", "big"), reads))
		for range changes {
			c.send(command("SUBSCRIBE", "other") + command("UNSUBSCRIBE", "other"))
		}
	})
	r := bufio.NewReaderSize(c, 1<<20)
	next, replies, confirmed := 0, 0, 0
	for next < messages || replies < reads || confirmed < 2*changes {
		switch got := readAll(t, r); {
		case len(got) == 1 && got[0] == big:
			replies++
		case len(got) == 3 && got[0] == "message" && got[2] == strconv.Itoa(next):
			next++
		case len(got) == 3 && got[1] == "other" && got[0] == []string{"subscribe", "unsubscribe"}[confirmed%2]:
			confirmed++
		default:
			t.Fatalf("%.200q after %d messages, %d replies, %d subscriptions", got, next, replies, confirmed)
		}
	}
	wg.Wait()
}

// TestMessagesBeforeReplies: a message whose publisher has its answer comes ahead of the reply to what its subscriber sends then, however
// many other subscribers are served meanwhile.
func TestMessagesBeforeReplies(t *testing.T) {
	const subscribers, rounds = 50, 20
	message := "*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nx\r\n"
	subscribed := "*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n"
	pong := "*2\r\n$4\r\npong\r\n$0\r\n\r\n"
	s := start(t, nil)
	d := s.dial(t)
	var subs []*client
	for range subscribers {
		c := s.dial(t)
		c.send(command("SUBSCRIBE", "ch"))
		c.expect(subscribed)
		subs = append(subs, c)
	}
	for range rounds {
		d.send(command("PUBLISH", "ch", "x"))
		d.expect(":" + strconv.Itoa(subscribers) + "\r\n")
		for i := range subs {
			subs[len(subs)-1-i].send(command("PING") + command("SUBSCRIBE", "ch") + command("PING"))
		}
		for _, c := range subs {
			c.expect(message + pong + subscribed + pong)
		}
	}
}

// TestUnsubscribeIsTheEnd: no message of a channel follows the reply to UNSUBSCRIBE, and all before it come.
func TestUnsubscribeIsTheEnd(t *testing.T) {
	s := start(t, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // ends by stop
		d := s.dial(t)
		for {
			select {
			case <-stop:
				return
			default:
				d.send(command("PUBLISH", "ch", "x"))
				readLines(t, d, 1)
			}
		}
	})
	c := s.dial(t)
	r := bufio.NewReader(c)
	for range 200 {
		c.send(command("SUBSCRIBE", "ch"))
		if kind := readAny(t, r); kind != "subscribe" {
			t.Fatalf("%s after the end of the subscription", kind)
		}
		if kind := readAny(t, r); kind != "message" {
			t.Fatal(kind)
		}
		c.send(command("UNSUBSCRIBE", "ch") + command("ECHO", "end"))
		kind := "message"
		for kind == "message" {
			kind = readAny(t, r)
		}
		if next := readAny(t, r); kind != "unsubscribe" || next != "end" {
			t.Fatal(kind, next)
		}
	}
	close(stop)
	wg.Wait()
}

// readAny reads a reply and returns its first word.
func readAny(t *testing.T, r *bufio.Reader) string { return readAll(t, r)[0] }

// readAll reads a reply and returns its words.
func readAll(t *testing.T, r *bufio.Reader) (words []string) {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	switch line[0] {
	case '*', '>':
		for range n {
			words = append(words, readAll(t, r)...)
		}
		return words
	case '$':
		p := make([]byte, n+2)
		if _, err := io.ReadFull(r, p); err != nil {
			t.Fatal(err)
		}
		return []string{string(p[:n])}
	}
	return []string{strings.TrimSpace(line[1:])}
}

// TestUnsubscribeAfterBacklog: what waits for a subscriber that did not read comes before the end of its subscription.
func TestUnsubscribeAfterBacklog(t *testing.T) {
	s := start(t, nil)
	c, d := s.dial(t), s.dial(t)
	c.send(command("SUBSCRIBE", "ch"))
	c.expect("*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n")
	big := strings.Repeat("x", 1<<20)
	n := 0
	for s.Stats().ClientMemory < 2<<20 { // more than the socket takes
		d.send(command("PUBLISH", "ch", big))
		d.expect(":1\r\n")
		n++
	}
	in := s.Stats().InBytes
	end := command("UNSUBSCRIBE", "ch") + command("ECHO", "end")
	c.send(end)
	until(t, func() bool { return s.Stats().InBytes == in+int64(len(end)) })
	r := bufio.NewReader(c)
	for range n {
		if kind := readAny(t, r); kind != "message" {
			t.Fatal(kind)
		}
	}
	if kind, last := readAny(t, r), readAny(t, r); kind != "unsubscribe" || last != "end" {
		t.Error(kind, last)
	}
}

// TestSlowSubscriber: one that does not read is disconnected, and neither the publisher nor other subscribers notice.
func TestSlowSubscriber(t *testing.T) {
	s := start(t, nil)
	slow, fast, d := s.dial(t), s.dial(t), s.dial(t)
	for _, c := range []*client{slow, fast} {
		c.send(command("SUBSCRIBE", "ch"))
		c.expect("*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:1\r\n")
	}
	payload := strings.Repeat("x", 1<<20)
	message := "*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1048576\r\n" + payload + "\r\n"
	d.SetDeadline(time.Now().Add(60 * time.Second))
	receivers := "2"
	for range 200 {
		d.send(command("PUBLISH", "ch", payload))
		receivers = strings.Trim(readLines(t, d, 1)[0], ":\r\n")
		fast.expect(message)
		if s.Stats().ClientMemory > 40<<20 {
			t.Fatalf("%d bytes are held", s.Stats().ClientMemory)
		}
		if receivers == "1" {
			break
		}
	}
	if receivers != "1" || s.Stats().SlowSubscribers != 1 {
		t.Errorf("%s receivers, %d were cut off", receivers, s.Stats().SlowSubscribers)
	}
	until(t, func() bool { return s.Stats().ClientMemory == 256+2 }) // of the one that is left
	if n, err := io.Copy(io.Discard, slow); n > 200<<20 {
		t.Errorf("the slow one has got %d bytes, %v", n, err)
	}
}

// TestSubscriptionMemory: names count towards what clients may hold together.
func TestSubscriptionMemory(t *testing.T) {
	s := start(t, func(o *resp.Options) { o.ClientMemory = 1 << 20 })
	c := s.dial(t)
	args := []string{"PSUBSCRIBE"}
	for i := range 20 {
		args = append(args, strings.Repeat("p", 100_000)+strconv.Itoa(i))
	}
	for _, name := range args[1:] {
		c.send(command("PSUBSCRIBE", name))
		if kind := readAny(t, bufio.NewReader(c)); kind != "psubscribe" {
			if kind != "OOM client buffers of this node are full" {
				t.Error(kind)
			}
			break
		}
	}
	if held := s.Stats().ClientMemory; held > 1<<20 || held < 700_000 {
		t.Errorf("%d bytes are held", held)
	}
	c.send(command("RESET") + command("GET", "k"))
	c.expect("+RESET\r\n$-1\r\n")
	until(t, func() bool { return s.Stats().ClientMemory == 0 })
}

// TestGoRedisPubSub subscribes and publishes as a client library does.
func TestGoRedisPubSub(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		s := start(t, nil)
		ctx := t.Context()
		r := redis.NewClient(&redis.Options{
			Addr: s.addr, Protocol: protocol, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		})
		sub := r.Subscribe(ctx, "a")
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		if err := sub.PSubscribe(ctx, "b*"); err != nil {
			t.Fatal(err)
		}
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		for _, channel := range []string{"a", "b1", "c"} {
			if err := r.Publish(ctx, channel, "to "+channel).Err(); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{"to a", "to b1"} {
			got, err := sub.ReceiveMessage(ctx)
			if err != nil || got.Payload != want {
				t.Errorf("got %v, %v, want %s", got, err, want)
			}
		}
		if err := sub.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
