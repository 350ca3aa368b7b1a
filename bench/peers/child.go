package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
)

// childEnv is the environment variable that makes this program the child that runs one workload.
const childEnv = "SHIPLOG_PEERS_CHILD"

// spec tells a child what to do. It answers with a reply in file descriptor 3.
type spec struct {
	Engine   string
	Row      string // a workload's name
	Prepare  bool   // run its preparation instead
	Dir      string
	N        int // keys
	Value    int // bytes of a value
	Limit    time.Duration
	Cache    int64
	Settle   bool
	Profile  string  // file for a CPU profile of what is measured; empty: none
	Prepared results // what the preparation reported
}

type reply struct {
	Results results
	Err     string
}

// env is what a workload works with.
type env struct {
	spec
	peer  peer
	data  *dataset
	phase measured // what measure measured last
}

// childMain runs what the environment asks for, and ends the process.
func childMain(text string) {
	var s spec
	var r reply
	kill, err := false, json.Unmarshal([]byte(text), &s)
	if err == nil {
		r.Results, kill, err = s.do()
	}
	if err != nil {
		r.Err = err.Error()
	}
	out := os.NewFile(3, "reply")
	if err := json.NewEncoder(out).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "reply:", err)
		os.Exit(1)
	}
	if kill && r.Err == "" {
		killSelf()
	}
	os.Exit(0)
}

func (s *spec) do() (results, bool, error) {
	p, err := findPeer(s.Engine)
	if err != nil {
		return nil, false, err
	}
	w, err := findWorkload(s.Row)
	if err != nil {
		return nil, false, err
	}
	e := &env{spec: *s, peer: p, data: newDataset(s.N, s.Value)}
	if s.Prepare {
		r, err := w.prepare.run(e)
		return r, w.prepare.killed, err
	}
	r, err := w.run(e)
	if units := r[w.metrics[0].name] * e.phase.elapsed.Seconds(); err == nil && units > 0 {
		r[w.cpuMetric().name] = float64(e.phase.cpu.Nanoseconds()) / 1e3 / units
	}
	return r, false, err
}

func (e *env) config(durable bool, writers int) *Config {
	return &Config{Dir: e.Dir, Durable: durable, ValueSize: e.Value, Writers: writers, Cache: e.Cache}
}

// open opens the store with a number of sessions.
func (e *env) open(durable bool, sessions int) (Store, []Session, error) {
	store, err := e.peer.store(e.config(durable, sessions))
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	var list []Session
	for range sessions {
		s, err := store.Session()
		if err != nil {
			return nil, nil, fmt.Errorf("session: %w", err)
		}
		list = append(list, s)
	}
	return store, list, nil
}

func closeAll(store Store, sessions []Session) error {
	var errs []error
	for _, s := range sessions {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, store.Close())...)
}

// measured is what a phase of work came to.
type measured struct {
	done    int // operations
	elapsed time.Duration
	cpu     time.Duration // of the whole process
}

func (m measured) rate() float64 { return float64(m.done) / m.elapsed.Seconds() }

// measure is work with a CPU profile, if one was asked for.
func (e *env) measure(workers, ops int, limit time.Duration, op func(worker, i int) error) (m measured, err error) {
	if e.Profile != "" {
		f, err := os.Create(e.Profile)
		if err != nil {
			return m, err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return m, err
		}
		defer func() {
			pprof.StopCPUProfile()
			err = errors.Join(err, f.Close())
		}()
	}
	e.phase, err = work(workers, ops, limit, op)
	return e.phase, err
}

// work runs op for every i below ops, in worker goroutines of which each takes every workers-th, until all is done or
// the time is up, whichever is first, but one operation each at least; no limit where it is 0. One worker does them in
// order. The first error ends it.
func work(workers, ops int, limit time.Duration, op func(worker, i int) error) (measured, error) {
	var stop atomic.Bool
	if limit > 0 {
		defer time.AfterFunc(limit, func() { stop.Store(true) }).Stop()
	}
	var wg sync.WaitGroup
	done, errs := make([]int, workers), make([]error, workers)
	start, cpu := time.Now(), cpuTime()
	for w := range workers {
		wg.Go(func() {
			n := 0 // not done[w], whose cache line the others write too
			defer func() { done[w] = n }()
			for i := w; i < ops; i += workers {
				if err := op(w, i); err != nil {
					errs[w] = fmt.Errorf("operation %d: %w", i, err)
					stop.Store(true)
					break
				}
				n++
				if stop.Load() {
					break
				}
			}
		})
	}
	wg.Wait()
	m := measured{elapsed: time.Since(start), cpu: cpuTime() - cpu}
	for _, n := range done {
		m.done += n
	}
	return m, errors.Join(errs...)
}

// verify reads everything in order, checks keys, values and order, and compares their number.
func (e *env) verify(s Session, want int) error {
	n, err := e.walk(s, func(uint64, uint16) {})
	if err == nil && n != want {
		err = fmt.Errorf("verify: %d keys, want %d", n, want)
	}
	return err
}

// verifyVersion is verify for all existing keys, each of which must have a value of that version.
func (e *env) verifyVersion(s Session, version uint16) error {
	stale := 0
	n, err := e.walk(s, func(_ uint64, v uint16) {
		if v != version {
			stale++
		}
	})
	if err == nil && (n != e.N || stale > 0) {
		err = fmt.Errorf("verify: %d keys, want %d; %d with an old value", n, e.N, stale)
	}
	return err
}

// walk reads everything in order, checks each value and the order, and calls fn with the number of each key and the
// version of its value.
func (e *env) walk(s Session, fn func(number uint64, version uint16)) (int, error) {
	n, last := 0, int64(-1)
	var bad error
	err := s.Scan(key(nil, 0), math.MaxInt, func(k, v []byte) {
		var version uint16
		i, err := parseKey(k)
		if err == nil {
			version, err = e.data.checkValue(i, v)
		}
		if err == nil && int64(i) <= last {
			err = fmt.Errorf("key number %d after %d", i, last)
		}
		if err != nil && bad == nil {
			bad = err
		}
		last = int64(i)
		n++
		fn(i, version)
	})
	return n, errors.Join(err, bad)
}

const (
	settleWindow = 100 * time.Millisecond
	settleIdle   = 3 * time.Millisecond // CPU time in a window
	settleMost   = 2 * time.Minute

	briefly = 4  // windows, where what matters is that nothing runs beside the measurement
	fully   = 30 // windows, where what the background leaves behind is measured: some of it waits for a pause of seconds
)

// settle waits until the work that was left to the background (flushes, compactions) is done: until the process was idle for as
// many windows in a row. It is measured by the process's CPU time, so no store has to say.
func (e *env) settle(windows int) {
	if !e.Settle {
		return
	}
	idle := 0
	for start := time.Now(); idle < windows && time.Since(start) < settleMost; {
		before := cpuTime()
		time.Sleep(settleWindow)
		if cpuTime()-before <= settleIdle {
			idle++
		} else {
			idle = 0
		}
	}
}

// diskBytes is what the files below a directory take on the disk.
func diskBytes(dir string) (total float64, err error) {
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		total += allocated(info)
		return nil
	})
	return total, err
}
