//go:build !linux

package lease

import "time"

var began = time.Now()

// now is a clock that never falls and that goes on while the process is stopped. Here it may stand still while the machine sleeps.
func now() time.Duration { return time.Since(began) + time.Hour }
