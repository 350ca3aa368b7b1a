package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// This file is what clients of a group saw, and what they may see: operations on registers, checked for linearizability by porcupine, and
// looks at many keys at once, checked to be states of the log.

type histKind byte

const (
	histRead   histKind = iota // GET at a leader
	histWrite                  // SET
	histSwap                   // SET GET
	histCAS                    // WATCH, GET, MULTI, SET, EXEC that went through
	histAbsent                 // SET NX GET
	histDelete                 // GETDEL
)

var histNames = [...]string{"read", "write", "swap", "cas", "absent", "delete"}

// histOp is an operation on a key. Every value is written once, and none is empty; an absent key shows as an empty value.
type histOp struct {
	kind      histKind
	client    int
	key       string
	value     string // that it writes
	seen      string // that it found
	call, ret int64  // nanoseconds
	unknown   bool   // it may have been executed, or be executed later; seen and ret say nothing
}

func (o *histOp) String() string {
	s := fmt.Sprintf("client %d %s %s [%.3f ms, %.3f ms]", o.client, histNames[o.kind], o.key, float64(o.call)/1e6, float64(o.ret)/1e6)
	if o.value != "" {
		s += " writes " + o.value
	}
	if o.unknown {
		return s + ", outcome unknown"
	}
	return s + fmt.Sprintf(" finds %q", o.seen)
}

// writes reports whether an operation that was acknowledged has written something.
func (o *histOp) writes() bool {
	switch o.kind {
	case histRead:
		return false
	case histAbsent:
		return o.seen == ""
	case histDelete:
		return o.seen != ""
	}
	return true
}

// histSample is what a node showed of all keys at once, and how much was visible there before and after.
type histSample struct {
	client, node, run int // run: which process of the node
	low, high         uint64
	values            []string // of the keys, in order
}

// history is all that clients saw of some keys that did not exist before. Its methods may be called by several goroutines at once.
type history struct {
	keys []string

	mu      sync.Mutex // guards all below
	ops     []histOp
	samples []histSample
	stuck   map[string]bool // keys with a delete of unknown outcome
	acked   []int64         // when acknowledged writes were called
	failed  int             // writes that were refused or have an unknown outcome
}

func newHistory(name string, keys int) *history {
	h := &history{stuck: map[string]bool{}}
	for i := range keys {
		h.keys = append(h.keys, fmt.Sprintf("%s.%d", name, i))
	}
	return h
}

func (h *history) add(o histOp) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o.unknown {
		h.failed++
		if o.kind == histDelete {
			h.stuck[o.key] = true
		}
	} else if o.writes() {
		h.acked = append(h.acked, o.call)
	}
	h.ops = append(h.ops, o)
}

func (h *history) refused() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed++
}

func (h *history) sample(s histSample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples = append(h.samples, s)
}

// mayDelete reports whether no delete of a key has an unknown outcome: such a one may happen at any later time, and a few of them together make
// a history that takes for ever to check.
func (h *history) mayDelete(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.stuck[key]
}

// since is how many acknowledged writes were called at a time or later, and how many in all were refused or are unknown.
func (h *history) since(t int64) (acked, failed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.acked) - 1; i >= 0; i-- { // in the order of their returns
		if h.acked[i] >= t {
			acked++
		}
	}
	return acked, h.failed
}

// register is the model: the state of a key is its value.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		o, st := input.(*histOp), state.(string)
		switch o.kind {
		case histRead:
			return st == o.seen, st
		case histWrite:
			return true, o.value
		case histSwap:
			return o.unknown || st == o.seen, o.value
		case histCAS:
			return st == o.seen, o.value
		case histAbsent:
			if o.unknown {
				return st == "", o.value
			}
			return st == o.seen, cmp.Or(st, o.value)
		default:
			return o.unknown || st == o.seen, ""
		}
	},
}

// settled are a key's operations as the checker wants them. A write whose outcome is unknown and whose value nobody has found is left out: what
// is left is linearizable if and only if all of it is, because whatever follows such a write, and does not find it, replaces it. One whose value was
// found has happened before whoever found it returned. Only a delete remains open for ever.
func settled(ops []*histOp) (out []porcupine.Operation) {
	found := map[string]int64{} // value: when the first that has found it returned
	for _, o := range ops {
		if at, ok := found[o.seen]; !o.unknown && o.seen != "" && (!ok || o.ret < at) {
			found[o.seen] = o.ret
		}
	}
	for _, o := range ops {
		ret := o.ret
		if o.unknown && o.kind == histDelete {
			ret = math.MaxInt64
		} else if o.unknown {
			at, ok := found[o.value]
			if !ok {
				continue
			}
			ret = max(at, o.call)
		}
		out = append(out, porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Return: ret})
	}
	return out
}

