package main

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A fault is a way in which a store or log can be wrong. Whatever it gains by it, no workload may accept it.
type fault string

const (
	none    fault = ""
	loses   fault = "loses a write now and then"
	mixes   fault = "returns the value of another key"
	damages fault = "returns a changed byte"
	empty   fault = "returns nothing"
	invents fault = "finds what is not there"
	stale   fault = "keeps the first value"
	repeats fault = "returns a key twice in a scan"
)

// fake is a store in memory with a fault. Opening it again finds what was there.
type fake struct {
	fault fault
	mu    sync.Mutex
	puts  int
	m     map[string]string
	keys  []string // sorted; nil: to be made
	log   [][]byte
}

func (f *fake) peer() peer {
	return peer{
		name:  "fake",
		store: func(*Config) (Store, error) { return f, nil },
		log:   func(*Config) (LogStore, error) { return &fakeLog{f}, nil },
		replay: func(_ string, fn func([]byte) bool) error {
			for _, e := range f.log {
				if f.fault == empty || !fn(e) {
					break
				}
			}
			return nil
		},
	}
}

func (f *fake) Session() (Session, error) { return f, nil }
func (f *fake) Close() error              { return nil }

// change returns what the fault makes of a value that is stored.
func (f *fake) change(value []byte) []byte {
	f.puts++
	switch {
	case f.fault == damages && f.puts%50 == 0:
		value = bytes.Clone(value)
		value[len(value)-1] ^= 1
	case f.fault == loses && f.puts%50 == 0:
		return nil
	}
	return bytes.Clone(value)
}

func (f *fake) Put(key, value []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[string]string{}
	}
	_, old := f.m[string(key)]
	if value = f.change(value); value == nil || old && f.fault == stale {
		return nil
	}
	f.m[string(key)] = string(value)
	f.keys = nil
	return nil
}

func (f *fake) PutBatch(pairs []Pair) error {
	for _, p := range pairs {
		if err := f.Put(p.Key, p.Value); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Get(key []byte, fn func(value []byte)) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, ok := f.m[string(key)]
	switch f.fault {
	case empty:
		return false, nil
	case invents:
		return true, nil
	case mixes:
		value = f.m[string(existing(nil, 3))]
	}
	if ok {
		fn([]byte(value))
	}
	return ok, nil
}

func (f *fake) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		f.keys = slices.Sorted(maps.Keys(f.m))
	}
	at, _ := slices.BinarySearch(f.keys, string(start))
	for i, k := range f.keys[at:] {
		if limit == 0 || f.fault == empty {
			break
		}
		if f.fault == repeats && i == 1 {
			fn([]byte(f.keys[at]), []byte(f.m[f.keys[at]]))
			limit--
		}
		of := k
		if f.fault == mixes {
			of = f.keys[0]
		}
		fn([]byte(k), []byte(f.m[of]))
		limit--
	}
	return nil
}

type fakeLog struct{ *fake }

func (f *fakeLog) Append(entry []byte) error {
	if entry = f.change(entry); entry != nil {
		f.log = append(f.log, entry)
	}
	return nil
}

// runFake runs a workload on a store with a fault, preparation included.
func runFake(t *testing.T, w *workload, f fault) error {
	t.Helper()
	s := spec{Dir: t.TempDir(), N: 500, Value: 100} // without a limit, all that is to be done is done
	if w.name == "scan" {
		s.Limit = time.Millisecond // else it goes on
	}
	e := &env{spec: s, peer: (&fake{fault: f}).peer(), data: newDataset(s.N, s.Value)}
	if w.prepare != nil {
		r, err := w.prepare.run(e)
		if err != nil {
			return err
		}
		e.Prepared, e.Limit = r, s.Limit
	}
	r, err := w.run(e)
	if err != nil {
		return err
	}
	for _, m := range w.metrics {
		if _, ok := r[m.name]; !ok {
			t.Errorf("%s: no figure for %q", w.name, m.name)
		}
	}
	return nil
}

// TestWorkloadsCheckResults runs every workload on a store without a fault, which must pass, and on faulty ones, which
// must not.
func TestWorkloadsCheckResults(t *testing.T) {
	for _, w := range workloads {
		faults := []fault{loses, mixes, damages, empty, repeats}
		switch {
		case w.logs:
			faults = []fault{loses, damages, empty}
		case w.name == "missing":
			faults = append(faults, invents)
		case w.name == "overwrite":
			faults = append(faults, stale)
		case w.name == "reopenkill": // a kill may take the last writes: losing is measured, and only a gap is wrong
			faults = []fault{loses, mixes, damages, repeats}
		}
		t.Run(w.name, func(t *testing.T) {
			if err := runFake(t, &w, none); err != nil {
				t.Errorf("without a fault: %v", err)
			}
			for _, f := range faults {
				if err := runFake(t, &w, f); err == nil {
					t.Errorf("a store that %s passes", f)
				}
			}
		})
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range workloads {
		for _, m := range w.metrics {
			if seen[m.name] {
				t.Errorf("two metrics are called %q", m.name)
			}
			seen[m.name] = true
		}
		if rows := w.rows(true); len(rows) == len(w.metrics)+1 && seen[rows[1].name] {
			t.Errorf("two metrics are called %q", rows[1].name)
		}
	}
	for _, p := range peers {
		for _, row := range p.rows {
			if _, err := findWorkload(row); err != nil {
				t.Errorf("%s takes part in %v", p.name, err)
			}
		}
	}
	if _, err := findPeer("none"); err == nil || !strings.Contains(err.Error(), us) {
		t.Errorf("findPeer of an unknown engine = %v, want an error that lists them", err)
	}
	if _, err := parseFlags([]string{"-rows", "none", "-values", "3"}); err == nil {
		t.Error("unknown rows and values too small are taken")
	}
	o, err := parseFlags([]string{"-rows", "read1,scan", "-engines", "shiplog,pebble", "-values", "100"})
	if err != nil || len(o.workloads) != 2 || len(o.peers) != 2 || o.keys(100) != 1<<20 || o.keys(1024) != 1<<18 {
		t.Errorf("parseFlags = %+v, %v", o, err)
	}
}
