package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"shiplog/engine"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(t.TempDir()) // for a node that starts all the same
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		code int
		want string // in the one line on standard error
	}{
		{"frobnicate", exitUsage, "unknown command"},
		{"frobnicate --help", exitUsage, "unknown command"},
		{"help frobnicate", exitUsage, "unknown command"},
		{"serve", exitUsage, "--dir is required"},
		{"serve --nope", exitUsage, "unknown flag: --nope"},
		{"serve x", exitUsage, `unexpected argument "x": shiplog serve --dir DIR [flags] (see shiplog serve --help)`},
		{"serv --dir d", exitUsage, "do you mean serve?"},
		{"dump a b", exitUsage, `unexpected argument "b": shiplog dump DIR`},
		{"serve --dir d --listen :6380", exitUsage, "--listen :6380 is reachable from other machines: give --requirepass-file"},
		{"serve --dir d --ship 0.0.0.0:7380", exitUsage, "--ship 0.0.0.0:7380 is reachable from other machines: give --secret-file"},
		{"serve --dir d --http 10.0.0.1:80", exitUsage, "--http 10.0.0.1:80 is reachable from other machines: give --requirepass-file"},
		{"serve --dir d --follow 10.0.0.1:7380", exitUsage, "--follow 10.0.0.1:7380 leaves this machine"},
		{"serve --dir d --follow nonsense", exitUsage, "want HOST:PORT"},
		{"serve --dir d --commit sometimes", exitUsage, "unknown level"},
		{"serve --dir d --commit received:0", exitUsage, "--commit"},
		{"serve --dir d --follow 127.0.0.1:1 --commit durable", exitUsage, "are the leader's"},
		{"serve --dir d --follow 127.0.0.1:1 --log-only --apply-delay 1h", exitUsage, "has no meaning with --log-only"},
		{"serve --dir d --log-only", exitUsage, "--log-only needs --follow or --etcd"},
		{"serve --dir d --apply-delay 1h", exitUsage, "--apply-delay and --copy-from need --follow or --etcd"},
		{"serve --dir d --copy-from 127.0.0.1:1", exitUsage, "--apply-delay and --copy-from need --follow or --etcd"},
		{"serve --dir d --follow 127.0.0.1:1 --log-only --index-memory 1GiB", exitUsage, "have no meaning with --log-only"},
		{"serve --dir d --follow 127.0.0.1:1 --log-only --sort-when-idle", exitUsage, "have no meaning with --log-only"},
		{"serve --dir d --follow 127.0.0.1:1 --log-only --stale-reads", exitUsage, "have no meaning with --log-only"},
		{"serve --dir d --follow 127.0.0.1:1 --log-only --too-few block", exitUsage, "have no meaning with --log-only"},
		{"serve --dir d --ship= --commit replicated:1", exitUsage, "need --ship"},
		{"serve --dir d --ship= --voters a", exitUsage, "need --ship"},
		{"serve --dir d --ship= --slot-bytes 1GiB", exitUsage, "need --ship"},
		{"serve --dir d --ship= --slot-age 1h", exitUsage, "need --ship"},
		{"serve --dir d --follow 127.0.0.1:1 --copy-from 127.0.0.1:2 --copy-ahead 0", exitUsage, "no meaning with --copy-ahead 0"},
		{"serve --dir d --etcd 127.0.0.1:1 --group g --read-leases=false", exitUsage, "--read-leases=false has no meaning with --etcd"},
		{"serve --dir d --cache 1MB", exitUsage, `invalid argument "1MB" for "--cache" flag: want bytes`},
		{"serve --dir d --too-few perhaps --compression lzma", exitUsage, "--too-few \"perhaps\": want refuse, block or degrade; --compression \"lzma\""},
		{"serve --dir d --follow 127.0.0.1:0", exitUsage, "want HOST:PORT"},
		{"serve --dir d --lease-ttl -1s", exitUsage, "--lease-ttl and --etcd-ca, -cert, -key need --etcd"},
		{"serve --dir d --lease-ttl 3s", exitUsage, "need --etcd"},
		{"serve --dir d --etcd-key k", exitUsage, "need --etcd"},
		{"serve --dir d --etcd 127.0.0.1:1 --group g --lease-ttl -1s", exitUsage, "--lease-ttl -1s: want whole seconds"},
		{"serve --dir d --degrade-after 1s", exitUsage, "--degrade-after needs --too-few degrade"},
		{"serve --dir d --scrub-interval -1s --drain-timeout -2s", exitUsage, "--drain-timeout -2s is negative; --scrub-interval -1s is negative"},
		{"serve --dir d --requirepass-file " + empty, exitUsage, "holds 0 bytes"},
		{"serve --dir d --secret-file /nonexistent/file", exitUsage, "no such file"},
		{"serve --dir d --tls-cert x", exitUsage, "--tls-cert and --tls-key belong together"},
		{"serve --dir d --log-level loud", exitUsage, "--log-level"},
		{"serve --listen 127.0.0.1:0 --ship 127.0.0.1:0 --http 127.0.0.1:0 --segment-size 3 --dir " + dir, exitUsage, "segment size 3 is not a power of two"},
		{"status x", exitUsage, `unexpected argument "x": shiplog status [--http ADDR] [flags] (see shiplog status --help)`},
		{"status --http 127.0.0.1:1", exitFailure, "no node answers at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused"},
		{"status --http localhost", exitUsage, "want HOST:PORT"},
		{"status --timeout -1s", exitUsage, "--timeout -1s is negative"},
		{"rule --commit sometimes", exitUsage, "unknown level"},
		{"verify", exitUsage, "an argument is missing: shiplog verify DIR... [flags]"},
		{"compare x", exitUsage, "an argument is missing: shiplog compare A B [flags]"},
		{"compare x y", exitUsage, "neither a directory nor HOST:PORT"},
		{"compare " + dir + " 127.0.0.1:1", exitFailure, dir + ": wal: no database in this log"},
		{"dump", exitUsage, "an argument is missing: shiplog dump DIR"},
		{"dump " + empty, exitFailure, "empty: not a directory"},
		{"slot drop", exitUsage, "an argument is missing: shiplog slot drop NAME"},
		{"repair " + dir, exitUsage, "needs --from"},
		{"repair " + dir + " --from nonsense", exitUsage, "--from"},
		{"repair " + dir + " --from 10.0.0.1:1", exitUsage, "leaves this machine: give --secret-file"},
		{"repair " + dir + " --from 127.0.0.1:1 --http 127.0.0.1:2", exitUsage, "give one of them"},
		{"repair --from 127.0.0.1:1", exitUsage, "needs the directory"},
		{"dump " + dir, exitFailure, dir + ": wal: no database in this log"},
		{"dump " + dir + " --from xyz", exitUsage, "--from"},
		{"dump " + dir + " --from 2 --to 1", exitUsage, "--from 2 is above --to 1"},
		{"dump " + dir + " --values -1", exitUsage, "--values -1 is negative"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			if test.code == exitUsage {
				stop() // a node that starts all the same ends at once
			}
			var out, errs bytes.Buffer
			code := run(ctx, strings.Fields(test.args), &out, &errs)
			if code != test.code || !strings.Contains(errs.String(), test.want) || strings.Count(errs.String(), "\n") != 1 || out.Len() != 0 {
				t.Errorf("code %d (want %d), stdout %q, stderr %q, want %q in one line", code, test.code, &out, &errs, test.want)
			}
		})
	}
	for _, verb := range newRoot().Commands() {
		code, out, _ := command(verb.Name(), "--help")
		if code != exitOK || !regexp.MustCompile(`Exit codes: 0 .*, 1 .*, 2 bad usage\.`).MatchString(out) {
			t.Errorf("%s --help: code %d, %q", verb.Name(), code, out)
		}
		if code, same, _ := command("help", verb.Name()); code != exitOK || same != out {
			t.Errorf("help %s: code %d, %q", verb.Name(), code, same)
		}
	}
}

