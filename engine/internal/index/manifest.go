package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"

	"shiplog/engine/internal/run"
	"shiplog/wal"
	"shiplog/wal/vfs"
)

const (
	manifestName = "MANIFEST"
	suffix       = ".run"
	// magic begins the manifest; the checksum of what follows the line follows it.
	magic = "shiplog index 2 "
	// maxManifest bounds what is read of a manifest.
	maxManifest = 16 << 20
)

// manifest is what MANIFEST holds: the runs, oldest first.
type manifest struct {
	Runs []manifestRun `json:"runs"`
}

type manifestRun struct {
	Name string   `json:"name"`
	Info run.Info `json:"info"`
	Mark []byte   `json:"mark,omitempty"`
}

// writeManifest replaces the manifest by one that names the runs, newest first. It is durable on return. x.mu is held.
func (x *Index) writeManifest(runs []*openRun) error {
	var m manifest
	for _, r := range slices.Backward(runs) {
		m.Runs = append(m.Runs, manifestRun{r.name, r.info, r.mark})
	}
	body, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return fmt.Errorf("write index manifest: %w", err)
	}
	text := append(fmt.Appendf(nil, "%s%016x\n", magic, xxhash.Sum64(body)), body...)
	if err := vfs.ReplaceFile(x.o.FS, filepath.Join(x.o.Dir, manifestName), text); err != nil {
		return fmt.Errorf("write index manifest: %w", err)
	}
	return nil
}

// readManifest returns the runs that the manifest names, oldest first; none where there is no sound manifest.
func readManifest(fsys vfs.FS, dir string) ([]manifestRun, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, manifestName), os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened to be read only
	size, err := f.Size()
	if err != nil || size > maxManifest {
		return nil, errors.Join(err, errBadManifest)
	}
	text := make([]byte, size)
	if n, err := f.ReadAt(text, 0); n < len(text) {
		return nil, errors.Join(err, errBadManifest)
	}
	line, body, _ := bytes.Cut(text, []byte{'\n'})
	if string(line) != fmt.Sprintf("%s%016x", magic, xxhash.Sum64(body)) {
		return nil, errBadManifest
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, errors.Join(err, errBadManifest)
	}
	return m.Runs, nil
}

var errBadManifest = errors.New("index manifest is damaged")

// Open opens the index in a directory. It answers where the log has to be replayed from, 0 for its tail, and the mark
// that stands there. What is missing, damaged or not of this log is left out, with all that is newer, and removed. Open
// starts two goroutines; Close ends them.
func Open(o Options) (x *Index, from wal.LSN, mark []byte, err error) {
	x = &Index{o: o, kickFlush: make(chan struct{}, 1), kickMerge: make(chan struct{}, 1), quit: make(chan struct{})}
	x.room = sync.NewCond(&x.mu)
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, 0, nil, fmt.Errorf("open index: %w", err)
	}
	names, err := o.FS.ReadDir(o.Dir)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("open index: %w", err)
	}
	listed, err := readManifest(o.FS, o.Dir)
	if err != nil {
		o.Logger.Warn("the index is rebuilt from the log", "error", err)
	}
	runs := x.openRuns(listed)
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(runs) < len(listed) || err != nil {
		if err := x.writeManifest(runs); err != nil {
			for _, r := range runs {
				r.discardOpen()
			}
			return nil, 0, nil, fmt.Errorf("open index: %w", err)
		}
	}
	for _, name := range names {
		named := slices.ContainsFunc(runs, func(r *openRun) bool { return r.name == name })
		if !named && (strings.HasSuffix(name, suffix) || strings.HasSuffix(name, ".new")) {
			_ = o.FS.Remove(filepath.Join(o.Dir, name)) // tried again by the next Open
		}
	}
	if len(runs) > 0 {
		from, mark = wal.LSN(runs[0].info.To), runs[0].mark
	}
	x.install([]*table{x.newTable(from, len(runs) > 0)}, runs)
	x.workers.Add(2)
	go x.flusher()     // ended by Close
	go x.mergeWorker() // ended by Close
	x.kick(x.kickMerge)
	return x, from, mark, nil
}

