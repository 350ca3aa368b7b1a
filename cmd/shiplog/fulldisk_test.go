package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
)

// TestFullDiskIsSaid: once a minute, with the number of commits that were refused, and only for lack of space.
func TestFullDiskIsSaid(t *testing.T) {
	var out bytes.Buffer
	f := &fullDisk{log: slog.New(slog.NewTextHandler(&out, nil))}
	at := time.Unix(1e9, 0)
	now := func() time.Time { return at }
	full := fmt.Errorf("append: %w", engine.ErrNoSpace)
	f.note(now, nil)
	f.note(now, engine.ErrReadOnly)
	f.note(now, fmt.Errorf("%w: %w", engine.ErrPoisoned, full)) // said elsewhere, and room does not mend it
	if out.Len() != 0 {
		t.Errorf("said %q", &out)
	}
	f.note(now, full)
	at = at.Add(fullDiskEvery - 1)
	f.note(now, full)
	if said := out.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "disk full") || !strings.Contains(said, "refused=1 ") {
		t.Errorf("said %q", said)
	}
	at = at.Add(1)
	f.note(now, full)
	if said := out.String(); strings.Count(said, "\n") != 2 || !strings.Contains(said, "refused=2 ") {
		t.Errorf("said %q", said)
	}
	var none *fullDisk
	none.note(now, full)
}
