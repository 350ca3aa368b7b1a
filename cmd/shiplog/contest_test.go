package main

import (
	"testing"
	"time"
)

// TestContestStep: a leader makes way only for a challenge, and only if it has been short of voters without a break for as long as is stated; a follower
// challenges only a leader that it has not seen for as long, that does not answer, and without which enough others do; who has made way challenges nobody before it has seen
// a leader. Each row is a sequence of looks, a second apart.
func TestContestStep(t *testing.T) {
	type looks []struct {
		sight
		want move
	}
	const patience = 3 * time.Second
	short := sight{leads: true, short: true}
	challenged := sight{leads: true, short: true, challenged: true}
	well := sight{leads: true, challenged: true}
	deaf := sight{led: true, fit: true}
	with := func(s sight, change func(s *sight)) sight {
		change(&s)
		return s
	}
	degrading := with(challenged, func(s *sight) { s.degrades = true })
	handing := with(challenged, func(s *sight) { s.handing = true })
	reaching := sight{led: true, fit: true, canvassed: true, elects: true, commits: true}
	sees := sight{led: true, fit: true, sees: true}
	for name, seq := range map[string]looks{
		"a leader with its followers is challenged": {{well, stay}, {well, stay}, {well, stay}, {well, stay}, {well, stay}},
		"a leader without followers, and no rival":  {{short, stay}, {short, stay}, {short, stay}, {short, stay}, {short, stay}},
		"a leader without followers, and a rival":   {{short, stay}, {challenged, stay}, {challenged, stay}, {challenged, yield}},
		"a challenge that comes late":               {{short, stay}, {short, stay}, {short, stay}, {short, stay}, {challenged, yield}},
		"followers come back in between":            {{challenged, stay}, {challenged, stay}, {well, stay}, {challenged, stay}, {challenged, stay}, {challenged, stay}, {challenged, yield}},
		"a leader that goes on alone when it is short": {
			{degrading, stay}, {degrading, stay}, {degrading, stay}, {degrading, stay}, {challenged, stay}, {challenged, stay}, {challenged, stay}, {challenged, yield},
		},
		"a leader that hands over": {
			{challenged, stay}, {challenged, stay}, {challenged, stay}, {handing, stay}, {challenged, stay}, {challenged, stay}, {challenged, stay}, {challenged, yield},
		},
		"a follower that was deaf, and leads": {{deaf, stay}, {deaf, stay}, {deaf, stay}, {challenged, stay}, {challenged, stay}, {challenged, stay}, {challenged, yield}},
		"a follower that sees the leader":     {{sees, stay}, {sees, stay}, {sees, stay}, {sees, stay}, {sees, stay}},
		"a follower asks, and then challenges": {
			{deaf, stay}, {deaf, stay}, {deaf, stay}, {deaf, canvass}, {reaching, challenge}, {deaf, canvass}, {reaching, challenge}, {sees, stay}, {deaf, stay},
		},
		"it sees the leader in between": {{deaf, stay}, {deaf, stay}, {sees, stay}, {deaf, stay}, {deaf, stay}, {deaf, stay}, {deaf, canvass}},
		"the leader answers": {
			{deaf, stay}, {deaf, stay}, {deaf, stay}, {with(reaching, func(s *sight) { s.answers = true }), stay},
		},
		"two nodes, the link between them cut": {
			{deaf, stay}, {deaf, stay}, {deaf, stay}, {deaf, canvass}, {with(reaching, func(s *sight) { s.commits = false }), stay}, {deaf, canvass},
		},
		"too few to be elected": {
			{deaf, stay}, {deaf, stay}, {deaf, stay}, {with(reaching, func(s *sight) { s.elects = false }), stay},
		},
		"a follower that may not lead": {
			{sight{led: true}, stay}, {sight{led: true}, stay}, {sight{led: true}, stay}, {sight{led: true}, stay}, {deaf, stay},
		},
		"nobody leads": {{deaf, stay}, {deaf, stay}, {deaf, stay}, {sight{fit: true}, stay}, {deaf, stay}, {deaf, stay}, {deaf, stay}, {deaf, canvass}},
		"who has made way challenges nobody, until it has seen a leader": {
			{challenged, stay},
			{challenged, stay},
			{challenged, stay},
			{challenged, yield},
			{sight{fit: true}, stay},
			{deaf, stay},
			{deaf, stay},
			{deaf, stay},
			{deaf, stay},
			{reaching, stay},
			{sees, stay},
			{deaf, stay},
			{deaf, stay},
			{deaf, stay},
			{deaf, canvass},
		},
		"nor until it has led": {
			{challenged, stay}, {challenged, stay}, {challenged, stay}, {challenged, yield}, {well, stay}, {deaf, stay}, {deaf, stay}, {deaf, stay}, {deaf, canvass},
		},
	} {
		var c contest
		for i, look := range seq {
			look.now, look.patience = time.Unix(int64(1000+i), 0), patience
			if got := c.step(&look.sight); got != look.want {
				t.Errorf("%s: look %d: move %d, want %d", name, i, got, look.want)
			}
		}
	}
}
