package memindex

import "sync/atomic"

const (
	// pruneBatch is how many versions and deletes gather before the queue is
	// looked at.
	pruneBatch = 1024
	// pruneMax bounds the nodes pruned by one job, and so the time that a scan
	// may wait for it: some 2 ms.
	pruneMax = 4096
	// pruneBacklog is the length of the queue, besides a quarter of the live
	// keys, from which the writer waits for pruning instead of running ahead.
	pruneBacklog = 16 * pruneMax
	// mergeMax bounds the keys merged by one job, and mergeLate those that the
	// writer merges itself because the ring is full, to some 5 and 2 ms.
	mergeMax  = ringMax / 2
	mergeLate = ringMax / 8
	// mergeHold is the number of keys merged before scans get their turn.
	mergeHold = 256
)

// job is a piece of work for another goroutine and what comes back from it.
// Between the two ends of the goroutine it is not the writer's.
type job struct {
	tickets []ticket
	dead    []entry
	again   []ticket  // to be queued again
	free    freeLists // to be reused
	key     []byte
}

// maintain takes back what the last job left and starts another if there is
// work and none is running. Only the writer calls it.
func (t *Table) maintain() {
	if t.running.Load() {
		if t.queue.n < pruneBacklog+int(t.live.Load())/4 || t.queue.oldest() >= t.floor.Load() {
			return
		}
		t.jobs.Wait()
	}
	t.collect()
	if t.debt >= pruneBatch {
		t.fetch()
	}
	if len(t.job.tickets) == 0 && t.ring.len() < len(t.ring.addr)/2 {
		return
	}
	t.running.Store(true)
	t.jobs.Add(1)
	go func() { // ends with its batch; CutFrom and Wait join it
		defer t.jobs.Done()
		t.order.Lock()
		t.mergeTo(min(t.ring.head.Load(), t.ring.tail.Load()+mergeMax))
		t.prune()
		t.order.Unlock()
		t.running.Store(false)
	}()
}

// collect takes back what the last job left. No job is running.
func (t *Table) collect() {
	j := &t.job
	t.arena.take(&j.free)
	for _, k := range j.again {
		t.queue.push(k)
	}
	j.again = j.again[:0]
	t.queueBytes.Store(t.queue.bytes())
}

// fetch moves tickets that the floor has passed into the job.
func (t *Table) fetch() {
	j, floor := &t.job, t.floor.Load()
	for t.queue.n > 0 && len(j.tickets) < pruneMax && t.queue.oldest() < floor {
		j.tickets = append(j.tickets, t.queue.pop())
	}
	// What could not be fetched waits for the next batch's worth of debt: with
	// a floor that stands still, looking again at once would find nothing.
	if len(j.tickets) < pruneMax {
		t.debt = 0
	}
}

// Wait returns when the work that Insert started elsewhere is done, and prunes
// all that the floor allows. Only the writer calls it; it serves tests and
// measurements of memory.
func (t *Table) Wait() {
	for {
		t.jobs.Wait()
		t.collect()
		t.fetch()
		t.order.Lock()
		t.mergeTo(t.ring.head.Load())
		done := len(t.job.tickets) == 0
		t.prune()
		t.order.Unlock()
		t.collect()
		if done {
			return
		}
	}
}

// mergeTo moves the keys of the ring up to end into the tree. The caller holds
// the order mutex.
func (t *Table) mergeTo(end uint64) {
	r := &t.ring
	tail := r.tail.Load()
	if tail >= end {
		return
	}
	sp := *t.arena.published.Load()
	mask := uint64(len(r.addr) - 1)
	es := t.batch[:0]
	for i := tail; i != end; i++ {
		es = append(es, entry{addr: r.addr[i&mask]})
	}
	// Keys pushed before the last one taken have lower refs, unless disorder
	// says otherwise, and all of them are taken.
	below := r.ref[(end-1)&mask]
	t.batch = es
	if len(t.spare) < len(es) {
		t.spare = make([]entry, cap(es))
	}
	sortEntries(sp, es, t.spare, 0, 0)
	for len(es) > 0 {
		t.treeLock.Lock()
		for n := 0; len(es) > 0 && n < mergeHold; {
			k := t.tree.insertRun(sp, es)
			es = es[k:]
			n += k
		}
		t.treeLock.Unlock()
	}
	t.noteTree()
	r.tail.Store(end)
	if below > t.settled.Load() {
		t.settled.Store(below)
	}
}

