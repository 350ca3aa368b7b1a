package resp

import (
	"slices"
	"sync"
	"sync/atomic"
)

func init() {
	free := flagLoading | flagPubSub
	register([]command{
		{name: "subscribe", arity: -2, flags: free, group: "pubsub", since: "2.0.0", about: "Listens for messages published to channels.", handle: subscribe},
		{name: "unsubscribe", arity: -1, flags: free, group: "pubsub", since: "2.0.0", about: "Stops listening to messages posted to channels.", handle: unsubscribe},
		{name: "psubscribe", arity: -2, flags: free, group: "pubsub", since: "2.0.0", about: "Listens for messages published to channels that match one or more patterns.", handle: subscribe},
		{name: "punsubscribe", arity: -1, flags: free, group: "pubsub", since: "2.0.0", about: "Stops listening to messages published to channels that match one or more patterns.", handle: unsubscribe},
		{name: "publish", arity: 3, flags: flagLoading | flagFast, group: "pubsub", since: "2.0.0", about: "Posts a message to a channel.", handle: publish},
		{name: "pubsub", arity: -2, flags: flagLoading, group: "pubsub", since: "2.8.0", about: "A container for Pub/Sub commands.", handle: func(c *conn, args [][]byte) { dispatchSub(c, "pubsub", pubsubTable, args) }},
	})
}

var pubsubTable []subcommand

func init() {
	pubsubTable = []subcommand{
		{"channels", -2, pubsubChannels},
		{"numsub", -2, pubsubNumSub},
		{"numpat", 2, func(c *conn, _ [][]byte) { c.out.int(int64(c.srv.hub.count(true))) }},
		{"help", 2, func(c *conn, _ [][]byte) {
			c.out.help("PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
				"CHANNELS [<pattern>]", "    Return the currently active channels matching a <pattern> (default: '*').",
				"NUMPAT", "    Return number of subscriptions to patterns.",
				"NUMSUB [<channel> ...]", "    Return the number of subscribers for the specified channels, excluding",
				"    pattern subscriptions(default: no channels).",
				"HELP", "    Print this help.")
		}},
	}
}

const (
	// pushLimit is how many bytes of messages wait for a subscriber; one that reads more slowly is disconnected.
	pushLimit = 8 << 20
	// subscriptionBytes is accounted for a subscription besides its name.
	subscriptionBytes = 256
)

// hub knows who has subscribed to what. Messages stay on this node, and are lost to who is not connected.
type hub struct {
	mu       sync.RWMutex // guards both
	channels map[string]map[*conn]struct{}
	patterns map[string]map[*conn]struct{}
}

func (h *hub) of(patterns bool) map[string]map[*conn]struct{} {
	if patterns {
		return h.patterns
	}
	return h.channels
}

func (h *hub) add(name string, patterns bool, c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.of(patterns)
	if m[name] == nil {
		m[name] = map[*conn]struct{}{}
	}
	m[name][c] = struct{}{}
}

func (h *hub) remove(name string, patterns bool, c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.of(patterns)
	delete(m[name], c)
	if len(m[name]) == 0 {
		delete(m, name)
	}
}

// count is the number of channels, or patterns, that someone has subscribed to.
func (h *hub) count(patterns bool) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.of(patterns))
}

// publish hands a message to all who have subscribed to its channel, once for each subscription, and returns their number.
func (h *hub) publish(channel, message []byte) int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := 0
	send := func(to map[*conn]struct{}, encode func(w *writer)) {
		var texts [2][]byte // by protocol
		for c := range to {
			i := 0
			if c.protocol.Load() == 3 {
				i = 1
			}
			if texts[i] == nil {
				w := writer{resp3: i == 1}
				encode(&w)
				texts[i] = w.buf
			}
			c.sub.Load().push(texts[i])
			n++
		}
	}
	send(h.channels[string(channel)], func(w *writer) {
		w.push(3)
		w.bulkString("message")
		w.bulk(channel)
		w.bulk(message)
	})
	for pattern, to := range h.patterns {
		if globMatch([]byte(pattern), channel) {
			send(to, func(w *writer) {
				w.push(4)
				w.bulkString("pmessage")
				w.bulkString(pattern)
				w.bulk(channel)
				w.bulk(message)
			})
		}
	}
	return n
}

