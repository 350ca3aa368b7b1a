// Command peers runs the same workloads on shiplog and on other embedded stores, and on shiplog's log and other
// logs, and prints how they compare. Every measurement runs in a process of its own, and the stores take
// turns within each round, so that neither memory, caches and garbage collection nor the machine's mood favour one.
//
// Every workload checks what it gets back: a store that loses, invents or mixes up a key or a value fails its
// row. Method, configuration of each store and results are in bench/README.md.
package main
