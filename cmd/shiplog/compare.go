package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/wal"
)

// side is one of two logs that are compared.
type side interface {
	// bounds returns the database and the LSNs that the log holds.
	bounds(ctx context.Context) (database string, tail, head uint64, err error)
	// digest returns the digest at the last boundary that is not above lsn.
	digest(ctx context.Context, lsn uint64) (httpd.Digest, error)
	// damage returns the first place of [from, to) where a directory does not hold what its digests speak of, or nil.
	damage(ctx context.Context, from, to uint64) (*wal.CorruptError, error)
	close()
}

// comparison is what compare found.
type comparison struct {
	A         string `json:"a"`
	B         string `json:"b"`
	Identical bool   `json:"identical"`
	From      uint64 `json:"from_lsn"`             // both hold the log from here on
	To        uint64 `json:"identical_to_lsn"`     // and it is the same up to here
	Differ    uint64 `json:"differ_lsn,omitempty"` // of the frame or header that differs first
	Reason    string `json:"reason,omitempty"`
	AHead     uint64 `json:"a_head_lsn"`
	BHead     uint64 `json:"b_head_lsn"`
}

func newCompare() *cobra.Command {
	var flags clientFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "compare A B",
		Short: "Compare two logs: identical up to an LSN, or the first difference",
		Long: "Compare two logs by their digests. A and B are directories, read without locking them, or HTTP addresses of nodes.\n" +
			"The digest at an LSN covers every byte before it, so that the first difference is found by bisection. A digest is of\n" +
			"what was written: of a directory every byte is then read and checked against it, while of a node its scrubber does that\n" +
			"all the time.\n\n" +
			"Exit codes: 0 identical as far as both reach, 1 a difference or a failure, 2 bad usage.",
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			var sides [2]side
			for i, arg := range args {
				if sides[i], err = openSide(arg, c); err != nil {
					return err
				}
				defer sides[i].close()
			}
			found, err := compare(cmd.Context(), sides[0], sides[1])
			if err != nil {
				return fail(err)
			}
			found.A, found.B = args[0], args[1]
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), found)
			} else {
				err = found.print(cmd)
			}
			if err == nil && !found.Identical {
				err = errReported
			}
			return fail(err)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}

func (c *comparison) print(cmd *cobra.Command) error {
	var err error
	switch w := cmd.OutOrStdout(); {
	case c.Identical:
		_, err = fmt.Fprintf(w, "identical from LSN %d up to LSN %d (heads %d and %d)\n", c.From, c.To, c.AHead, c.BHead)
	case c.Differ == 0:
		_, err = fmt.Fprintf(w, "different: %s\n", c.Reason)
	default:
		reason := ""
		if c.Reason != "" {
			reason = ": " + c.Reason
		}
		_, err = fmt.Fprintf(w, "identical up to LSN %d; the first difference is in what begins at LSN %d%s\n", c.To, c.Differ, reason)
	}
	return err
}

// openSide takes a directory that exists for one, else an address.
func openSide(arg string, c *client) (side, error) {
	if info, err := os.Stat(arg); err == nil && info.IsDir() {
		log, err := wal.Open(arg, &wal.Options{ReadOnly: true})
		if err != nil {
			return nil, fail(fmt.Errorf("%s: %w", arg, err))
		}
		if log.Empty() {
			_ = log.Close() // opened to be read only
			return nil, fail(fmt.Errorf("%s: %w", arg, wal.ErrNoDatabase))
		}
		return dirSide{log}, nil
	}
	if config.HostPort("", arg) != nil {
		return nil, fmt.Errorf("%s is neither a directory nor HOST:PORT", arg)
	}
	return nodeSide{arg, c}, nil
}

type dirSide struct{ log *wal.Log }

func (d dirSide) bounds(context.Context) (string, uint64, uint64, error) {
	return d.log.DatabaseID().String(), uint64(d.log.Tail()), uint64(d.log.Head()), nil
}

func (d dirSide) digest(_ context.Context, lsn uint64) (httpd.Digest, error) {
	return digestBelow(d.log, wal.LSN(lsn))
}

func (d dirSide) damage(ctx context.Context, from, to uint64) (*wal.CorruptError, error) {
	report, err := d.log.Verify(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range report.Damage {
		if at := uint64(c.LSN); from <= at && at < to {
			return c, nil
		}
	}
	return nil, nil
}

func (d dirSide) close() { _ = d.log.Close() } // opened to be read only

type nodeSide struct {
	addr   string
	client *client
}

func (n nodeSide) bounds(ctx context.Context) (string, uint64, uint64, error) {
	s, err := n.client.status(ctx, n.addr)
	return s.DatabaseID, s.Tail, s.Head, err
}

func (n nodeSide) digest(ctx context.Context, lsn uint64) (httpd.Digest, error) {
	return n.client.digest(ctx, n.addr, lsn)
}

func (nodeSide) damage(context.Context, uint64, uint64) (*wal.CorruptError, error) { return nil, nil }

func (nodeSide) close() {}

// compare bisects. Because a digest covers all before it, logs that agree at an LSN agree everywhere below; and logs
// that hold the same bytes have the same boundaries, so that "the last boundary not above" is the same on both.
func compare(ctx context.Context, a, b side) (*comparison, error) {
	aID, aTail, aHead, err := a.bounds(ctx)
	if err != nil {
		return nil, err
	}
	bID, bTail, bHead, err := b.bounds(ctx)
	if err != nil {
		return nil, err
	}
	c := &comparison{AHead: aHead, BHead: bHead, From: max(aTail, bTail)}
	if aID != bID {
		c.Reason = fmt.Sprintf("databases %s and %s", aID, bID)
		return c, nil
	}
	end := min(aHead, bHead)
	if c.From > end {
		return nil, fmt.Errorf("the logs do not overlap: [%d, %d) and [%d, %d)", aTail, aHead, bTail, bHead)
	}
	same := func(lsn uint64) (bool, uint64, error) {
		x, err := a.digest(ctx, lsn)
		if err != nil {
			return false, 0, err
		}
		y, err := b.digest(ctx, lsn)
		return x.LSN == y.LSN && x.Digest == y.Digest, x.LSN, err
	}
	equal, at, err := same(end)
	if err != nil {
		return nil, err
	}
	if equal {
		c.Identical, c.To = true, at
		return c, c.look(ctx, a, b)
	}
	equal, at, err = same(c.From)
	if err != nil {
		return nil, err
	}
	if !equal {
		c.Reason = fmt.Sprintf("already before LSN %d, where the later of the tails is", c.From)
		return c, nil
	}
	low, high := c.From, end // the same at low, different at high
	for high-low > 1 {
		mid := low + (high-low)/2
		equal, found, err := same(mid)
		switch {
		case errors.Is(err, wal.ErrTrimmed), errors.Is(err, httpd.ErrOutOfRange):
			return nil, fmt.Errorf("the tail moved during the comparison: %w", err)
		case err != nil:
			return nil, err
		case equal:
			low, at = mid, found
		default:
			high = mid
		}
	}
	c.To, c.Differ = at, at
	return c, c.look(ctx, a, b)
}

// look holds the sides' bytes against the digests that were the same.
func (c *comparison) look(ctx context.Context, sides ...side) error {
	for _, s := range sides {
		d, err := s.damage(ctx, c.From, c.To)
		if err != nil {
			return err
		}
		if d != nil {
			c.Identical, c.To, c.Differ, c.Reason = false, uint64(d.LSN), uint64(d.LSN), problemOf(d).String()
		}
	}
	return nil
}