// subscriber is the side of a connection that others push messages to. A goroutine of its own writes them, because the
// connection's waits for commands.
type subscriber struct {
	c        *conn
	channels map[string]struct{} // the connection's own, like held
	patterns map[string]struct{}
	held     int64           // bytes accounted for with the server, for both
	counts   [2]atomic.Int32 // of both; for others

	wake chan struct{} // capacity 1
	done chan struct{} // closed when the writing goroutine has ended

	// writing is held by whoever writes to the socket, for whole replies and messages. The connection's goroutine takes it with the
	// first subscription or reply of a burst, and lets go when all of it is out.
	writing sync.Mutex
	locked  bool // by the connection's goroutine, whose own this is

	mu     sync.Mutex // guards both below
	pushed []byte
	closed bool
}

// subscriber returns the connection's, which is made and started with the first subscription.
func (c *conn) subscriber() *subscriber {
	s := c.sub.Load()
	if s == nil {
		s = &subscriber{
			c: c, channels: map[string]struct{}{}, patterns: map[string]struct{}{},
			wake: make(chan struct{}, 1), done: make(chan struct{}),
		}
		c.sub.Store(s)
		go s.run() // ends by close, when the connection ends
	}
	return s
}

// push adds a message for the subscriber. One that lags too far behind, or for which there is no memory, is cut off.
func (s *subscriber) push(message []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	n := int64(len(message))
	if len(s.pushed)+len(message) > pushLimit || !s.c.srv.reserve(n) {
		s.closed = true
		s.drop()
		s.c.srv.stats.slow.Add(1)
		go s.c.kill() // ends by itself: closing TLS may take a while, and others wait for the hub
		return
	}
	s.pushed = append(s.pushed, message...)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drop forgets what has not been taken. mu is held.
func (s *subscriber) drop() {
	s.c.srv.reserve(-int64(len(s.pushed)))
	s.pushed = nil
}

// take returns the messages that wait; their bytes are not accounted for any more.
func (s *subscriber) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pushed
	s.drop()
	return p
}

// run writes messages until the connection ends.
func (s *subscriber) run() {
	defer close(s.done)
	for range s.wake {
		s.writing.Lock()
		err := s.c.transmit(s.take())
		s.writing.Unlock()
		if err != nil {
			s.c.kill()
			return
		}
	}
}

// lock makes the connection's goroutine the one that writes, until its replies are out.
func (s *subscriber) lock() {
	if !s.locked {
		s.writing.Lock()
		s.locked = true
	}
}

func (s *subscriber) unlock() {
	if s.locked {
		s.locked = false
		s.writing.Unlock()
	}
}

// closeSubscriber ends the subscriptions and the writing goroutine of a connection whose socket is closed already, and waits for it.
func (c *conn) closeSubscriber() {
	s := c.sub.Load()
	if s == nil {
		return
	}
	c.unsubscribeAll()
	s.mu.Lock()
	s.closed = true
	s.drop()
	s.mu.Unlock()
	s.unlock()
	close(s.wake) // nobody pushes any more
	<-s.done
}

// names are the connection's subscriptions of a kind.
func (s *subscriber) names(patterns bool) map[string]struct{} {
	if patterns {
		return s.patterns
	}
	return s.channels
}

// deliver sends the messages that came before the command in hand: its client may know of them from their publisher, and expects them
// ahead of the reply, as Redis sends them. The writing goroutine may not have got to them yet.
func (c *conn) deliver() {
	s := c.sub.Load()
	if s == nil {
		return
	}
	if s.locked { // they stay behind the confirmations that have not been sent
		p := s.take()
		if c.run.pending() {
			c.run.literal(p)
		} else {
			c.out.buf = append(c.out.buf, p...)
		}
		return
	}
	s.writing.Lock()
	err := c.transmit(s.take())
	s.writing.Unlock()
	if err != nil {
		c.closing = true
	}
}

