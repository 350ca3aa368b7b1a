package main

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	logAppend = "log: append, not synced"
	logSync   = "log: append + sync"
	logReplay = "log: open and replay"
)

// logWorkloads use the logs alone: entries of a value's size, one a call, by one goroutine.
var logWorkloads = []workload{
	{name: "logappend", logs: true, metrics: []metric{{name: logAppend, unit: "ops/s"}}, run: func(e *env) (results, error) {
		m, err := e.appends(false, true)
		return results{logAppend: m.rate()}, err
	}},
	{name: "logsync", logs: true, metrics: []metric{{name: logSync, unit: "ops/s"}}, run: func(e *env) (results, error) {
		m, err := e.appends(true, true)
		return results{logSync: m.rate()}, err
	}},
	{name: "logreplay", logs: true, prepare: fillLog, metrics: []metric{{name: logReplay, unit: "MB/s"}}, run: replayLog},
}

// fillLog writes a log to replay.
var fillLog = &preparation{name: "filllog", shared: true, run: func(e *env) (results, error) {
	e.Limit = 0
	_, err := e.appends(false, false)
	return nil, err
}}

// appends appends the values in the order of their numbers and then checks all that the log gives back.
func (e *env) appends(durable, measure bool) (measured, error) {
	l, err := e.peer.log(e.config(durable, 1))
	if err != nil {
		return measured{}, fmt.Errorf("open: %w", err)
	}
	run := work
	if measure {
		run = e.measure
	}
	var v []byte
	m, err := run(1, e.N, e.Limit, func(_, i int) error {
		v = e.data.value(v, uint64(i), 0)
		return l.Append(v)
	})
	if err != nil {
		return m, err
	}
	if err := l.Close(); err != nil {
		return m, err
	}
	next := uint64(0)
	var bad error
	err = e.peer.replay(e.Dir, func(entry []byte) bool {
		_, bad = e.data.checkValue(next, entry)
		next++
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	if err == nil && next != uint64(m.done) {
		err = fmt.Errorf("replay gives %d entries, want %d", next, m.done)
	}
	return m, err
}

// replayLog measures from before the log is opened to its last entry. It checks sizes and numbers only: fillLog has
// compared every byte. A log that takes longer than the limit is cut off between entries.
func replayLog(e *env) (results, error) {
	n, cut := 0, false
	var bad error
	var start time.Time
	var took time.Duration
	_, err := e.measure(1, 1, 0, func(_, _ int) error {
		var stop atomic.Bool
		if e.Limit > 0 {
			defer time.AfterFunc(e.Limit, func() { stop.Store(true) }).Stop()
		}
		start = time.Now()
		return e.peer.replay(e.Dir, func(entry []byte) bool {
			if len(entry) != e.Value || binary.LittleEndian.Uint64(entry)>>16 != uint64(n) {
				bad = fmt.Errorf("entry %d of %d bytes is not what was appended", n, len(entry))
			}
			n++
			if cut = stop.Load(); cut || n == e.N {
				took = time.Since(start)
			}
			return bad == nil && !cut
		})
	})
	if err == nil {
		err = bad
	}
	if err == nil && !cut && n != e.N {
		err = fmt.Errorf("replay gives %d entries, want %d", n, e.N)
	}
	return results{logReplay: float64(n) * float64(e.Value) / 1e6 / took.Seconds()}, err
}
