//go:build unix

package resp

import (
	"strings"
	"syscall"
)

func infoCPU(b *strings.Builder, _ *Server, _ *NodeInfo) {
	var self syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &self) != nil {
		return
	}
	field(b, "used_cpu_sys", seconds(self.Stime))
	field(b, "used_cpu_user", seconds(self.Utime))
}

func seconds(t syscall.Timeval) float64 { return float64(t.Nano()) / 1e9 }
