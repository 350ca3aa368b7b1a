package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// metric is one row of the table.
type metric struct {
	name  string
	unit  string
	lower bool // less is better
}

// results are what one run of a workload measured: metric's name to figure.
type results map[string]float64

// preparation runs in a process of its own before a workload's, in the directory that the workload gets.
type preparation struct {
	name string
	run  func(e *env) (results, error)
	// shared: done once for an engine and value size; each run of a workload gets a copy of the directory.
	shared bool
	// killed: the process ends itself with SIGKILL once it has reported.
	killed bool
}

// workload is what is measured in one process.
type workload struct {
	name    string
	metrics []metric
	logs    bool // of logs; otherwise of stores
	prepare *preparation
	run     func(e *env) (results, error)
}

// workloads are all of them, in the table's order.
var workloads = slices.Concat(fillWorkloads, durableWorkloads, readWorkloads, scanWorkloads, ycsbWorkloads, overwriteWorkloads, reopenWorkloads, logWorkloads)

func findWorkload(name string) (workload, error) {
	i := slices.IndexFunc(workloads, func(w workload) bool { return w.name == name })
	if i < 0 {
		return workload{}, fmt.Errorf("no row %q; there are %s", name, strings.Join(workloadNames(), ", "))
	}
	return workloads[i], nil
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// applies reports whether the peer takes part in the workload.
func (w *workload) applies(p *peer) bool {
	if len(p.rows) > 0 && !slices.Contains(p.rows, w.name) {
		return false
	}
	if w.logs {
		return p.log != nil
	}
	return p.store != nil
}

// cpuMetric is the CPU time, user's and system's, of the process in the measured phase, for each unit of the first metric.
// Neighbours on the machine disturb it less than they do the clock; what a store leaves to its background after the
// phase is not in it.
func (w *workload) cpuMetric() metric {
	return metric{name: w.metrics[0].name + ": CPU", unit: "us each", lower: true}
}

// rows are the workload's rows of the table: with the CPU time, where it is asked for and there is a measured phase.
func (w *workload) rows(cpu bool) []metric {
	if cpu && strings.HasSuffix(w.metrics[0].unit, "/s") {
		return slices.Insert(slices.Clone(w.metrics), 1, w.cpuMetric())
	}
	return w.metrics
}

// spread is the median and the range of some samples.
type spread struct{ median, least, most float64 }

func spreadOf(samples []float64) spread {
	if len(samples) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	s := slices.Sorted(slices.Values(samples))
	mid := s[len(s)/2]
	if len(s)%2 == 0 {
		mid = (s[len(s)/2-1] + mid) / 2
	}
	return spread{mid, s[0], s[len(s)-1]}
}

// advantage is how many times better a is than b: above 1 where a wins.
func (m *metric) advantage(a, b float64) float64 {
	if m.lower {
		a, b = b, a
	}
	if a == b { // also 0 and 0
		return 1
	}
	return a / b
}

// bestPeer returns the competitor with the best median, and the advantage of ours over it round by round: what is
// compared was measured next to each other. samples are by engine and round; NaN where a run failed.
func (m *metric) bestPeer(samples map[string][]float64) (name string, ratio spread) {
	type candidate struct {
		name   string
		median float64
	}
	var others []candidate
	for name, s := range samples {
		if sp := spreadOf(present(s)); !strings.HasPrefix(name, us) && !math.IsNaN(sp.median) {
			others = append(others, candidate{name, sp.median})
		}
	}
	if len(others) == 0 {
		return "", spreadOf(nil)
	}
	best := slices.MinFunc(others, func(a, b candidate) int {
		by := cmp.Compare(b.median, a.median)
		if m.lower {
			by = -by
		}
		return cmp.Or(by, cmp.Compare(a.name, b.name))
	})
	var ratios []float64
	for round, ours := range samples[us] {
		if theirs := samples[best.name]; round < len(theirs) {
			ratios = append(ratios, m.advantage(ours, theirs[round]))
		}
	}
	return best.name, spreadOf(present(ratios))
}

func present(s []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(s), math.IsNaN)
}
