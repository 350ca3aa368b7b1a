package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"shiplog/engine"
	"shiplog/wal/waltest"
)

// TestPowerCuts cuts the power of real file systems while writers commit through the engine: nothing that was
// acknowledged at Durable, or seen under that rule, is lost; nothing is half there; what was refused is not there; and
// opening again changes nothing.
func TestPowerCuts(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, rule := range []engine.Level{engine.Durable, engine.Written} {
			t.Run(kind+"/"+rule.String(), func(t *testing.T) {
				defer engine.FreezeEvery(150)() // runs are written and merged, and soon something is reclaimed
				m := waltest.NewMount(t, kind, 400<<20)
				seed := seeds(t, 1)[0]
				w := newPowerWorld(t, m, rule, seed)
				for cut := range waltest.PowerCuts(t, 12, 4) {
					w.what = fmt.Sprintf("seed %d, cut %d", seed, cut)
					w.writeUntilCut()
					w.recover()
				}
				tail := w.db.Stats().Tail
				w.db.Close()
				t.Logf("%d commits acknowledged; %d open when the power went, of which %d were kept; the log begins at %v", w.acked.Load(), w.unsure, w.kept, tail)
				if rule == engine.Durable && w.unsure == 0 {
					t.Error("no cut met a commit")
				}
			})
		}
	}
}

// powerWorld is a database on a file system whose power is cut, and what must be in it.
type powerWorld struct {
	t     *testing.T
	m     *waltest.Mount
	rng   *rand.Rand
	opts  engine.Options
	dir   string
	db    *engine.DB
	what  string
	acked atomic.Int64

	writers      []*powerWriter
	unsure, kept int
	mu           sync.Mutex        // guards all below while writers run
	claims       map[string]string // acknowledged or seen
	sum, maybe   int64             // increments acknowledged, and of unknown outcome
	seen         int64             // the highest sum that a reader saw
}

const accounts, funds = 4, 1000

func newPowerWorld(t *testing.T, m *waltest.Mount, rule engine.Level, seed uint64) *powerWorld {
	w := &powerWorld{t: t, m: m, rng: rand.New(rand.NewPCG(seed, 3)), dir: filepath.Join(m.Dir, "db"), claims: map[string]string{}}
	w.opts = engine.Options{FS: m.FS(), Commit: rule, SegmentSize: 64 << 10, SpaceFactor: 120, CommitTimeout: -1}
	for i := range 4 {
		w.writers = append(w.writers, &powerWriter{
			w: w, name: fmt.Sprint("w", i), rng: rand.New(rand.NewPCG(seed, uint64(10+i))), states: []model{{}},
		})
	}
	w.open()
	t.Cleanup(func() { w.db.Close() })
	b := w.db.NewBatch()
	for i := range accounts {
		b.Put(fmt.Append(nil, "account/", i), fmt.Append(nil, funds))
	}
	if _, err := w.db.Commit(ctx, b, engine.Durable); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *powerWorld) open() {
	w.t.Helper()
	var err error
	if w.db, err = engine.Open(w.dir, &w.opts); err != nil {
		w.t.Fatalf("%s: open: %v", w.what, err)
	}
}

// powerWriter commits one operation after the other, to keys of its own and to shared ones, until one fails.
type powerWriter struct {
	w      *powerWorld
	name   string
	rng    *rand.Rand
	states []model // of its own keys: what they may be after a cut, oldest first; the last is what is there now
	step   int
	err    error
}

func (p *powerWriter) run(level engine.Level) {
	for p.err == nil {
		l := level
		if l == engine.Written && p.rng.IntN(8) == 0 {
			l = engine.Durable
		}
		p.step++
		switch p.rng.IntN(10) {
		case 0:
			p.increment(l)
		case 1:
			p.claim(l)
		case 2:
			p.transfer(l)
		case 3:
			p.swap(l)
		default:
			p.batch(l)
		}
		if p.err == nil {
			p.w.acked.Add(1)
		}
	}
}

// own records an operation on the writer's own keys that ended with err.
func (p *powerWriter) own(next model, l engine.Level, err error) {
	p.err = err
	switch {
	case err == nil && l == engine.Durable:
		p.states = []model{next}
	case err == nil || errors.Is(err, engine.ErrUnknownOutcome):
		p.states = append(p.states, next)
	}
}

func (p *powerWriter) key(i int) string { return fmt.Sprintf("%s/%03d", p.name, i) }

