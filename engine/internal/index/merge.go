package index

import (
	"bytes"
	"errors"
	"slices"
	"sort"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal"
)

// fanIn is the least number of runs that are merged into one.
const fanIn = 4

// merger of runs; ended by Close.
func (x *Index) mergeWorker() {
	defer x.workers.Done()
	for {
		select {
		case <-x.quit:
			return
		case <-x.kickMerge:
		}
		for x.mergeOnce() {
		}
	}
}

// mergeOnce merges the runs that are due and reports whether to look again.
func (x *Index) mergeOnce() bool {
	x.merging.Lock()
	defer x.merging.Unlock()
	s := x.acquire()
	defer s.release()
	n := due(s.runs)
	if n == 0 || x.closing() {
		return false
	}
	for _, r := range s.runs[:n] {
		if r.cause.Load() != nil {
			return false // to be rebuilt first
		}
	}
	err := x.mergeRuns(s, n)
	if err != nil && !errors.Is(err, errClosing) {
		x.o.Logger.Error("index runs could not be merged", "error", err)
	}
	return err == nil
}

// due returns how many of the newest runs to merge: at least fanIn, and on as long as the next is not larger than twice
// those before it together. Sizes then fall off so fast that there are few runs, and each entry is written few times.
func due(runs []*openRun) (n int) {
	sum := int64(0)
	for i, r := range runs {
		if i > 0 && r.info.Size > 2*sum {
			break
		}
		sum += r.info.Size
		if i+1 >= fanIn {
			n = i + 1
		}
	}
	return n
}

// mergeRuns replaces the n newest runs of the state s by one.
func (x *Index) mergeRuns(s *state, n int) error {
	old := s.runs[:n]
	bottom := n == len(s.runs)
	newest, oldest := old[0], old[n-1]
	entries := uint64(0)
	for _, r := range old {
		entries += r.info.Keys
	}
	w, err := x.newWriter(run.WriterOptions{From: oldest.info.From, To: newest.info.To, Expected: entries})
	if err != nil {
		return err
	}
	k := x.keeper(wal.LSN(newest.info.To), bottom)
	err = x.mergeInto(w, old, k)
	r, err := x.finish(w, err, newest.mark)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	cur := x.state.Load()
	at := slices.Index(cur.runs, newest)
	if at < 0 || at+n > len(cur.runs) || cur.runs[at+n-1] != oldest {
		r.discard() // they were dropped meanwhile
		return nil
	}
	next := slices.Concat(cur.runs[:at], []*openRun{r}, cur.runs[at+n:])
	if err := x.writeManifest(next); err != nil {
		r.discard()
		return err
	}
	for _, o := range old {
		o.gone.Store(true)
	}
	x.install(cur.tables, next)
	return nil
}

// mergeInto writes what stays of the runs, newest first, in the order of keys.
func (x *Index) mergeInto(w *writer, runs []*openRun, k *keeper) error {
	var dels []run.RangeDelete
	its, from := make([]*run.Iter, 0, len(runs)), make([]*openRun, 0, len(runs))
	for _, r := range runs {
		it := new(run.Iter)
		it.Init(r.Run)
		if it.First() {
			its, from = append(its, it), append(from, r)
		} else if it.Err() != nil {
			return r.note(it.Err())
		}
		for _, d := range r.RangeDeletes() {
			if d.Ref >= k.tail {
				dels = append(dels, d)
			}
		}
	}
	var key []byte
	var versions []memindex.Version
	for n := 1; len(its) > 0; n++ {
		if n%closeCheck == 0 && x.closing() {
			return errClosing
		}
		low := 0
		for i := 1; i < len(its); i++ {
			if bytes.Compare(its[i].Key(), its[low].Key()) < 0 {
				low = i
			}
		}
		key = append(key[:0], its[low].Key()...)
		versions = versions[:0]
		for i := low; i < len(its); { // newest layer first, and newest version first in each
			it := its[i]
			ok := true
			for ok && bytes.Equal(it.Key(), key) {
				versions = append(versions, it.Version())
				ok = it.Next()
			}
			if !ok {
				if it.Err() != nil {
					return from[i].note(it.Err())
				}
				its, from = slices.Delete(its, i, i+1), slices.Delete(from, i, i+1)
				continue
			}
			i++
		}
		versions = withDeletes(versions, key, dels)
		for _, v := range k.keep(versions) {
			if err := w.Add(key, v); err != nil {
				return err
			}
		}
	}
	if k.bottom {
		return nil
	}
	sort.SliceStable(dels, func(i, j int) bool { return dels[i].Ref < dels[j].Ref })
	for _, d := range dels {
		if err := w.AddRangeDelete(d); err != nil {
			return err
		}
	}
	return nil
}

// withDeletes enters a delete among a key's versions for each range delete that covers it and lies above one of them: in the
// merged run they are of one layer. A range delete covers no version of its own layer that the layer's versions do not tell already.
func withDeletes(versions []memindex.Version, key []byte, dels []run.RangeDelete) []memindex.Version {
	for i := range dels {
		d := &dels[i]
		if bytes.Compare(key, d.Start) < 0 || d.End != nil && bytes.Compare(key, d.End) >= 0 {
			continue
		}
		at := sort.Search(len(versions), func(i int) bool { return versions[i].Ref <= d.Ref })
		if at < len(versions) && versions[at].Ref != d.Ref && versions[at].Kind != memindex.Delete {
			versions = slices.Insert(versions, at, memindex.Version{Ref: d.Ref, Kind: memindex.Delete})
		}
	}
	return versions
}
