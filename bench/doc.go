// Package bench holds shiplog's benchmarks, one file a family of workloads; method, machine and
// results are in README.md beside this file. They use only what users get. Where a figure is
// a ratio, both sides are measured in alternating slices of one run, because the machine's disk and
// clock change their mood from minute to minute.
package bench
