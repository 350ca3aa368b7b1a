package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"shiplog/cmd/shiplog/internal/etcdtest"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/engine"
	"shiplog/ship/nettest"
	"shiplog/wal"
)

// netGroup is three nodes on hosts of their own, with an etcd on another that says who leads, or without one. Clients are on the nodes' hosts, where no link is between
// them and their node, and on a host of their own.
type netGroup struct {
	t       *testing.T
	rng     *rand.Rand
	net     *nettest.Network
	nodes   []*process
	down    map[*process]bool
	clients *nettest.Host
	etcd    *etcdtest.Server // nil: roles change by hand
	keeper  *nettest.Host    // etcd's
	began   time.Time        // the clock of histories
}

const netPassword = "test-password"

// newNetGroup starts a group under replicated:1 with more flags, and waits until it is whole. It skips the test where there are no namespaces.
func newNetGroup(t *testing.T, seed uint64, leased bool, flags ...string) *netGroup {
	t.Helper()
	g := &netGroup{t: t, rng: rand.New(rand.NewPCG(seed, 17)), net: nettest.New(t), down: map[*process]bool{}, began: time.Now()}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(netPassword), 0o600); err != nil {
		t.Fatal(err)
	}
	var hosts []*nettest.Host
	for _, name := range []string{"a", "b", "c"} {
		hosts = append(hosts, g.net.Host(name))
	}
	g.clients = g.net.Host("clients")
	common := append([]string{"--requirepass-file", secret, "--secret-file", secret, "--space-factor", "-1", "--commit-timeout", "1s", "--scrub-interval", "0"}, flags...)
	if leased {
		g.keeper = g.net.Host("etcd")
		g.etcd = etcdtest.StartOn(t, g.keeper)
		common = append(common, "--etcd", g.etcd.Endpoint, "--group", "g", "--lease-ttl", "1s")
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range g.nodes {
				t.Logf("%s:\n%s", p.dir, p.stderr.String())
			}
		}
	})
	for i, h := range hosts {
		p := &process{t: t, host: h, dir: filepath.Join(dir, h.Name), resp: h.IP + ":6380", ship: h.IP + ":7380", http: h.IP + ":8380", scheme: "http"}
		p.web = http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
		p.args = append([]string{"serve", "--dir", p.dir, "--listen", p.resp, "--ship", p.ship, "--http", p.http, "--name", h.Name}, common...)
		if leased || i == 0 {
			p.args = append(p.args, "--commit", "replicated:1", "--segment-size", fmt.Sprint(4<<20))
		} else {
			p.args = append(p.args, "--follow", g.nodes[0].ship)
		}
		g.nodes = append(g.nodes, p)
		g.start(p)
		if leased || i == 0 {
			g.until("it has a role", func() bool { s, ok := g.status(p); return ok && s.DatabaseID != "" })
		}
	}
	g.whole()
	return g
}

// until waits longer than processes do elsewhere: connections that a fault has broken are tried again after pauses that grow.
func (g *netGroup) until(what string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("%s: not within 2 minutes", what)
		}
	}
}

func (g *netGroup) start(p *process) {
	delete(g.down, p)
	p.launch()
}

func (g *netGroup) kill(p *process) {
	g.down[p] = true
	p.kill()
}

func (g *netGroup) control() *client { return &client{scheme: "http", password: netPassword} }

// status asks a node from its own host; false: it does not answer.
func (g *netGroup) status(p *process) (httpd.Status, bool) {
	if g.down[p] {
		return httpd.Status{}, false
	}
	c := g.control()
	c.http = p.web
	s, err := c.status(context.Background(), p.http)
	return s, err == nil
}

// promote has one of the nodes lead, by the operator's order.
func (g *netGroup) promote(candidates []*process) {
	g.t.Helper()
	i := 0
	g.until("one is promoted", func() bool {
		p := candidates[i%len(candidates)]
		i++
		if g.down[p] {
			return false
		}
		c := g.control()
		c.http = http.Client{Timeout: time.Minute, Transport: p.web.Transport}
		var got candidacy
		err := c.post(context.Background(), p.http, "/promote", &got)
		if err != nil || got.Needed == 0 { // none: it was the leader of some epoch already
			g.t.Logf("promote %s: %v %+v", p.name(), err, got)
		}
		return err == nil && got.Needed > 0
	})
}

// leader waits until one node leads the highest epoch of those that answer, and returns it.
func (g *netGroup) leader() (leader *process) {
	g.t.Helper()
	g.until("somebody leads", func() bool {
		leader = g.leading()
		return leader != nil
	})
	return leader
}

func (g *netGroup) leading() (leader *process) {
	highest := wal.Epoch(0)
	for _, p := range g.nodes {
		s, ok := g.status(p)
		epoch, err := wal.ParseEpoch(s.Epoch)
		if !ok || err != nil {
			continue
		}
		if epoch > highest {
			leader, highest = nil, epoch
		}
		if epoch == highest && s.Role == "leader" && s.FencedBy == "" {
			leader = p
		}
	}
	return leader
}