func (p *powerWriter) batch(l engine.Level) {
	next := maps.Clone(p.states[len(p.states)-1])
	b := p.w.db.NewBatch()
	put := func(i, size int) {
		v := strings.Repeat(fmt.Sprint(p.step, "."), 1+size/3)
		b.Put([]byte(p.key(i)), []byte(v))
		next[p.key(i)] = v
	}
	switch p.rng.IntN(6) {
	case 0: // over several frames, and now and then segments
		for range 50 + p.rng.IntN(100) {
			put(p.rng.IntN(200), p.rng.IntN(100))
		}
		put(p.rng.IntN(3), p.rng.IntN(60_000))
		fallthrough
	case 1:
		k := p.key(p.rng.IntN(200))
		b.Delete([]byte(k))
		delete(next, k)
	case 2:
		lo := p.rng.IntN(200)
		from, to := p.key(lo), p.key(lo+p.rng.IntN(30))
		b.DeleteRange([]byte(from), []byte(to))
		for _, k := range next.sorted(from, to) {
			delete(next, k)
		}
		if from < to {
			put(lo, 10)
		}
	default:
		put(p.rng.IntN(200), p.rng.IntN(300))
	}
	_, err := p.w.db.Commit(ctx, b, l)
	p.own(next, l, err)
}

// swap replaces a value of its own that it knows.
func (p *powerWriter) swap(l engine.Level) {
	next := maps.Clone(p.states[len(p.states)-1])
	key := p.name + "/swap"
	var old []byte
	if v, ok := next[key]; ok {
		old = []byte(v)
	}
	next[key] = fmt.Sprint(p.step)
	ok, _, err := p.w.db.CompareAndSwap(ctx, l, []byte(key), old, []byte(next[key]))
	if err == nil && !ok {
		p.w.t.Errorf("%s: %s is not what its only writer wrote", p.w.what, key)
	}
	p.own(next, l, err)
}

func (p *powerWriter) increment(l engine.Level) {
	var n int64
	n, _, p.err = p.w.db.Increment(ctx, l, []byte("sum"), 1)
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	switch {
	case p.err == nil && l == engine.Durable:
		p.w.sum = max(p.w.sum, n)
	case p.err == nil || errors.Is(p.err, engine.ErrUnknownOutcome):
		p.w.maybe++
	}
}

// claim writes a key that only one writer can get.
func (p *powerWriter) claim(l engine.Level) {
	key := fmt.Sprint("claim/", p.step%100, "/", p.w.acked.Load()/200)
	var done bool
	done, _, p.err = p.w.db.PutIfAbsent(ctx, l, []byte(key), []byte(p.name))
	if p.err != nil || l != engine.Durable {
		return
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if done {
		if owner := p.w.claims[key]; owner != "" {
			p.w.t.Errorf("%s: %s was given to %s and to %s", p.w.what, key, owner, p.name)
		}
		p.w.claims[key] = p.name
	} else if _, ok := p.w.claims[key]; !ok && p.w.opts.Commit == engine.Durable {
		p.w.claims[key] = "" // refused because it is there, so it stays
	}
}

func (p *powerWriter) transfer(l engine.Level) {
	from, to := fmt.Append(nil, "account/", p.rng.IntN(accounts)), fmt.Append(nil, "account/", p.rng.IntN(accounts))
	if string(from) == string(to) {
		return
	}
	_, p.err = p.w.db.Update(ctx, l, func(tx *engine.Tx) error {
		a, err := tx.Get(from)
		if err != nil {
			return err
		}
		b, err := tx.Get(to)
		if err != nil {
			return err
		}
		x, _ := strconv.Atoi(string(a))
		y, _ := strconv.Atoi(string(b))
		return errors.Join(tx.Put(from, fmt.Append(nil, x-1)), tx.Put(to, fmt.Append(nil, y+1)))
	})
	if errors.Is(p.err, engine.ErrConflict) {
		p.err = nil
	}
}

// pause leaves the processors to others between two looks.
const pause = 200 * time.Microsecond

// writeUntilCut lets the writers run, cuts the power in the middle, and closes what is left.
func (w *powerWorld) writeUntilCut() {
	var wg, readers sync.WaitGroup
	for _, p := range w.writers {
		p.err = nil
		wg.Go(func() { p.run(w.opts.Commit) })
	}
	stop := make(chan struct{})
	readers.Go(func() {
		for ; ; time.Sleep(pause) {
			select {
			case <-stop:
				return
			default:
			}
			if v, err := w.db.Get([]byte("sum")); err == nil && w.opts.Commit == engine.Durable {
				n, _ := strconv.ParseInt(string(v), 10, 64)
				w.seen = max(w.seen, n)
			}
		}
	})
	until := w.acked.Load() + int64(w.rng.IntN(500))
	for end := time.Now().Add(time.Minute); w.acked.Load() < until; time.Sleep(pause) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: commits do not go on", w.what)
		}
	}
	if err := w.m.Shutdown(); err != nil {
		w.t.Fatal(err)
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	w.db.Close() // whatever it says
	for _, p := range w.writers {
		if !errors.Is(p.err, engine.ErrPoisoned) && !errors.Is(p.err, syscall.EIO) && !errors.Is(p.err, syscall.EROFS) {
			w.t.Fatalf("%s: %s ended with %v", w.what, p.name, p.err)
		}
	}
}

