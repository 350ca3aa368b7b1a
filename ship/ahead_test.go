package ship_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"shiplog/ship"
	"shiplog/wal"
)

// aheadWorld is a leader, siblings that have all of it, and an empty follower that is told of them.
type aheadWorld struct {
	t        *testing.T
	leader   *node
	c        *cluster
	siblings map[string]*cluster
	alter    map[string]func(up, down *stream) // of connections to siblings
	dir      string
	fresh    *node
	streamed atomic.Int64 // bytes from the leader
	logs     syncBuffer

	mu    sync.Mutex // guards came and dials
	came  map[string]int
	dials map[string]int
}

type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

const aheadSegments = 12

func newAheadWorld(t *testing.T, names ...string) *aheadWorld {
	w := &aheadWorld{
		t: t, leader: newLeaderNode(t), siblings: map[string]*cluster{}, alter: map[string]func(up, down *stream){},
		dir: filepath.Join(t.TempDir(), "ahead"), came: map[string]int{}, dials: map[string]int{},
	}
	w.c = startLeader(t, w.leader, nil)
	w.leader.fill(t, aheadSegments*testSegment, rand.New(rand.NewPCG(5, 5)))
	for _, name := range names {
		n, f := w.c.joined(ship.FollowerOptions{Name: name})
		until(t, "a sibling has everything", func() bool { return n.log.Durable() == w.leader.log.Head() })
		f.stop()
		w.siblings[name] = startLeader(t, n, nil)
	}
	w.fresh = newFollowerNode(t)
	return w
}

// dial connects to a sibling, and counts what comes from there.
func (w *aheadWorld) dial(_ context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	w.dials[addr]++
	w.mu.Unlock()
	s := w.siblings[addr]
	if s == nil {
		return nil, errors.New("nobody is there")
	}
	return s.ln.dial(func(up, down *stream) {
		if alter := w.alter[addr]; alter != nil {
			alter(up, down)
		}
		inner := down.mangle
		down.mangle = func(p []byte) (out []byte, ok bool) {
			out, ok = p, true
			if inner != nil {
				out, ok = inner(p)
			}
			w.mu.Lock()
			w.came[addr] += len(out)
			w.mu.Unlock()
			return out, ok
		}
	})
}

// start runs the follower. A connection to the leader stalls once so many bytes have come over it.
func (w *aheadWorld) start(budget int, siblings ...string) *following {
	calls := &ship.CallOptions{Dial: w.dial}
	return startFollower(w.t, w.fresh, ship.FollowerOptions{
		Name: "fresh", AheadDir: w.dir, AheadBytes: 1, Logger: slog.New(slog.NewTextHandler(&w.logs, nil)),
		Siblings: func() ([]string, *ship.CallOptions) { return siblings, calls },
		Dial: func(context.Context) (net.Conn, error) {
			return w.c.ln.dial(func(_, down *stream) {
				left := budget
				down.limit = 4 << 10
				down.mangle = func(p []byte) ([]byte, bool) {
					w.streamed.Add(int64(len(p)))
					if left -= len(p); left < 0 {
						down.stalled = true
					}
					return p, true
				}
			})
		},
	})
}

// files counts the segments that wait in the directory.
func (w *aheadWorld) files() int {
	names, err := filepath.Glob(filepath.Join(w.dir, "*.seg"))
	if err != nil {
		w.t.Fatal(err)
	}
	return len(names)
}

// ends expects the follower to come to hold what the leader does, and stops everything.
func (w *aheadWorld) ends(f *following) {
	w.t.Helper()
	f.reaches(w.leader.log.Head())
	samePrefix(w.t, w.leader.log, w.fresh.log)
	f.stop()
	if n := w.files(); n != 0 {
		w.t.Errorf("%d files are left", n)
	}
	w.stop()
}

func (w *aheadWorld) stop() {
	w.t.Helper()
	if w.t.Failed() {
		w.t.Log(w.logs.String())
	}
	for _, s := range w.siblings {
		s.stop()
	}
	w.c.stop()
}

