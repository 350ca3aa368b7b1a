package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"shiplog/engine"
	"shiplog/wal"
)

// dumper prints frames and records.
type dumper struct {
	log    *wal.Log
	out    *bufio.Writer
	json   *json.Encoder // nil: text
	values int           // bytes of a value that are shown
	buf    wal.Buffer
}

// frameLine is a frame in JSON.
type frameLine struct {
	Frame      string `json:"frame_lsn"`
	End        string `json:"end_lsn"`
	Epoch      string `json:"epoch"`
	Time       string `json:"time"`
	Codec      string `json:"codec"`
	Flags      string `json:"flags"`
	Stored     int    `json:"stored_bytes"`
	Raw        int    `json:"raw_bytes"`
	Records    int    `json:"records"`
	Promise    string `json:"durable_promise_lsn,omitempty"`
	Control    any    `json:"control,omitempty"`
	ControlTag string `json:"control_type,omitempty"`
}

// recordLine is a record in JSON.
type recordLine struct {
	Record string `json:"record"`
	LSN    string `json:"lsn"`
	Offset int    `json:"offset"`
	Key    string `json:"key"`
	End    string `json:"end_key,omitempty"`
	Value  string `json:"value,omitempty"`
	Bytes  int    `json:"value_bytes"`
	Expiry string `json:"expiry,omitempty"`
	Origin string `json:"original_lsn,omitempty"`
	Last   bool   `json:"last_of_batch,omitempty"`
}

func newDump() *cobra.Command {
	var from, to string
	var asJSON, quiet bool
	d := &dumper{}
	cmd := &cobra.Command{
		Use:   "dump DIR [--from LSN] [--to LSN]",
		Short: "Print the frames and records of a log",
		Long: "Print the frames and records of a log, each verified. The directory is read without locking it, also while a node uses it.\n" +
			"LSNs are 16 hexadecimal digits, as they are printed here, or decimal, as status, verify and compare print them. Keys and values are quoted; --values bounds what is shown of a value.\n\n" +
			"Exit codes: 0 printed, 1 damage or a failure, 2 bad usage.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			low, err := parseLSN("--from", from, 0)
			if err != nil {
				return err
			}
			high, err := parseLSN("--to", to, ^wal.LSN(0))
			if err != nil {
				return err
			}
			switch {
			case low > high:
				return fmt.Errorf("--from %s is above --to %s", from, to)
			case d.values < 0:
				return fmt.Errorf("--values %d is negative", d.values)
			}
			log, err := wal.Open(args[0], &wal.Options{ReadOnly: true})
			if err != nil {
				return fail(err)
			}
			defer func() { _ = log.Close() }() // opened to be read only
			if log.Empty() {
				return fail(fmt.Errorf("%s: %w", args[0], wal.ErrNoDatabase))
			}
			d.log, d.out = log, bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			if asJSON {
				d.json = json.NewEncoder(d.out)
			}
			err = d.dump(cmd.Context(), low, high, quiet)
			return fail(errors.Join(err, d.out.Flush()))
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "first LSN (default: the tail)")
	cmd.Flags().StringVar(&to, "to", "", "LSN to stop before (default: the end)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one object a line")
	cmd.Flags().BoolVar(&quiet, "frames", false, "print frames only")
	cmd.Flags().IntVar(&d.values, "values", 64, "bytes of a value to show")
	return cmd
}

// parseLSN reads an LSN as it is printed: 16 hexadecimal digits, or a decimal number. Empty: otherwise.
func parseLSN(flag, text string, otherwise wal.LSN) (wal.LSN, error) {
	if text == "" {
		return otherwise, nil
	}
	if len(text) == 16 {
		if lsn, err := wal.ParseLSN(text); err == nil {
			return lsn, nil
		}
	} else if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return wal.LSN(n), nil
	}
	return 0, fmt.Errorf("%s %q: want an LSN of 16 hexadecimal digits, or a decimal one", flag, text)
}

// dump prints the frames that begin in [from, to).
func (d *dumper) dump(ctx context.Context, from, to wal.LSN, quiet bool) error {
	from = max(from, d.log.Tail())
	at, err := boundaryBelow(d.log, from)
	if err != nil {
		return err
	}
	r := d.log.NewReader(at)
	defer r.Close()
	for r.Next() && ctx.Err() == nil {
		f := r.Frame()
		if f.LSN >= to {
			return nil
		}
		if f.LSN < from {
			continue
		}
		if err := d.frame(f, r.Raw()); err != nil {
			return err
		}
		if quiet || f.Flags&wal.FlagControl != 0 {
			continue
		}
		if err := d.records(f); err != nil {
			return err
		}
	}
	return errors.Join(r.Err(), ctx.Err())
}

