package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"shiplog/engine"
	"shiplog/ship"
	"shiplog/wal"
)

// TestSimulation runs groups of three to five nodes in virtual time: the real log, index, shipping and role changes, on simulated disks that
// lose power and a simulated network that delays, loses, cuts and garbles, with skewed clocks, through random faults and operators' orders. After each step
// the nodes are compared with each other and with what the group has shown before; from time to time everything is mended, and the group
// must become whole by itself, or where that needs an operator by promotions that need a quorum.
//
// A seed gives the configuration, the faults, their times and what the clients do. Which goroutine runs first at one moment of virtual time is the scheduler's choice, so a
// rerun takes the same faults through nearly, not exactly, the same steps; with GOMAXPROCS=1 GODEBUG=asyncpreemptoff=1 it mostly takes the same.
//
// SHIPLOG_SEED reruns one seed. SHIPLOG_SIM_HOURS is how many virtual hours are run, with fresh seeds, each of at most two hours; then the commit rule is
// changed too, in two runs of three, and disks are spoilt, in every second one. A seed of such a run is rerun with both.
func TestSimulation(t *testing.T) {
	if hours := os.Getenv("SHIPLOG_SIM_HOURS"); hours != "" {
		h, err := strconv.ParseFloat(hours, 64)
		if err != nil {
			t.Fatal(err)
		}
		simulateFor(t, time.Duration(h*float64(time.Hour)))
		return
	}
	n, length := 4, 12*time.Minute
	if testing.Short() {
		n, length = 2, 4*time.Minute
	}
	total := newSimTotal()
	for _, seed := range simSeeds(t, n) {
		simulate(t, seed, length, total)
	}
	total.print(t)
}

func simSeeds(t *testing.T, n int) (seeds []uint64) {
	t.Helper()
	if s := os.Getenv("SHIPLOG_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	first := uint64(time.Now().UnixNano()) % 1e9
	for i := range n {
		seeds = append(seeds, first+uint64(i))
	}
	return seeds
}

func simulateFor(t *testing.T, length time.Duration) {
	total := newSimTotal()
	first := simSeeds(t, 1)[0]
	for i := uint64(0); total.virtual < length; i++ {
		simulate(t, first+i, min(2*time.Hour, length-total.virtual), total)
		if i%20 == 19 {
			total.print(t)
		}
	}
	total.print(t)
}

// simTotal adds up what several simulations did.
type simTotal struct {
	runs    int
	virtual time.Duration
	began   time.Time
	counts  map[string]int
}

func newSimTotal() *simTotal { return &simTotal{began: time.Now(), counts: map[string]int{}} }

func (n *simTotal) print(t *testing.T) {
	t.Helper()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(n.counts)) {
		fmt.Fprintf(&b, "\n%12d %s", n.counts[k], k)
	}
	t.Logf("%d runs, %.2f virtual hours in %v:%s", n.runs, n.virtual.Hours(), time.Since(n.began).Round(time.Second), b.String())
}

// simulate runs one seed for so much virtual time.
func simulate(t *testing.T, seed uint64, length time.Duration, total *simTotal) {
	t.Helper()
	runtime.GC() // twice: pools of an earlier bubble hold its channels
	runtime.GC()
	t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, seed)
			s.run(length)
			total.runs++
			total.virtual += time.Since(s.began)
			for k, n := range s.counts {
				total.counts[k] += n
			}
		})
	})
	runtime.GC() // and pools of this one hold its timers
	runtime.GC()
}

// simConfig is what stays the same through a run.
type simConfig struct {
	rule     engine.Level
	tooFew   engine.TooFew
	nodes    int // at the beginning
	most     int
	clients  int
	think    time.Duration // mean pause of a client
	gap      time.Duration // mean pause between faults
	failover bool          // another node may be promoted: not under a rule that asks no followers
	faults   []string      // kinds that occur in this run
	leases   bool          // a leader's reads are linearizable
	single   bool          // a term has one leader: any two elections have a voter in common
}

// sim is one simulated group.
type sim struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	cfg     simConfig
	net     *simNet
	nodes   []*simNode
	clients *simClients
	ledger  *simLedger
	spoilt  *simSpoilt     // nil: disks keep what they hold
	away    sync.WaitGroup // what ends by itself
	began   time.Time
	counts  map[string]int // of the driver alone

	mu    sync.Mutex // guards lines
	lines []string
	head  string
}

