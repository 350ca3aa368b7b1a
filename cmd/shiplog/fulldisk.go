package main

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"shiplog/engine"
)

// fullDiskEvery is how often the log says that the disk is full, while writes are refused for it.
const fullDiskEvery = time.Minute

// fullDisk tells the operator of writes that were refused because the disk is full: clients hear of it, but nothing else in a node fails.
type fullDisk struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	said    time.Time
	refused int // commits since then
}

// note takes the result of a commit.
func (f *fullDisk) note(now func() time.Time, err error) {
	if err == nil || f == nil || !errors.Is(err, engine.ErrNoSpace) || errors.Is(err, engine.ErrPoisoned) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused++
	at := now()
	if !f.said.IsZero() && at.Sub(f.said) < fullDiskEvery {
		return
	}
	f.log.Error("disk full, writes are refused until there is room", "refused", f.refused, "error", err)
	f.said, f.refused = at, 0
}