func (d *dumper) frame(f wal.Frame, raw []byte) error {
	line := frameLine{
		Frame: f.LSN.String(), End: f.End().String(), Epoch: f.Epoch.String(), Time: stamp(f.Time), Codec: f.Codec.String(), Flags: flagNames(f.Flags),
		Stored: f.Stored, Raw: f.Raw, Records: f.Records,
	}
	if f.HasPromise {
		line.Promise = f.Promise.String()
	}
	if f.Flags&wal.FlagControl != 0 {
		c, err := wal.DecodeControl(raw)
		if err != nil {
			return fmt.Errorf("frame at %v: %w", f.LSN, err)
		}
		line.Control, line.ControlTag = describeControl(c)
	}
	if d.json != nil {
		return d.json.Encode(line)
	}
	text := fmt.Appendf(nil, "frame %s end %s epoch %s %s %s stored %d raw %d records %d flags %s", line.Frame, line.End, line.Epoch, line.Time, line.Codec, f.Stored, f.Raw, f.Records, line.Flags)
	if line.Promise != "" {
		text = fmt.Appendf(text, " durable %s", line.Promise)
	}
	if line.ControlTag != "" {
		control, err := json.Marshal(line.Control)
		if err != nil {
			return err
		}
		text = fmt.Appendf(text, "\n  %s %s", line.ControlTag, control)
	}
	_, err := d.out.Write(append(text, '\n'))
	return err
}

// flagNames lists the flags of a frame.
func flagNames(flags wal.Flags) string {
	var names []string
	for _, f := range []struct {
		flag wal.Flags
		name string
	}{{wal.FlagFirst, "first"}, {wal.FlagLast, "last"}, {wal.FlagControl, "control"}, {wal.FlagSeal, "seal"}, {wal.FlagContinuation, "continuation"}} {
		if flags&f.flag != 0 {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}

// fields are what a control record says, by name.
type fields map[string]any

func describeControl(c wal.Control) (fields, string) {
	switch c := c.(type) {
	case *wal.EpochRecord:
		return fields{"epoch": c.Epoch.String(), "start": c.Start.String(), "leader": c.Leader.String(), "history_id": c.History.String(), "rule": describeRule(c.Rule)}, "epoch"
	case *wal.TailRecord:
		history := []fields{}
		for _, h := range c.History {
			history = append(history, fields{"epoch": h.Epoch.String(), "start": h.Start.String(), "leader": h.Leader.String(), "history_id": h.ID.String()})
		}
		return fields{
			"tail": c.Tail.String(), "history": history, "rule": describeRule(c.Rule), "format_level": c.FormatLevel,
			"degraded_from": c.DegradedFrom.String(), "clock_floor": stamp(c.ClockFloor), "degraded_spans": len(c.Spans),
		}, "tail"
	case *wal.RuleRecord:
		return describeRule(c.Rule), "rule"
	case *wal.DegradedRecord:
		if c.Begin {
			return fields{"from": c.From.String(), "reason": c.Reason.String(), "missing": c.Missing}, "degraded-begin"
		}
		return fields{"from": c.From.String()}, "degraded-end"
	case *wal.FormatRecord:
		return fields{"level": c.Level}, "format"
	}
	return nil, "unknown"
}

func describeRule(r wal.Rule) fields {
	voters := []fields{}
	for _, v := range r.Voters {
		voters = append(voters, fields{"id": v.ID.String(), "name": v.Name, "addr": v.Addr})
	}
	return fields{"commit": engine.Level(r.Level).String(), "first": r.First, "voters": voters}
}

// records prints the records that begin in a frame.
func (d *dumper) records(f wal.Frame) error {
	offset := 0
	for range f.Records {
		err := d.log.ReadRecord(wal.MakeRef(f.LSN, offset), &d.buf, func(p []byte) error {
			r, n, err := engine.DecodeRecord(p)
			if err != nil {
				return fmt.Errorf("record at %v+%d: %w", f.LSN, offset, err)
			}
			err = d.record(f.LSN, offset, r)
			offset += n
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *dumper) record(at wal.LSN, offset int, r engine.Record) error {
	line := recordLine{Record: r.Op.String(), LSN: at.String(), Offset: offset, Key: quote(r.Key, len(r.Key)), Bytes: len(r.Value), Last: r.Last}
	switch r.Op {
	case engine.OpPut, engine.OpPutTTL:
		line.Value = quote(r.Value, d.values)
	case engine.OpDeleteRange:
		line.Bytes = 0
		line.End = quote(r.Value, len(r.Value))
	}
	if r.Expiry != 0 {
		line.Expiry = stamp(r.Expiry)
	}
	if r.Orig != 0 {
		line.Origin = r.Orig.LSN().String()
	}
	if d.json != nil {
		return d.json.Encode(line)
	}
	text := fmt.Appendf(nil, "  %s+%d %s %s", line.LSN, offset, line.Record, line.Key)
	if line.End != "" {
		text = fmt.Appendf(text, " to %s", line.End)
	}
	if line.Value != "" {
		text = fmt.Appendf(text, " = %s (%d bytes)", line.Value, line.Bytes)
	}
	if line.Expiry != "" {
		text = fmt.Appendf(text, " expires %s", line.Expiry)
	}
	if line.Origin != "" {
		text = fmt.Appendf(text, " relocated from %s", line.Origin)
	}
	if line.Last {
		text = append(text, " end"...)
	}
	_, err := d.out.Write(append(text, '\n'))
	return err
}

// quote shows the first n bytes as a Go string.
func quote(p []byte, n int) string {
	if len(p) > n {
		return fmt.Sprintf("%q...", p[:max(0, n)])
	}
	return fmt.Sprintf("%q", p)
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }
