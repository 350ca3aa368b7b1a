package engine

import (
	"slices"
	"testing"

	"shiplog/wal"
)

func id(b byte) wal.NodeID { return wal.NodeID{b} }

// TestLevelEnd pins the commit rule: which marks count, and that cascaded, unknown and not yet
// admitted followers never do.
func TestLevelEnd(t *testing.T) {
	voters := []wal.Voter{{ID: id(1), Name: "a"}, {ID: id(2), Name: "b"}, {ID: id(3), Name: "c"}}
	f := func(b byte, connected, admitted bool, received, durable, applied wal.LSN) *follower {
		return &follower{id: id(b), connected: connected, voter: true, admitted: admitted, received: received, durable: durable, applied: applied}
	}
	for _, tc := range []struct {
		name      string
		level     Level
		first     bool
		followers []*follower
		indexed   wal.LSN
		durable   wal.LSN
		want      wal.LSN
	}{
		{"written needs no disk", Written, false, nil, 100, 40, 100},
		{"durable needs this disk", Durable, false, nil, 100, 40, 40},
		{"durable is not ahead of the index", Durable, false, nil, 30, 40, 30},
		{"no follower, no mark", Replicated(1), false, nil, 100, 100, 0},
		{"replicated counts disks", Replicated(1), false, []*follower{f(1, true, true, 90, 60, 50)}, 100, 100, 60},
		{"received counts memory", Received(1), false, []*follower{f(1, true, true, 90, 60, 50)}, 100, 100, 90},
		{"received needs this disk too", Received(1), false, []*follower{f(1, true, true, 90, 60, 50)}, 100, 70, 70},
		{"applied counts the index and the disk", Applied(1), false, []*follower{f(1, true, true, 90, 60, 80)}, 100, 100, 60},
		{"two of three: the second best", Replicated(2), false, []*follower{f(1, true, true, 90, 90, 0), f(2, true, true, 80, 80, 0), f(3, true, true, 70, 70, 0)}, 100, 100, 80},
		{"a joiner does not count before it has caught up", Replicated(1), false, []*follower{f(1, true, false, 90, 90, 90)}, 100, 100, 0},
		{"an acknowledgement outlives its connection", Replicated(1), false, []*follower{f(1, false, true, 90, 90, 90)}, 100, 100, 90},
		{"who is no voter never counts", Replicated(1), false, []*follower{{id: id(9), connected: true, admitted: true, durable: 90}}, 100, 100, 0},
		{"first 1: the first connected alone", Replicated(1), true, []*follower{f(1, true, true, 10, 10, 10), f(2, true, true, 90, 90, 90)}, 100, 100, 10},
		{"first 1: the next when the first is away", Replicated(1), true, []*follower{f(1, false, true, 10, 10, 10), f(2, true, true, 90, 90, 90)}, 100, 100, 90},
	} {
		t.Run(tc.name, func(t *testing.T) {
			followers := map[wal.NodeID]*follower{}
			for _, f := range tc.followers {
				followers[f.id] = f
			}
			rule := wal.Rule{Level: uint32(tc.level), First: tc.first, Voters: voters}
			if got := levelEnd(tc.level, rule, tc.indexed, tc.durable, followers); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func TestParseLevel(t *testing.T) {
	for _, l := range []Level{Buffered, Written, Durable, Received(1), Replicated(2), Applied(64)} {
		got, err := ParseLevel(l.String())
		if err != nil || got != l {
			t.Errorf("ParseLevel(%q) = %v, %v", l.String(), got, err)
		}
	}
	for _, s := range []string{"", "fast", "replicated", "replicated:0", "replicated:65", "durable:1", "received:-1", "applied:x", "replicated:99999999999"} {
		if l, err := ParseLevel(s); err == nil {
			t.Errorf("ParseLevel(%q) = %v, want an error", s, l)
		}
	}
}

func TestWithVoter(t *testing.T) {
	a, b := wal.Voter{ID: id(1), Name: "a", Addr: "x:1"}, wal.Voter{ID: id(2), Name: "b"}
	for _, tc := range []struct {
		name   string
		have   []wal.Voter
		named  []string
		v      wal.Voter
		want   []wal.Voter
		change bool
	}{
		{"a name joins", []wal.Voter{a}, nil, b, []wal.Voter{a, b}, true},
		{"without a name it does not", []wal.Voter{a}, nil, wal.Voter{ID: id(2)}, []wal.Voter{a}, false},
		{"only those who are named", []wal.Voter{a}, []string{"a"}, b, []wal.Voter{a}, false},
		{"known already", []wal.Voter{a}, nil, a, []wal.Voter{a}, false},
		{"a named place is taken", []wal.Voter{{Name: "a"}}, []string{"a"}, a, []wal.Voter{a}, true},
		{"a new disk under an old name", []wal.Voter{a}, nil, wal.Voter{ID: id(7), Name: "a"}, []wal.Voter{{ID: id(7), Name: "a"}}, true},
		{"a new address", []wal.Voter{a}, nil, wal.Voter{ID: id(1), Name: "a", Addr: "y:1"}, []wal.Voter{{ID: id(1), Name: "a", Addr: "y:1"}}, true},
		{"a node takes another's name", []wal.Voter{a, b, {ID: id(3), Name: "c"}}, nil, wal.Voter{ID: id(1), Name: "c"}, []wal.Voter{{ID: id(1), Name: "c"}, b}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, change, err := withVoter(wal.Rule{Voters: tc.have}, tc.named, tc.v)
			if err != nil || change != tc.change || len(got.Voters) != len(tc.want) {
				t.Fatalf("got %v, %v, %v", got.Voters, change, err)
			}
			for i := range tc.want {
				if got.Voters[i] != tc.want[i] {
					t.Errorf("got %v, want %v", got.Voters, tc.want)
				}
			}
		})
	}
}

// TestCommitEnd pins how far the rule holds while it is being changed.
func TestCommitEnd(t *testing.T) {
	rule := func(level Level, voters ...byte) wal.Rule {
		r := wal.Rule{Level: uint32(level)}
		for _, v := range voters {
			r.Voters = append(r.Voters, wal.Voter{ID: id(v), Name: string('a' + rune(v))})
		}
		return r
	}
	one, two, both := rule(Replicated(1), 1), rule(Replicated(1), 2), rule(Replicated(1), 1, 2)
	for _, tc := range []struct {
		name     string
		changes  []ruleChange
		newest   wal.Rule
		degraded bool
		a, b     wal.LSN // durable at voters 1 and 2
		end      wal.LSN
		over     int
	}{
		{"no change", nil, both, false, 10, 60, 60, 0},
		{"the old rule does not hold for the record", []ruleChange{{50, one}}, both, false, 40, 90, 40, 0},
		{"what is before the record needs the old rule alone", []ruleChange{{50, one}}, two, false, 90, 20, 49, 0},
		{"the new rule holds for the record, the old one ends inside it", []ruleChange{{50, one}}, two, false, 49, 90, 49, 0},
		{"both hold for the record: the new one alone from there on", []ruleChange{{50, one}}, two, false, 50, 90, 90, 1},
		{"an added voter counts once the old ones have the record", []ruleChange{{50, one}}, both, false, 50, 90, 90, 1},
		{"two changes: the first is not over", []ruleChange{{50, one}, {70, both}}, two, false, 40, 90, 40, 0},
		{"two changes: the second is not over", []ruleChange{{50, one}, {70, both}}, two, false, 90, 60, 69, 1},
		{"two changes: both over", []ruleChange{{50, one}, {70, both}}, two, false, 70, 80, 80, 2},
		{"to a weaker rule: the old one for the record too", []ruleChange{{50, one}}, rule(Durable), false, 40, 0, 40, 0},
		{"to a weaker rule: then this disk alone", []ruleChange{{50, one}}, rule(Durable), false, 50, 0, 100, 1},
		{"to a stronger rule", []ruleChange{{50, rule(Durable)}}, one, false, 40, 0, 49, 0},
		{"a degraded span takes both out of the way", []ruleChange{{50, one}}, two, true, 0, 0, 100, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			followers := map[wal.NodeID]*follower{
				id(1): {id: id(1), connected: true, voter: true, admitted: true, received: tc.a, durable: tc.a},
				id(2): {id: id(2), connected: true, voter: true, admitted: true, received: tc.b, durable: tc.b},
			}
			end, over := commitEnd(tc.changes, tc.newest, tc.degraded, 100, 100, followers)
			if end != tc.end || over != tc.over {
				t.Errorf("got %d and %d changes over, want %d and %d", end, over, tc.end, tc.over)
			}
		})
	}
}

// TestChangeOf pins which steps must hold under both rules.
func TestChangeOf(t *testing.T) {
	a, b := wal.Voter{ID: id(1), Name: "a", Addr: "x:1"}, wal.Voter{ID: id(2), Name: "b"}
	moved, disk := wal.Voter{ID: id(1), Name: "a", Addr: "y:1"}, wal.Voter{ID: id(7), Name: "a"}
	r := func(level Level, voters ...wal.Voter) wal.Rule { return wal.Rule{Level: uint32(level), Voters: voters} }
	for _, tc := range []struct {
		name     string
		old, now wal.Rule
		both     bool
		asHeld   []wal.Voter
	}{
		{"the same", r(Replicated(1), a), r(Replicated(1), a), false, []wal.Voter{a}},
		{"a new address", r(Replicated(1), a), r(Replicated(1), moved), false, []wal.Voter{moved}},
		{"a new disk under an old name", r(Replicated(1), a, b), r(Replicated(1), disk, b), false, []wal.Voter{disk, b}},
		{"a new disk, and a voter goes", r(Replicated(1), a, b), r(Replicated(1), disk), true, []wal.Voter{disk, b}},
		{"a voter comes", r(Replicated(1), a), r(Replicated(1), a, b), true, []wal.Voter{a}},
		{"a voter goes", r(Replicated(1), a, b), r(Replicated(1), a), true, []wal.Voter{a, b}},
		{"another level", r(Replicated(1), a, b), r(Replicated(2), a, b), true, []wal.Voter{a, b}},
		{"the first voter of all", r(Replicated(1)), r(Replicated(1), a), false, nil},
		{"not enough voters before", r(Replicated(2), a), r(Replicated(2), a, b), false, []wal.Voter{a}},
		{"a named place is taken", r(Replicated(1), wal.Voter{Name: "a"}), r(Replicated(1), a), false, []wal.Voter{a}},
		{"another order", r(Replicated(1), a, b), r(Replicated(1), b, a), true, []wal.Voter{a, b}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			old, both := changeOf(tc.old, tc.now)
			if both != tc.both || !slices.Equal(old.Voters, tc.asHeld) {
				t.Errorf("got %v, held with %v", both, old.Voters)
			}
		})
	}
}
