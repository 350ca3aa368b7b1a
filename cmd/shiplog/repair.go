package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is how a node finds damage in its log, and mends it from its peers.

const (
	// copyTimeout bounds the fetching of one segment from one peer.
	copyTimeout = 2 * time.Minute
	// healRest is how long a segment that could not be mended is left alone by reads.
	healRest = 5 * time.Second
	// scrubPace bounds how fast the log is read in the background, in bytes a second.
	scrubPace = 32 << 20
)

// repairer mends segments, one at a time.
type repairer struct {
	n *node

	mending chan struct{} // capacity 1: has a token while a segment is mended; a wait for it ends with its context

	mu     sync.Mutex // guards all below
	failed map[wal.LSN]failedRepair
	stats  httpd.Repairs
}

type failedRepair struct {
	at  time.Time
	err error
}

// heal is an engine.Healer.
func (r *repairer) heal(ctx context.Context, at wal.LSN) error {
	log := r.n.db.Log()
	base := at &^ wal.LSN(log.SegmentSize()-1)
	r.mu.Lock()
	f, rests := r.failed[base]
	r.mu.Unlock()
	if rests && time.Since(f.at) < healRest {
		return f.err
	}
	err := r.segment(ctx, base)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.failed, base)
	if err != nil && !errors.Is(err, wal.ErrClosed) && ctx.Err() == nil {
		if r.failed == nil {
			r.failed = map[wal.LSN]failedRepair{}
		}
		r.failed[base] = failedRepair{time.Now(), err}
	}
	return err
}

// segment verifies a segment, and mends it from the first peer whose copy fits.
func (r *repairer) segment(ctx context.Context, base wal.LSN) error {
	select {
	case r.mending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.mending }()
	log := r.n.db.Log()
	damage := log.Scrub(base)
	var c *wal.CorruptError
	if !errors.As(damage, &c) {
		return damage // none, also when another call has mended it meanwhile
	}
	r.n.log.Error("damage in the log", "path", c.Path, "offset", c.Offset, "lsn", c.LSN.String(), "reason", c.Reason)
	r.count(func(s *httpd.Repairs) { s.Damaged++ })
	digest, err := log.DigestAt(base)
	if err != nil {
		return errors.Join(damage, err)
	}
	end := min(base+wal.LSN(log.SegmentSize()), log.Durable())
	peers := r.peers()
	if len(peers) == 0 {
		return fmt.Errorf("%w; no peer is known that could have a sound copy", damage)
	}
	errs := []error{damage}
	for _, addr := range peers {
		changed, err := r.from(ctx, addr, base, end, digest)
		if err == nil {
			r.n.log.Warn("the log was mended", "peer", addr, "segment_lsn", base.String(), "bytes", changed)
			r.count(func(s *httpd.Repairs) { s.Repaired++; s.Bytes += changed })
			return nil
		}
		errs = append(errs, err)
	}
	err = errors.Join(errs...)
	r.n.log.Error("the log could not be mended", "segment_lsn", base.String(), "error", err)
	r.count(func(s *httpd.Repairs) { s.Failed++ })
	return err
}

func (r *repairer) from(ctx context.Context, addr string, base, end wal.LSN, digest wal.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	log := r.n.db.Log()
	good, err := ship.Copy(ctx, addr, r.n.callOptions(), &ship.CopyRequest{
		Database: log.DatabaseID(), History: log.History(), From: base, Digest: digest, To: end,
	})
	if err != nil {
		return 0, err
	}
	changed, err := log.Repair(base, good)
	if err != nil {
		return 0, fmt.Errorf("copy from %s: %w", addr, err)
	}
	return changed, nil
}

