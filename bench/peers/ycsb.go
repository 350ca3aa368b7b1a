package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
)

// ycsbWorkers is the number of goroutines of a YCSB workload.
const ycsbWorkers = 2

// ycsbWorkloads are core workloads of YCSB (Cooper et al., SoCC 2010) after a load: zipfian requests, scattered over the
// keys; updates replace the whole value and are not synced.
var ycsbWorkloads = []workload{
	ycsb("ycsba", "YCSB A (half updates), 2 goroutines", 50),
	ycsb("ycsbb", "YCSB B (5 % updates), 2 goroutines", 95),
	{name: "ycsbe", prepare: load, metrics: []metric{{name: "YCSB E (scans to 100, 5 % inserts), 2 goroutines", unit: "ops/s"}}, run: ycsbE},
}

func ycsb(name, label string, readPercent int) workload {
	run := func(e *env) (results, error) {
		return e.mix(label, func(w *ycsbWorker, _ int) error {
			index := w.draw()
			if w.rng.IntN(100) < readPercent {
				return w.get(2*index, true)
			}
			return w.put(2*index, uint16(w.rng.Uint32()))
		})
	}
	return workload{name: name, prepare: load, metrics: []metric{{name: label, unit: "ops/s"}}, run: run}
}

func ycsbE(e *env) (results, error) {
	const longest = 100
	return e.mix("YCSB E (scans to 100, 5 % inserts), 2 goroutines", func(w *ycsbWorker, i int) error {
		if w.rng.IntN(100) < 5 {
			w.inserted.Add(1)
			return w.put(2*e.data.permute(uint64(i))+1, 0)
		}
		return w.scan(w.draw(), 1+w.rng.IntN(longest))
	})
}

// mix runs op in ycsbWorkers goroutines, each i below N once.
func (e *env) mix(label string, op func(w *ycsbWorker, i int) error) (results, error) {
	store, s, err := e.warm(ycsbWorkers)
	if err != nil {
		return nil, err
	}
	var inserted atomic.Int64
	z := newZipf(e.data.n)
	var workers []*ycsbWorker
	for w, rng := range seeded(ycsbWorkers) {
		worker := &ycsbWorker{reader: newReader(e.data, s[w]), rng: rng, inserted: &inserted}
		for range e.N/ycsbWorkers + 1 {
			worker.draws = append(worker.draws, uint32(e.data.permute(z.rank(rng))))
		}
		workers = append(workers, worker)
	}
	m, err := e.measure(ycsbWorkers, e.N, e.Limit, func(w, i int) error { return op(workers[w], i) })
	if err != nil {
		return nil, err
	}
	if err := e.verify(s[0], e.N+int(inserted.Load())); err != nil {
		return nil, err
	}
	return results{label: m.rate()}, closeAll(store, s)
}

// ycsbWorker is one goroutine of a YCSB workload.
type ycsbWorker struct {
	*reader
	rng      *rand.Rand
	draws    []uint32 // zipfian indexes, one an operation: drawn before, because that costs as much as a fast store
	inserted *atomic.Int64
	v        []byte
}

// draw returns the index of the next key to use.
func (w *ycsbWorker) draw() uint64 {
	next := w.draws[0]
	w.draws = w.draws[1:]
	return uint64(next)
}

func (w *ycsbWorker) put(number uint64, version uint16) error {
	w.k = key(w.k, number)
	w.v = w.data.value(w.v, number, version)
	return w.s.Put(w.k, w.v)
}

// scan reads up to limit pairs from an existing key on; keys between the existing ones may have been inserted.
func (w *ycsbWorker) scan(from uint64, limit int) error {
	w.k = existing(w.k, from)
	n, next := 0, 2*from
	var bad error
	err := w.s.Scan(w.k, limit, func(k, v []byte) {
		i, err := parseKey(k)
		if err == nil {
			_, err = w.data.checkValue(i, v)
		}
		if err == nil && (i < next || i > next+next%2) {
			err = fmt.Errorf("key number %d, want %d or the existing one behind it", i, next)
		}
		if bad == nil {
			bad = err
		}
		next = i + 1
		n++
	})
	if want := min(limit, int(w.data.n-from)); err == nil && (n < want || n > limit) {
		err = fmt.Errorf("scan: %d keys, want %d", n, want)
	}
	return errors.Join(err, bad)
}