// recover turns the power on, sometimes loses it again while the database opens, and checks what is there.
func (w *powerWorld) recover() {
	if err := w.m.Restart(); err != nil {
		w.t.Fatal(err)
	}
	if w.rng.IntN(4) == 0 {
		opened := make(chan struct{})
		go func() { // ends with Open
			defer close(opened)
			if db, err := engine.Open(w.dir, &w.opts); err == nil {
				db.Close()
			}
		}()
		time.Sleep(time.Duration(w.rng.IntN(3000)) * time.Microsecond) // any moment will do
		if err := w.m.Shutdown(); err != nil {
			w.t.Fatal(err)
		}
		<-opened
		if err := w.m.Restart(); err != nil {
			w.t.Fatal(err)
		}
	}
	w.open()
	got := state(w.t, w.db)
	w.check(got)
	if w.rng.IntN(2) == 0 {
		return // and write on without a clean close
	}
	if err := w.db.Close(); err != nil {
		w.t.Fatalf("%s: close: %v", w.what, err)
	}
	if w.rng.IntN(2) == 0 { // the state is a function of the log alone
		if err := os.RemoveAll(filepath.Join(w.dir, "index")); err != nil {
			w.t.Fatal(err)
		}
	}
	w.open()
	if again := state(w.t, w.db); !maps.Equal(got, again) || !w.db.Log().Recovery().Clean {
		w.t.Fatalf("%s: opening again changed the database: %d keys became %d; recovery %+v",
			w.what, len(got), len(again), w.db.Log().Recovery())
	}
}

// check compares the state after a cut with what was acknowledged, and takes it as what is there from now on.
func (w *powerWorld) check(got model) {
	w.t.Helper()
	for _, p := range w.writers {
		own := model{}
		for k, v := range got {
			if strings.HasPrefix(k, p.name+"/") {
				own[k] = v
			}
		}
		at := -1
		for i, s := range p.states {
			if maps.Equal(own, s) {
				at = i
			}
		}
		if at < 0 {
			w.t.Fatalf("%s: the %d keys of %s are in none of the %d states that they may be in (%d keys in the last acknowledged one)",
				w.what, len(own), p.name, len(p.states), len(p.states[0]))
		}
		w.unsure += len(p.states) - 1
		w.kept += at
		p.states = []model{own}
	}
	sum, _ := strconv.ParseInt(got["sum"], 10, 64)
	if lowest := max(w.sum, w.seen); sum < lowest || sum > lowest+w.maybe {
		w.t.Fatalf("%s: the sum is %d; %d was acknowledged, %d seen, %d more may be there", w.what, sum, w.sum, w.seen, w.maybe)
	}
	w.sum, w.seen, w.maybe = sum, sum, 0
	for k, owner := range w.claims {
		if v, ok := got[k]; !ok || owner != "" && v != owner {
			w.t.Fatalf("%s: %s is %q, it was given to %q", w.what, k, v, owner)
		}
	}
	total := 0
	for i := range accounts {
		n, err := strconv.Atoi(got[fmt.Sprint("account/", i)])
		if err != nil {
			w.t.Fatalf("%s: account %d: %v", w.what, i, err)
		}
		total += n
	}
	if total != accounts*funds {
		w.t.Fatalf("%s: the accounts hold %d, not %d", w.what, total, accounts*funds)
	}
}