// peers are the shipping addresses of nodes that may have the log: whom this one follows, who follows it, and voters.
func (r *repairer) peers() []string {
	n := r.n
	var addrs []string
	add := func(addr string) {
		if _, port, err := net.SplitHostPort(addr); err == nil && port != "0" && addr != n.shipAddr && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	n.mu.Lock()
	add(n.upstream)
	n.mu.Unlock()
	for _, p := range n.peers() {
		add(net.JoinHostPort(splitAddr(p.Addr, p.Remote)))
	}
	self := n.db.Log().NodeID()
	for _, v := range n.db.Stats().Voters {
		if v.ID != self {
			add(v.Addr)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, addr := range n.callers {
		add(addr)
	}
	return addrs
}

func (r *repairer) count(fn func(s *httpd.Repairs)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(&r.stats)
}

// status is what was found and mended since the node was started.
func (r *repairer) status() httpd.Repairs {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// scrub verifies the whole log, at a pace in bytes a second (0: as fast as it goes), and mends what it finds. The error says
// what is left.
func (r *repairer) scrub(ctx context.Context, pace int64) error {
	log := r.n.db.Log()
	var errs []error
	for _, base := range log.Segments() {
		began := time.Now()
		err := log.Scrub(base)
		var c *wal.CorruptError
		if errors.As(err, &c) {
			err = r.heal(ctx, base)
		}
		if err != nil && !errors.Is(err, wal.ErrTrimmed) {
			errs = append(errs, err)
		}
		rest := time.Duration(0)
		if pace > 0 {
			rest = max(0, time.Duration(float64(log.SegmentSize())/float64(pace)*float64(time.Second))-time.Since(began))
		}
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return errors.Join(append(errs, ctx.Err())...)
		}
	}
	r.count(func(s *httpd.Repairs) { s.Scrubs++; s.LastScrub = time.Now() })
	return errors.Join(errs...)
}

// run scrubs again and again, until ctx ends.
func (r *repairer) run(ctx context.Context, every time.Duration) {
	for {
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return
		}
		if err := r.scrub(ctx, scrubPace); err != nil && ctx.Err() == nil {
			r.n.log.Error("scrub", "error", err)
		}
	}
}

// Repair implements httpd.Control.
func (n *node) Repair(ctx context.Context) (any, error) {
	before := n.repairs.status()
	if err := n.repairs.scrub(ctx, 0); err != nil {
		return nil, err
	}
	after := n.repairs.status()
	return repaired{Segments: len(n.db.Log().Segments()), Damaged: after.Damaged - before.Damaged, Repaired: after.Repaired - before.Repaired, Bytes: after.Bytes - before.Bytes}, nil
}

// repaired is what Repair shows.
type repaired struct {
	Segments int   `json:"segments"`
	Damaged  int64 `json:"damaged"`
	Repaired int64 `json:"repaired"`
	Bytes    int64 `json:"bytes"`
}

func newRepair() *cobra.Command {
	flags := clientFlags{timeout: time.Hour}
	var addr, from, secretFile string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "repair [--http ADDR] | repair DIR --from HOST:PORT",
		Short: "Verify a node's log, and mend it from its peers",
		Long: "Have the node at --http verify every byte of its log as it is on the disk, and fetch what is damaged from the nodes that it follows, that follow it, or that vote. A copy is taken only if with it the\n" +
			"segment's frames and digest hold. The node serves what is sound meanwhile. A node does the same by itself, slowly, and when a read or a follower meets damage.\n\n" +
			"With DIR, mend the log of a node that is stopped from the one that ships at --from, leader or follower: damaged blocks, missing segments, headers and all else that keeps a log from being opened. Bytes are\n" +
			"taken only if the frames and digests of this log hold with them; where they do not (another history, bytes that the other node has given up), nothing is changed. What was mended is listed, LSNs and bytes.\n" +
			"A call that was interrupted is made again.\n\n" +
			"Exit codes: 0 the log is sound, 1 it is not, 2 bad usage.",
		Example: "  shiplog repair --http 127.0.0.1:8381\n" +
			"  shiplog repair data --from 127.0.0.1:7381",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && cmd.Flags().Changed("http"):
				return errors.New("DIR is of a node that is stopped, --http of one that runs: give one of them")
			case len(args) > 0:
				return repairOffline(cmd, args[0], from, secretFile, &flags, asJSON)
			case from != "":
				return errors.New("--from needs the directory that is to be mended")
			}
			client, err := flags.client(addr)
			if err != nil {
				return err
			}
			var r repaired
			if err := client.post(cmd.Context(), addr, "/repair?"+url.Values{}.Encode(), &r); err != nil {
				return fail(err)
			}
			if asJSON {
				return fail(printJSON(cmd.OutOrStdout(), r))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d segments verified, %d damaged, %d mended (%d bytes)\n", r.Segments, r.Damaged, r.Repaired, r.Bytes)
			return fail(err)
		},
	}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8380", "HTTP address of the node")
	cmd.Flags().StringVar(&from, "from", "", "shipping address of the node to mend DIR from")
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "with DIR: file with the secret that nodes share (or the environment variable "+config.SecretEnv+")")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	flags.register(cmd.Flags())
	return cmd
}
