package main

import (
	"errors"
	"fmt"
	"time"
)

const (
	reopenClean  = "open to first read, clean"
	reopenKilled = "open to first read, after kill -9 in a fill"
	reopenLost   = "acknowledged writes lost at kill -9"
)

// reopenWorkloads measure from before Open to the first value read, files in the page cache.
var reopenWorkloads = []workload{
	{name: "reopen", prepare: load, metrics: []metric{{name: reopenClean, unit: "ms", lower: true}}, run: reopenAfterClose},
	{name: "reopenkill", prepare: fillAndDie, metrics: []metric{
		{name: reopenKilled, unit: "ms", lower: true},
		{name: reopenLost, unit: "writes", lower: true},
	}, run: reopenAfterKill},
}

// fillAndDie fills in random order, one key a commit, not synced, and is killed right behind the last
// acknowledgement. It reports how many there were.
var fillAndDie = &preparation{name: "victim", killed: true, run: func(e *env) (results, error) {
	_, s, err := e.open(false, 1)
	if err != nil {
		return nil, err
	}
	put := e.putter(s[0])
	m, err := work(1, e.N, e.Limit, func(_, i int) error { return put(e.data.permute(uint64(i)), 0) })
	return results{"acked": float64(m.done)}, err
}}

// firstRead opens the store and looks up the key that was written first; a store that has lost even this one has answered
// too.
func (e *env) firstRead() (store Store, s []Session, ms float64, err error) {
	start := time.Now()
	store, s, err = e.open(false, 1)
	if err != nil {
		return nil, nil, 0, err
	}
	number := 2 * e.data.permute(0)
	var bad error
	_, err = s[0].Get(key(nil, number), func(v []byte) { _, bad = e.data.checkValue(number, v) })
	return store, s, float64(time.Since(start).Microseconds()) / 1e3, errors.Join(err, bad)
}

func reopenAfterClose(e *env) (results, error) {
	store, s, ms, err := e.firstRead()
	if err != nil {
		return nil, err
	}
	if err := e.verify(s[0], e.N); err != nil {
		return nil, err
	}
	return results{reopenClean: ms}, closeAll(store, s)
}

// reopenAfterKill also checks that what is there is what was written first, without a gap.
func reopenAfterKill(e *env) (results, error) {
	acked := int(e.Prepared["acked"])
	store, s, ms, err := e.firstRead()
	if err != nil {
		return nil, err
	}
	turn := make(map[uint64]int, acked) // key number to its place in the order of writes
	for i := range acked {
		turn[2*e.data.permute(uint64(i))] = i
	}
	last, foreign := -1, 0
	kept, err := e.walk(s[0], func(number uint64, _ uint16) {
		if i, ok := turn[number]; ok {
			last = max(last, i)
		} else {
			foreign++
		}
	})
	if err != nil {
		return nil, err
	}
	if foreign > 0 || last+1 != kept {
		return nil, fmt.Errorf("of %d acknowledged writes %d are there, the last of them number %d, and %d others", acked, kept-foreign, last, foreign)
	}
	return results{reopenKilled: ms, reopenLost: float64(acked - kept)}, closeAll(store, s)
}
