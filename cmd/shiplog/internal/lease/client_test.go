package lease_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"shiplog/cmd/shiplog/internal/etcdtest"
	"shiplog/cmd/shiplog/internal/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is a node's part in the group g.
func client(t *testing.T, e *etcdtest.Server, node string) *lease.Client {
	t.Helper()
	c, err := lease.Open(lease.Options{
		Endpoints: []string{e.Endpoint}, Group: "g", TTL: time.Second, Self: lease.Leader{Node: node, Name: node}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		c.Close()
	})
	until(t, c, func() bool {
		return !errors.Is(c.Acquire(t.Context(), lease.Claim{Database: "none"}), lease.ErrUnreachable)
	})
	return c
}

// until waits for a change after which ok holds.
func until(t *testing.T, c *lease.Client, ok func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	for !ok() {
		select {
		case <-c.Changed():
		case <-time.After(10 * time.Millisecond):
		case <-end:
			t.Fatal("not within 30 s")
		}
	}
}

// TestOneHolder: of those who may lead one gets the lease, with a term that nobody had; the next gets it when the first gives it up, is gone, or
// hands it over.
func TestOneHolder(t *testing.T) {
	e := etcdtest.Start(t)
	ctx := t.Context()
	a, b := client(t, e, "a"), client(t, e, "b")
	claim := lease.Claim{Database: "d", Least: 3}
	if err := a.Acquire(ctx, claim); !errors.Is(err, lease.ErrNotEligible) {
		t.Errorf("a group without an eligible set, a node that has not led: %v", err)
	}
	claim.Led = true
	if err := a.Acquire(ctx, claim); err != nil || !a.Held() {
		t.Fatalf("%v, held %v", err, a.Held())
	}
	if term, err := a.Term(ctx, 3); term != 3 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
	if term, err := a.Term(ctx, 3); term != 4 || err != nil {
		t.Errorf("the second term is %d, %v: the first was used", term, err)
	}
	until(t, b, func() bool { return b.State().Leader != nil })
	if err := b.Acquire(ctx, claim); !errors.Is(err, lease.ErrTaken) || b.Held() {
		t.Errorf("a second holder: %v", err)
	}
	if err := b.SetEligible(ctx, func() []string { return []string{"b"} }); !errors.Is(err, lease.ErrNotHeld) {
		t.Errorf("the eligible set changed by another: %v", err)
	}
	if err := a.SetEligible(ctx, func() []string { return []string{"b", "a"} }); err != nil {
		t.Fatal(err)
	}
	until(t, b, func() bool { s := b.State(); return s.MayLead("b") })
	if err := a.HandOver(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := b.Acquire(ctx, lease.Claim{Database: "other"}); !errors.Is(err, lease.ErrDatabase) {
		t.Errorf("another database: %v", err)
	}
	if err := b.Acquire(ctx, claim); err != nil || !b.Held() {
		t.Fatalf("handed over: %v, held %v", err, b.Held())
	}
	until(t, a, func() bool { return !a.Held() })
	if term, err := b.Term(ctx, 1); term != 5 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
	if err := b.Narrow(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Release(ctx); err != nil || b.Held() {
		t.Fatal(err)
	}
	until(t, a, func() bool { s := a.State(); return s.Leader == nil && slices.Equal(s.Eligible, []string{"b"}) })
	if err := a.Acquire(ctx, claim); !errors.Is(err, lease.ErrNotEligible) {
		t.Errorf("out of the eligible set: %v", err)
	}
	until(t, b, func() bool { return b.State().Leader == nil })
	if err := b.Acquire(ctx, claim); err != nil {
		t.Fatal(err)
	}
	if err := b.SetEligible(ctx, func() []string { return []string{"a"} }); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil || b.Held() {
		t.Fatal(err)
	}
	until(t, a, func() bool { return a.Acquire(ctx, claim) == nil })
}

// TestChallenge: a challenge is of a term and attached to its node's session, the first of a term stands, and only who made it takes it back. It gives no right. A
// lease is given up also where this node does not rely on it any more.
func TestChallenge(t *testing.T) {
	e := etcdtest.Start(t)
	ctx := t.Context()
	a, b, c := client(t, e, "a"), client(t, e, "b"), client(t, e, "c")
	claim := lease.Claim{Database: "d", Led: true}
	if err := a.Acquire(ctx, claim); err != nil {
		t.Fatal(err)
	}
	if err := a.SetEligible(ctx, func() []string { return []string{"a", "b", "c"} }); err != nil {
		t.Fatal(err)
	}
	for _, o := range []*lease.Client{b, c} {
		until(t, o, func() bool { s := o.State(); return s.Leader != nil && s.MayLead("c") })
	}
	term := a.State().Leader.Term
	if err := b.Challenge(ctx, term+1, 1); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Load(ctx); err != nil || s.Rival != nil {
		t.Errorf("the leader of another term is challenged: %+v, %v", s.Rival, err)
	}
	if err := a.Challenge(ctx, term, 1); err != nil {
		t.Fatal(err)
	}
	if s, err := a.Load(ctx); err != nil || s.Rival != nil {
		t.Errorf("the leader challenges itself: %+v, %v", s.Rival, err)
	}
	if err := b.Challenge(ctx, term, 1); err != nil {
		t.Fatal(err)
	}
	want := lease.Challenge{Node: "b", Name: "b", Term: term, Reaches: 1}
	for _, o := range []*lease.Client{a, c} {
		until(t, o, func() bool { r := o.State().Rival; return r != nil && *r == want })
	}
	if err := c.Challenge(ctx, term, 2); err != nil {
		t.Fatal(err)
	}
	if err := c.Withdraw(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Load(ctx); err != nil || s.Rival == nil || *s.Rival != want {
		t.Errorf("a second challenge, and its end: %+v, %v", s.Rival, err)
	}
	if err := b.Acquire(ctx, claim); !errors.Is(err, lease.ErrTaken) {
		t.Errorf("who challenges takes the lease: %v", err)
	}
	if err := b.Withdraw(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, a, func() bool { return a.State().Rival == nil })
	until(t, c, func() bool { return c.State().Rival == nil })
	if err := c.Challenge(ctx, term, 2); err != nil {
		t.Fatal(err)
	}
	until(t, a, func() bool { return a.State().Rival != nil })
	if err := c.Close(); err != nil { // its session ends
		t.Fatal(err)
	}
	until(t, a, func() bool { return a.State().Rival == nil })
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.Release(over); err == nil || a.Held() {
		t.Fatalf("given up while etcd is not asked: %v, held %v", err, a.Held())
	}
	if err := a.Release(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, b, func() bool { return b.Acquire(ctx, claim) == nil })
}

// TestOneFounder: of many nodes without a database one may create it.
func TestOneFounder(t *testing.T) {
	e := etcdtest.Start(t)
	var clients []*lease.Client
	for _, name := range []string{"a", "b", "c", "d"} {
		clients = append(clients, client(t, e, name))
	}
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { errs[i] = c.Found(t.Context()) })
	}
	wg.Wait()
	founders := 0
	for _, err := range errs {
		if err == nil {
			founders++
		} else if !errors.Is(err, lease.ErrTaken) {
			t.Error(err)
		}
	}
	if founders != 1 {
		t.Errorf("%d nodes may create the database", founders)
	}
}

// TestHeldCountsFromBefore: a renewal that etcd's answer was late for counts from when it was asked for, less a margin; without etcd the lease
// ends by itself.
func TestHeldCountsFromBefore(t *testing.T) {
	e := etcdtest.Start(t)
	a := client(t, e, "a")
	if err := a.Acquire(t.Context(), lease.Claim{Database: "d", Led: true}); err != nil {
		t.Fatal(err)
	}
	if left := a.Left(); left <= 0 || left > 900*time.Millisecond {
		t.Errorf("%v left of a lease of a second", left)
	}
	e.Kill()
	until(t, a, func() bool { return !a.Held() })
	e.Run()
	until(t, a, func() bool { return a.Held() }) // nobody has taken it
}
