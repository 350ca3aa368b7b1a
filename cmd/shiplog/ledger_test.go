package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestDegradedSpansShown: a node that has fallen back to its own disk lists that by status and INFO, with the voter that was missing; so does the follower that
// comes and ends it, and so does the node after a restart.
func TestDegradedSpansShown(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:1", "--voters", "b", "--too-few", "degrade", "--degrade-after", "10ms", "--name", "a")
	a.relaunch()
	a.until("a write is taken", func() bool { return a.client().Set(ctx, "k", "1", 0).Err() == nil })
	s := a.status()
	if len(s.DegradedSpans) != 1 || s.DegradedSpans[0].To != 0 || s.DegradedSpans[0].Began == 0 || s.DegradedSpans[0].Reason != "too few followers" ||
		strings.Join(s.DegradedSpans[0].Missing, " ") != "b" {
		t.Errorf("open: %+v", s.DegradedSpans)
	}
	if info := a.client().InfoMap(ctx, "shiplog").Val()["Shiplog"]; info["degraded_spans"] != "1" || !strings.Contains(info["degraded_span0"], "to=0,") ||
		!strings.HasSuffix(info["degraded_span0"], ",reason=too few followers,missing=b") {
		t.Errorf("INFO: %v", info)
	}
	if _, out, _ := command("status", "--http", a.http); !strings.Contains(out, "open") || !strings.Contains(out, "too few followers") {
		t.Errorf("status: %s", out)
	}
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	for _, n := range []*process{a, b} {
		n.until("the span has ended", func() bool {
			spans := n.status().DegradedSpans
			return len(spans) == 1 && spans[0].To != 0 && spans[0].Ended != 0
		})
	}
	want := a.status().DegradedSpans
	a.kill()
	a.relaunch()
	a.until("it answers", func() bool { code, _, _ := command("status", "--http", a.http); return code == exitOK })
	if got := a.status().DegradedSpans; len(got) != 1 || got[0].From != want[0].From || got[0].To != want[0].To || got[0].Ended != want[0].Ended {
		t.Errorf("after a restart: %+v, before it %+v", got, want)
	}
}
