package main

import (
	"strings"
	"testing"
	"time"
)

// TestHistoryChecks shows each checker a history that is right, and some that are wrong in one way each.
func TestHistoryChecks(t *testing.T) {
	w := func(value string, call, ret int64) histOp {
		return histOp{kind: histWrite, key: "k.0", value: value, call: call, ret: ret}
	}
	r := func(seen string, call, ret int64) histOp {
		return histOp{kind: histRead, key: "k.0", seen: seen, call: call, ret: ret}
	}
	op := func(kind histKind, value, seen string, call, ret int64) histOp {
		return histOp{kind: kind, key: "k.0", value: value, seen: seen, call: call, ret: ret}
	}
	unknown := func(o histOp) histOp {
		o.unknown = true
		return o
	}
	log := func(pairs ...string) (out []histWritten) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, histWritten{pairs[i], pairs[i+1], uint64(i/2+1) * 10})
		}
		return out
	}
	see := func(low, high uint64, values ...string) histSample {
		return histSample{low: low, high: high, values: values}
	}
	for _, c := range []struct {
		name    string
		ops     []histOp
		samples []histSample
		log     []histWritten
		wrong   string // in what is found; empty: nothing
	}{
		{
			"right",
			[]histOp{w("a", 1, 2), r("a", 3, 4), op(histSwap, "b", "a", 5, 6), op(histCAS, "c", "b", 7, 8), op(histDelete, "", "c", 9, 10), op(histAbsent, "d", "", 11, 12), op(histAbsent, "e", "d", 13, 14), r("d", 15, 16)},
			nil, log("k.0", "a", "k.0", "b", "k.0", "c", "k.0", "", "k.0", "d"), "",
		},
		{"stale read", []histOp{w("a", 1, 2), w("b", 3, 4), r("a", 5, 6)}, nil, log("k.0", "a", "k.0", "b"), "not linearizable"},
		{"lost write", []histOp{w("a", 1, 2), r("", 3, 4)}, nil, log("k.0", "a"), "not linearizable"},
		{"lost write that nobody looked for", []histOp{w("a", 1, 2)}, nil, nil, "0 times"},
		{"lost swap", []histOp{w("a", 1, 2), op(histSwap, "b", "", 3, 4)}, nil, log("k.0", "a", "k.0", "b"), "not linearizable"},
		{"a swap that has not swapped", []histOp{w("a", 1, 2), op(histCAS, "b", "a", 3, 4), op(histCAS, "c", "a", 5, 6)}, nil, log("k.0", "a", "k.0", "b", "k.0", "c"), "not linearizable"},
		{"unknown, and not there", []histOp{w("a", 1, 2), unknown(w("b", 3, 0)), r("a", 5, 6)}, nil, log("k.0", "a"), ""},
		{"unknown, and there later", []histOp{w("a", 1, 2), unknown(w("b", 3, 0)), r("a", 5, 6), r("b", 7, 8)}, nil, log("k.0", "a", "k.0", "b"), ""},
		{"unknown, there and gone", []histOp{w("a", 1, 2), unknown(w("b", 3, 0)), r("b", 5, 6), r("a", 7, 8)}, nil, log("k.0", "a", "k.0", "b"), "not linearizable"},
		{"found before it was written", []histOp{r("a", 1, 2), unknown(w("a", 3, 0))}, nil, log("k.0", "a"), "not linearizable"},
		{"unknown, executed twice", []histOp{unknown(w("a", 1, 0))}, nil, log("k.0", "a", "k.0", "a"), "2 times"},
		{"refused and executed", nil, nil, log("k.0", "a"), "was refused"},
		{"unknown delete, later", []histOp{w("a", 1, 2), unknown(op(histDelete, "", "", 3, 0)), r("a", 5, 6), r("", 7, 8)}, nil, log("k.0", "a", "k.0", ""), ""},
		{"delete undone", []histOp{w("a", 1, 2), op(histDelete, "", "a", 3, 4), r("a", 5, 6)}, nil, log("k.0", "a", "k.0", ""), "not linearizable"},
		{"prefixes", nil, []histSample{see(0, 5, "", ""), see(5, 15, "a", ""), see(20, 20, "a", "b")}, log("k.0", "a", "k.1", "b"), ""},
		{"no prefix", nil, []histSample{see(0, 30, "", "b")}, log("k.0", "a", "k.1", "b"), "no such state"},
		{"prefix of another time", nil, []histSample{see(20, 30, "a", "")}, log("k.0", "a", "k.1", "b"), "no such state"},
		{"not yet visible", nil, []histSample{see(0, 9, "a", "")}, log("k.0", "a", "k.1", "b"), "no such state"},
		{"back again", nil, []histSample{see(0, 30, "a", "b"), see(0, 30, "a", "")}, log("k.0", "a", "k.1", "b"), "no such state"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory("k", 2)
			h.ops, h.samples = c.ops, c.samples
			if len(c.samples) > 0 {
				h.ops = []histOp{w("a", 1, 2), {kind: histWrite, key: "k.1", value: "b", call: 1, ret: 2}}
			}
			wrong := append(h.linearizable(time.Minute), h.inLog(c.log)...)
			if all := strings.Join(wrong, "; "); c.wrong == "" && all != "" || len(wrong) > 1 || !strings.Contains(all, c.wrong) {
				t.Errorf("found %q, want %q", all, c.wrong)
			}
		})
	}
}
