package ship

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal"
)

const (
	// aheadLeast is how many whole segments must be missing for siblings to be asked: less is here sooner by the stream.
	aheadLeast = 2
	// aheadSources is from how many siblings pieces are fetched at once, one from each.
	aheadSources = 3
	// aheadRest is how often it is looked whether there is something to do, and how long a sibling that has failed is left alone: twice as long each
	// time, up to aheadMostRest.
	aheadRest     = time.Second
	aheadMostRest = time.Minute
	// aheadBytes is how much must be missing, at the least.
	aheadBytes = 64 << 20

	aheadSuffix = ".seg" // of a whole, verified segment
	partSuffix  = ".part"
)

// errAhead ends a connection: what comes next was fetched already.
var errAhead = errors.New("ship: what comes next was fetched from siblings")

// ahead fetches segments from siblings while the upstream's stream brings what is before them. Only whole, verified, synced segments
// have a name in its directory, and each of them is one of the log's.
type ahead struct {
	f   *Follower
	dir string

	holds atomic.Bool // have is not empty

	mu     sync.Mutex             // guards all below
	known  bool                   // the upstream has said up to where the log is committed
	have   []wal.LSN              // bases of the segments that are here, rising
	digest map[wal.LSN]wal.Digest // of the log at the bases of those that are or were here
	claims map[wal.LSN]context.CancelFunc
	busy   map[string]bool  // siblings that are fetched from
	banned map[string]error // siblings that are asked no more, and why
	rests  map[string]rest  // siblings that have failed
	wake   chan struct{}    // one token: look again
	made   bool             // dir exists
}

// rest is how long a sibling is left alone.
type rest struct {
	until time.Time
	last  time.Duration
}

func newAhead(f *Follower) *ahead {
	return &ahead{
		f: f, dir: f.opts.AheadDir, digest: map[wal.LSN]wal.Digest{}, claims: map[wal.LSN]context.CancelFunc{}, busy: map[string]bool{}, banned: map[string]error{},
		rests: map[string]rest{}, wake: make(chan struct{}, 1),
	}
}

func (a *ahead) path(base wal.LSN, suffix string) string {
	return filepath.Join(a.dir, base.String()+suffix)
}

// load takes up what an earlier run has left.
func (a *ahead) load() error {
	names, err := os.ReadDir(a.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range names {
		h, err := headerOf(filepath.Join(a.dir, e.Name()))
		if err != nil || e.Name() != h.Base.String()+aheadSuffix {
			if err := os.Remove(filepath.Join(a.dir, e.Name())); err != nil {
				return err
			}
			continue
		}
		a.have = append(a.have, h.Base)
		a.digest[h.Base] = h.Digest
	}
	slices.Sort(a.have)
	a.made = err == nil
	a.holds.Store(len(a.have) > 0)
	return nil
}

// headerOf reads the header of a segment's file.
func headerOf(path string) (h wal.Header, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, err
	}
	var b [wal.HeaderSize]byte
	_, err = f.ReadAt(b[:], 0)
	if err = errors.Join(err, f.Close()); err == nil {
		err = h.Unmarshal(b[:])
	}
	return h, err
}

// welcomed says that the upstream has taken this follower.
func (a *ahead) welcomed() {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.known = true
	a.mu.Unlock()
	signal(a.wake)
}

// stop returns where the stream is of no use any more: the first LSN at or above at that a file holds; ok is false where there is none.
func (a *ahead) stop(at wal.LSN) (stop wal.LSN, ok bool) {
	if a == nil || !a.holds.Load() || a.f.log.Empty() {
		return 0, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	size := wal.LSN(a.f.log.SegmentSize())
	for _, base := range a.have {
		if at < base+size {
			return max(at, base), true
		}
	}
	return 0, false
}

// take appends what the files hold from the head on, and removes them. An error is one of this node's own log.
func (a *ahead) take(ctx context.Context) error {
	for a != nil && ctx.Err() == nil && !a.f.log.Empty() {
		head := a.f.log.Head()
		a.prune(head)
		a.mu.Lock()
		next := len(a.have) > 0 && a.have[0] <= head
		var base wal.LSN
		if next {
			base = a.have[0]
		}
		a.mu.Unlock()
		if !next {
			return nil
		}
		if err := a.append(base, head); err != nil {
			return err
		}
	}
	return nil
}

// prune gives up what the log has by now.
func (a *ahead) prune(head wal.LSN) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f.log.Empty() {
		return
	}
	size := wal.LSN(a.f.log.SegmentSize())
	a.have = slices.DeleteFunc(a.have, func(base wal.LSN) bool {
		gone := base+size <= head
		if gone {
			a.remove(base)
		}
		return gone
	})
	a.holds.Store(len(a.have) > 0)
	for base, cancel := range a.claims {
		if base+size <= head {
			cancel()
		}
	}
	if a.made && len(a.have)+len(a.claims) == 0 {
		a.made = os.Remove(a.dir) != nil
	}
}

