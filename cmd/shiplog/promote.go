package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newPromote() *cobra.Command {
	flags := clientFlags{timeout: time.Minute}
	var addr string
	var force, dry, asJSON bool
	cmd := &cobra.Command{
		Use:   "promote [--http ADDR]",
		Short: "Make a follower the leader",
		Long: "Make the follower at --http the leader of a new epoch. Enough voters must promise it first, so that no acknowledged write of a synchronous rule is lost;\n" +
			"what the furthest of them has is copied. The old leader, if it still runs, stops writing as soon as it hears of the epoch.\n\n" +
			"Exit codes: 0 the node leads, 1 it does not, 2 bad usage.",
		Example: "  shiplog promote --http 127.0.0.1:8381 --dry-run\n  shiplog promote --http 127.0.0.1:8381",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			query := []string{}
			if force {
				query = append(query, "force")
			}
			if dry {
				query = append(query, "dry-run")
			}
			var c candidacy
			if err := client.post(cmd.Context(), addr, "/promote?"+strings.Join(query, "&"), &c); err != nil {
				return fail(err)
			}
			if asJSON {
				return fail(printJSON(cmd.OutOrStdout(), c))
			}
			return fail(c.print(cmd, dry))
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the node that is to lead")
	cmd.Flags().BoolVar(&force, "force", false, "lead although too few voters promise, or begin another epoch where it leads already: acknowledged writes may be lost")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "change nothing; show who answers, and what this node lacks")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}

func (c *candidacy) print(cmd *cobra.Command, dry bool) error {
	var text []byte
	unknown := dry && c.Unapplied > 0 // the rule in force may stand in what is not applied yet
	switch {
	case unknown:
		text = fmt.Appendf(text, "answered: %s\n", strings.Join(c.Promises, " "))
	case dry:
		text = fmt.Appendf(text, "answered: %s (%d promises needed)\n", strings.Join(c.Promises, " "), c.Needed)
	default:
		text = fmt.Appendf(text, "leading epoch %s from LSN %016x\n", c.Epoch, c.End)
	}
	for _, m := range c.Missing {
		text = fmt.Appendf(text, "no answer from %s\n", m)
	}
	if dry && c.Behind > 0 {
		text = fmt.Appendf(text, "%s has %d bytes more; they would be copied first\n", c.Furthest, c.Behind)
	}
	if unknown {
		text = fmt.Appendf(text, "this node applies with a delay: it would apply %d bytes of its log first, and only then know how many promises are needed\n", c.Unapplied)
	}
	if c.MayLack && !unknown {
		text = append(text, "the commit rule asks no followers: writes that the old leader acknowledged may be missing\n"...)
	}
	_, err := cmd.OutOrStdout().Write(text)
	return err
}

func newSwitchover() *cobra.Command {
	flags := clientFlags{timeout: time.Minute}
	var addr, to string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "switchover --to NAME [--http ADDR]",
		Short: "Hand the lead over to a follower without losing a write",
		Long: "Have the leader at --http stop writing, wait until the follower NAME has everything on its disk, and hand the lead over. If that fails, the old leader leads again.\n\n" +
			"Exit codes: 0 NAME leads, 1 it does not, 2 bad usage.",
		Example: "  shiplog switchover --to b",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to == "" {
				return fmt.Errorf("--to is required")
			}
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			var h handedOver
			if err := client.post(cmd.Context(), addr, "/switchover?"+url.Values{"to": {to}}.Encode(), &h); err != nil {
				return fail(err)
			}
			if asJSON {
				return fail(printJSON(cmd.OutOrStdout(), h))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s leads epoch %s; no writes were taken for %.1f ms\n", h.To, h.Epoch, h.PauseMs)
			return fail(err)
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the leader")
	cmd.Flags().StringVar(&to, "to", "", "name of the follower that is to lead (required)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}
