package ship_test

import (
	"errors"
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

// e makes a history entry; leaders are told apart by their term, as a new term has a new leader.
func e(term, restart uint32, start wal.LSN, history wal.HistoryID) wal.HistoryEntry {
	return wal.HistoryEntry{Epoch: wal.MakeEpoch(term, restart), Start: start, ID: history, Leader: id(byte(term))}
}

func hist(h ...wal.HistoryEntry) []wal.HistoryEntry { return h }

func TestPlace(t *testing.T) {
	const size = 0x1000
	one := hist(e(1, 0, 0x80, 10))
	for _, c := range []struct {
		name      string
		up        ship.View
		down      ship.View
		empty     bool
		promised  wal.Epoch
		committed wal.LSN
		want      wal.LSN
		err       error
		lsn       wal.LSN   // of the refusal
		epoch     wal.Epoch // that the refusal names, if the case is about that
	}{
		{name: "empty follower starts at the segment of the tail", up: ship.NewView(one, 0x2000, 0x5000), empty: true, want: 0x2000},
		{name: "empty follower, tail inside a segment", up: ship.NewView(one, 0x2340, 0x5000), empty: true, want: 0x2000},
		{name: "same end", up: ship.NewView(one, 0, 0x5000), down: ship.NewView(one, 0, 0x5000), want: 0x5000},
		{name: "behind", up: ship.NewView(one, 0, 0x5000), down: ship.NewView(one, 0, 0x400), want: 0x400},
		{name: "at the tail exactly", up: ship.NewView(one, 0x1000, 0x5000), down: ship.NewView(one, 0, 0x1000), want: 0x1000},
		{name: "below the tail", up: ship.NewView(one, 0x1000, 0x5000), down: ship.NewView(one, 0, 0xff8), err: ship.ErrTrimmed, lsn: 0x1000},
		{name: "ahead", up: ship.NewView(one, 0, 0x5000), down: ship.NewView(one, 0, 0x5008), committed: 0x5000, err: ship.ErrAhead, lsn: 0x5000},
		{name: "upstream behind the committed mark", up: ship.NewView(one, 0, 0x5000), down: ship.NewView(one, 0, 0x5008), committed: 0x5008, err: ship.ErrBehind, lsn: 0x5000},
		{
			name: "promised a higher epoch", up: ship.NewView(one, 0, 0x5000), down: ship.NewView(one, 0, 0x400),
			promised: wal.MakeEpoch(1, 1), err: ship.ErrFenced,
		},
		{name: "empty, promised a higher epoch", up: ship.NewView(one, 0, 0x5000), empty: true, promised: wal.MakeEpoch(2, 0), err: ship.ErrFenced},
		{
			name: "log of a higher epoch", up: ship.NewView(one, 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x400, 20)), 0, 0x500), err: ship.ErrFenced,
		},
		{
			name: "unclean restart, follower ends at the fork", up: ship.NewView(hist(e(1, 0, 0x80, 10), e(1, 1, 0x900, 11)), 0, 0x5000),
			down: ship.NewView(one, 0, 0x900), want: 0x900,
		},
		{
			name: "unclean restart, follower ends past the fork", up: ship.NewView(hist(e(1, 0, 0x80, 10), e(1, 1, 0x900, 11)), 0, 0x5000),
			down: ship.NewView(one, 0, 0x908), err: ship.ErrDiverged, lsn: 0x900,
		},
		{
			name: "the fork is the upstream's end but for an epoch without data",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(1, 1, 0x900, 11)), 0, 0x960), down: ship.NewView(one, 0, 0x2000), err: ship.ErrDiverged, lsn: 0x900,
		},
		{
			name: "the header of a segment is all there is, and later epochs begin further on", up: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x4000, 20)), 0x2000, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x2000, 10)), 0x2000, 0x2080), want: 0x2080,
		},
		{
			name: "the end is a header, behind which another epoch begins", up: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x2080, 20)), 0, 0x5000),
			down: ship.NewView(one, 0, 0x2080), err: ship.ErrDiverged, lsn: 0x2000,
		},
		{
			name: "two failovers in a row: the epoch between is the follower's alone",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(3, 0, 0x900, 30)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x700, 20)), 0, 0x2000), err: ship.ErrDiverged, lsn: 0x700,
		},
		{
			name: "two failovers in a row: the follower never saw the first",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x700, 20), e(3, 0, 0x760, 30)), 0, 0x5000),
			down: ship.NewView(one, 0, 0x2000), err: ship.ErrDiverged, lsn: 0x700,
		},
		{
			name: "an empty epoch on both sides", up: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x700, 20), e(3, 0, 0x760, 30)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x700, 20)), 0, 0x760), want: 0x760,
		},
		{
			name: "split brain", up: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x900, 20)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x900, 21)), 0, 0x1000), err: ship.ErrSplitBrain, lsn: 0x900,
		},
		{
			name: "split brain of an epoch from which nothing came: the upstream has gone on in a higher term",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x900, 20), e(3, 0, 0x960, 30)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x900, 21)), 0, 0x1000), err: ship.ErrDiverged, lsn: 0x900, epoch: wal.MakeEpoch(3, 0),
		},
		{
			name: "split brain, the follower has gone on too",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x900, 20), e(3, 0, 0x960, 30)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x900, 21), e(3, 0, 0x960, 30)), 0, 0x1000), err: ship.ErrSplitBrain, lsn: 0x900,
		},
		{
			name: "the follower's term is above the upstream's first behind the fork, and below its last",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(3, 0, 0x900, 30), e(5, 0, 0x960, 50)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(4, 0, 0x900, 40)), 0, 0x2000), err: ship.ErrDiverged, lsn: 0x900, epoch: wal.MakeEpoch(5, 0),
		},
		{
			name: "both have gone on behind a seal: the segment's header is of the new epoch too",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(3, 0, 0x2080, 30)), 0, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0x2080, 20)), 0, 0x2200), err: ship.ErrDiverged, lsn: 0x2000,
		},
		{
			name: "the follower ends behind the header of a segment that the upstream's next epoch begins",
			up:   ship.NewView(hist(e(1, 0, 0x80, 10), e(3, 0, 0x2080, 30)), 0, 0x5000),
			down: ship.NewView(one, 0, 0x2080), err: ship.ErrDiverged, lsn: 0x2000,
		},
		{
			name: "histories compacted at the front", up: ship.NewView(hist(e(3, 0, 0x900, 30), e(4, 0, 0x2000, 40)), 0x1000, 0x5000),
			down: ship.NewView(hist(e(1, 0, 0x80, 10), e(3, 0, 0x900, 30)), 0, 0x2000), want: 0x2000,
		},
		{
			name: "nothing in common, below the tail", up: ship.NewView(hist(e(3, 0, 0x900, 30)), 0x1000, 0x5000),
			down: ship.NewView(one, 0, 0x800), err: ship.ErrTrimmed, lsn: 0x1000,
		},
		{
			name: "nothing in common", up: ship.NewView(hist(e(3, 0, 0x900, 30)), 0x1000, 0x5000),
			down: ship.NewView(one, 0, 0x2000), err: ship.ErrDiverged, lsn: 0,
		},
	} {
		got, err := ship.Place(c.up, c.down, c.empty, c.promised, c.committed, size)
		switch {
		case c.err == nil && (err != nil || got != c.want):
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		case c.err != nil && (err == nil || !errors.Is(err, c.err)):
			t.Errorf("%s: got %s, %v; want %v", c.name, got, err, c.err)
		case c.err != nil && c.lsn != 0 && err.LSN != c.lsn:
			t.Errorf("%s: refusal names %s, want %s", c.name, err.LSN, c.lsn)
		case c.epoch != 0 && err.Epoch != c.epoch:
			t.Errorf("%s: refusal names epoch %s, want %s", c.name, err.Epoch, c.epoch)
		}
	}
}

