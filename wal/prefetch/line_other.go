//go:build !amd64 && !arm64

package prefetch

import "unsafe"

// Works reports whether Line does anything on this machine.
const Works = false

// Line begins to load the cache line at p. Any address will do, also one that is nobody's.
func Line(unsafe.Pointer) {}