// TestFlagsOfANewDatabase: a flag that was for the creation of a database is bad usage where it asks an existing one for something else.
// Nodes of a group in etcd, which all have the same flags, name them in the log instead.
func TestFlagsOfANewDatabase(t *testing.T) {
	dir := t.TempDir()
	db, err := engine.Open(dir, &engine.Options{SegmentSize: 128 << 10, Commit: engine.Written})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		asked engine.Options
		want  string
	}{
		{engine.Options{}, ""},
		{engine.Options{SegmentSize: 128 << 10, Commit: engine.Written}, ""},
		{engine.Options{SegmentSize: 64 << 10, Commit: engine.Durable, FirstVoters: true}, "--commit --first-voters --segment-size"},
	} {
		if got := strings.Join(fixedOtherwise(&test.asked, db), " "); got != test.want {
			t.Errorf("%+v: the log names %q, want %q", test.asked, got, test.want)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for flags, want := range map[string]string{
		"--segment-size 64KiB":      "segments of 65536 bytes asked for, the database has 131072",
		"--commit durable":          "commit rule durable asked for, the database has written",
		"--voters a --first-voters": "FirstVoters asked for",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a node that starts is stopped
		var out, errs bytes.Buffer
		args := "serve --listen 127.0.0.1:0 --ship 127.0.0.1:0 --http 127.0.0.1:0 --dir " + dir + " " + flags
		code := run(ctx, strings.Fields(args), &out, &errs)
		cancel()
		if code != exitUsage || !strings.Contains(errs.String(), want) || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s: code %d, %q, want %q", flags, code, errs.String(), want)
		}
	}
}
