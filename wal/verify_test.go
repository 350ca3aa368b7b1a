package wal_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"shiplog/wal"
	"shiplog/wal/waltest"
)

func verifyDisk(t *testing.T, d *waltest.Disk) *wal.VerifyReport {
	t.Helper()
	r, err := wal.Verify(context.Background(), dbDir, &wal.Options{FS: d})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestVerify reads a log of several segments that is whole, after a close and after a kill.
func TestVerify(t *testing.T) {
	for _, s := range []*small{closedSmall(t, medium...), killedSmall(t, medium...)} {
		before := s.disk.Files()
		r := verifyDisk(t, s.disk)
		if !r.OK() || r.End != s.end || r.Tail != 0 || r.TornBytes != 0 {
			t.Errorf("%s: %+v, want a whole log up to %v", s.name, r, s.end)
		}
		if seals := int64(r.Segments - 1); r.Frames-seals != int64(len(s.frames)) {
			t.Errorf("%s: %d frames and %d seals, want %d frames", s.name, r.Frames-seals, seals, len(s.frames))
		}
		if after := s.disk.Files(); !maps.EqualFunc(before, after, slices.Equal) {
			t.Errorf("%s: %s", s.name, changed(before, after))
		}
		o := s.world.opts
		o.FS = s.disk
		l, err := wal.Open(dbDir, &o)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := l.DigestAt(l.Head()); err != nil || d != r.Digest {
			t.Errorf("%s: digest %v, the log has %v, %v", s.name, r.Digest, d, err)
		}
		if live, err := l.Verify(context.Background()); err != nil || !live.OK() || live.End != l.Head() {
			t.Errorf("%s: open: %+v, %v", s.name, live, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestVerifyFindsEveryBit inverts bits in a log that was closed: each is found, at the frame or header that holds it.
func TestVerifyFindsEveryBit(t *testing.T) {
	s := closedSmall(t, medium...)
	size := wal.LSN(s.world.opts.SegmentSize)
	step := wal.LSN(211)
	if testing.Short() {
		step = 2111
	}
	failed := 0
	for at := wal.LSN(5); at < s.end && failed < 5; at += step {
		d := s.disk.Kill()
		if err := d.Flip(s.segment(at/size*size), int64(at%size), 1<<(at%8)); err != nil {
			t.Fatal(err)
		}
		r, err := wal.Verify(context.Background(), dbDir, &wal.Options{FS: d})
		if err != nil && !errors.Is(err, wal.ErrVersion) && !errors.Is(err, wal.ErrDatabase) {
			t.Fatal(err)
		}
		// A seal is not among the frames: damage to its zeros is reported behind the last of them.
		if err == nil && (r.OK() || r.Damage[0].LSN < s.frameAt(at) || r.Damage[0].LSN > at) {
			t.Errorf("bit %d of LSN %v, in the frame at %v: %+v", at%8, at, s.frameAt(at), r.Damage)
			failed++
		}
	}
}

// TestVerifyGoesOn damages two places, and wants to hear of both and of nothing else.
func TestVerifyGoesOn(t *testing.T) {
	s := closedSmall(t, medium...)
	var want []wal.LSN
	d := s.disk.Kill()
	for _, i := range []int{2, len(s.frames) - 3} {
		f := s.frames[i]
		want = append(want, f.LSN)
		size := wal.LSN(s.world.opts.SegmentSize)
		if err := d.Flip(s.segment(f.LSN/size*size), int64(f.LSN%size)+wal.FrameHeaderSize, 1); err != nil {
			t.Fatal(err)
		}
	}
	r := verifyDisk(t, d)
	if len(r.Damage) != 2 || r.Damage[0].LSN != want[0] || r.Damage[1].LSN != want[1] || r.End != s.end {
		t.Errorf("damage %v up to %v, want it at %v, up to %v", r.Damage, r.End, want, s.end)
	}
	for _, c := range r.Damage {
		if filepath.Dir(c.Path) != filepath.Dir(s.segment(0)) || c.Reason == "" {
			t.Errorf("%+v does not name its place", c)
		}
	}
}

// TestVerifyTorn tells a torn tail from damage: behind the last durable promise it is torn, before it is not.
func TestVerifyTorn(t *testing.T) {
	s := killedSmall(t, medium...)
	d := s.disk.Kill()
	if err := errors.Join(d.Remove(dbDir + "/mark")); err != nil {
		t.Fatal(err)
	}
	size := wal.LSN(s.world.opts.SegmentSize)
	flip := func(f wal.Frame) {
		t.Helper()
		if err := d.Flip(s.segment(f.LSN/size*size), int64(f.LSN%size)+wal.FrameHeaderSize, 1); err != nil {
			t.Fatal(err)
		}
	}
	last, before := s.frames[len(s.frames)-1], s.frames[len(s.frames)-3]
	flip(last)
	if r := verifyDisk(t, d); !r.OK() || r.TornAt != last.LSN || r.TornBytes == 0 || r.End != last.LSN {
		t.Errorf("damage to the last group: %+v, want a torn tail at %v", r, last.LSN)
	}
	flip(before)
	if r := verifyDisk(t, d); r.OK() || r.Damage[0].LSN != before.LSN {
		t.Errorf("damage below a later promise: %+v, want it at %v", r.Damage, before.LSN)
	}
}