// remove removes a segment's file. mu is held.
func (a *ahead) remove(base wal.LSN) {
	if err := os.Remove(a.path(base, aheadSuffix)); err != nil {
		a.f.opts.Logger.Warn("a fetched segment was not removed", "error", err)
	}
}

// append appends the rest of a fetched segment. What does not fit is given up: the upstream has it.
func (a *ahead) append(base, head wal.LSN) error {
	log := a.f.log
	f, err := os.Open(a.path(base, aheadSuffix))
	if err == nil {
		err = appendFile(log, f, base, head)
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		_, err = log.Sync()
	}
	if end := base + wal.LSN(log.SegmentSize()); err == nil && log.Head() < end {
		err = fmt.Errorf("%w: the file ends at %s", wal.ErrInvalid, log.Head())
	}
	if err == nil {
		return nil // the next look removes it
	}
	var path *fs.PathError
	alien := errors.Is(err, wal.ErrInvalid) || errors.Is(err, wal.ErrEpoch) || errors.Is(err, wal.ErrDatabase)
	if !alien && !errors.As(err, &path) {
		return fmt.Errorf("ship: append at %s: %w", log.Head(), err)
	}
	a.f.opts.Logger.Error("a fetched segment does not fit: it is given up", "segment_lsn", base.String(), "error", err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.have = slices.DeleteFunc(a.have, func(b wal.LSN) bool { return b == base })
	a.holds.Store(len(a.have) > 0)
	a.remove(base)
	return nil
}

// appendFile appends the bytes of a segment's file from an LSN on.
func appendFile(log *wal.Log, f *os.File, base, at wal.LSN) error {
	buf, end := make([]byte, receiveBuffer), base+wal.LSN(log.SegmentSize())
	for at < end {
		n := min(len(buf), int(end-at))
		if n, err := f.ReadAt(buf[:n], int64(at-base)); err != nil && n == 0 {
			return err
		}
		taken, err := log.AppendRaw(at, buf[:n])
		if at += wal.LSN(taken); err != nil {
			return err
		}
		if taken == 0 {
			return fmt.Errorf("%w: no frame ends within %d bytes at %s", wal.ErrInvalid, n, at)
		}
	}
	return nil
}

// run fetches, until ctx ends.
func (a *ahead) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(aheadRest)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.wake:
		}
		a.prune(a.f.log.Head())
		if n := a.missing(); n < aheadLeast || int64(n)*a.f.log.SegmentSize() < a.f.opts.AheadBytes {
			continue
		}
		addrs, calls := a.f.opts.Siblings()
		for _, addr := range addrs {
			if a.engage(addr) {
				wg.Go(func() { a.source(ctx, addr, calls) }) // ended by ctx, or when there is no more to fetch
			}
		}
	}
}

// bounds returns the first segment that the stream has not begun, and the end of the last that is known to be committed.
func (a *ahead) bounds() (from, to wal.LSN) {
	if !a.known || a.f.log.Empty() {
		return 0, 0
	}
	a.f.mu.Lock()
	committed := a.f.st.Committed
	a.f.mu.Unlock()
	size := wal.LSN(a.f.log.SegmentSize())
	return (a.f.log.Head() + size - 1) &^ (size - 1), committed &^ (size - 1)
}

// missing returns how many segments could be fetched.
func (a *ahead) missing() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	from, to := a.bounds()
	if to <= from {
		return 0
	}
	return int((to-from)/wal.LSN(a.f.log.SegmentSize())) - len(a.have) - len(a.claims)
}

// engage reports whether a sibling is to be fetched from, and takes it if so.
func (a *ahead) engage(addr string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if addr == a.f.opts.Upstream || a.busy[addr] || len(a.busy) >= aheadSources || a.banned[addr] != nil || time.Now().Before(a.rests[addr].until) {
		return false
	}
	a.busy[addr] = true
	return true
}

