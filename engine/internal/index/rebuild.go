package index

import (
	"fmt"
	"slices"

	"shiplog/engine/internal/memindex"
	"shiplog/engine/internal/run"
	"shiplog/wal"
)

// Entries takes what the log holds, in its order, for a run that is built again.
type Entries struct {
	x     *Index
	t     *table
	built []*openRun // oldest first
	base  bool       // the run has no older layer
}

// Insert is [Index.Insert].
func (e *Entries) Insert(key []byte, ref uint64, kind memindex.Kind) { e.t.Insert(key, ref, kind) }

// DeleteRange is [Index.DeleteRange].
func (e *Entries) DeleteRange(start, end []byte, ref uint64) {
	e.t.DeleteRange(start, end, ref)
	if e.hides() {
		e.t.addDelete(run.RangeDelete{Start: slices.Clone(start), End: slices.Clone(end), Ref: ref})
	}
}

// hides reports whether the table being filled has older layers.
func (e *Entries) hides() bool { return !e.base || len(e.built) > 0 }

// End says that everything below at, the end of a batch, was given. What has become large is written out.
func (e *Entries) End(at wal.LSN) error {
	if e.t.Bytes() < e.x.o.Memory/2 {
		return nil
	}
	return e.write(at, nil)
}

func (e *Entries) write(at wal.LSN, mark []byte) error {
	e.t.to, e.t.mark = at, mark
	r, err := e.x.writeTable(e.t, !e.hides())
	if err != nil {
		return err
	}
	e.built = append(e.built, r)
	e.t = e.x.newTable(at, true)
	return nil
}

// Rebuild puts new runs in the place of each damaged one. replay gives out what the log holds in a range, to the end of
// which runs have always reached with a batch. Until Rebuild has returned, reads that meet the damage go on failing.
func (x *Index) Rebuild(replay func(from, to wal.LSN, into *Entries) error) error {
	x.merging.Lock() // runs are not merged away meanwhile
	defer x.merging.Unlock()
	for {
		s := x.state.Load()
		i := slices.IndexFunc(s.runs, func(r *openRun) bool { return r.cause.Load() != nil })
		if i < 0 {
			x.kick(x.kickMerge)
			return nil
		}
		if err := x.rebuild(s.runs[i], i == len(s.runs)-1, replay); err != nil {
			return fmt.Errorf("rebuild index run %s: %w", s.runs[i].name, err)
		}
	}
}

func (x *Index) rebuild(bad *openRun, base bool, replay func(from, to wal.LSN, into *Entries) error) error {
	from, to := wal.LSN(bad.info.From), wal.LSN(bad.info.To)
	e := &Entries{x: x, t: x.newTable(from, !base), base: base}
	err := replay(from, to, e)
	if err == nil {
		err = e.write(to, bad.mark)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	cur := x.state.Load()
	at := slices.Index(cur.runs, bad)
	if err == nil && at >= 0 {
		fresh := slices.Clone(e.built)
		slices.Reverse(fresh)
		next := slices.Concat(cur.runs[:at], fresh, cur.runs[at+1:])
		if err = x.writeManifest(next); err == nil {
			bad.gone.Store(true)
			x.install(cur.tables, next)
			x.o.Logger.Info("index run rebuilt from the log", "run", bad.name)
			return nil
		}
	}
	for _, r := range e.built {
		r.discard()
	}
	return err
}
