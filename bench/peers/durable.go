package main

import "fmt"

// durableWorkloads write one key a commit, each synced before the call returns.
var durableWorkloads = []workload{durable(1), durable(8), durable(64), durable(256)}

func durable(writers int) workload {
	label := fmt.Sprintf("durable commits, %d writers", writers)
	if writers == 1 {
		label = "durable commits, 1 writer"
	}
	run := func(e *env) (results, error) {
		store, s, err := e.open(true, writers)
		if err != nil {
			return nil, err
		}
		put := make([]func(uint64, uint16) error, writers)
		for w := range put {
			put[w] = e.putter(s[w])
		}
		m, err := e.measure(writers, e.N, e.Limit, func(w, i int) error { return put[w](e.data.permute(uint64(i)), 0) })
		if err != nil {
			return nil, err
		}
		if err := e.verify(s[0], m.done); err != nil {
			return nil, err
		}
		return results{label: m.rate()}, closeAll(store, s)
	}
	return workload{name: fmt.Sprintf("durable%d", writers), metrics: []metric{{name: label, unit: "commits/s"}}, run: run}
}
