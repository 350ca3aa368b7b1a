package main

import (
	"context"
	"errors"
	"fmt"

	"shiplog/engine"
)

// This file is what an operator may have a node do, by HTTP.

// candidacy is what Promote shows.
type candidacy struct {
	Epoch     string   `json:"epoch"`
	Needed    int      `json:"promises_needed"`
	Promises  []string `json:"promises"`
	Missing   []string `json:"missing"`
	End       uint64   `json:"end_lsn"`
	Forced    bool     `json:"forced"`
	MayLack   bool     `json:"may_lack_acknowledged"`
	Unapplied uint64   `json:"unapplied_bytes"` // what this node, applying with a delay, has to apply first
	Behind    uint64   `json:"behind_bytes"`    // what the furthest node that has answered has and this one lacks
	Furthest  string   `json:"furthest"`
	Committed uint64   `json:"committed_lsn"`
}

// Promote implements httpd.Control. A node that is starting may take itself for the leader that it was, until it has asked the others.
func (n *node) Promote(ctx context.Context, force, dry bool) (any, error) {
	if n.joined != nil {
		select {
		case <-n.joined:
		case <-ctx.Done():
			return nil, fmt.Errorf("promote: the node is starting: %w", ctx.Err())
		}
	}
	c, err := n.promote(ctx, engine.PromoteOptions{Force: force, DryRun: dry})
	if c == nil || err != nil {
		return nil, err
	}
	out := candidacy{
		Epoch: c.Epoch.String(), Needed: c.Needed, Promises: []string{}, Missing: append([]string{}, c.Missing...), End: uint64(c.End),
		Forced: c.Forced, MayLack: c.MayLack, Committed: uint64(n.db.Committed()), Unapplied: uint64(c.Unapplied),
	}
	end := n.db.Log().Head()
	for _, v := range c.Promised {
		name := v.Node.Name
		if v.Node.ID == n.db.Log().NodeID() {
			name = n.cfg.Name
		}
		if v.Vote.Granted || dry {
			out.Promises = append(out.Promises, name)
		}
		if v.Vote.End > end {
			out.Behind, out.Furthest = max(out.Behind, uint64(v.Vote.End-end)), name
		}
	}
	return out, nil
}

// ruleShown is what SetRule shows.
type ruleShown struct {
	Commit string   `json:"commit"`
	Voters []string `json:"voters"`
}

// SetRule implements httpd.Control.
func (n *node) SetRule(ctx context.Context, commit string, voters []string, force bool) (any, error) {
	if !n.leads() {
		return nil, errors.New("this node does not lead: ask the leader to change the rule")
	}
	r := n.db.Rule()
	if commit != "" {
		level, err := engine.ParseLevel(commit)
		if err != nil {
			return nil, err
		}
		r.Level = level
	}
	if voters != nil {
		r.Voters = voters
	}
	if err := n.db.SetRule(ctx, r, force); err != nil {
		return nil, err
	}
	n.log.Warn("the commit rule was changed", "rule", r.Level.String(), "voters", r.Voters, "forced", force)
	return ruleShown{Commit: r.Level.String(), Voters: r.Voters}, nil
}

// formatShown is what RaiseFormat shows.
type formatShown struct {
	Level uint32 `json:"format_level"`
}

// RaiseFormat implements httpd.Control.
func (n *node) RaiseFormat(ctx context.Context, level uint32) (any, error) {
	if !n.leads() {
		return nil, errors.New("this node does not lead: ask the leader to raise the format level")
	}
	if err := n.db.RaiseFormat(ctx, level); err != nil {
		return nil, err
	}
	return formatShown{n.db.FormatLevel()}, nil
}

// DropSlot implements httpd.Control.
func (n *node) DropSlot(name string) (any, error) {
	switch err := n.db.DropSlot(name); {
	case errors.Is(err, engine.ErrNotFound):
		return nil, fmt.Errorf("no slot has the name %q", name)
	case err != nil:
		return nil, err
	}
	n.log.Warn("a slot was dropped", "name", name)
	return struct{}{}, nil
}