func TestMayCut(t *testing.T) {
	one := ship.NewView(hist(e(1, 0, 0x80, 10)), 0, 0x2000)
	refusal := func(lsn wal.LSN, term, restart uint32) *ship.Error {
		return &ship.Error{
			Code: ship.CodeDiverged, Remote: true, LSN: lsn, Digest: 77, Epoch: wal.MakeEpoch(term, restart), Node: id(byte(term)),
		}
	}
	unnamed := refusal(0x900, 1, 1)
	unnamed.Epoch, unnamed.Node = 0, wal.NodeID{}
	other := refusal(0x900, 1, 1)
	other.Node = id(9)
	for _, c := range []struct {
		name      string
		down      ship.View
		committed wal.LSN
		refusal   *ship.Error
		digest    wal.Digest
		err       error
	}{
		{"the leader restarted and lost its end", one, 0x900, refusal(0x900, 1, 1), 77, nil},
		{"twice", one, 0x800, refusal(0x900, 1, 2), 77, nil},
		{"after an earlier restart", ship.NewView(hist(e(1, 0, 0x80, 10), e(1, 1, 0x500, 11)), 0, 0x2000), 0, refusal(0x900, 1, 2), 77, nil},
		{"fork below the committed mark", one, 0x908, refusal(0x900, 1, 1), 77, ship.ErrDivergedCommitted},
		{"another digest at the fork", one, 0, refusal(0x900, 1, 1), 78, ship.ErrDigest},
		{"a higher term", one, 0x900, refusal(0x900, 2, 0), 77, nil},
		{"two terms higher", one, 0, refusal(0x900, 3, 0), 77, nil},
		{"a higher term, committed by followers too", one, 0x908, refusal(0x900, 2, 0), 77, ship.ErrDivergedCommitted},
		{"another leader", one, 0, other, 77, ship.ErrDiverged},
		{"no epoch names the fork", one, 0, unnamed, 77, ship.ErrDiverged},
		{"the epoch that is to be cut is as high", one, 0, refusal(0x900, 1, 0), 77, ship.ErrDiverged},
		{"fork at the end", one, 0, refusal(0x2000, 1, 1), 77, ship.ErrProtocol},
		{"an own term begins above the fork", ship.NewView(hist(e(1, 0, 0x80, 10), e(2, 0, 0xa00, 20)), 0, 0x2000), 0, refusal(0x900, 1, 1), 77, ship.ErrDiverged},
	} {
		err := ship.MayCut(c.down, c.committed, c.refusal, c.digest, false)
		if (err == nil) != (c.err == nil) || err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
	// What no follower had to confirm is cut below the committed mark too, but only where a higher term names the fork.
	if err := ship.MayCut(one, 0x1000, refusal(0x900, 2, 0), 77, true); err != nil {
		t.Errorf("committed alone, a higher term: %v", err)
	}
	if err := ship.MayCut(one, 0x1000, refusal(0x900, 1, 1), 77, true); !errors.Is(err, ship.ErrDivergedCommitted) {
		t.Errorf("committed alone, the same term: %v", err)
	}
}
