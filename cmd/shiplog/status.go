package main

import (
	"encoding/json"
	"fmt"
	"io"
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
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := flags.client()
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
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("name", "%s", s.Name)
	row("role", "%s", s.Role)
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
	row("keys", "%d", s.Keys)
	row("up", "%v", (time.Duration(s.UptimeMs) * time.Millisecond).Round(time.Second))
	if u := s.Upstream; u != nil {
		state := "connected"
		if !u.Connected {
			state = "not connected: " + u.Error
		}
		row("upstream", "%s %s, %s, %d bytes behind", u.Addr, u.Name, state, u.LagBytes)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(s.Followers) == 0 {
		return nil
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "follower\taddress\tvoter\tsent\treceived\tdurable\tapplied\tlag bytes\tlast ack ms\trtt us")
	for _, f := range s.Followers {
		fmt.Fprintf(t, "%s\t%s\t%v\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", f.Name, f.Addr, f.Voter, f.Sent, f.Received, f.Durable, f.Applied, f.LagBytes, f.LastAckMs, f.RTTMicros)
	}
	return t.Flush()
}
