package main

import (
	"context"
	"encoding/binary"
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
	c := chain{log: log, segment: wal.LSN(log.SegmentSize())}
	r := log.NewReader(log.Tail())
	defer r.Close()
	for r.Next() {
		v.Frames++
		if err := errors.Join(ctx.Err(), c.frame(r.Frame())); err != nil {
			return err
		}
	}
	if err := r.Err(); err != nil {
		return err
	}
	if err := c.reach(log.Head()); err != nil {
		return err
	}
	v.Digest = digestString(c.digest)
	d, err := log.DigestAt(log.Head())
	if err == nil && d != c.digest {
		err = fmt.Errorf("the digest at LSN %v is %v, the frames give %v", log.Head(), d, c.digest)
	}
	return err
}

// chain computes the digest of a log from its headers, frames and seals, as wal/FORMAT.md defines it, and compares it
// with the one that each segment header carries.
type chain struct {
	log     *wal.Log
	segment wal.LSN // size
	at      wal.LSN // everything before is in digest
	digest  wal.Digest
	begun   bool
}

func (c *chain) frame(f wal.Frame) error {
	if err := c.reach(f.LSN); err != nil {
		return err
	}
	c.step(uint64(f.Checksum))
	c.at = f.End()
	return nil
}

// reach takes in the seals and headers between the last frame and lsn, which the reader steps over.
func (c *chain) reach(lsn wal.LSN) error {
	if !c.begun {
		c.at, c.begun = c.log.Tail(), true
		if err := c.header(true); err != nil {
			return err
		}
	}
	for c.at < lsn {
		var seal [8]byte
		if _, err := c.log.ReadAt(seal[:], c.at); err != nil {
			return err
		}
		c.step(binary.LittleEndian.Uint64(seal[:]))
		c.at = c.at&^(c.segment-1) + c.segment
		if c.at == c.log.Head() {
			return nil // sealed, and the next segment is not begun
		}
		if err := c.header(false); err != nil {
			return err
		}
	}
	if c.at != lsn {
		return fmt.Errorf("the frame before LSN %v ends at LSN %v", lsn, c.at)
	}
	return nil
}

// header checks the segment header at c.at. The first one's digest is taken as it is.
func (c *chain) header(first bool) error {
	var p [wal.HeaderSize]byte
	if _, err := c.log.ReadAt(p[:], c.at); err != nil {
		return err
	}
	claimed := wal.Digest(binary.LittleEndian.Uint64(p[96:]))
	if first {
		c.digest = claimed
	} else if claimed != c.digest {
		return fmt.Errorf("the segment header at LSN %v carries digest %v, what is before it gives %v", c.at, claimed, c.digest)
	}
	c.step(binary.LittleEndian.Uint64(p[120:]))
	c.at += wal.HeaderSize
	return nil
}

func (c *chain) step(checksum uint64) {
	x := uint64(c.digest) ^ checksum
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	c.digest = wal.Digest((x ^ x>>31) + 0x9E3779B97F4A7C15)
}