// confirm appends the reply to one subscription or its end. Messages that wait come behind it.
func (s *subscriber) confirm(kind string, name []byte) {
	w := &s.c.out
	w.push(3)
	w.bulkString(kind)
	if name == nil {
		w.null()
	} else {
		w.bulk(name)
	}
	w.int(int64(len(s.channels) + len(s.patterns)))
}

// note publishes the numbers of subscriptions.
func (s *subscriber) note() {
	s.counts[0].Store(int32(len(s.channels)))
	s.counts[1].Store(int32(len(s.patterns)))
}

func subscribe(c *conn, args [][]byte) {
	patterns := args[0][0]|0x20 == 'p'
	kind := stateOf(patterns, "psubscribe", "subscribe")
	s := c.subscriber()
	s.lock()
	names := s.names(patterns)
	for _, name := range args[1:] {
		if _, ok := names[string(name)]; !ok {
			cost := int64(len(name) + subscriptionBytes)
			if err := c.hold(cost); err != nil {
				c.out.failure(err)
				return
			}
			s.held += cost
			names[string(name)] = struct{}{}
			s.note()
			c.srv.hub.add(string(name), patterns, c)
		}
		s.confirm(kind, name)
	}
}

func unsubscribe(c *conn, args [][]byte) {
	patterns := args[0][0]|0x20 == 'p'
	kind := stateOf(patterns, "punsubscribe", "unsubscribe")
	s := c.subscriber()
	s.lock()
	names := args[1:]
	if len(names) == 0 {
		for name := range s.names(patterns) {
			names = append(names, []byte(name))
		}
	}
	if len(names) == 0 {
		s.confirm(kind, nil)
	}
	for _, name := range names {
		c.unsubscribeFrom(string(name), patterns)
		c.out.buf = append(c.out.buf, s.take()...) // no message follows the end of its subscription
		s.confirm(kind, name)
	}
}

func (c *conn) unsubscribeFrom(name string, patterns bool) {
	s := c.sub.Load()
	names := s.names(patterns)
	if _, ok := names[name]; !ok {
		return
	}
	delete(names, name)
	c.srv.hub.remove(name, patterns, c)
	cost := int64(len(name) + subscriptionBytes)
	s.held -= cost
	c.free(cost)
	s.note()
}

// unsubscribeAll ends all subscriptions.
func (c *conn) unsubscribeAll() {
	s := c.sub.Load()
	if s == nil {
		return
	}
	for _, patterns := range []bool{false, true} {
		for name := range s.names(patterns) {
			c.unsubscribeFrom(name, patterns)
		}
	}
}

// subscribed reports whether the connection has subscriptions. Any goroutine may ask.
func (c *conn) subscribed() bool {
	channels, patterns := c.subscriptions()
	return channels+patterns > 0
}

// subscriptions are the numbers of channels and of patterns. Any goroutine may ask.
func (c *conn) subscriptions() (channels, patterns int32) {
	s := c.sub.Load()
	if s == nil {
		return 0, 0
	}
	return s.counts[0].Load(), s.counts[1].Load()
}

func publish(c *conn, args [][]byte) { c.out.int(int64(c.srv.hub.publish(args[1], args[2]))) }

func pubsubChannels(c *conn, args [][]byte) {
	if len(args) > 3 {
		c.out.errorf("ERR unknown subcommand or wrong number of arguments for '%s'. Try PUBSUB HELP.", args[1])
		return
	}
	h := &c.srv.hub
	h.mu.RLock()
	var names []string
	for name := range h.channels {
		if len(args) == 2 || globMatch(args[2], []byte(name)) {
			names = append(names, name)
		}
	}
	h.mu.RUnlock()
	slices.Sort(names)
	c.out.array(len(names))
	for _, name := range names {
		c.out.bulkString(name)
	}
}

func pubsubNumSub(c *conn, args [][]byte) {
	h := &c.srv.hub
	h.mu.RLock()
	defer h.mu.RUnlock()
	c.out.mapHeader(len(args) - 2)
	for _, name := range args[2:] {
		c.out.bulk(name)
		c.out.int(int64(len(h.channels[string(name)])))
	}
}
