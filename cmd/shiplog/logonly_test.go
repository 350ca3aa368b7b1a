package main

import (
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"shiplog/cmd/shiplog/internal/httpd"
)

// metrics is what a node's /metrics says.
func (p *process) metrics() string {
	p.t.Helper()
	res, err := p.web.Get(p.scheme + "://" + p.http + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// TestLogOnlyFollower: under replicated:1 a node that keeps the log only confirms what the other follower, which is stopped, has not got; it says
// everywhere what it is, answers no reads and is not promoted; once the leader is gone the other one is promoted with its vote, and fetches from it
// what was confirmed. Restarted without the flag it answers reads.
func TestLogOnlyFollower(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:1", "--name", "a")
	a.relaunch() // it answers reads once there are voters
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b", "--log-only")
	c := startNode(t, filepath.Join(dir, "c"), "--follow", a.ship, "--name", "c")
	a.until("both are voters", func() bool { return len(a.status().Voters) == 2 })
	w := a.client()
	a.until("a write is taken", func() bool { return w.Set(ctx, "k", "1", 0).Err() == nil })
	c.until("all is on c", func() bool { return c.status().Durable == a.status().Head })

	if err := syscall.Kill(c.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := w.Set(ctx, "k", "2", 0).Err(); err != nil {
		t.Fatal(err)
	}

	r := b.client()
	for _, read := range [][]any{{"GET", "k"}, {"EXISTS", "k"}, {"KEYS", "*"}, {"SCAN", "0"}, {"DBSIZE"}, {"RANDOMKEY"}} {
		if err := r.Do(ctx, read...).Err(); err == nil || !strings.HasPrefix(err.Error(), "LOGONLY ") {
			t.Errorf("%v: %v", read, err)
		}
	}
	if err := r.Set(ctx, "k", "3", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "READONLY ") {
		t.Errorf("SET: %v", err)
	}
	if role, err := r.Do(ctx, "ROLE").Slice(); err != nil || len(role) != 6 || role[0] != "slave" || role[5] != "log-only" {
		t.Errorf("ROLE: %v, %v", role, err)
	}
	info := r.InfoMap(ctx).Val()
	if got := info["Shiplog"]["log_only"] + info["Replication"]["slave_priority"] + info["Persistence"]["loading"]; got != "yes00" {
		t.Errorf("INFO: %v, %v", info["Shiplog"], info["Replication"])
	}
	b.until("it has the committed mark", func() bool { return b.status().Committed == a.status().Committed })
	if s := b.status(); !s.LogOnly || s.Loading || s.Visible != 0 || s.Upstream.LagBytes != 0 {
		t.Errorf("status: %+v", s)
	}
	if code, out, _ := command("status", "--http", b.http); code != exitOK || !strings.Contains(out, "no index") {
		t.Errorf("status: %d %s", code, out)
	}
	if got := b.metrics(); !strings.Contains(got, "\nshiplog_log_only 1\n") {
		t.Error("metrics do not say that the node keeps the log only")
	}
	seen := a.status().Followers
	i := slices.IndexFunc(seen, func(f httpd.Follower) bool { return f.Name == "b" })
	if i < 0 || !seen[i].LogOnly || !seen[i].Voter || seen[i].LagBytes != 0 {
		t.Errorf("the leader's followers: %+v", seen)
	}
	for _, args := range [][]string{{"promote", "--http", b.http}, {"promote", "--http", b.http, "--dry-run"}, {"switchover", "--http", a.http, "--to", "b"}} {
		if code, _, errs := command(args...); code != exitFailure || !strings.Contains(errs, "keeps the log only") {
			t.Errorf("%v: %d %s", args, code, errs)
		}
	}

	a.kill()
	if err := syscall.Kill(c.cmd.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	promote(c)
	c.until("reads", func() bool { return c.client().Get(ctx, "k").Val() == "2" })
	c.until("b confirms the new leader's writes", func() bool { return c.client().Set(ctx, "k", "4", 0).Err() == nil })

	b.stop()
	b.args = slices.DeleteFunc(b.args, func(s string) bool { return s == "--log-only" })
	b.start()
	r = b.client()
	b.until("reads without the flag", func() bool { return r.Get(ctx, "k").Val() == "4" })
	if s := b.status(); s.LogOnly || s.Keys != 1 {
		t.Errorf("status without the flag: %+v", s)
	}
}

// TestDelayedFollower: a follower that applies with a delay of an hour confirms writes at once and shows none of them, one with a delay of a moment shows
// them; both say what they are, and are not handed the lead. Once the leader is gone, the first one is promoted: it says before what it has to apply, and
// has applied it then.
func TestDelayedFollower(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	a := newNode(t, filepath.Join(dir, "a"), "--commit", "replicated:2", "--name", "a")
	a.relaunch()
	b := startNode(t, filepath.Join(dir, "b"), "--follow", a.ship, "--name", "b", "--apply-delay", "1h")
	c := startNode(t, filepath.Join(dir, "c"), "--follow", a.ship, "--name", "c", "--apply-delay", "100ms")
	w := a.client()
	a.until("a write is taken", func() bool { return w.Set(ctx, "k", "1", 0).Err() == nil })
	c.until("it is shown after a moment", func() bool { return c.client().Get(ctx, "k").Val() == "1" })

	r := b.client()
	if err := r.Get(ctx, "k").Err(); err == nil || !strings.HasPrefix(err.Error(), "LOADING") {
		t.Errorf("GET on what is not an hour old: %v", err)
	}
	b.until("it has the committed mark", func() bool { return b.status().Committed == a.status().Committed })
	if s := b.status(); s.ApplyDelayMs != 3_600_000 || s.Durable != a.status().Head || s.Applied != 0 || s.Upstream.LagBytes == 0 || s.Upstream.FreshMs < 0 {
		t.Errorf("status: %+v, upstream %+v", s, s.Upstream)
	}
	if role, err := r.Do(ctx, "ROLE").Slice(); err != nil || len(role) != 6 || role[5] != "delayed" {
		t.Errorf("ROLE: %v, %v", role, err)
	}
	info := r.InfoMap(ctx).Val()
	if got := info["Shiplog"]["apply_delay_ms"] + " " + info["Replication"]["slave_priority"]; got != "3600000 0" {
		t.Errorf("INFO: %v", got)
	}
	if got := b.metrics(); !strings.Contains(got, "\nshiplog_apply_delay_seconds 3600\n") {
		t.Error("metrics do not say that the node applies with a delay")
	}
	for _, f := range a.status().Followers {
		if !f.Delayed || !f.Voter {
			t.Errorf("the leader's follower: %+v", f)
		}
	}
	if code, _, errs := command("switchover", "--http", a.http, "--to", "b"); code != exitFailure || !strings.Contains(errs, "applies with a delay") {
		t.Errorf("switchover: %d %s", code, errs)
	}
	if err := w.Do(ctx, "FAILOVER").Err(); err == nil || !strings.Contains(err.Error(), "applies with a delay") {
		t.Errorf("FAILOVER: %v", err)
	}

	a.kill()
	code, out, errs := command("promote", "--http", b.http, "--dry-run")
	if code != exitOK || !strings.Contains(out, "applies with a delay: it would apply") || strings.Contains(out, "asks no followers") {
		t.Errorf("promote --dry-run: %d %s%s", code, out, errs)
	}
	promote(b)
	c.until("c follows, so that too few are missing for a rule of one", func() bool {
		code, _, _ := command("rule", "--http", b.http, "--commit", "replicated:1", "--voters", "c", "--force")
		return code == exitOK
	})
	b.until("all is shown", func() bool { return r.Get(ctx, "k").Val() == "1" })
}
