// Package prefetch has the processor load memory that will be needed soon, so that several misses of its caches are waited for at
// once (group prefetching: Chen, Ailamaki, Gibbons, Mowry 2004). What it does can be measured, never seen in a result.
package prefetch
