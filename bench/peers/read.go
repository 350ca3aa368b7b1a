package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
)

const (
	anonAfterReads = "memory after reads, anonymous"
	fileAfterReads = "memory after reads, mapped files"
)

// readWorkloads read single keys at random, everything warm.
var readWorkloads = []workload{
	{name: "read1", prepare: load, metrics: []metric{
		{name: "random reads, 1 goroutine", unit: "ops/s"},
		{name: anonAfterReads, unit: "MB", lower: true},
		{name: fileAfterReads, unit: "MB", lower: true},
	}, run: func(e *env) (results, error) { return e.reads("random reads, 1 goroutine", 1, true) }},
	{name: "read2", prepare: load, metrics: []metric{{name: "random reads, 2 goroutines", unit: "ops/s"}}, run: func(e *env) (results, error) {
		return e.reads("random reads, 2 goroutines", 2, true)
	}},
	{name: "missing", prepare: load, metrics: []metric{{name: "missing keys, 1 goroutine", unit: "ops/s"}}, run: func(e *env) (results, error) {
		return e.reads("missing keys, 1 goroutine", 1, false)
	}},
}

// reader looks up keys and checks what it gets.
type reader struct {
	data  *dataset
	s     Session
	k     []byte
	num   uint64
	check func(value []byte)
	err   error
}

func newReader(d *dataset, s Session) *reader {
	r := &reader{data: d, s: s}
	r.check = func(v []byte) {
		if _, err := d.checkValue(r.num, v); err != nil {
			r.err = err
		}
	}
	return r
}

func (r *reader) get(number uint64, want bool) error {
	r.num = number
	r.k = key(r.k, number)
	found, err := r.s.Get(r.k, r.check)
	if err := errors.Join(err, r.err); err != nil {
		return err
	}
	if found != want {
		return fmt.Errorf("key number %d: found %v, want %v", number, found, want)
	}
	return nil
}

// warm opens the loaded store, reads everything once in order, checking it, and lets the background come to rest.
func (e *env) warm(sessions int) (Store, []Session, error) {
	store, s, err := e.open(false, sessions)
	if err != nil {
		return nil, nil, err
	}
	if err := e.verify(s[0], e.N); err != nil {
		return nil, nil, err
	}
	e.settle(briefly)
	return store, s, nil
}

// seeded returns a random generator for each worker.
func seeded(workers int) []*rand.Rand {
	var list []*rand.Rand
	for w := range workers {
		list = append(list, rand.New(rand.NewPCG(7, uint64(w))))
	}
	return list
}

func (e *env) reads(label string, workers int, exist bool) (results, error) {
	before, err := readMemory()
	if err != nil {
		return nil, err
	}
	store, s, err := e.warm(workers)
	if err != nil {
		return nil, err
	}
	var readers []*reader
	for _, session := range s {
		readers = append(readers, newReader(e.data, session))
	}
	rng := seeded(workers)
	get := func(w, _ int) error {
		number := 2 * rng[w].Uint64N(e.data.n)
		if !exist {
			number++
		}
		return readers[w].get(number, exist)
	}
	if _, err := work(workers, e.N/4, e.Limit/4, get); err != nil {
		return nil, err
	}
	m, err := e.measure(workers, 4*e.N, e.Limit, get)
	if err != nil {
		return nil, err
	}
	after, err := readMemory()
	if err != nil {
		return nil, err
	}
	added := after.since(before)
	return results{label: m.rate(), anonAfterReads: added.anon, fileAfterReads: added.file}, closeAll(store, s)
}