// slowLeader lets a connection carry one and a half segments before it stalls.
const slowLeader = testSegment * 3 / 2

// TestAheadFromSiblings: with a slow leader, most of a first copy comes from two siblings, and the log is the leader's.
func TestAheadFromSiblings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAheadWorld(t, "a", "b")
		f := w.start(slowLeader, "a", "b", "nobody")
		w.ends(f)
		if w.came["a"] < testSegment || w.came["b"] < testSegment || w.came["a"]+w.came["b"] < (aheadSegments-4)*testSegment {
			t.Errorf("siblings sent %v", w.came)
		}
		if n := w.streamed.Load(); n > 4*testSegment {
			t.Errorf("the leader sent %d bytes", n)
		}
	})
}

// TestAheadBadSiblings: one that sends bytes that are none of the log, one that has another history, each frame of it sound, and one that dies
// half-way are told from a good one; nothing of theirs gets into the log.
func TestAheadBadSiblings(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(w *aheadWorld)
		dials int // at the most; 0: no bound
		want  string
	}{
		"garbage": {func(w *aheadWorld) {
			w.alter["bad"] = func(_, down *stream) {
				seen := 0
				down.mangle = func(p []byte) ([]byte, bool) {
					if seen += len(p); seen > 20_000 && len(p) > 1000 {
						p[500] ^= 1
					}
					return p, true
				}
			}
		}, 1, "is not copied from any more"},
		"another history": {func(w *aheadWorld) {
			n := w.siblings["bad"].node
			fork := n.log.Segments()[3] + wal.HeaderSize
			if err := n.log.Truncate(fork); err != nil {
				w.t.Fatal(err)
			}
			n.fill(w.t, (aheadSegments+1)*testSegment-int(n.log.Head()), rand.New(rand.NewPCG(9, 9)))
			n.moveCommitted(n.log.Head())
		}, 1, "they lead to digest"},
		"death": {func(w *aheadWorld) {
			w.alter["bad"] = func(_, down *stream) { down.mangle = cutAfter(testSegment / 2) }
		}, 0, "copying from a sibling failed"},
		"another build": {func(w *aheadWorld) {
			w.alter["bad"] = func(up, _ *stream) { // flips a byte of the Join: it is refused as what is not known is
				seen := 0
				up.mangle = func(p []byte) ([]byte, bool) {
					if seen < ship.HelloSize+ship.ProofSize && seen+len(p) > ship.HelloSize+ship.ProofSize || seen == ship.HelloSize+ship.ProofSize {
						p[len(p)-1] ^= 0x80
					}
					seen += len(p)
					return p, true
				}
			}
		}, 1, "is not copied from any more"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newAheadWorld(t, "bad", "good")
				test.spoil(w)
				f := w.start(slowLeader, "bad", "good")
				w.ends(f)
				if log := w.logs.String(); !strings.Contains(log, test.want) || !strings.Contains(log, "sibling=bad") || strings.Contains(log, "sibling=good error") {
					t.Errorf("want %q of the bad one:\n%s", test.want, log)
				}
				if test.dials > 0 && w.dials["bad"] > test.dials {
					t.Errorf("the bad one was asked %d times", w.dials["bad"])
				}
				if w.came["good"] < (aheadSegments-5)*testSegment {
					t.Errorf("the siblings sent %v", w.came)
				}
			})
		})
	}
}

