package main

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shiplogInfo is the section Shiplog of a node's INFO.
func shiplogInfo(p *process) map[string]string {
	p.t.Helper()
	return p.client().InfoMap(p.t.Context(), "shiplog").Val()["Shiplog"]
}

// lag is what INFO says of how far behind a follower is; false: the node does not answer.
func (p *process) lag() (bytes, ms int64, ok bool) {
	p.t.Helper()
	info := shiplogInfo(p)
	bytes, err1 := strconv.ParseInt(info["lag_bytes"], 10, 64)
	ms, err2 := strconv.ParseInt(info["lag_ms"], 10, 64)
	return bytes, ms, err1 == nil && err2 == nil
}

// TestLag: a follower that has everything shows no lag in bytes, and none in time that grows while nothing is written; one that is cut off says that it does not know the
// bytes, and how old what it shows is, which grows; the node that it was cut off from shows in its slot what it lacks, and since when, also after a restart.
func TestLag(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	a := startNode(t, filepath.Join(dir, "a"), "--name", "a")
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b")
	w := a.client()
	if err := w.Set(ctx, "k", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	b.until("all is shown", func() bool { return b.client().Get(ctx, "k").Val() == "1" })
	began := time.Now()
	b.until("no lag after three idle seconds", func() bool { // one that grows never comes below half of the time again
		bytes, ms, ok := b.lag()
		idle := time.Since(began)
		return ok && idle > 3*time.Second && bytes == 0 && ms >= 0 && ms < idle.Milliseconds()/2
	})
	info := shiplogInfo(a)
	if info["slots"] != "1" || !strings.Contains(info["slot0"], "name=b,") || !strings.Contains(info["slot0"], "connected=true,") ||
		!strings.Contains(info["slot0"], "lag_bytes=0,lag_ms=0,") {
		t.Errorf("the slot of who has all: %v", info)
	}
	for _, f := range []string{"scrubs", "last_scrub_seconds_ago", "damaged_segments", "repaired_segments", "failed_repairs", "repaired_bytes"} {
		if _, err := strconv.ParseInt(info[f], 10, 64); err != nil {
			t.Errorf("INFO: %s is %q", f, info[f])
		}
	}

	b.kill()
	if err := w.Set(ctx, "k", "2", 0).Err(); err != nil {
		t.Fatal(err)
	}
	lacks := func() bool {
		info := shiplogInfo(a)["slot0"]
		return strings.Contains(info, "connected=false,") && !strings.Contains(info, "lag_bytes=0,") && !strings.Contains(info, "lag_ms=0,")
	}
	a.until("the slot lags", lacks)
	a.stop()
	a.start()
	a.until("the slot lags after a restart", lacks)
	b.launch()
	b.until("all is shown again", func() bool { return b.client().Get(ctx, "k").Val() == "2" })

	a.kill()
	b.until("it is cut off, and says how old what it shows is", func() bool {
		bytes, ms, ok := b.lag()
		return ok && bytes == -1 && ms > 2000
	})
	if text := b.metrics(); strings.Contains(text, "\nshiplog_upstream_lag_bytes") || !strings.Contains(text, "\nshiplog_upstream_connected 0\n") {
		t.Error("metrics of a follower that is cut off show a lag in bytes")
	}
	if up := b.status().Upstream; up.LagBytes != -1 || up.FreshMs < 2000 {
		t.Errorf("status: %+v", up)
	}
}
