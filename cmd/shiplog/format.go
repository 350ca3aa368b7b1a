package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"shiplog/engine"
)

func newFormat() *cobra.Command {
	flags := clientFlags{timeout: time.Minute}
	var addr string
	var raise uint32
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "format --raise LEVEL [--http ADDR]",
		Short: "Raise the format level of the database",
		Long: fmt.Sprintf("Raise the format level of the database that the node at --http leads, by a record in the log. shiplog status shows the level; this build knows up to %d, with which a new database begins.\n", engine.FormatLevel) +
			"There is no way back: nodes of builds that do not know the level keep, confirm and ship the log, and apply nothing any more. First upgrade all of them.\n\n" +
			"Exit codes: 0 the level is in force, 1 it is not, 2 bad usage.",
		Example: "  shiplog format --raise 2",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if raise == 0 {
				return errors.New("--raise is required; shiplog status shows what is in force")
			}
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			var f formatShown
			if err := client.post(cmd.Context(), addr, fmt.Sprintf("/format?level=%d", raise), &f); err != nil {
				return fail(err)
			}
			if asJSON {
				return fail(printJSON(cmd.OutOrStdout(), f))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "format level %d\n", f.Level)
			return fail(err)
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the leader")
	cmd.Flags().Uint32Var(&raise, "raise", 0, "the new level")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}
