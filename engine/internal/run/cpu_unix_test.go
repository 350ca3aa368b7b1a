//go:build unix

package run_test

import (
	"syscall"
	"time"
)

// cpuTime returns the processor time that this process has taken: what a benchmark costs whoever else is running.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
