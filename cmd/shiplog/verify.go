package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"shiplog/wal"
)

// verdict is what verify found in a directory.
type verdict struct {
	Dir      string    `json:"dir"`
	OK       bool      `json:"ok"`
	Tail     uint64    `json:"tail_lsn"`
	Head     uint64    `json:"head_lsn"`
	Frames   int64     `json:"frames"`
	Digest   string    `json:"digest,omitempty"`
	Torn     uint64    `json:"torn_bytes,omitempty"` // behind the head: never durable, cut at the next start
	Problems []problem `json:"problems,omitempty"`
}

// problem is damage, or why a directory could not be verified.
type problem struct {
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	LSN    string `json:"lsn,omitempty"`
	Reason string `json:"reason"`
}

func problemOf(err error) problem {
	var c *wal.CorruptError
	if !errors.As(err, &c) {
		return problem{Reason: oneLine(err)}
	}
	reason := c.Reason
	if c.Err != nil {
		reason += ": " + c.Err.Error()
	}
	return problem{File: c.Path, Offset: c.Offset, LSN: c.LSN.String(), Reason: reason}
}

func (p problem) String() string {
	if p.File == "" {
		return p.Reason
	}
	return fmt.Sprintf("%s offset %d LSN %s: %s", p.File, p.Offset, p.LSN, p.Reason)
}

func newVerify() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR...",
		Short: "Check every byte of a database",
		Long: "Check every byte of a database: headers, checksums, padding, order, and the chain of digests.\n" +
			"Nothing is written and nothing is locked: a directory that a node uses is verified up to where its log ended at the start.\n\n" +
			"Exit codes: 0 and \"ok\", 1 damage (file, offset, LSN and reason) or a failure, 2 bad usage.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bad := false
			var all []*verdict
			for _, dir := range args {
				v := verify(cmd.Context(), dir)
				bad = bad || !v.OK
				all = append(all, v)
				if !asJSON {
					v.print(cmd)
				}
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), all); err != nil {
					return fail(err)
				}
			}
			if bad {
				return fail(errReported)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (v *verdict) print(cmd *cobra.Command) {
	w := cmd.OutOrStdout()
	if v.OK {
		fmt.Fprintf(w, "%s: ok, LSN %d to %d, %d frames, digest %s\n", v.Dir, v.Tail, v.Head, v.Frames, v.Digest)
	}
	for _, p := range v.Problems {
		fmt.Fprintf(w, "%s: %s\n", v.Dir, p)
	}
}

// verify reads a directory from end to end. It says ok only for what it has read.
func verify(ctx context.Context, dir string) *verdict {
	v := &verdict{Dir: dir}
	if err := v.read(ctx, dir); err != nil {
		v.Problems = append(v.Problems, problemOf(err))
	}
	v.OK = len(v.Problems) == 0
	return v
}

func (v *verdict) read(ctx context.Context, dir string) error {
	log, err := wal.Open(dir, &wal.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer log.Close()
	if log.Empty() {
		return wal.ErrNoDatabase
	}
	v.Tail, v.Head = uint64(log.Tail()), uint64(log.Head())
	r := log.NewReader(log.Tail())
	defer r.Close()
	for r.Next() {
		v.Frames++
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := r.Err(); err != nil {
		return err
	}
	if r.End() != log.Head() {
		return fmt.Errorf("the frames end at LSN %v, the log at %v", r.End(), log.Head())
	}
	return v.chain(log)
}

// chain compares the digest that each header claims with the one that the bytes before it give.
func (v *verdict) chain(log *wal.Log) error {
	d, err := log.DigestAt(log.Head())
	if err != nil {
		return err
	}
	v.Digest = d.String()
	return nil
}