// TestAheadGoesOn: what was fetched before a follower ended is used by the next, though no sibling is left; a file that is damaged meanwhile
// is given up, loudly, and the leader sends that part.
func TestAheadGoesOn(t *testing.T) {
	for name, damaged := range map[string]bool{"whole": false, "damaged": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newAheadWorld(t, "a")
				f := w.start(testSegment/2, "a")
				until(t, "nothing is left to be fetched", func() bool { return w.files() >= aheadSegments-2 })
				f.stop()
				kept := w.files()
				if damaged {
					names, _ := filepath.Glob(filepath.Join(w.dir, "*.seg"))
					p, err := os.ReadFile(names[2])
					if err != nil {
						t.Fatal(err)
					}
					p[testSegment/2] ^= 1
					if err := os.WriteFile(names[2], p, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(filepath.Join(w.dir, "0000000000010000.part"), []byte("cut short"), 0o600); err != nil {
					t.Fatal(err)
				}
				before := w.streamed.Load()
				f = w.start(slowLeader)
				w.ends(f)
				most := int64(aheadSegments-kept+2) * testSegment
				if damaged {
					most += testSegment
				}
				if n := w.streamed.Load() - before; n > most {
					t.Errorf("%d segments were there, and the leader sent %d bytes", kept, n)
				}
				if damaged != strings.Contains(w.logs.String(), "it is given up") {
					t.Errorf("damaged %v:\n%s", damaged, w.logs.String())
				}
			})
		})
	}
}

// TestAheadOnlyCommitted: a sibling gives no piece of what it has not committed, and none below its tail; only bases of segments are asked for.
func TestAheadOnlyCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAheadWorld(t, "a")
		n := w.siblings["a"].node
		n.mu.Lock()
		n.committed = 5*testSegment + 100
		n.mu.Unlock()
		if err := n.log.TrimBefore(3 * testSegment); err != nil {
			t.Fatal(err)
		}
		f := w.start(1<<30, "a")
		w.ends(f)
		if w.came["a"] > 3*testSegment+20_000 {
			t.Errorf("the sibling sent %d bytes", w.came["a"])
		}
	})
}

// TestPiece: a piece is the bytes asked for and no others, of no bytes the digest there; it is refused above what is committed, below the tail, inside a segment,
// and of another database.
func TestPiece(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeaderNode(t)
		l.fill(t, 6*testSegment, rand.New(rand.NewPCG(5, 5)))
		if err := l.log.TrimBefore(testSegment); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.committed = 4*testSegment + 100
		l.mu.Unlock()
		c := startLeader(t, l, nil)
		defer c.stop()
		ask := func(db wal.DatabaseID, from, until wal.LSN) ([]byte, wal.Digest, int, error) {
			var down *stream
			nc, err := c.ln.dial(func(_, d *stream) { down = d })
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			p, digest, err := ship.PieceFrom(t.Context(), nc, db, from, until)
			down.mu.Lock()
			defer down.mu.Unlock()
			return p, digest, down.written, err
		}
		for _, until := range []wal.LSN{2 * testSegment, 2*testSegment + 5000, 4 * testSegment} {
			p, digest, sent, err := ask(l.log.DatabaseID(), 2*testSegment, until)
			want, e := l.log.DigestAt(2 * testSegment)
			if err != nil || e != nil || digest != want || !bytes.Equal(p, content(t, l.log, 2*testSegment, until)) {
				t.Errorf("up to %s: %d bytes, digest %s, want %s: %v %v", until, len(p), digest, want, err, e)
			}
			if over := sent - len(p); over > 2000 {
				t.Errorf("up to %s: %d bytes more were sent", until, over)
			}
		}
		if p, _, _, err := ask(l.log.DatabaseID(), 4*testSegment, 5*testSegment); err == nil || len(p) > 100 {
			t.Errorf("%d bytes above what is committed: %v", len(p), err)
		}
		for want, from := range map[error]wal.LSN{ship.ErrBehind: 5 * testSegment, ship.ErrTrimmed: 0, ship.ErrProtocol: 2*testSegment + 128} {
			if p, _, _, err := ask(l.log.DatabaseID(), from, 5*testSegment); !errors.Is(err, want) || len(p) != 0 {
				t.Errorf("from %s: %d bytes, %v, want %v", from, len(p), err, want)
			}
		}
		if _, _, _, err := ask(wal.DatabaseID{1}, 2*testSegment, 3*testSegment); !errors.Is(err, ship.ErrDatabase) {
			t.Errorf("another database: %v", err)
		}
	})
}
