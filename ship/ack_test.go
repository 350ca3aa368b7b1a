package ship_test

import (
	"testing"

	"shiplog/ship"
	"shiplog/wal"
)

func pos(received, durable, applied, visible wal.LSN) ship.Positions {
	return ship.Positions{Received: received, Durable: durable, Applied: applied, Visible: visible}
}

func TestBelieve(t *testing.T) {
	for _, c := range []struct {
		name      string
		last, now ship.Positions
		sent      wal.LSN
		ok        bool
	}{
		{"first", pos(0, 0, 0, 0), pos(0, 0, 0, 0), 0, true},
		{"all moved", pos(8, 8, 8, 8), pos(32, 24, 32, 16), 32, true},
		{"index rebuilt: applied and visible fell", pos(32, 32, 32, 32), pos(32, 32, 8, 8), 32, true},
		{"received what was not sent", pos(8, 8, 8, 8), pos(40, 8, 8, 8), 32, false},
		{"received fell", pos(32, 8, 8, 8), pos(24, 8, 8, 8), 32, false},
		{"durable fell", pos(32, 32, 8, 8), pos(32, 24, 8, 8), 32, false},
		{"durable past received", pos(8, 8, 8, 8), pos(16, 24, 8, 8), 32, false},
		{"applied past received", pos(8, 8, 8, 8), pos(16, 8, 24, 8), 32, false},
		{"visible past applied", pos(8, 8, 8, 8), pos(16, 8, 8, 16), 32, false},
	} {
		if err := ship.Believe(c.last, c.now, c.sent); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestUrgent(t *testing.T) {
	told := pos(16, 16, 16, 8)
	for _, c := range []struct {
		now  ship.Positions
		want ship.Urgency
	}{
		{told, ship.Nothing},
		{pos(24, 16, 16, 8), ship.AtOnce},
		{pos(16, 24, 16, 8), ship.AtOnce},
		{pos(16, 16, 24, 8), ship.AtOnce},
		{pos(16, 16, 16, 16), ship.Lazily},
	} {
		if got := ship.Urgent(told, c.now); got != c.want {
			t.Errorf("%v: got %v, want %v", c.now, got, c.want)
		}
	}
	if got, want := pos(8, 16, 24, 32).Ordered(), pos(8, 8, 8, 8); got != want {
		t.Errorf("ordered: got %v, want %v", got, want)
	}
}

func TestFreshness(t *testing.T) {
	var f ship.Freshness
	if got := f.See(100); got != 0 {
		t.Fatalf("before the first mark: %d", got)
	}
	f.Mark(100, 1000)
	if got := f.See(99); got != 0 {
		t.Fatalf("not caught up yet: %d", got)
	}
	if got := f.See(100); got != 1000 {
		t.Fatalf("caught up: %d", got)
	}
	// Under load readers trail the newest mark for ever; they are as fresh as the last mark they reached.
	for i := range int64(1000) {
		f.Mark(wal.LSN(200+i), 2000+i)
	}
	if got := f.See(205); got != 2005 {
		t.Errorf("trailing: %d, want 2005", got)
	}
	// What the ring could not hold is known more coarsely, never as fresher than it is.
	if got := f.See(900); got > 2000+700 {
		t.Errorf("coarse: %d is fresher than the truth", got)
	}
	if got := f.See(1199); got != 2999 {
		t.Errorf("caught up again: %d, want 2999", got)
	}
}
