package engine

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"shiplog/wal"
)

// marks holds how far this node has come, and who waits for what. One mutex guards the state; the
// marks themselves are mirrored in atomics, so readers take no lock.
type marks struct {
	visible   atomic.Uint64                           // readers see versions that end at or below it
	committed atomic.Uint64                           // visible, and on this node's disk
	indexed   atomic.Uint64                           // end of the last batch in the index
	durable   atomic.Uint64                           // copied from the log at each change
	ruleLevel atomic.Uint32                           // the strongest of rule and changes
	voters    atomic.Pointer[map[wal.NodeID]struct{}] // of rule and changes; replaced, never changed

	log   *wal.Log // told of the committed mark
	lease Lease    // nil: none is needed

	showsLate bool // a follower: what is shown is behind what is committed on purpose, or nothing is

	readLeases bool         // reads of a leader need its voters' leases under a rule that asks them
	readUntil  atomic.Int64 // until when they have them, in nanoseconds since the database was opened; 0: none are needed

	mu          sync.Mutex // guards everything below
	leader      bool
	rule        wal.Rule
	changes     []ruleChange        // on the way to rule, oldest first
	leasesFrom  time.Time           // reads have needed leases since then
	ruleEnd     wal.LSN             // end of the last record that changed the rule
	termEnd     wal.LSN             // end of the last record that began a term, of those that were replayed
	ruleFrom    wal.LSN             // end of the last record that changed the rule and was committed
	named       []string            // the only names that may vote; empty: each that connects
	removed     map[string]struct{} // names that SetRule has taken out
	narrowing   int                 // changes that nobody else is eligible for, and that are not in the log yet
	formats     []formatAt          // format levels, lowest first
	ledger      []spanAt            // degraded spans, oldest first
	degraded    wal.LSN             // start of the open degraded span; 0: none
	epochEnd    wal.LSN             // end of this leader's epoch record: nothing below it commits alone
	told        wal.LSN             // follower: the committed mark that its upstream told
	ends        lsnQueue
	waiting     waiterQueue
	late        []*waiter // visible, but their own level is stronger than the rule
	followers   map[wal.NodeID]*follower
	lateReaders map[wal.NodeID]struct{} // connected followers whose readers are not counted
	changed     chan struct{}           // closed and replaced when someone waits for any change
	subs        map[chan<- struct{}]struct{}
	failed      error // sticky: the log was poisoned
	fenced      error // a leader that may commit nothing more
}

// waiter is one call that waits until end is visible and level holds there.
type waiter struct {
	end   wal.LSN // 0: not in the log yet; guarded by marks.mu until the wait is over
	level Level
	err   error
	state atomic.Uint32 // running, parked or over
	done  chan struct{} // capacity 1; receives once when the wait of a parked caller is over
	gone  bool          // the caller has left; guarded by marks.mu
}

// The states of a waiter: its caller does other things; it waits on done; the answer is there.
const (
	running = iota
	parked
	over
)

// park says that the caller is going to wait on done. False: the answer is there already.
func (w *waiter) park() bool { return w.state.CompareAndSwap(running, parked) }

// waiterQueue and lsnQueue are FIFO queues that keep their memory.
type waiterQueue = queue[*waiter]

type lsnQueue = queue[wal.LSN]

type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) push(v T) {
	if q.head > 64 && q.head*2 > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *queue[T]) empty() bool { return q.head == len(q.items) }

func (q *queue[T]) size() int { return len(q.items) - q.head }

func (q *queue[T]) front() T { return q.items[q.head] }

func (q *queue[T]) pop() {
	var zero T
	q.items[q.head] = zero
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
}

func (m *marks) visibleLSN() wal.LSN { return wal.LSN(m.visible.Load()) }

func (m *marks) committedLSN() wal.LSN { return wal.LSN(m.committed.Load()) }

// shownLSN is up to where somebody has been shown, or told as committed, what is here.
func (m *marks) shownLSN() wal.LSN {
	if m.showsLate {
		return max(m.visibleLSN(), m.committedLSN())
	}
	return m.visibleLSN()
}

func (m *marks) indexedLSN() wal.LSN { return wal.LSN(m.indexed.Load()) }

func (m *marks) durableLSN() wal.LSN { return wal.LSN(m.durable.Load()) }

// appended records that everything up to end, a batch end, is in the log and in the index, and
// enters the waiters of that group, who wait for it. Calls come in log order.
func (m *marks) appended(end wal.LSN, waiters []*waiter) {
	m.mu.Lock()
	m.indexed.Store(uint64(end))
	m.ends.push(end)
	for _, w := range waiters {
		w.end = end
		m.waiting.push(w)
	}
	m.advance()
	m.mu.Unlock()
}

// applied records that a follower has indexed everything up to end, a batch end.
func (m *marks) applied(end wal.LSN) {
	m.mu.Lock()
	m.indexed.Store(uint64(end))
	m.advance()
	m.signal()
	m.mu.Unlock()
}

