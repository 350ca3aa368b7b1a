package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// scanWorkloads read in key order after a load in random order, keys and values.
var scanWorkloads = []workload{
	{name: "scan", prepare: load, metrics: []metric{{name: "full ordered scan", unit: "keys/s"}}, run: fullScan},
	{name: "seek50", prepare: load, metrics: []metric{{name: "seek + 50 next", unit: "ops/s"}}, run: seeks},
}

// fullScan counts keys and bytes, and touches each value. That the values are right was checked by warm, so that
// the check is not what is measured.
func fullScan(e *env) (results, error) {
	store, s, err := e.warm(1)
	if err != nil {
		return nil, err
	}
	want := e.N * (keySize + e.Value)
	var touched byte
	m, err := e.measure(1, math.MaxInt, e.Limit, func(_, _ int) error {
		keys, total := 0, 0
		err := s[0].Scan(key(nil, 0), math.MaxInt, func(k, v []byte) {
			keys++
			total += len(k) + len(v)
			touched ^= v[len(v)-1]
		})
		if err == nil && (keys != e.N || total != want) {
			err = fmt.Errorf("scan: %d keys and %d bytes, want %d and %d", keys, total, e.N, want)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return results{"full ordered scan": m.rate() * float64(e.N)}, closeAll(store, s)
}

// seeks opens an iterator at a random key and makes 50 steps. First and last key and the last value are checked.
func seeks(e *env) (results, error) {
	const steps = 50
	store, s, err := e.warm(1)
	if err != nil {
		return nil, err
	}
	rng := seeded(1)[0]
	var first, last, want, value []byte
	n := 0
	visit := func(k, v []byte) {
		if n == 0 {
			first = append(first[:0], k...)
		}
		if n++; n == steps+1 {
			last, value = append(last[:0], k...), append(value[:0], v...)
		}
	}
	op := func(_, _ int) error {
		at := rng.Uint64N(e.data.n - steps)
		want, n = existing(want, at), 0
		err := s[0].Scan(want, steps+1, visit)
		if err == nil && n != steps+1 {
			err = fmt.Errorf("%d keys, want %d", n, steps+1)
		}
		if err == nil && !bytes.Equal(first, want) {
			err = fmt.Errorf("first key %q, want %q", first, want)
		}
		if want = existing(want, at+steps); err == nil && !bytes.Equal(last, want) {
			err = fmt.Errorf("last key %q, want %q", last, want)
		}
		_, bad := e.data.checkValue(2*(at+steps), value)
		return errors.Join(err, bad)
	}
	if _, err := work(1, e.N/16, e.Limit/4, op); err != nil {
		return nil, err
	}
	m, err := e.measure(1, e.N, e.Limit, op)
	if err != nil {
		return nil, err
	}
	return results{"seek + 50 next": m.rate()}, closeAll(store, s)
}
