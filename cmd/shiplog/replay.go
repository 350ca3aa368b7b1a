package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/engine"
	"shiplog/wal"
)

// lostWrites are the writes of cut logs, by key: what the last of each would have left.
type lostWrites struct {
	keys   map[string]engine.Record
	ranges []engine.Record // range deletes: shown, never replayed
	batch  []engine.Record // of the batch that is being read
	long   []byte          // a record that goes on in the next frames
	open   bool            // the last batch is not whole
}

// read takes up a file of diverged/.
func (w *lostWrites) read(path string) error {
	w.batch, w.long, w.open = nil, nil, false
	err := wal.ReadCut(nil, path, func(f wal.Frame, raw []byte) error {
		if f.Flags&wal.FlagControl != 0 {
			return nil
		}
		if f.Flags&wal.FlagFirst != 0 {
			w.batch = nil
		}
		w.open = f.Flags&wal.FlagLast == 0
		goesOn := f.Flags&wal.FlagContinuation != 0
		if !goesOn { // so what came before is whole
			if err := w.take(w.long); err != nil {
				return fmt.Errorf("frame before %v: %w", f.LSN, err)
			}
			w.long = nil
		}
		if goesOn || f.Records == 1 && w.open { // perhaps the rest of the record follows
			w.long = append(w.long, raw...)
			if w.open {
				return nil
			}
			raw, w.long = w.long, nil
		}
		if err := w.take(raw); err != nil {
			return fmt.Errorf("frame at %v: %w", f.LSN, err)
		}
		if !w.open {
			w.commit()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// take decodes the records of a frame.
func (w *lostWrites) take(raw []byte) error {
	for len(raw) > 0 {
		r, n, err := engine.DecodeRecord(raw)
		if err != nil {
			return err
		}
		r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		w.batch = append(w.batch, r)
		raw = raw[n:]
	}
	return nil
}

// commit enters a whole batch.
func (w *lostWrites) commit() {
	for _, r := range w.batch {
		switch {
		case r.Orig != 0: // written again by reclaim: it is no write of a client's
		case r.Op == engine.OpDeleteRange:
			w.ranges = append(w.ranges, r)
		default:
			w.keys[string(r.Key)] = r
		}
	}
	w.batch = nil
}

// replayed counts what replay has found and done.
type replayed struct {
	Keys      int `json:"keys"`
	Same      int `json:"same"`      // the database has what the write would leave
	Missing   int `json:"missing"`   // the key is not there
	Conflicts int `json:"conflicts"` // it has another value
	Expired   int `json:"expired"`
	Ranges    int `json:"range_deletes"`
	Written   int `json:"written"`
}

func newReplay() *cobra.Command {
	var to, passFile string
	var tlsFlags config.TLS
	var apply, overwrite, asJSON bool
	cmd := &cobra.Command{
		Use:   "replay FILE... [--to HOST:PORT] [--apply] [--overwrite]",
		Short: "Offer writes that were cut from a log again",
		Long: "Read files of a node's diverged/ directory (or all of that directory): writes that another leader's history has replaced. For each key, compare what the last of them would have left\n" +
			"with what the node at --to (its Redis address) has now: the same, missing, or a conflict. With --apply what is missing is written, with --overwrite conflicts too, as new writes, under the database's commit rule.\n" +
			"Range deletes, and a batch whose end was never written, are only shown.\n\n" +
			"Exit codes: 0 nothing is left to decide, 1 something is missing or in conflict still, or a failure, 2 bad usage.",
		Example: "  shiplog replay data/diverged --to 127.0.0.1:6380\n  shiplog replay data/diverged/*.cut --apply",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := cutFiles(args)
			if err != nil {
				return err
			}
			password, err := config.ReadPassword(passFile)
			if err != nil {
				return err
			}
			secure, err := tlsFlags.Client()
			if err != nil {
				return err
			}
			w := lostWrites{keys: map[string]engine.Record{}}
			for _, f := range files {
				if err := w.read(f); err != nil {
					return fail(err)
				}
				if w.open {
					complain(cmd.ErrOrStderr(), f+": the last batch is not whole, and was never acknowledged: left out")
				}
			}
			c := redis.NewClient(&redis.Options{Addr: to, Password: password, TLSConfig: secure, MaxRetries: -1, DialTimeout: 5 * time.Second})
			defer func() { _ = c.Close() }()
			r, err := w.offer(cmd, c, apply, overwrite)
			if err != nil {
				return fail(err)
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d keys: %d same, %d missing, %d in conflict, %d expired; %d written; %d range deletes not replayed\n", r.Keys, r.Same, r.Missing, r.Conflicts, r.Expired, r.Written, r.Ranges)
			}
			if left := r.Missing + r.Conflicts - r.Written; err == nil && left+r.Ranges > 0 {
				err = fmt.Errorf("%d keys and %d range deletes are left to decide", left, r.Ranges)
			}
			return fail(err)
		},
	}
	cmd.Flags().StringVar(&to, "to", "127.0.0.1:6380", "Redis address of the leader")
	cmd.Flags().StringVar(&passFile, "requirepass-file", "", "file with the node's password")
	cmd.Flags().BoolVar(&apply, "apply", false, "write what is missing")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "with --apply, write what is in conflict too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: the counts")
	tlsFlags.Register(cmd.Flags())
	return cmd
}

// cutFiles expands directories to the .cut files in them.
func cutFiles(args []string) (files []string, err error) {
	for _, a := range args {
		if filepath.Ext(a) == ".cut" {
			files = append(files, a)
			continue
		}
		in, err := filepath.Glob(filepath.Join(a, "*.cut"))
		if err != nil {
			return nil, err
		}
		if len(in) == 0 {
			return nil, fmt.Errorf("%s: no .cut file", a)
		}
		files = append(files, in...)
	}
	slices.SortStableFunc(files, func(a, b string) int { return bytes.Compare([]byte(filepath.Base(a)), []byte(filepath.Base(b))) })
	return files, nil
}

// offer compares each key with the database, prints what differs, and writes what it is told to.
func (w *lostWrites) offer(cmd *cobra.Command, c *redis.Client, apply, overwrite bool) (r replayed, err error) {
	ctx := cmd.Context()
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(cmd.ErrOrStderr(), format, args...) } // the counts say it too
	names := make([]string, 0, len(w.keys))
	for k := range w.keys {
		names = append(names, k)
	}
	slices.Sort(names)
	r.Keys, r.Ranges = len(names), len(w.ranges)
	for _, o := range w.ranges {
		say("range delete from %.64q to %.64q\n", o.Key, o.Value)
	}
	for _, k := range names {
		lost := w.keys[k]
		if lost.Expiry != 0 && lost.Expiry <= time.Now().UnixMilli() {
			r.Expired++
			continue
		}
		now, err := c.Get(ctx, k).Bytes()
		there := err == nil
		if err != nil && !errors.Is(err, redis.Nil) {
			return r, fmt.Errorf("get %.64q: %w", k, err)
		}
		gone := lost.Op == engine.OpDelete
		switch {
		case gone && !there, !gone && there && bytes.Equal(now, lost.Value):
			r.Same++
			continue
		case gone:
			r.Conflicts++
			say("conflict %.64q: deleted there, is %.64q here\n", k, now)
		case there:
			r.Conflicts++
			say("conflict %.64q: %.64q there, %.64q here\n", k, lost.Value, now)
		default:
			r.Missing++
			say("missing %.64q: %.64q\n", k, lost.Value)
		}
		if apply && (!there || overwrite) {
			wrote, err := writeAgain(ctx, c, k, lost, there)
			if err != nil {
				return r, fmt.Errorf("write %.64q: %w", k, err)
			}
			if wrote {
				r.Written++
			}
		}
	}
	return r, nil
}

// writeAgain makes the write again; one that was missing only if it is missing still.
func writeAgain(ctx context.Context, c *redis.Client, key string, lost engine.Record, there bool) (bool, error) {
	if lost.Op == engine.OpDelete {
		return true, c.Del(ctx, key).Err()
	}
	args := []any{"SET", key, lost.Value}
	if lost.Expiry != 0 {
		args = append(args, "PXAT", lost.Expiry)
	}
	if !there {
		args = append(args, "NX")
	}
	err := c.Do(ctx, args...).Err()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	return err == nil, err
}
