package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/ship"
	"shiplog/wal"
)

// This file is how a node that is stopped is mended from a peer.

// mended is what an offline repair shows.
type mended struct {
	Dir      string        `json:"dir"`
	OK       bool          `json:"ok"`
	Segments int           `json:"segments"`
	Damaged  int           `json:"damaged"`
	Bytes    int64         `json:"bytes"`
	Mended   []mendedRange `json:"mended,omitempty"`
	Gone     *problem      `json:"gone,omitempty"` // segments at the front that the other node has not either: missing, as in an unfinished first copy, or damaged and removed
	Problems []problem     `json:"problems,omitempty"`
}

// mendedRange is a part of the log that holds other bytes now.
type mendedRange struct {
	File    string `json:"file"`
	From    uint64 `json:"from_lsn"`
	To      uint64 `json:"to_lsn"`
	Missing bool   `json:"was_missing,omitempty"`
}

// mend repairs the log of a directory that no node uses from the node that ships at addr.
func mend(ctx context.Context, dir, addr string, o *wal.Options, calls *ship.CallOptions) *mended {
	s := &mendSource{addr: addr, calls: calls}
	r, err := wal.Mend(ctx, dir, o, s.fetch)
	out := &mended{Dir: dir, OK: err == nil, Segments: r.Segments, Damaged: len(r.Damaged), Bytes: r.Bytes}
	for _, m := range r.Mended {
		out.Mended = append(out.Mended, mendedRange{File: m.Path, From: uint64(m.From), To: uint64(m.To), Missing: m.Missing})
	}
	if errors.Is(err, wal.ErrLocked) {
		err = errors.New("a node uses it: have it repair itself with shiplog repair --http")
	}
	if r.Gone != nil {
		p := problemOf(r.Gone)
		out.Gone = &p
	}
	for _, c := range r.Left {
		out.Problems = append(out.Problems, problemOf(c))
	}
	if err != nil && len(r.Left) == 0 {
		out.Problems = append(out.Problems, problem{Reason: strings.TrimPrefix(oneLine(err), "repair "+dir+": ")})
	}
	return out
}

// mendSource fetches from one node. What keeps that node from giving anything is found once.
type mendSource struct {
	addr  string
	calls *ship.CallOptions
	dead  error
}

func (s *mendSource) fetch(ctx context.Context, r *wal.MendRequest) ([]byte, error) {
	if s.dead != nil {
		return nil, s.dead
	}
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	req := &ship.CopyRequest{Database: r.Database, History: r.History, From: r.From, Digest: r.Digest, To: r.To}
	p, err := ship.Copy(ctx, s.addr, s.calls, req)
	var e *ship.Error
	if !r.Known && errors.As(err, &e) && e.Code == ship.CodeDigest && e.LSN == r.From && e.Digest != 0 {
		req.Digest = e.Digest // the bytes must lead to a digest that is known here all the same
		p, err = ship.Copy(ctx, s.addr, s.calls, req)
	}
	switch {
	case err != nil && errors.As(err, &e) && e.Code == ship.CodeTrimmed:
		return nil, fmt.Errorf("%w: %w", err, wal.ErrTrimmed)
	case err == nil && len(p) == 0:
		return nil, fmt.Errorf("%s has nothing committed from LSN %s on", s.addr, r.From)
	case err != nil && !errors.As(err, &e), err != nil && (e.Code == ship.CodeAuth || e.Code == ship.CodeDatabase || e.Code == ship.CodeVersion):
		s.dead = err
	}
	return p, err
}

func (m *mended) print(cmd *cobra.Command, addr string) error {
	var text []byte
	for _, r := range m.Mended {
		how := ""
		if r.Missing {
			how = ", the file was missing"
		}
		text = fmt.Appendf(text, "%s: mended LSN %d to %d (%d bytes%s)\n", r.File, r.From, r.To, r.To-r.From, how)
	}
	if m.Gone != nil {
		text = fmt.Appendf(text, "%s: given up by the other node too; this log is read once it has what that one had then: %s\n", m.Dir, m.Gone)
	}
	for _, p := range m.Problems {
		text = fmt.Appendf(text, "%s: not mended: %s\n", m.Dir, p)
	}
	switch {
	case m.OK && len(m.Mended) == 0:
		text = fmt.Appendf(text, "%s: ok, %d segments, nothing to mend\n", m.Dir, m.Segments)
	case m.OK:
		text = fmt.Appendf(text, "%s: ok, %d segments, %d damaged, all mended from %s (%d bytes)\n", m.Dir, m.Segments, m.Damaged, addr, m.Bytes)
	}
	_, err := cmd.OutOrStdout().Write(text)
	return err
}

// repairOffline is the command with a directory.
func repairOffline(cmd *cobra.Command, dir, from, secretFile string, flags *clientFlags, asJSON bool) error {
	if from == "" {
		return errors.New("repair DIR needs --from HOST:PORT, where another node ships its log; or give --http of a running node, without DIR")
	}
	if _, _, err := net.SplitHostPort(from); err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	secret, err := config.ReadSecret(secretFile)
	if err != nil {
		return err
	}
	if len(secret) == 0 && !config.Loopback(from) {
		return fmt.Errorf("--from %s leaves this machine: give --secret-file or %s", from, config.SecretEnv)
	}
	tls, err := flags.settings()
	if err != nil {
		return err
	}
	m := mend(cmd.Context(), dir, from, nil, &ship.CallOptions{Secret: secret, TLS: tls})
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), m)
	} else {
		err = m.print(cmd, from)
	}
	if err == nil && !m.OK {
		err = errReported
	}
	return fail(err)
}
