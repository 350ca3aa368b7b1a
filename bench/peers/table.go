package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// print writes the results as Markdown: a table for the stores and one for the logs, for each size of values.
func (r *runner) print(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s\n\n%s\n", machine(), strings.Join(versions(), ", "))
	for _, value := range r.values {
		for _, logs := range []bool{false, true} {
			r.table(b, value, logs)
		}
	}
	return b.Flush()
}

func (r *runner) table(b *bufio.Writer, value int, logs bool) {
	var engines []string
	for _, p := range r.peers {
		if slices.ContainsFunc(r.workloads, func(w workload) bool { return w.logs == logs && w.applies(&p) }) {
			engines = append(engines, p.name)
		}
	}
	lines := 0
	for _, w := range r.workloads {
		if w.logs != logs {
			continue
		}
		for _, m := range w.rows(r.cpu) {
			if lines == 0 {
				fmt.Fprintf(b, "\n%d keys or entries of %d B values, median (least to most) of %d runs; the last column is above 1 where shiplog is better\n\n", r.keys(value), value, r.runs)
				fmt.Fprintf(b, "| row | unit | %s | shiplog against the best peer |\n|%s\n", strings.Join(engines, " | "), strings.Repeat(" --- |", len(engines)+3))
			}
			lines++
			samples := r.figures(value, m.name)
			fmt.Fprintf(b, "| %s | %s |", m.name, m.unit)
			for _, e := range engines {
				text := "" // takes no part
				if p, err := findPeer(e); err == nil && w.applies(&p) {
					text = spreadText(spreadOf(present(samples[e])), number)
				}
				fmt.Fprintf(b, " %s |", text)
			}
			best, ratio := m.bestPeer(samples)
			if best == "" || math.IsNaN(ratio.median) {
				fmt.Fprint(b, " |\n")
			} else {
				fmt.Fprintf(b, " **%s** %s |\n", spreadText(ratio, ratioText), best)
			}
		}
	}
}

func spreadText(s spread, text func(float64) string) string {
	switch {
	case math.IsNaN(s.median):
		return "none"
	case s.least == s.most:
		return text(s.median)
	}
	return fmt.Sprintf("%s (%s to %s)", text(s.median), text(s.least), text(s.most))
}

// number prints three digits or so.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1e7:
		return strconv.FormatFloat(v/1e6, 'f', 1, 64) + "M"
	case a >= 1e6:
		return strconv.FormatFloat(v/1e6, 'f', 2, 64) + "M"
	case a >= 1e5:
		return strconv.FormatFloat(v/1e3, 'f', 0, 64) + "k"
	case a >= 1e3:
		return strconv.FormatFloat(v/1e3, 'f', 1, 64) + "k"
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func ratioText(v float64) string {
	if v >= 10 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// machine describes where this runs, and how busy it is.
func machine() string {
	cpu, load := "unknown processor", "unknown"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, rest, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(rest)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(text)); len(f) >= 3 {
			load = strings.Join(f[:3], " ")
		}
	}
	var mem float64
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) == nil {
		mem = float64(si.Totalram) * float64(si.Unit) / (1 << 30)
	}
	return fmt.Sprintf("%d x %s, %.0f GiB, %s/%s, %s, load at the end %s", runtime.NumCPU(), cpu, mem, runtime.GOOS, runtime.GOARCH, runtime.Version(), load)
}

// versions lists the modules that are compared, as they were built.
func versions() []string {
	compared := []string{
		"github.com/cockroachdb/pebble/v2", "github.com/dgraph-io/badger/v4", "go.etcd.io/bbolt", "github.com/syndtr/goleveldb", "github.com/mattn/go-sqlite3",
		"github.com/hashicorp/raft-wal", "go.etcd.io/etcd/server/v3", "github.com/tidwall/wal",
	}
	var list []string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if slices.Contains(compared, d.Path) {
				list = append(list, d.Path+" "+d.Version)
			}
		}
	}
	return list
}