// cut lowers the marks after the log was cut back: to the last batch end that is applied, to what may still be told as committed, and to the log's durable mark.
func (m *marks) cut(batchEnd, told, durable wal.LSN) {
	m.mu.Lock()
	m.indexed.Store(min(m.indexed.Load(), uint64(batchEnd)))
	m.durable.Store(min(m.durable.Load(), uint64(durable)))
	for i, c := range m.changes {
		if c.end > batchEnd {
			m.rule, m.changes = c.old, m.changes[:i]
			m.ruleMoved()
			break
		}
	}
	m.cutSpans(batchEnd)
	m.cutFormats(batchEnd)
	m.visible.Store(min(m.visible.Load(), uint64(batchEnd)))
	m.committed.Store(min(m.committed.Load(), uint64(durable), uint64(told)))
	m.told = min(m.told, told)
	m.signal()
	m.mu.Unlock()
}

// enter takes up a waiter for an end that is in the log already, behind all that wait now.
func (m *marks) enter(w *waiter, end wal.LSN) {
	m.mu.Lock()
	w.end = end
	m.waiting.push(w)
	m.advance()
	m.mu.Unlock()
}

// touch wakes those who wait for any change.
func (m *marks) touch() {
	m.mu.Lock()
	m.signal()
	m.mu.Unlock()
}

// degradedAt is where the open degraded span begins; 0: none is open.
func (m *marks) degradedAt() wal.LSN {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.degraded
}

func (m *marks) setDegraded(from wal.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.degraded = from
	m.readMoved()
	m.advance()
}

// replayedDegraded takes note of a record that begins a degraded span, found in the log: what is in front of it has been
// committed as Durable, changes of the rule too.
func (m *marks) replayedDegraded(end wal.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leader {
		m.endChangesAt(end)
	}
}

// synced records the log's durable mark.
func (m *marks) synced(durable wal.LSN) {
	m.mu.Lock()
	if uint64(durable) > m.durable.Load() {
		m.durable.Store(uint64(durable))
	}
	m.advance()
	m.mu.Unlock()
}

// advance recomputes visible and committed and wakes those whose wait is over. m.mu is held.
func (m *marks) advance() {
	before := m.visible.Load() + m.committed.Load()
	if m.leader {
		m.advanceLeader()
	} else {
		m.advanceFollower()
	}
	committed := min(m.visible.Load(), m.durable.Load())
	if m.showsLate && !m.leader {
		committed = min(uint64(m.told), m.durable.Load())
	}
	if committed > m.committed.Load() {
		m.committed.Store(committed)
		m.log.SetCommitted(wal.LSN(committed))
	}
	m.wake()
	if m.visible.Load()+m.committed.Load() != before {
		m.signal()
	}
}

func (m *marks) advanceLeader() {
	if m.fenced != nil || m.lease != nil && !m.lease.Held() {
		return
	}
	if m.failed != nil && m.ends.empty() {
		return
	}
	end, over := commitEnd(m.changes, m.rule, m.degraded != 0, m.indexedLSN(), m.durableLSN(), m.followers)
	if end < m.epochEnd {
		return
	}
	m.endChanges(over)
	for !m.ends.empty() && m.ends.front() <= end {
		if v := uint64(m.ends.front()); v > m.visible.Load() {
			m.visible.Store(v)
		}
		m.ends.pop()
	}
}

// advanceFollower shows what is indexed up to what the upstream says is committed; both are batch ends.
func (m *marks) advanceFollower() {
	if v := uint64(min(m.indexedLSN(), m.told)); v > m.visible.Load() {
		m.visible.Store(v)
	}
	m.endChangesAt(m.visibleLSN())
}

// setRule takes up the rule of a record that ends at end, in log order. m.mu is held.
func (m *marks) setRule(rule wal.Rule, end wal.LSN) {
	old, both := changeOf(m.rule, rule)
	for i := range m.changes {
		m.changes[i].old, _ = changeOf(m.changes[i].old, rule)
	}
	m.rule, m.ruleEnd = rule, end
	if both && end > m.log.Committed() {
		m.changes = append(m.changes, ruleChange{end, old})
	}
	m.ruleMoved()
}

// beganTerm takes note of a record that begins a term, found in the log.
func (m *marks) beganTerm(end wal.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.termEnd = end
}

// endChanges takes note that the oldest n changes are committed. m.mu is held.
func (m *marks) endChanges(n int) {
	if n == 0 {
		return
	}
	m.ruleFrom = m.changes[n-1].end
	m.changes = slices.Delete(m.changes, 0, n)
	m.ruleMoved()
}

// endChangesBefore ends the changes that were on their way when this node was elected: enough voters have promised under each of the rules, and its
// epoch's record begins with the newest alone. m.mu is held.
func (m *marks) endChangesBefore(term wal.LSN) {
	n := 0
	for n < len(m.changes) && m.changes[n].end <= term {
		n++
	}
	m.changes = slices.Delete(m.changes, 0, n)
	m.ruleMoved()
}

