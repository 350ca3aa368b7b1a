package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"shiplog/engine"
)

func newRule() *cobra.Command {
	flags := clientFlags{timeout: time.Minute}
	var addr, commit string
	var voters []string
	var force, asJSON bool
	cmd := &cobra.Command{
		Use:   "rule [--commit RULE] [--voters a,b,c] [--http ADDR]",
		Short: "Change the commit rule and who counts for it",
		Long: "Change the commit rule of the database that the node at --http leads, by a record in the log that must hold under the old rule and the new one.\n" +
			"--voters is the whole list; a name that is not in it any more, such as that of a node that will not return, counts no longer.\n\n" +
			"Exit codes: 0 the rule is in force, 1 it is not, 2 bad usage.",
		Example: "  shiplog rule --commit replicated:1 --voters b,c\n  shiplog rule --commit durable",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if commit == "" && !cmd.Flags().Changed("voters") {
				return errors.New("--commit or --voters is required; shiplog status shows what is in force")
			}
			if commit != "" {
				if _, err := engine.ParseLevel(commit); err != nil {
					return fmt.Errorf("--commit: %w", err)
				}
			}
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			query := url.Values{}
			if commit != "" {
				query.Set("commit", commit)
			}
			for _, v := range voters {
				query.Add("voter", v)
			}
			if force {
				query.Set("force", "1")
			}
			var r ruleShown
			if err := client.post(cmd.Context(), addr, "/rule?"+query.Encode(), &r); err != nil {
				return fail(err)
			}
			if asJSON {
				return fail(printJSON(cmd.OutOrStdout(), r))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s of %s\n", r.Commit, strings.Join(r.Voters, ", "))
			return fail(err)
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the leader")
	cmd.Flags().StringVar(&commit, "commit", "", "the new rule: buffered, written, durable, received:N, replicated:N or applied:N")
	cmd.Flags().StringSliceVar(&voters, "voters", nil, "names of all followers that count")
	cmd.Flags().BoolVar(&force, "force", false, "change it although the old rule cannot be met: what only its voters hold may be lost")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}

func newSlot() *cobra.Command {
	flags := clientFlags{}
	var addr string
	cmd := &cobra.Command{
		Use:   "slot drop NAME [--http ADDR]",
		Short: "Let go of the log that is kept for a follower",
		Long: "Let go of the log that the node at --http keeps for the follower NAME, which is not connected. If it comes back, it may have to start over. shiplog status shows the slots.\n\n" +
			"Exit codes: 0 it is dropped, 1 it is not, 2 bad usage.",
		Example: "  shiplog slot drop b",
		Args:    arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "drop" {
				return fmt.Errorf("unknown action %q; there is drop", args[0])
			}
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			var none struct{}
			return fail(client.post(cmd.Context(), addr, "/slot/drop?"+url.Values{"name": args[1:]}.Encode(), &none))
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the node that keeps the log")
	flags.register(cmd.Flags())
	return cmd
}
