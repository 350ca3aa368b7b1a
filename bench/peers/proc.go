package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpuTime is the CPU time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// killSelf ends the process as kill -9 does.
func killSelf() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// allocated is the disk space of a file in bytes.
func allocated(info os.FileInfo) float64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return float64(st.Blocks) * 512
	}
	return float64(info.Size())
}

// memory is the resident memory of this process in bytes.
type memory struct{ anon, file float64 }

func readMemory() (memory, error) {
	f, err := procFields("/proc/self/status")
	return memory{f["RssAnon"] * 1024, (f["RssFile"] + f["RssShmem"]) * 1024}, err
}

// since returns what was added, in MB.
func (m memory) since(before memory) memory {
	return memory{max(0, m.anon-before.anon) / 1e6, max(0, m.file-before.file) / 1e6}
}

// bytesToDisk is what this process has sent to disks: pages that it dirtied, in files written or mapped, each
// time they were dirtied anew, less those that were dropped before they were written.
func bytesToDisk() (float64, error) {
	f, err := procFields("/proc/self/io")
	return f["write_bytes"] - f["cancelled_write_bytes"], err
}

// procFields reads a file of "name: number unit" lines.
func procFields(path string) (map[string]float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if words := strings.Fields(rest); len(words) > 0 {
			if v, err := strconv.ParseFloat(words[0], 64); err == nil {
				fields[name] = v
			}
		}
	}
	if len(fields) == 0 {
		return nil, fmt.Errorf("%s: nothing to read", path)
	}
	return fields, nil
}