// endChangesAt ends the changes whose records lie below the committed mark. m.mu is held.
func (m *marks) endChangesAt(committed wal.LSN) {
	n := 0
	for n < len(m.changes) && m.changes[n].end <= committed {
		n++
	}
	m.endChanges(n)
}

// ruleMoved brings what follows from rule and changes up to date. m.mu is held.
func (m *marks) ruleMoved() {
	level, voters := Level(0), map[wal.NodeID]struct{}{}
	for r := range m.inForce {
		if l := Level(r.Level); l.kind() > level.kind() || l.kind() == level.kind() && l.N() > level.N() {
			level = l
		}
		for _, v := range r.Voters {
			if !v.ID.IsZero() {
				voters[v.ID] = struct{}{}
			}
		}
	}
	for id, f := range m.followers {
		_, f.voter = voters[id]
	}
	m.ruleLevel.Store(uint32(level))
	m.voters.Store(&voters)
	m.readMoved()
}

// inForce yields the rules that a new write must meet. m.mu is held.
func (m *marks) inForce(yield func(wal.Rule) bool) {
	for _, c := range m.changes {
		if !yield(c.old) {
			return
		}
	}
	yield(m.rule)
}

// shortfall returns a rule in force for which too few voters are connected, and how many there are. m.mu is held.
func (m *marks) shortfall() (level Level, have int, short bool) {
	for r := range m.inForce {
		if level, have = Level(r.Level), connectedVoters(r, m.followers); have < level.N() {
			return level, have, true
		}
	}
	return level, have, false
}

// wake ends the waits that are over. m.mu is held.
func (m *marks) wake() {
	visible := m.visibleLSN()
	for !m.waiting.empty() && (m.waiting.front().end <= visible || m.waiting.front().gone) {
		w := m.waiting.front()
		m.waiting.pop()
		if w.gone {
			continue
		}
		if m.levelHolds(w) {
			w.finish(nil)
		} else {
			m.late = append(m.late, w)
		}
	}
	if len(m.late) > 0 {
		kept := m.late[:0]
		for _, w := range m.late {
			switch {
			case w.gone:
			case m.levelHolds(w):
				w.finish(nil)
			default:
				kept = append(kept, w)
			}
		}
		clear(m.late[len(kept):])
		m.late = kept
	}
	if m.failed != nil {
		m.failWaiters(m.failed)
	}
	if m.fenced != nil {
		m.failWaiters(m.fenced)
	}
}

// levelHolds reports whether the waiter's own level holds at its end. The rule holds there already.
func (m *marks) levelHolds(w *waiter) bool {
	level := w.level
	if level == Default {
		level = Level(m.rule.Level)
	}
	if m.degraded != 0 && level.synchronous() {
		level = Durable
	}
	if level.kind() == levelApplied && visibleEnd(level.N(), m.rule, m.followers) < w.end {
		return false
	}
	sameRule := len(m.changes) == 0 && w.end > m.ruleFrom // as the one that has let it become visible
	if w.level == Default || sameRule && level.kind() <= Level(m.rule.Level).kind() && level.N() <= Level(m.rule.Level).N() {
		return true
	}
	return levelEnd(level, m.rule, m.indexedLSN(), m.durableLSN(), m.followers) >= w.end
}

func (w *waiter) finish(err error) {
	w.err = err
	if w.state.Swap(over) == parked {
		w.done <- struct{}{}
	}
}

// fail makes the error sticky and ends every wait that can no longer succeed.
func (m *marks) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		m.failed = err
	}
	m.advance()
	m.signal()
}

// fence ends every wait of a leader, and holds its marks where they are, until it is another's follower or leads anew.
func (m *marks) fence(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fenced = err
	m.readMoved()
	m.failWaiters(err)
	m.signal()
}

// failWaiters ends the waits for what is not on this disk and never will be, or for what a closed
// database no longer follows. m.mu is held.
func (m *marks) failWaiters(err error) {
	for ; !m.waiting.empty(); m.waiting.pop() {
		if w := m.waiting.front(); !w.gone {
			w.finish(err)
		}
	}
	for _, w := range m.late {
		if !w.gone {
			w.finish(err)
		}
	}
	m.late = nil
}

// signal tells subscribers, and those who wait for any change, that a mark has moved. m.mu is held.
func (m *marks) signal() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
	for ch := range m.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// change returns a channel that is closed at the next change of any mark or follower.
func (m *marks) change() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changeLocked()
}

func (m *marks) changeLocked() <-chan struct{} {
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return m.changed
}

func (m *marks) subscribe(ch chan<- struct{}) (cancel func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.subs == nil {
		m.subs = map[chan<- struct{}]struct{}{}
	}
	m.subs[ch] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.subs, ch)
	}
}

// leave ends a wait from the caller's side; left is false if it was over already.
func (m *marks) leave(w *waiter) (end wal.LSN, left bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.state.Load() == over {
		<-w.done // it was parked
		return w.end, false
	}
	w.gone = true
	return w.end, true
}