// claim takes the newest segment that nobody has or fetches.
func (a *ahead) claim(ctx context.Context) (context.Context, wal.LSN, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	from, to := a.bounds()
	size := wal.LSN(a.f.log.SegmentSize())
	for base := to; base > from; {
		base -= size
		if _, taken := a.claims[base]; taken || slices.Contains(a.have, base) {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		a.claims[base] = cancel
		return ctx, base, true
	}
	return nil, 0, false
}

// source fetches segment after segment from a sibling.
func (a *ahead) source(ctx context.Context, addr string, calls *CallOptions) {
	var err error
	count := 0
	for err == nil && ctx.Err() == nil {
		fetch, base, ok := a.claim(ctx)
		if !ok {
			break
		}
		err = a.segment(fetch, addr, calls, base)
		passed := fetch.Err() != nil && ctx.Err() == nil // by the stream
		a.mu.Lock()
		a.claims[base]()
		delete(a.claims, base)
		if err == nil {
			a.have = append(a.have, base)
			slices.Sort(a.have)
			a.holds.Store(true)
			delete(a.rests, addr)
			count++
		}
		a.mu.Unlock()
		if passed {
			err = nil
		}
	}
	a.mu.Lock()
	delete(a.busy, addr)
	switch {
	case err == nil || ctx.Err() != nil:
	case banned(err):
		a.banned[addr] = err
		a.f.opts.Logger.Error("a sibling is not copied from any more", "sibling", addr, "error", err)
	default:
		last := min(max(aheadRest, 2*a.rests[addr].last), aheadMostRest)
		a.rests[addr] = rest{time.Now().Add(last), last}
		a.f.opts.Logger.Warn("copying from a sibling failed", "sibling", addr, "error", err, "retry_in", last)
	}
	a.mu.Unlock()
	if count > 0 {
		a.f.opts.Logger.Info("segments were copied from a sibling", "sibling", addr, "segments", count)
	}
	signal(a.wake)
}

// banned reports whether an error says that a sibling will never be of use.
func banned(err error) bool {
	var e *Error
	return errors.Is(err, errAlien) || errors.As(err, &e) && (e.Final() || e.Code == CodeProtocol && e.Remote)
}

// segment fetches one segment from a sibling into a file, and has the upstream vouch for it.
func (a *ahead) segment(ctx context.Context, addr string, calls *CallOptions, base wal.LSN) (err error) {
	a.mu.Lock()
	err = os.MkdirAll(a.dir, 0o700)
	a.made = a.made || err == nil
	a.mu.Unlock()
	if err != nil {
		return err
	}
	part := a.path(base, partSuffix)
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(part, a.path(base, aheadSuffix))
		}
		if err != nil {
			_ = os.Remove(part) // the next run does
		}
	}()
	end := base + wal.LSN(a.f.log.SegmentSize())
	vouched := make(chan verdict, 1) // ended by ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { vouched <- a.vouch(ctx, end) }()
	defer func() {
		cancel()
		<-vouched
	}()
	if err := a.download(ctx, addr, calls, base, f); err != nil {
		return err
	}
	h, digest, err := wal.VerifySegment(f)
	if err != nil {
		return fmt.Errorf("%w: %w", errAlien, err)
	}
	if h.Base != base || h.Database != a.f.log.DatabaseID() || h.SegmentSize != a.f.log.SegmentSize() {
		return fmt.Errorf("%w: the segment header is another's", errAlien)
	}
	v := <-vouched
	vouched <- v
	switch {
	case v.err != nil:
		return v.err
	case v.digest != digest:
		return fmt.Errorf("%w: they lead to digest %s at %s, the upstream has %s", errAlien, digest, end, v.digest)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	a.mu.Lock()
	a.digest[base] = h.Digest
	a.mu.Unlock()
	return nil
}

// download fetches the bytes of a segment.
func (a *ahead) download(ctx context.Context, addr string, calls *CallOptions, base wal.LSN, f *os.File) error {
	o := FollowerOptions{Upstream: addr, Secret: calls.Secret, Insecure: calls.Insecure, TLS: calls.TLS, Random: calls.Random, Timeout: a.f.opts.Timeout, HandshakeTimeout: a.f.opts.HandshakeTimeout}
	if calls.Dial != nil {
		o.TLS, o.Dial = nil, func(ctx context.Context) (net.Conn, error) { return calls.Dial(ctx, addr) }
	}
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	nc, err := dialUpstream(ctx, &o)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	at := int64(0)
	_, err = pieceFrom(ctx, nc, &o, a.f.log.DatabaseID(), base, base+wal.LSN(a.f.log.SegmentSize()), func(p []byte) error {
		n, err := f.WriteAt(p, at)
		at += int64(n)
		a.f.receivedBytes(n)
		return err
	})
	return err
}

// verdict is what the upstream says.
type verdict struct {
	digest wal.Digest
	err    error
}

// vouch returns the digest that the upstream's log has at the end of a segment. The header of the segment behind says it, if that is here: the upstream has
// vouched for it. Else the upstream is asked, again and again while it cannot be reached.
func (a *ahead) vouch(ctx context.Context, at wal.LSN) verdict {
	a.mu.Lock()
	digest, known := a.digest[at]
	a.mu.Unlock()
	if known {
		return verdict{digest: digest}
	}
	for {
		w, err := a.ask(ctx, at)
		if err == nil {
			return verdict{w.Digest, a.f.promise(w.Epoch)}
		}
		err = fmt.Errorf("the upstream's digest at %s: %w", at, err)
		if banned(err) {
			return verdict{err: err}
		}
		select {
		case <-ctx.Done():
			return verdict{err: err}
		case <-time.After(aheadRest):
		}
	}
}

// ask asks the upstream for its digest at the base of a segment.
func (a *ahead) ask(ctx context.Context, at wal.LSN) (*Welcome, error) {
	nc, err := dialUpstream(ctx, &a.f.opts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nc.Close() }()
	return pieceFrom(ctx, nc, &a.f.opts, a.f.log.DatabaseID(), at, at, nil)
}
