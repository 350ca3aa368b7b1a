package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"shiplog/engine"
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

// TestFormatVerb: the format level is shown, raised by the leader alone, and never above what the build knows.
func TestFormatVerb(t *testing.T) {
	dir := t.TempDir()
	a := startNode(t, filepath.Join(dir, "a"), "--name", "a")
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	b.until("it has the level", func() bool { return b.status().FormatLevel == engine.FormatLevel })
	if s := a.status(); s.FormatLevel != engine.FormatLevel {
		t.Errorf("level %d of a new database", s.FormatLevel)
	}
	if code, out, errs := command("format", "--http", a.http, "--raise", fmt.Sprint(engine.FormatLevel)); code != exitOK || out != fmt.Sprintf("format level %d\n", engine.FormatLevel) {
		t.Errorf("raised to what it is: %d %s%s", code, out, errs)
	}
	for _, test := range []struct{ node, level, want string }{
		{a.http, "9", "format level version 9 is not supported (this build knows up to 2)"},
		{a.http, "1", "the database has 2"},
		{b.http, "2", "does not lead"},
	} {
		if code, _, errs := command("format", "--http", test.node, "--raise", test.level); code != exitFailure || !strings.Contains(errs, test.want) {
			t.Errorf("--raise %s: %d %s, want %q", test.level, code, errs, test.want)
		}
	}
}
