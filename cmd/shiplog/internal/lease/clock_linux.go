package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// now is a clock that never falls and that goes on while the process is stopped or the machine sleeps.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("lease: no clock: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
