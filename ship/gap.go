package ship

import (
	"context"
	"errors"
	"fmt"

	"shiplog/wal"
)

// errGapFilled says that the log has come to where the upstream's begins, and can go on from there.
var errGapFilled = errors.New("ship: what the upstream has given up was copied from a sibling")

// fillGap copies what stands between this log's end and the upstream's tail, which r names, from the first sibling that has
// it. It reports whether nothing is missing any more.
func (f *Follower) fillGap(ctx context.Context, r *Error) bool {
	if f.opts.Siblings == nil || r.Epoch == 0 {
		return false
	}
	addrs, calls := f.opts.Siblings()
	for _, addr := range addrs {
		if addr == f.opts.Upstream || ctx.Err() != nil {
			continue
		}
		from := f.log.Head()
		err := f.copyGap(ctx, addr, calls, r.LSN)
		if to := f.log.Head(); to > from {
			f.opts.Logger.Info("copied from a sibling what the upstream has given up", "sibling", addr, "from_lsn", from.String(), "to_lsn", to.String())
		}
		if err == nil {
			return true
		}
		f.opts.Logger.Info("a sibling does not fill the gap", "sibling", addr, "upstream_tail_lsn", r.LSN.String(), "error", err)
	}
	return false
}

// copyGap copies segment by segment, each synced, up to an LSN or beyond it.
func (f *Follower) copyGap(ctx context.Context, addr string, o *CallOptions, to wal.LSN) error {
	for f.log.Head() < to {
		head := f.log.Head()
		digest, err := f.log.DigestAt(head)
		if err != nil {
			return fmt.Errorf("digest at %s: %w", head, err)
		}
		segment := wal.LSN(f.log.SegmentSize())
		p, err := Copy(ctx, addr, o, &CopyRequest{
			Database: f.log.DatabaseID(), History: f.log.History(), From: head, Digest: digest, To: (head + segment) &^ (segment - 1),
		})
		if err != nil {
			return err
		}
		n, err := f.log.AppendRaw(head, p)
		f.receivedBytes(n)
		if _, e := f.log.Sync(); e != nil {
			return errors.Join(err, fmt.Errorf("sync: %w", e))
		}
		if err != nil {
			return fmt.Errorf("append at %s: %w", f.log.Head(), err)
		}
		if f.log.Head() == head {
			return fmt.Errorf("nothing more is committed there than up to %s", head)
		}
	}
	return nil
}
