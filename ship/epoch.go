package ship

import (
	"shiplog/wal"
)

// This file decides, from two histories, where two logs part. It is pure: no I/O, no clock, no locks.

// view is what one side knows of a log.
type view struct {
	history []wal.HistoryEntry // by rising epoch
	tail    wal.LSN
	end     wal.LSN
}

// epoch returns the last epoch of the log.
func (v view) epoch() wal.Epoch {
	if len(v.history) == 0 {
		return 0
	}
	return v.history[len(v.history)-1].Epoch
}

// leader returns the leader of the last epoch.
func (v view) leader() wal.NodeID {
	if len(v.history) == 0 {
		return wal.NodeID{}
	}
	return v.history[len(v.history)-1].Leader
}

// after returns the end of the bytes of entry i: the start of the next entry, or the end of the log.
func (v view) after(i int) wal.LSN {
	if i+1 < len(v.history) {
		return min(v.history[i+1].Start, v.end)
	}
	return v.end
}

// begins reports whether entry i is there and begins at an LSN.
func (v view) begins(i int, at wal.LSN) bool { return i < len(v.history) && v.history[i].Start == at }

// newest returns the newest entries that a message can carry.
func newest(h []wal.HistoryEntry) []wal.HistoryEntry {
	if len(h) > MaxHistory {
		h = h[len(h)-MaxHistory:]
	}
	return h
}

// fork says up to where two logs can share bytes.
type fork struct {
	at     wal.LSN           // end of what they can share
	shared bool              // they have an epoch in common
	next   *wal.HistoryEntry // the upstream's entry that names the fork; nil when the last one in common is its last
}

// splitBrain returns the entries of an epoch that both histories hold under different IDs.
func splitBrain(up, down []wal.HistoryEntry) (u, d *wal.HistoryEntry) {
	i, j := 0, 0
	for i < len(up) && j < len(down) {
		switch {
		case up[i].Epoch < down[j].Epoch:
			i++
		case up[i].Epoch > down[j].Epoch:
			j++
		case up[i].ID != down[j].ID || up[i].Leader != down[j].Leader:
			// Starts are not compared: a log whose first byte is inside an epoch knows it from there only.
			return &up[i], &down[j]
		default:
			i++
			j++
		}
	}
	return nil, nil
}

// findFork compares two histories, as KIP-101 and KIP-279 do: the last epoch that both hold, and the lower of the
// two ends of that epoch. Epochs without a record of data are no special case: they have a start and a history ID
// like any other.
func findFork(up, down view, segmentSize uint64) fork {
	for j := len(down.history) - 1; j >= 0; j-- {
		for i := len(up.history) - 1; i >= 0; i-- {
			if up.history[i].Epoch != down.history[j].Epoch {
				continue
			}
			if up.history[i].ID != down.history[j].ID {
				break
			}
			f := fork{at: min(up.after(i), down.after(j)), shared: true}
			if base := f.at &^ wal.LSN(segmentSize-1); f.at == base+wal.HeaderSize && (up.begins(i+1, f.at) || down.begins(j+1, f.at)) {
				f.at = base // the segment's header may name the epoch that begins behind it
			}
			f.next = named(up.history[i+1:], down)
			return f
		}
	}
	return fork{}
}

// named is the epoch that names a fork to a follower: the first behind it whose term is above all that the follower holds. Who began that one
// had the promises of enough voters, and all that was ever committed in lower terms; so the follower's bytes behind the fork were not, although
// their term may be above, or the same as, that of the upstream's first epoch there. Where there is none: the first, which
// may be a restart.
func named(behind []wal.HistoryEntry, down view) *wal.HistoryEntry {
	for i := range behind {
		if behind[i].Epoch.Term() > down.epoch().Term() {
			return &behind[i]
		}
	}
	if len(behind) > 0 {
		return &behind[0]
	}
	return nil
}