// openRuns opens the listed runs, oldest first, up to the first that is not sound, and gives up the newest as long as they are not
// of this log: where one is, all older ones are. The result is newest first.
func (x *Index) openRuns(listed []manifestRun) []*openRun {
	var runs []*openRun
	end := uint64(0)
	for i, l := range listed {
		var seq uint64
		if _, err := fmt.Sscanf(l.Name, "%016x-%016x-%d"+suffix, new(uint64), new(uint64), &seq); err != nil || filepath.Base(l.Name) != l.Name {
			x.o.Logger.Warn("index run with a bad name", "run", l.Name)
			break
		}
		x.seq = max(x.seq, seq+1)
		r, err := x.openRun(l.Name, l.Info, l.Mark)
		if err == nil && (r.info.From < end && i > 0 || r.info.To <= r.info.From) {
			err = errors.New("its range overlaps")
			r.discardOpen()
		}
		if err != nil {
			x.o.Logger.Warn("index run left out; the log is replayed from there", "run", l.Name, "error", err)
			break
		}
		end = r.info.To
		runs = append([]*openRun{r}, runs...)
	}
	for len(runs) > 0 && !x.o.Valid(wal.LSN(runs[0].info.To), runs[0].mark) {
		x.o.Logger.Warn("index run is not of this log; the log is replayed from there", "run", runs[0].name)
		runs[0].discardOpen()
		runs = runs[1:]
	}
	return runs
}

// openRun opens one run and checks that it is the one that info describes.
func (x *Index) openRun(name string, info run.Info, mark []byte) (*openRun, error) {
	path := filepath.Join(x.o.Dir, name)
	r, err := run.Open(x.o.FS, path)
	if err != nil {
		return nil, err
	}
	o := &openRun{Run: r, name: name, info: info, mark: mark, fs: x.o.FS, path: path, damaged: x.o.Damaged}
	if r.Info() != info {
		o.discardOpen()
		return nil, fmt.Errorf("index run %s is not the one that the manifest names", name)
	}
	return o, nil
}

// discardOpen closes a run that no state holds and leaves its file.
func (r *openRun) discardOpen() { _ = r.Close() }

// Close ends the work in hand and releases the runs. What is in memory is not written out: the log has it. Nobody may be
// using the index.
func (x *Index) Close() {
	close(x.quit)
	x.mu.Lock()
	x.failed = errClosing
	x.room.Broadcast()
	x.mu.Unlock()
	x.workers.Wait()
	if s := x.state.Load(); len(s.runs) > 0 {
		s.release()
	}
}

// markAt is the mark at the end of the layer that has i tables before it; nil where there is none.
func (s *state) markAt(i int) []byte {
	if i < len(s.tables) {
		return s.tables[i].mark
	}
	if len(s.runs) > 0 {
		return s.runs[0].mark
	}
	return nil
}

// CutFrom drops all versions at or above to, as after the log was cut back there. It answers where the
// log has to be replayed from, up to to; to itself if nothing more than that was dropped. It must be called before the
// log is cut, so that no run speaks of what the log does not hold; it is durable on return.
func (x *Index) CutFrom(to wal.LSN) (from wal.LSN, mark []byte, err error) {
	x.flushing.Lock() // nobody reads a table that is cut, or merges runs that are dropped
	defer x.flushing.Unlock()
	x.merging.Lock()
	defer x.merging.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.state.Load()
	for i, t := range s.tables {
		if t.from > to {
			continue
		}
		if refOf(to) < x.floor.Load() {
			// What the cut brings back has been forgotten: the table is filled anew from its beginning.
			x.floor.Store(refOf(to))
			x.install(append([]*table{x.newTable(t.from, i+1 < len(s.tables) || len(s.runs) > 0)}, s.tables[i+1:]...), s.runs)
			return t.from, s.markAt(i + 1), nil
		}
		t.CutFrom(refOf(to))
		active := &table{Table: t.Table, from: t.from}
		var dels []run.RangeDelete
		for _, d := range t.deletes() {
			if d.Ref < refOf(to) {
				dels = append(dels, d)
			}
		}
		active.dels.Store(&dels)
		x.install(append([]*table{active}, s.tables[i+1:]...), s.runs)
		return to, nil, nil
	}
	x.floor.Store(min(x.floor.Load(), refOf(to)))
	keep := slices.IndexFunc(s.runs, func(r *openRun) bool { return r.info.To <= uint64(to) })
	if keep < 0 {
		keep = len(s.runs)
	}
	kept := s.runs[keep:]
	if err := x.writeManifest(kept); err != nil {
		return 0, nil, err
	}
	for _, r := range s.runs[:keep] {
		r.gone.Store(true)
	}
	if len(kept) > 0 {
		from, mark = wal.LSN(kept[0].info.To), kept[0].mark
	}
	x.install([]*table{x.newTable(from, len(kept) > 0)}, kept)
	return from, mark, nil
}