// nobodyLeads reports whether all nodes answer, and none leads.
func (g *netGroup) nobodyLeads() bool {
	return !slices.ContainsFunc(g.nodes, func(p *process) bool {
		s, ok := g.status(p)
		return !ok || s.Role != "follower"
	})
}

// whole waits until both others follow the leader, count, and know that both do; with a lease, until all may lead next.
func (g *netGroup) whole() (leader *process) {
	g.t.Helper()
	missing := ""
	defer func() {
		if g.t.Failed() {
			g.t.Log("missing: ", missing)
		}
	}()
	g.until("the group is whole", func() bool {
		leader, missing = g.isWhole()
		return missing == ""
	})
	return leader
}

func (g *netGroup) isWhole() (leader *process, missing string) {
	if leader = g.leading(); leader == nil {
		return nil, "a leader"
	}
	s, ok := g.status(leader)
	if !ok {
		return nil, "an answer of the leader"
	}
	for _, p := range g.nodes {
		if p == leader {
			continue
		}
		f, ok := g.status(p)
		switch {
		case !ok || f.Role != "follower" || f.Upstream == nil || !f.Upstream.Connected || f.Epoch != s.Epoch || f.Visible < s.Committed:
			return nil, p.name() + " follows"
		case !slices.ContainsFunc(s.Followers, func(f httpd.Follower) bool { return f.Name == p.name() && f.Voter }):
			return nil, p.name() + " counts"
		case g.etcd != nil && (s.Lease == nil || !slices.Contains(s.Lease.Eligible, p.name())):
			return nil, p.name() + " may lead"
		}
		for _, q := range g.nodes {
			if q != leader && !slices.Contains(f.Voters, q.name()) {
				return nil, p.name() + " knows that " + q.name() + " counts"
			}
		}
	}
	return leader, ""
}

// others are the nodes besides some, in random order.
func (g *netGroup) others(not ...*process) []*process {
	rest := slices.DeleteFunc(slices.Clone(g.nodes), func(q *process) bool { return slices.Contains(not, q) })
	g.rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return rest
}

// errDial is a connection that was not made: nothing was sent.
type errDial struct{ error }

// redis is a client of a node, on its own host or another. It waits for longer than a commit takes at most, or from afar so shortly that it soon finds another leader.
func (g *netGroup) redis(p *process, from *nettest.Host) *redis.Client {
	patience := 1500 * time.Millisecond
	if from != p.host {
		patience = 250 * time.Millisecond
	}
	return redis.NewClient(&redis.Options{
		Addr: p.resp, Password: netPassword, MaxRetries: -1, ReadTimeout: patience, DialTimeout: 500 * time.Millisecond, DialerRetries: 1, PoolSize: 2,
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			defer cancel()
			c, err := from.DialContext(ctx, network, addr)
			if err != nil {
				return nil, errDial{err}
			}
			return c, nil
		},
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// finish stops the group, expects the same bytes in all three logs, and returns the committed writes of keys, in their order.
func (g *netGroup) finish() (log []histWritten) {
	g.t.Helper()
	leader := g.whole()
	c := g.redis(leader, leader.host)
	defer c.Close()
	g.until("the last write", func() bool { return c.Set(context.Background(), "end", "end", 0).Err() == nil })
	s, _ := g.status(leader)
	for _, p := range g.others(leader) {
		g.until(p.name()+" has all", func() bool { f, ok := g.status(p); return ok && f.Visible >= s.Committed })
	}
	for _, p := range g.others(leader) {
		p.stop()
	}
	leader.stop()
	for _, p := range g.others(leader) {
		sameUpTo(g.t, leader.dir, p.dir, s.Committed)
	}
	return committedWrites(g.t, leader.dir)
}

// committedWrites are those of a log before the key "end".
func committedWrites(t *testing.T, dir string) (out []histWritten) {
	t.Helper()
	log, err := wal.Open(dir, &wal.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := log.NewReader(log.Tail())
	defer r.Close()
	var buf wal.Buffer
	for r.Next() {
		f := r.Frame()
		if f.Flags&wal.FlagControl != 0 {
			continue
		}
		for offset, n := 0, 0; n < f.Records; n++ {
			err := log.ReadRecord(wal.MakeRef(f.LSN, offset), &buf, func(p []byte) error {
				rec, size, err := engine.DecodeRecord(p)
				if err != nil || rec.Op != engine.OpPut && rec.Op != engine.OpDelete {
					return fmt.Errorf("nobody has written %v of %q: %w", rec.Op, rec.Key, err)
				}
				out = append(out, histWritten{key: string(rec.Key), value: string(rec.Value), end: uint64(f.End())})
				offset += size
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if out[len(out)-1].key == "end" {
				return out
			}
		}
	}
	t.Fatal("the last write is not in the log: ", r.Err())
	return nil
}

// infoFields are those of an INFO reply.
func infoFields(reply string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(reply) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			m[k] = v
		}
	}
	return m
}
