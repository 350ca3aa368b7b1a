package engine

import (
	"context"
	"errors"
	"math/rand/v2"

	"shiplog/wal"
)

// This file estimates how much of the log lives.

// refresh estimates anew how much of the log lives, if it has changed by a sixteenth or a segment since the last time.
func (r *reclaimer) refresh(ctx context.Context, tail, head wal.LSN) error {
	changed := (head - r.to) + (tail - r.from)
	if r.to != 0 && changed < max((head-tail)/16, wal.LSN(r.db.log.SegmentSize())) {
		return nil
	}
	s, err := r.db.survey(ctx, tail, head, sampleSize, r.rng)
	if err != nil {
		return err
	}
	stored := float64(head-tail) / max(s.all, 1)
	r.live, r.loose, r.from, r.to = wal.LSN(s.live*stored), wal.LSN(s.loose*stored), tail, head
	return nil
}

// survey adds up bytes of the log that were looked at, those of them that live, and of these those of small records that
// stand where they were first written.
type survey struct {
	all, live, loose float64
	now              int64
}

// survey estimates what of the log in [tail, head) lives. It looks at the frames that begin in each of n windows at
// random places, so that each frame is as likely as another, and asks the index about one record in sampleEvery.
func (db *DB) survey(ctx context.Context, tail, head wal.LSN, n int, rng *rand.Rand) (*survey, error) {
	s := &survey{now: db.clock.read()}
	for range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at := tail + wal.LSN(rng.Uint64N(uint64(head-tail)))
		if err := db.surveyWindow(s, at, min(at+sampleWindow, head), rng); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (db *DB) surveyWindow(s *survey, at, end wal.LSN, rng *rand.Rand) error {
	at, err := db.log.FrameFrom(at)
	r := db.log.NewReader(at)
	defer r.Close()
	for err == nil && r.Next() && r.Frame().LSN < end {
		err = db.surveyFrame(s, r.Frame(), r.Raw(), rng)
	}
	if err == nil {
		err = r.Err()
	}
	if errors.Is(err, wal.ErrBeyondEnd) || errors.Is(err, wal.ErrTrimmed) {
		return nil // behind the last frame of a segment, or the tail has moved
	}
	return err
}

// surveyFrame adds a frame, with the share of it that lives. Of a long record each frame lives as it does.
func (db *DB) surveyFrame(s *survey, f wal.Frame, raw []byte, rng *rand.Rand) error {
	size := float64(f.End() - f.LSN)
	if f.Control() {
		s.all += size
		return nil
	}
	at, first := f.LSN, raw
	if f.Continuation() {
		var err error
		if at, first, err = db.beginning(f.LSN); err != nil || first == nil {
			s.all += size
			return err
		}
	}
	live, loose, bytes := 0, 0, 0
	for off := 0; off < len(first); {
		rec, head, n, err := decodeHead(first[off:])
		if err != nil {
			break // the rest of a long record's key is in the next frame: too rare to matter
		}
		weight := head + n // large ones are always asked about, of small ones one for all
		if weight < len(first)/sampleEvery {
			weight *= sampleEvery * (1 - min(1, rng.IntN(sampleEvery)))
		}
		if weight > 0 {
			bytes += weight
			lives, err := db.lives(rec, wal.MakeRef(at, off), s.now)
			if err != nil {
				return err
			}
			if lives {
				live += weight
			}
			if lives && rec.Orig == 0 && head+n <= sortedSize {
				loose += weight
			}
		}
		off += head + n
	}
	if bytes > 0 {
		s.all += size
		s.live += size * float64(live) / float64(bytes)
		s.loose += size * float64(loose) / float64(bytes)
	}
	return nil
}

// lives reports whether the record at ref is what its key stands for.
func (db *DB) lives(rec Record, ref wal.Ref, now int64) (bool, error) {
	if rec.Op == OpDelete || rec.Op == OpDeleteRange || db.expired(rec.Expiry, now) {
		return false, nil
	}
	v, ok, err := db.idx.Latest(rec.Key)
	return ok && v.Ref == uint64(ref), db.indexError(err)
}

// beginning finds the first frame of the long record that goes on in the frame at an LSN; nil if it began below the tail.
func (db *DB) beginning(at wal.LSN) (wal.LSN, []byte, error) {
	for back := wal.LSN(64 << 10); ; back *= 2 {
		from, whole := db.log.Tail(), true
		if at > from+back {
			found, err := db.log.FrameFrom(at - back)
			if errors.Is(err, wal.ErrBeyondEnd) {
				continue // behind the last frame of a segment: further back there is one
			}
			if err != nil {
				return 0, nil, err
			}
			from, whole = found, false
		}
		start, found := wal.LSN(0), false
		for next := from; next < at; {
			f, err := db.log.FrameAt(next)
			if err != nil {
				return 0, nil, err
			}
			if !f.Continuation() && !f.Control() && !f.Seal() {
				start, found = f.LSN, true
			}
			next = f.End()
		}
		if found {
			_, raw, err := db.log.ReadFrame(start, nil)
			return start, raw, err
		}
		if whole {
			return 0, nil, nil
		}
	}
}
