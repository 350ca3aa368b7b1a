package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"shiplog/wal"
)

// verdict is what verify found in a directory.
type verdict struct {
	Dir      string `json:"dir"`
	OK       bool   `json:"ok"`
	Tail     uint64 `json:"tail_lsn"`
	Head     uint64 `json:"head_lsn"` // end of the last valid frame or header
	Durable  uint64 `json:"durable_lsn"`
	Segments int    `json:"segments"`
	Frames   int64  `json:"frames"` // seals included
	Records  int64  `json:"records"`
	Digest   string `json:"digest,omitempty"` // at Head, when there is no damage
	// TornBytes behind Head were never finished: the next start cuts them.
	TornBytes int64     `json:"torn_bytes,omitempty"`
	Problems  []problem `json:"problems,omitempty"`
}

// problem is damage, or why a directory could not be verified. Without File it has neither Offset nor LSN.
type problem struct {
	File   string `json:"file,omitempty"`
	Offset *int64 `json:"offset,omitempty"` // bytes, in File
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
	return problem{File: c.Path, Offset: &c.Offset, LSN: c.LSN.String(), Reason: reason}
}

func (p problem) String() string {
	if p.File == "" {
		return p.Reason
	}
	return fmt.Sprintf("%s offset %d LSN %s: %s", p.File, *p.Offset, p.LSN, p.Reason)
}

func newVerify() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR...",
		Short: "Check every byte of a database",
		Long: "Check every byte of a database: headers, checksums, padding, order, payloads, and the chain of digests. It goes on behind\n" +
			"damage, and prints a line for each place: file, offset, LSN and reason.\n" +
			"Nothing is written and nothing is locked: a directory that a node uses is verified up to about where its log ends.\n\n" +
			"Exit codes: 0 and \"ok\", 1 damage or a failure, 2 bad usage.",
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []*verdict
			var err error
			for _, dir := range args {
				v := verify(cmd.Context(), dir)
				all = append(all, v)
				if !asJSON {
					err = errors.Join(err, v.print(cmd))
				}
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), all)
			}
			for _, v := range all {
				if err == nil && !v.OK {
					err = errReported
				}
			}
			return fail(err)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (v *verdict) print(cmd *cobra.Command) error {
	var text []byte
	if v.OK {
		text = fmt.Appendf(text, "%s: ok, LSN %d to %d, %d frames, digest %s", v.Dir, v.Tail, v.Head, v.Frames, v.Digest)
		if v.TornBytes != 0 {
			text = fmt.Appendf(text, ", then %d bytes that were never finished", v.TornBytes)
		}
		text = append(text, '\n')
	}
	for _, p := range v.Problems {
		text = fmt.Appendf(text, "%s: %s\n", v.Dir, p)
	}
	_, err := cmd.OutOrStdout().Write(text)
	return err
}

// verify reads a directory from end to end. It says ok only for what it has read.
func verify(ctx context.Context, dir string) *verdict {
	report, err := wal.Verify(ctx, dir, nil)
	v := &verdict{
		Dir: dir, Tail: uint64(report.Tail), Head: uint64(report.End), Durable: uint64(report.Durable), Segments: report.Segments,
		Frames: report.Frames, Records: report.Records, TornBytes: report.TornBytes,
	}
	for _, d := range report.Damage {
		v.Problems = append(v.Problems, problemOf(d))
	}
	if err != nil {
		p := problemOf(err)
		p.Reason = strings.TrimPrefix(p.Reason, "verify "+dir+": ")
		v.Problems = append(v.Problems, p)
	}
	if v.OK = len(v.Problems) == 0; v.OK {
		v.Digest = digestString(report.Digest)
	}
	return v
}
