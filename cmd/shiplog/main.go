// Shiplog serves a shiplog database to Redis clients, ships its log to followers, and inspects databases.
//
// Exit codes: 0, it worked; 1, a finding or a failure; 2, bad usage. Errors are one line on standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// failure is an error of a command that was understood: exit code 1. Every other error is one of usage.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(err error) error {
	if err == nil {
		return nil
	}
	return &failure{err}
}

// errReported ends a command with exit code 1 that has said all there is on standard output.
var errReported = errors.New("see above")

// run executes a command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var f *failure
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailure
	case errors.As(err, &f):
		complain(stderr, oneLine(f.err))
		return exitFailure
	}
	text := oneLine(err)
	if cmd == root && len(args) > 0 {
		if near := root.SuggestionsFor(args[0]); len(near) > 0 {
			text += ": do you mean " + strings.Join(near, " or ") + "?"
		}
	}
	complain(stderr, text+" (see "+cmd.CommandPath()+" --help)")
	return exitUsage
}

// arguments checks how many a verb is given, flags aside; most < 0: any number.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("an argument is missing: %s", cmd.UseLine())
		case most >= 0 && len(args) > most:
			return fmt.Errorf("unexpected argument %q: %s", args[most], cmd.UseLine())
		}
		return nil
	}
}

// complain writes a line to standard error; where that is closed, the exit code has to say it.
func complain(stderr io.Writer, text string) { _, _ = fmt.Fprintln(stderr, "shiplog: "+text) }

// oneLine joins the lines of an error that lists several.
func oneLine(err error) string { return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ") }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "shiplog",
		Short:         "A key-value store whose log is the database, with followers that hold the same bytes",
		Long:          "A key-value store whose log is the database, with followers that hold the same bytes.\n\nExit codes: 0 it worked, 1 a finding or a failure, 2 bad usage.",
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		// Without Args an unknown verb is an error before --help is heard.
		RunE:               func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableSuggestions: true, // run makes them, in one line

		SuggestionsMinimumDistance: 2,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(newHelp())
	root.AddCommand(newServe(), newStatus(), newVerify(), newCompare(), newDump(), newPromote(), newSwitchover(), newRule(), newFormat(), newSlot(), newRepair(), newReplay())
	return root
}

// newHelp is cobra's own command, but an unknown verb is bad usage.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "Show the usage of a verb",
		Long:  "Show the usage of a verb, as its --help does.\n\nExit codes: 0 shown, 1 it cannot be written, 2 bad usage.",
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, _, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			verb.InitDefaultHelpFlag()
			return fail(verb.Help())
		},
	}
}

// version is the module's, or the revision that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}
