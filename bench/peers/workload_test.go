package main

import (
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{5, 1, 3}, spread{3, 1, 5}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
		{[]float64{100, 1, 1, 1, 1}, spread{1, 1, 100}},
	} {
		if got := spreadOf(c.in); got != c.want {
			t.Errorf("spreadOf(%v) = %v, want %v", c.in, got, c.want)
		}
	}
	if s := spreadOf(nil); !math.IsNaN(s.median) {
		t.Errorf("spreadOf(nil) = %v, want NaN", s)
	}
}

func TestAdvantage(t *testing.T) {
	higher, lower := &metric{}, &metric{lower: true}
	for _, c := range []struct {
		m          *metric
		ours, peer float64
		want       float64
	}{
		{higher, 20, 10, 2},
		{higher, 5, 10, 0.5},
		{lower, 20, 10, 0.5},
		{lower, 5, 10, 2},
		{lower, 0, 0, 1},
		{lower, 0, 3, math.Inf(1)},
		{lower, 3, 0, 0},
	} {
		if got := c.m.advantage(c.ours, c.peer); got != c.want {
			t.Errorf("advantage(%v, %v), lower %v = %v, want %v", c.ours, c.peer, c.m.lower, got, c.want)
		}
	}
}

func TestBestPeer(t *testing.T) {
	nan := math.NaN()
	samples := map[string][]float64{
		us:             {10, 20, 30},
		us + "-sorted": {100, 200, 300},
		"fast":         {5, 20, 10}, // median 10; ratios 2, 1, 3
		"slow":         {1, 1, 99},
		"ended":        {nan, nan, nan},
	}
	name, ratio := (&metric{}).bestPeer(samples)
	if want := (spread{2, 1, 3}); name != "fast" || ratio != want {
		t.Errorf("bestPeer = %s %v, want fast %v", name, ratio, want)
	}
	name, ratio = (&metric{lower: true}).bestPeer(samples)
	if want := (spread{0.1, 0.05, 3.3}); name != "slow" || ratio != want {
		t.Errorf("bestPeer, less is better = %s %v, want slow %v", name, ratio, want)
	}
	samples["fast"][0] = nan // a run that failed is left out, not counted as 0
	if name, ratio = (&metric{}).bestPeer(samples); name != "fast" || ratio != (spread{2, 1, 3}) {
		t.Errorf("bestPeer with a gap = %s %v, want fast {2 1 3}", name, ratio)
	}
	if name, _ = (&metric{}).bestPeer(map[string][]float64{us: {1}}); name != "" {
		t.Errorf("bestPeer without peers = %q", name)
	}
}

func TestWork(t *testing.T) {
	for _, workers := range []int{1, 3, 8} {
		var each [100]atomic.Int32
		m, err := work(workers, len(each), 0, func(_, i int) error {
			each[i].Add(1)
			return nil
		})
		if err != nil || m.done != len(each) {
			t.Errorf("%d workers: %d operations, %v, want %d", workers, m.done, err, len(each))
		}
		for i := range each {
			if n := each[i].Load(); n != 1 {
				t.Errorf("%d workers: operation %d ran %d times", workers, i, n)
			}
		}
	}
	wrong := errors.New("wrong")
	m, err := work(2, math.MaxInt, 0, func(_, i int) error {
		if i == 10 {
			return wrong
		}
		return nil
	})
	if !errors.Is(err, wrong) || m.done == 0 {
		t.Errorf("work = %d operations, %v, want an error after some", m.done, err)
	}
	if _, err := work(2, math.MaxInt, time.Millisecond, func(_, _ int) error { return nil }); err != nil {
		t.Errorf("work until a limit: %v", err)
	}
}
