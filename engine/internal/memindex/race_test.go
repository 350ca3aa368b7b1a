//go:build race

package memindex_test

// scale divides the sizes of single-threaded tests, which the race detector
// slows down and has nothing to find in.
const scale = 10
