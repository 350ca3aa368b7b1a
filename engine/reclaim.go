package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"shiplog/wal"
)

// Reclaim gives disk space back. It takes from the tail of the log only: what still lives in the oldest segments is
// appended again at the head, sorted by key, as relocated records that keep their first position; then a tail
// record says that the log begins later. Deletes and what has expired are left behind. Each node removes its segments once the tail
// record is durable and committed there.

const (
	// slackSegments is what the log may hold besides the factor times what lives.
	slackSegments = 3
	// idleFactor is how small reclaim makes the log, in hundredths of what lives, while nothing is written.
	idleFactor = 120
	// idleAfter is how long nothing must have been written for that.
	idleAfter = 2 * time.Second
	// reclaimEvery is how often the bounds are looked at; and after each quarter of a segment that is written.
	reclaimEvery = 100 * time.Millisecond
	// sampleSize windows of sampleWindow bytes, and of each frame in them one record in sampleEvery, make an estimate: the
	// share of what lives comes out within two or three hundredths.
	sampleSize   = 256
	sampleWindow = 16 << 10
	sampleEvery  = 8
	// relocateBytes is how much is written again in one batch: it bounds how long the pipeline decides about it.
	relocateBytes = 64 << 10
	// sortSegments is how many segments are sorted together while the database rests, and sortedSize is the largest record for
	// which that pays: of larger ones no frame holds two.
	sortSegments = 4
	sortedSize   = 2 << 10
	// gatherRecords bounds how many records are sorted together.
	gatherRecords = 1 << 20
)

// reclaimer is the goroutine that reclaims on a leader. Started by Open and Promote, ended by stop.
type reclaimer struct {
	db     *DB
	cancel context.CancelFunc
	done   chan struct{}
	rng    *rand.Rand

	live     wal.LSN // estimate of the bytes that live, and what the log was when it was made
	loose    wal.LSN // of them, those of small records in the order of their writing
	from, to wal.LSN
	lastHead wal.LSN // for idleness
	lastMove time.Time

	soft, full wal.LSN // sizes of the log from which it works, and does not rest any more
	idle       bool    // it works because nothing else does
}

func startReclaimer(db *DB) *reclaimer {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reclaimer{db: db, cancel: cancel, done: make(chan struct{}), rng: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))}
	go func() { // ended by stop
		defer close(r.done)
		r.run(ctx)
	}()
	return r
}

func (r *reclaimer) stop() {
	r.cancel()
	<-r.done
}

func (r *reclaimer) run(ctx context.Context) {
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	defer r.db.boundLog(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.db.reclaimKick:
		}
		for {
			again, err := r.step(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrReadOnly) {
				r.db.opts.Logger.Error("reclaim failed", "error", err)
			}
			if err != nil {
				r.db.boundLog(0)
			}
			if err != nil || !again {
				break
			}
		}
	}
}

// step reclaims one stretch at the tail if there is reason to, and reports whether to look again at once.
func (r *reclaimer) step(ctx context.Context) (bool, error) {
	db := r.db
	if db.follower.Load() || db.fenced.Load() != 0 {
		return false, nil
	}
	tail, head := db.tail(), db.log.Head()
	segment := wal.LSN(db.log.SegmentSize())
	db.reclaimAt.Store(uint64(head + segment/4))
	if head != r.lastHead {
		r.lastHead, r.lastMove = head, time.Now()
	}
	resting := time.Since(r.lastMove) > idleAfter
	sorts := db.opts.SortWhenIdle && resting
	if head-tail <= slackSegments*segment && !(sorts && head-tail > segment) {
		db.boundLog(0)
		return false, nil
	}
	if err := r.refresh(ctx, tail, head); err != nil {
		return false, err
	}
	stored := head - tail
	limit := r.live/100*wal.LSN(db.opts.SpaceFactor) + slackSegments*segment
	idle := resting && stored > r.live/100*idleFactor+slackSegments*segment
	sorts = sorts && r.loose > max(r.live/4, segment/2)
	// Until the tail moves, what is written again comes on top of the rest; and the estimate is one.
	db.boundLog(tail + limit)
	r.soft, r.full, r.idle = limit-limit/16*3, limit-limit/16, idle || sorts
	if stored <= r.soft && !r.idle {
		return false, nil
	}
	n := wal.LSN(1)
	if sorts {
		n = sortSegments
	}
	end := db.stretch(tail, head, n)
	if end <= tail {
		db.boundLog(0)
		return false, nil
	}
	if err := r.giveUp(ctx, tail, end); err != nil {
		return false, err
	}
	if r.idle {
		r.lastHead = db.log.Head() // its own writing is no reason to stop
	}
	return true, nil
}

// rest is how many times as long as for the last batch it rests before the next one: beyond the upper bound not at all.
func (r *reclaimer) rest() float64 {
	stored := r.db.log.Head() - r.db.tail()
	switch {
	case r.idle:
		return 0.5
	case stored >= r.full:
		return 0
	}
	return 3 * min(1, float64(r.full-stored)/float64(r.full-r.soft+1))
}

// stretch is where the tail can move to from where it is: over n segments, or as many more as it takes; the tail itself if the log has
// no such place yet.
func (db *DB) stretch(tail, head, n wal.LSN) wal.LSN {
	segment := wal.LSN(db.log.SegmentSize())
	tip := (head - 1) &^ (segment - 1)
	end := db.log.TailBelow(min(tail+n*segment, tip))
	for ; end <= tail && tail+n*segment < tip; n++ {
		end = db.log.TailBelow(tail + n*segment)
	}
	return end
}