// place decides whether a follower that stands at down can be fed from up, and from where. promised is the
// follower's; committed is the follower's own mark. It does not look at digests. A refusal for divergence carries
// the fork without the upstream's digest there.
func place(up, down view, empty bool, promised wal.Epoch, committed wal.LSN, segmentSize uint64) (wal.LSN, *Error) {
	if promised > up.epoch() {
		e := refuse(CodeFenced, "upstream is at epoch %s, the follower has promised %s", up.epoch(), promised)
		e.Epoch = promised
		return 0, e
	}
	if empty {
		// The first byte must be a segment's header.
		return up.tail &^ wal.LSN(segmentSize-1), nil
	}
	if u, d := splitBrain(up.history, down.history); u != nil && up.epoch().Term() <= down.epoch().Term() {
		e := refuse(CodeSplitBrain, "epoch %s: upstream has history %s of leader %s from %s, the follower %s of leader %s from %s",
			u.Epoch, u.ID, u.Leader, u.Start, d.ID, d.Leader, d.Start)
		e.Epoch, e.Mine, e.Theirs, e.LSN = u.Epoch, u.ID, d.ID, min(u.Start, d.Start)
		return 0, e
	}
	if down.epoch() > up.epoch() {
		e := refuse(CodeFenced, "upstream is at epoch %s, the follower's log at %s", up.epoch(), down.epoch())
		e.Epoch, e.Node = down.epoch(), down.leader()
		return 0, e
	}
	f := findFork(up, down, segmentSize)
	switch {
	case down.end <= f.at && f.shared:
	case f.shared && f.next == nil:
		// All of the follower's epochs are the upstream's, and the upstream's last one is not finished.
		code := CodeAhead
		if up.end < committed {
			code = CodeBehind
		}
		e := refuse(code, "upstream ends at %s, the follower at %s and its committed mark is %s", up.end, down.end, committed)
		e.LSN = up.end
		return 0, e
	case !f.shared && down.end < up.tail:
	default:
		e := refuse(CodeDiverged, "fork at %s, the follower ends at %s", f.at, down.end)
		e.LSN = f.at
		if f.next != nil {
			e.Epoch, e.Node, e.Mine = f.next.Epoch, f.next.Leader, f.next.ID
		}
		return 0, e
	}
	if down.end < up.tail {
		e := refuse(CodeTrimmed, "the follower ends at %s, the upstream's tail is %s", down.end, up.tail)
		e.LSN = up.tail
		if f.shared {
			e.Epoch = up.epoch() // what the follower holds is known to be of this history
		}
		return 0, e
	}
	return down.end, nil
}

// mayCut decides whether a follower may cut its log back to the fork that a refusal names, by itself: bytes that the same leader wrote
// in the same term before it restarted and lost them, and bytes of terms below the one whose epoch record names the fork. Nothing
// below its own committed mark is cut, unless a higher term names the fork and loose says that no followers had to
// confirm what was committed from there on. digest is the follower's own at the fork.
func mayCut(down view, committed wal.LSN, r *Error, digest wal.Digest, loose bool) *Error {
	higher := true // the fork's term is above all that is cut
	for i, h := range down.history {
		if down.after(i) > r.LSN || i+1 == len(down.history) {
			higher = higher && h.Epoch.Term() < r.Epoch.Term()
		}
	}
	switch {
	case r.LSN < committed && !(higher && loose):
		e := refuse(CodeDivergedCommitted, "fork at %s, own committed mark at %s", r.LSN, committed)
		e.LSN, e.Epoch, e.Node = r.LSN, r.Epoch, r.Node
		return e
	case r.LSN >= down.end || r.LSN < down.tail:
		return refuse(CodeProtocol, "fork at %s is not in the log [%s, %s)", r.LSN, down.tail, down.end)
	case digest != r.Digest:
		e := refuse(CodeDigest, "own digest at the fork %s is %s, the upstream's %s", r.LSN, digest, r.Digest)
		e.LSN, e.Digest = r.LSN, r.Digest
		return e
	}
	for i, h := range down.history {
		if down.after(i) <= r.LSN && i+1 < len(down.history) {
			continue // wholly below the fork
		}
		if h.Epoch.Term() < r.Epoch.Term() {
			continue
		}
		if h.Epoch.Term() != r.Epoch.Term() || h.Epoch >= r.Epoch || h.Leader != r.Node {
			return r // another leader's doing, or no epoch at all names the fork
		}
	}
	return nil
}