// linearizable says what is wrong with the operations, or nothing.
func (h *history) linearizable(limit time.Duration) (wrong []string) {
	byKey := map[string][]*histOp{}
	for i := range h.ops {
		o := &h.ops[i]
		byKey[o.key] = append(byKey[o.key], o)
	}
	for _, key := range h.keys {
		ops := settled(byKey[key])
		switch porcupine.CheckOperationsTimeout(register, ops, limit) {
		case porcupine.Ok:
		case porcupine.Unknown:
			wrong = append(wrong, fmt.Sprintf("%s: %d operations were not checked within %v", key, len(ops), limit))
		default:
			_, info := porcupine.CheckOperationsVerbose(register, ops, limit) // again, for what to show
			wrong = append(wrong, fmt.Sprintf("%s is not linearizable: %s", key, unexplained(ops, info.PartialLinearizationsOperations()[0])))
		}
	}
	return wrong
}

// unexplained shows where the longest order that explains some of the operations ends.
func unexplained(all []porcupine.Operation, partial [][]porcupine.Operation) string {
	var best []porcupine.Operation
	for _, p := range partial {
		if len(p) > len(best) {
			best = p
		}
	}
	explained := map[any]bool{}
	for _, p := range best {
		explained[p.Input] = true
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(p porcupine.Operation) bool { return explained[p.Input] })
	slices.SortFunc(rest, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	var b strings.Builder
	fmt.Fprintf(&b, "of %d operations %d are explained, in the end by\n", len(all), len(best))
	for _, p := range best[max(0, len(best)-8):] {
		fmt.Fprintf(&b, "\t%v\n", p.Input)
	}
	b.WriteString("and then not:\n")
	for _, p := range rest[:min(8, len(rest))] {
		fmt.Fprintf(&b, "\t%v\n", p.Input)
	}
	return b.String()
}

// histWritten is a committed write of a key: from an LSN on the key shows the value.
type histWritten struct {
	key, value string
	end        uint64
}

// versions are the writes of a key in their order.
type versions []histWritten

// at is what a key shows when so much of the log is visible.
func (v versions) at(lsn uint64) string {
	i, exact := slices.BinarySearchFunc(v, lsn, func(w histWritten, lsn uint64) int { return cmp.Compare(w.end, lsn) })
	for exact && i < len(v) && v[i].end == lsn { // several in one frame: the last one
		i++
	}
	if i == 0 {
		return ""
	}
	return v[i-1].value
}

// inLog says what is wrong with the history, given the log that the group has ended with: each acknowledged write must be in it once, and nothing that was
// refused; each sample must be the state of some prefix of it that was visible at that time, and no shorter one than the client had
// seen of that process before.
func (h *history) inLog(log []histWritten) (wrong []string) {
	byKey, times := map[string]versions{}, map[string]int{}
	for _, w := range log {
		byKey[w.key] = append(byKey[w.key], w)
		times[w.key+"="+w.value]++
	}
	known := map[string]bool{}
	for _, o := range h.ops {
		if o.kind == histRead || o.kind == histDelete {
			continue
		}
		written := o.key + "=" + o.value
		known[written] = true
		n, least, most := times[written], 1, 1
		switch {
		case o.unknown:
			least = 0
		case !o.writes():
			least, most = 0, 0
		}
		if n < least || n > most {
			wrong = append(wrong, fmt.Sprintf("%v is %d times in the log", &o, n))
		}
	}
	for _, key := range h.keys {
		for _, w := range byKey[key] {
			if w.value != "" && !known[key+"="+w.value] {
				wrong = append(wrong, fmt.Sprintf("%s=%s at %d was refused, or never written", key, w.value, w.end))
			}
		}
	}
	floor := map[[3]int]uint64{}
	for _, s := range h.samples {
		who := [3]int{s.client, s.node, s.run}
		p, ok := h.prefix(byKey, &s, max(floor[who], s.low))
		if !ok {
			wrong = append(wrong, fmt.Sprintf("node %d showed client %d %q between %d and %d: no such state (seen before: up to %d)", s.node, s.client, s.values, s.low, s.high, floor[who]))
			continue
		}
		floor[who] = p
	}
	return wrong
}

// prefix finds the shortest prefix of the log, from low on, that shows what a sample shows.
func (h *history) prefix(byKey map[string]versions, s *histSample, low uint64) (uint64, bool) {
	if low > s.high {
		return 0, false
	}
	candidates := []uint64{low}
	for _, key := range h.keys {
		for _, w := range byKey[key] {
			if w.end > low && w.end <= s.high {
				candidates = append(candidates, w.end)
			}
		}
	}
	slices.Sort(candidates)
	for _, p := range slices.Compact(candidates) {
		same := true
		for i, key := range h.keys {
			same = same && byKey[key].at(p) == s.values[i]
		}
		if same {
			return p, true
		}
	}
	return 0, false
}