// giveUp writes what lives in [tail, end) again, and then records that the log begins at end.
func (r *reclaimer) giveUp(ctx context.Context, tail, end wal.LSN) error {
	if err := r.relocate(ctx, tail, end); err != nil {
		return err
	}
	if err := r.db.moveTail(end); err != nil {
		return err
	}
	r.db.trim()
	return nil
}

// boundLog says up to where the log may grow before writes wait for reclaim; 0: without bound.
func (db *DB) boundLog(end wal.LSN) {
	if db.logBound.Swap(uint64(end)) == uint64(end) {
		return
	}
	if moved := db.boundMoved.Swap(nil); moved != nil {
		close(*moved)
	}
}

// maxSpaceWait is how long a write waits for reclaim at the most: the bound on the disk is not worth more.
const maxSpaceWait = time.Second

// awaitSpace holds a writer up that is faster than reclaim, so that the log keeps its bound.
func (db *DB) awaitSpace(ctx context.Context) {
	limit := time.NewTimer(maxSpaceWait)
	defer limit.Stop()
	for {
		moved := db.boundMoved.Load()
		if moved == nil {
			ch := make(chan struct{})
			if !db.boundMoved.CompareAndSwap(nil, &ch) {
				continue
			}
			moved = &ch
		}
		if bound := db.logBound.Load(); bound == 0 || uint64(db.log.Head()) < bound {
			return
		}
		select {
		case <-*moved:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// candidate is a record that lived when its segment was read.
type candidate struct {
	key []byte
	ref wal.Ref
}

// relocate appends what lives in [from, to) again, and rests between batches.
func (r *reclaimer) relocate(ctx context.Context, from, to wal.LSN) error {
	reader := r.db.log.NewReader(from)
	defer reader.Close()
	var d decoder
	var found []candidate
	now := r.db.clock.read()
	var arena []byte
	add := func(ref wal.Ref, rec Record) error {
		lives, err := r.db.lives(rec, ref, now)
		if err != nil {
			return err
		}
		if lives {
			if cap(arena)-len(arena) < len(rec.Key) {
				arena = make([]byte, 0, max(1<<20, len(rec.Key)))
			}
			arena = append(arena, rec.Key...)
			found = append(found, candidate{arena[len(arena)-len(rec.Key) : len(arena) : len(arena)], ref})
		}
		return nil
	}
	for reader.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := reader.Frame()
		if f.LSN >= to && !d.open {
			break
		}
		if err := d.frame(f, reader.Raw(), add); err != nil {
			return err
		}
		if len(found) >= gatherRecords {
			if err := r.write(ctx, found); err != nil {
				return err
			}
			found, arena = found[:0], nil
		}
	}
	if err := reader.Err(); err != nil {
		return err
	}
	return r.write(ctx, found)
}

// write appends the candidates that still live, in the order of their keys.
func (r *reclaimer) write(ctx context.Context, found []candidate) error {
	slices.SortFunc(found, func(a, b candidate) int { return bytes.Compare(a.key, b.key) })
	var group []candidate
	var records []byte
	var ends []int
	var buf wal.Buffer
	flush := func() error {
		if len(group) == 0 {
			return nil
		}
		began := time.Now()
		if err := r.db.appendRelocated(ctx, group, records, ends); err != nil {
			return err
		}
		group, records, ends = group[:0], records[:0], ends[:0]
		rest := r.rest()
		if rest <= 0 {
			return ctx.Err()
		}
		pause := time.NewTimer(time.Duration(rest * float64(time.Since(began))))
		defer pause.Stop()
		select {
		case <-pause.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, c := range found {
		err := r.db.log.ReadRecord(c.ref, &buf, func(p []byte) error {
			rec, _, err := DecodeRecord(p)
			if err != nil || !bytes.Equal(rec.Key, c.key) {
				return &wal.CorruptError{LSN: c.ref.LSN(), Reason: "record does not match the index", Err: err}
			}
			if rec.Orig == 0 {
				rec.Orig = c.ref
			}
			rec.Last = false
			records = AppendRecord(records, rec)
			return nil
		})
		if err != nil {
			return err
		}
		group, ends = append(group, c), append(ends, len(records))
		if len(records) >= relocateBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// appendRelocated commits those of the records whose place is still the newest of their keys. That is decided in the
// pipeline, so nothing written meanwhile is overtaken. Space may come out of the reserve: it is given back.
func (db *DB) appendRelocated(ctx context.Context, group []candidate, records []byte, ends []int) error {
	b := &Batch{}
	b.w.Urgent = true
	_, err := db.commitBatch(ctx, b, Buffered, func(v *view, b *Batch) error {
		from := 0
		for i, c := range group {
			rec := records[from:ends[i]]
			from = ends[i]
			if _, found := v.overlay.get(c.key); found {
				continue
			}
			ver, found, err := db.idx.Latest(c.key)
			if err != nil {
				return db.indexError(err)
			}
			if found && ver.Ref == uint64(c.ref) {
				b.w.Add(rec)
			}
		}
		b.w.Urgent = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("write live records again: %w", err)
	}
	return nil
}