func newSim(t *testing.T, seed uint64) *sim {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &sim{
		t: t, seed: seed, rng: rng, net: newSimNet(rand.New(rand.NewPCG(seed, 2))), ledger: newSimLedger(), counts: map[string]int{}, began: time.Now(),
	}
	pick := func(d ...time.Duration) time.Duration { return d[rng.IntN(len(d))] }
	s.cfg = simConfig{
		nodes: 3, most: 3 + rng.IntN(3), clients: 2 + rng.IntN(4), failover: true,
		think: pick(300*time.Millisecond, time.Second, 3*time.Second), gap: pick(2*time.Second, 8*time.Second, 20*time.Second),
		tooFew: []engine.TooFew{engine.Refuse, engine.Block}[rng.IntN(2)],
	}
	s.cfg.leases = rng.IntN(4) > 0
	switch rng.IntN(8) {
	case 0:
		s.cfg.rule, s.cfg.failover = engine.Durable, false
	case 1, 2:
		s.cfg.rule = engine.Replicated(2)
		s.cfg.nodes, s.cfg.most = 5, 5
	case 3:
		s.cfg.rule = engine.Applied(1)
	default:
		s.cfg.rule = engine.Replicated(1)
	}
	for _, k := range simFaultNames { // a swarm: each run has its own mix
		if rng.IntN(3) > 0 {
			s.cfg.faults = append(s.cfg.faults, k)
		}
	}
	if os.Getenv("SHIPLOG_SIM_HOURS") != "" && rng.IntN(3) > 0 {
		s.cfg.faults = append(s.cfg.faults, "rule change")
	}
	if len(s.cfg.faults) == 0 {
		s.cfg.faults = simFaultNames[:1]
	}
	if os.Getenv("SHIPLOG_SIM_HOURS") != "" && seed%2 == 1 { // not of rng: what other seeds do stays what it was
		s.spoilt = &simSpoilt{rng: rand.New(rand.NewPCG(seed, 3)), at: map[wal.LSN]*simNode{}, was: map[wal.LSN][]byte{}}
	}
	n := s.cfg.rule.N()
	s.cfg.single = !slices.Contains(s.cfg.faults, "rule change") && 2*(s.cfg.nodes-n) > s.cfg.nodes
	return s
}

// run goes through phases of faults, each followed by a return to health.
func (s *sim) run(length time.Duration) {
	s.head = fmt.Sprintf("seed %d: %v, %v, %d to %d nodes, think %v, gap %v, faults %q", s.seed, s.cfg.rule, s.cfg.tooFew, s.cfg.nodes, s.cfg.most, s.cfg.think, s.cfg.gap, s.cfg.faults)
	s.add("")
	s.sleep(time.Second)
	for len(s.nodes) < s.cfg.nodes {
		s.add(s.nodes[0].addr())
	}
	s.clients = startSimClients(s, s.cfg.clients)
	s.heal()
	for time.Since(s.began) < length {
		for end := time.Now().Add(time.Duration(30+s.rng.IntN(150)) * time.Second); time.Now().Before(end); {
			s.fault()
			s.spoil()
			s.sleep(time.Duration(s.rng.ExpFloat64() * float64(s.cfg.gap)))
		}
		s.heal()
		s.replaceDisk()
	}
	close(s.clients.stop)
	s.clients.wg.Wait()
	for _, m := range s.nodes {
		m.stop()
	}
	s.away.Wait()
	s.counts["writes acknowledged"] = int(s.clients.acked.Load())
	s.counts["writes of unknown outcome"] = int(s.clients.unknown.Load())
	s.counts["writes refused"] = int(s.clients.refused.Load())
	s.counts["reads at leaders that had to show all that was acknowledged"] = int(s.clients.strict.Load())
	s.counts["reads checked"] = int(s.clients.reads.Load())
	s.counts["epochs"] = len(s.ledger.epochs)
	for k, n := range s.net.counts {
		s.counts[k] += n
	}
	for _, m := range s.nodes {
		s.counts["cuts kept in diverged"] += len(m.cutFiles())
	}
}

// add starts a node that has not been there before.
func (s *sim) add(follow string) {
	m := &simNode{s: s, name: string(rune('a' + len(s.nodes))), follow: follow}
	m.wipe()
	s.mu.Lock()
	s.nodes = append(s.nodes, m)
	s.mu.Unlock()
	m.start()
	s.count("nodes started for the first time")
}