// noteTree publishes the size of the ordered side.
func (t *Table) noteTree() {
	t.treeBytes.Store(t.tree.memory + t.tree.bytes() + int64(cap(t.batch)+len(t.spare))*16)
}

// settle brings all keys with a version below at into the tree.
func (t *Table) settle(at uint64) {
	if t.ring.len() == 0 || at <= t.settled.Load() && !t.disorder.Load() {
		return
	}
	t.order.Lock()
	t.mergeTo(t.ring.head.Load())
	t.order.Unlock()
}

// prune works off the job's tickets. The caller holds the order mutex and the
// job.
//
// Dead keys leave the hash first. From then on the writer may make a new node
// for the same key and push it, but the ring was taken before and is not taken
// again before the old node has left the tree, so the two never meet there.
func (t *Table) prune() {
	j := &t.job
	if len(j.tickets) == 0 {
		return
	}
	t.mergeTo(t.ring.head.Load())
	floor := t.floor.Load()
	j.dead = j.dead[:0]
	for _, k := range j.tickets {
		t.pruneNode(k.addr, floor)
	}
	j.tickets = j.tickets[:0]
	sp := *t.arena.published.Load()
	t.unlink(sp, j.dead)
	for _, e := range j.dead {
		w := sp.node(e.addr)
		j.free.putChain(sp, metaPrev(w[1]))
		j.free.putNode(sp, metaLen(w[1]), e.addr)
	}
}

// pruneNode drops what no reader needs of one node: the node itself, which is
// then added to the job's dead, or its old versions.
func (t *Table) pruneNode(addr uint32, floor uint64) {
	j := &t.job
	w := (*t.arena.published.Load()).node(addr)
	m := atomic.LoadUint64(&w[1])
	j.key = appendKey(j.key[:0], w, metaLen(m))
	id, tag := split(t.hash(j.key))
	s := &t.shards[id]
	s.mu.Lock()
	sp := *t.arena.published.Load() // of now: the chain may reach into new chunks
	if metaKind(w[1]) == Delete && w[0] < floor && !t.over {
		t.slotBytes.Add(-int64(s.remove(int(id), tag, addr)))
		s.mu.Unlock()
		j.dead = append(j.dead, entry{addr: addr})
		return
	}
	rest := sp.cutBelow(w, floor)
	ref := w[0]
	keep := metaKind(w[1]) == Delete && !t.over
	if v := metaPrev(w[1]); v != 0 && metaPrev(sp.node(v)[1]) != 0 {
		keep = true
	}
	if !keep {
		atomic.StoreUint64(&w[1], w[1]&^queuedBit)
	}
	s.mu.Unlock()
	if keep {
		j.again = append(j.again, ticket{ref, addr})
	}
	j.free.putChain(sp, rest)
}

// unlink removes nodes from the tree. The caller holds the order mutex.
func (t *Table) unlink(sp space, dead []entry) {
	if len(t.spare) < len(dead) {
		t.spare = make([]entry, len(dead))
	}
	sortEntries(sp, dead, t.spare, 0, 0)
	for es := dead; len(es) > 0; {
		t.treeLock.Lock()
		for n := 0; len(es) > 0 && n < mergeHold; {
			k := t.tree.removeRun(sp, es)
			es = es[k:]
			n += k
		}
		t.treeLock.Unlock()
	}
	t.noteTree()
}
