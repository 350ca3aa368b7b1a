package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"shiplog/cmd/shiplog/internal/httpd"
)

func newStatus() *cobra.Command {
	var flags clientFlags
	var addr string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [--http ADDR]",
		Short: "Show a node's marks, epoch, role, digest and followers",
		Long:  "Show a node's marks, epoch, role, digest and followers.\n\nExit codes: 0 shown, 1 the node does not answer, 2 bad usage.",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			s, err := client.status(cmd.Context(), addr)
			if err != nil {
				return fail(err)
			}
			if asJSON {
				return fail(printJSON(cmd.OutOrStdout(), s))
			}
			return fail(printStatus(cmd.OutOrStdout(), &s))
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the node")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(w io.Writer, s *httpd.Status) error {
	var text []byte
	row := func(name string, format string, args ...any) {
		text = fmt.Appendf(text, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("name", "%s", s.Name)
	row("role", "%s", s.Role)
	if s.LogOnly {
		row("log only", "no index: no reads, no promotion")
	}
	if s.ApplyDelayMs > 0 {
		row("apply delay", "%v: reads show what is older", time.Duration(s.ApplyDelayMs)*time.Millisecond)
	}
	if s.Loading {
		row("loading", "reads wait until the commit rule holds")
	}
	if s.Failed != "" {
		row("failed", "%s", s.Failed)
	}
	row("node", "%s", s.NodeID)
	row("database", "%s", s.DatabaseID)
	row("epoch", "%s, history %s", s.Epoch, s.HistoryID)
	rule := s.Rule
	if len(s.Voters) > 0 {
		rule += " of " + strings.Join(s.Voters, ", ")
	}
	row("rule", "%s, too few: %s", rule, s.TooFew)
	if s.DegradedFrom != 0 {
		row("degraded", "since LSN %d", s.DegradedFrom)
	}
	for _, m := range []struct {
		name string
		lsn  uint64
	}{{"tail", s.Tail}, {"head", s.Head}, {"durable", s.Durable}, {"committed", s.Committed}, {"applied", s.Applied}, {"visible", s.Visible}} {
		row(m.name, "%d", m.lsn)
	}
	row("digest", "%s at %d", s.Digest, s.DigestLSN)
	row("format level", "%d", s.FormatLevel)
	row("keys", "%d", s.Keys)
	row("up", "%v", (time.Duration(s.UptimeMs) * time.Millisecond).Round(time.Second))
	if l := s.Lease; l != nil {
		row("lease", "group %s, held by %q, term %d, %d ms left here; eligible: %s", l.Group, l.Holder, l.Term, l.LeftMs, strings.Join(l.Eligible, ", "))
	}
	if u := s.Upstream; u != nil {
		state := "connected"
		if !u.Connected {
			state = "not connected: " + u.Error
		}
		if u.LagBytes >= 0 {
			state += fmt.Sprintf(", %d bytes behind", u.LagBytes)
		}
		if u.FreshMs >= 0 {
			state += fmt.Sprintf(", as of %v ago", time.Duration(u.FreshMs)*time.Millisecond)
		}
		row("upstream", "%s %s, %s", u.Addr, u.Name, state)
	}
	if len(s.Followers) > 0 {
		text = append(text, "\nfollower\taddress\tvoter\tsent\treceived\tdurable\tapplied\tlag bytes\tlast ack ms\trtt us\n"...)
	}
	for _, f := range s.Followers {
		text = fmt.Appendf(text, "%s\t%s\t%v\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", f.Name, f.Addr, f.Voter, f.Sent, f.Received, f.Durable, f.Applied, f.LagBytes, f.LastAckMs, f.RTTMicros)
	}
	if slices.ContainsFunc(s.Slots, func(o httpd.Slot) bool { return !o.Connected || o.PinnedBytes > 0 || o.GivenUp != "" }) {
		text = append(text, "\nslot\tconnected\tfrom\tlag bytes\tlag\tpinned bytes\tgone\tlasts\tgiven up\n"...)
		ms := func(n int64) time.Duration { return (time.Duration(n) * time.Millisecond).Round(time.Second) }
		for _, o := range s.Slots {
			lasts := "-"
			if o.LeftMs > 0 {
				lasts = ms(o.LeftMs).String()
			}
			text = fmt.Appendf(text, "%s\t%v\t%d\t%d\t%v\t%d\t%v\t%s\t%s\n", o.Name, o.Connected, o.From, o.LagBytes, ms(o.LagMs), o.PinnedBytes, ms(o.GoneMs), lasts, o.GivenUp)
		}
	}
	if len(s.DegradedSpans) > 0 {
		text = append(text, "\ndegraded from\tto\tbegan\tended\treason\tmissing\n"...)
	}
	for _, d := range s.DegradedSpans {
		to, stamp := "open", func(ms int64) string {
			if ms == 0 {
				return "-"
			}
			return time.UnixMilli(ms).UTC().Format(time.RFC3339)
		}
		if d.To != 0 {
			to = fmt.Sprint(d.To)
		}
		text = fmt.Appendf(text, "%d\t%s\t%s\t%s\t%s\t%s\n", d.From, to, stamp(d.Began), stamp(d.Ended), d.Reason, strings.Join(d.Missing, " "))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) // a blank line ends a table's columns
	if _, err := t.Write(text); err != nil {
		return err
	}
	return t.Flush()
}