// processes are all that run.
func (s *sim) processes() []*simProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ps []*simProcess
	for _, m := range s.nodes {
		if p := m.proc; p != nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// sleep lets time pass, in steps that each end with a check.
func (s *sim) sleep(d time.Duration) {
	for d > 0 {
		part := min(d, time.Duration(1+s.rng.IntN(2000))*time.Millisecond)
		time.Sleep(part)
		d -= part
		synctest.Wait()
		s.check()
	}
}

// heal mends everything and waits until the group is whole.
func (s *sim) heal() {
	s.note("-- heal")
	s.net.heal()
	for _, m := range s.nodes {
		m.disk.SetCapacity(0)
		for _, in := range m.faults {
			in.End()
		}
		m.faults = nil
		if m.proc.failed() { // the disk is in order again: the process starts anew
			m.crash(true)
		}
		if m.proc == nil {
			m.start()
		}
	}
	s.clients.pause(true)
	began, lastOrder := time.Now(), time.Now()
	for why := s.converged(); why != ""; why = s.converged() {
		if time.Since(began) > simPatience {
			s.describe()
			s.failf("not whole %v after everything was mended: %s", simPatience, why)
		}
		if s.cfg.failover && time.Since(lastOrder) > simOrderEvery {
			lastOrder = time.Now()
			s.restoreLead()
		}
		for _, m := range s.nodes {
			if m.proc == nil {
				m.start()
			}
			if !m.proc.failed() {
				continue
			}
			anew := errors.Is(m.proc.why(), ship.ErrTrimmed)
			m.crash(true)
			if leader := s.leading(); anew && leader != nil && !s.spoilt.elsewhere(m) {
				m.follow = leader.node.addr() // the others have given up all that it knows, its last epochs included
				m.wipe()
				s.count("copied anew by an operator")
			}
			m.start()
		}
		s.sleep(time.Second)
	}
	s.note("-- whole after %v", time.Since(began))
	s.checkWhole()
	s.count("returns to health")
	s.counts["seconds to health"] += int(time.Since(began).Seconds())
	s.clients.pause(false)
	s.sleep(3 * time.Second)
	if s.clients.acked.Load() == 0 && s.counts["returns to health"] > 3 {
		s.failf("no write was ever acknowledged")
	}
}

const (
	// simPatience is how long a mended group may take to become whole.
	simPatience = 5 * time.Minute
	// simOrderEvery is how often an operator orders a promotion where nobody leads.
	simOrderEvery = 20 * time.Second
)

// pause keeps clients from beginning anything, and waits for what is under way.
func (c *simClients) pause(on bool) {
	c.paused.Store(on)
	for on && c.busy.Load() > 0 {
		time.Sleep(100 * time.Millisecond)
	}
}

// describe notes where everybody is.
func (s *sim) describe() {
	for _, p := range s.processes() {
		st := p.n.db.Stats()
		s.note("%s: %v leads %v loading %v, epoch %v, promised %v, fenced %v, head %v durable %v visible %v, rule %v changing %v degraded %v", p.node.name, st.Node, p.leads(),
			st.Loading, st.Epoch, p.n.db.Log().Promised(), st.Fenced, st.Head, st.Durable, st.Visible, st.Rule, st.RuleChanging, st.Degraded)
		for _, v := range st.Voters {
			s.note("   voter %+v", v)
		}
		for _, f := range st.Followers {
			s.note("   follower %+v", f)
		}
		h := p.n.db.Log().History()
		s.note("   history %v, follows for good no more: %v, last: %v", h[max(0, len(h)-4):], p.why(), p.upstreamError())
	}
}

// restoreLead does what an operator does where nobody leads: it promotes the node that has most, and if others refuse that, the next.
func (s *sim) restoreLead() {
	ps := s.processes()
	for _, p := range ps {
		if st := p.n.db.Stats(); p.leads() && !st.Loading {
			return
		}
	}
	slices.SortFunc(ps, func(p, q *simProcess) int {
		a, b := p.n.db.Log(), q.n.db.Log()
		return cmp.Or(cmp.Compare(b.Epoch(), a.Epoch()), cmp.Compare(b.Head(), a.Head()))
	})
	for _, p := range ps {
		if s.promote(p, "promotions where nobody led") {
			return
		}
	}
}

// promote orders a node to lead, and waits for what comes of it.
func (s *sim) promote(p *simProcess, what string) bool {
	if p == nil || !p.ready.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := p.n.promote(ctx, engine.PromoteOptions{})
	s.note("promote %s: %v", p.node.name, err)
	if s.count(what); err != nil {
		s.count(what + ", refused")
	}
	return err == nil
}

func (s *sim) count(what string) { s.counts[what]++ }

// note keeps a line for the case of a failure.
func (s *sim) note(format string, args ...any) {
	line := fmt.Sprintf("%12.3f ", time.Since(s.began).Seconds()) + fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 2*simLines {
		s.lines = append(s.lines[:0], s.lines[simLines:]...)
	}
	s.lines = append(s.lines, line)
}

const simLines = 400

// failf ends the test, from whatever goroutine.
func (s *sim) failf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := s.lines[max(0, len(s.lines)-simLines):]
	fmt.Fprintf(os.Stderr, "%s\n%s\n", s.head, strings.Join(lines, "\n"))
	panic(fmt.Sprintf("simulation, SHIPLOG_SEED=%d, at %v: ", s.seed, time.Since(s.began)) + fmt.Sprintf(format, args...))
}
