//go:build !linux

package ship

import (
	"net"
	"time"
)

// setUserTimeout does nothing here: heartbeats and deadlines alone find a peer that has vanished.
func setUserTimeout(*net.TCPConn, time.Duration) {}
