package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// sample is one figure of one run.
type sample struct {
	Value  int     `json:"value_bytes"`
	Metric string  `json:"metric"`
	Unit   string  `json:"unit"`
	Engine string  `json:"engine"`
	Run    int     `json:"run"`
	Figure float64 `json:"figure"`
}

// childTimeout ends a child that hangs.
const childTimeout = 15 * time.Minute

// runner runs children and collects what they measure.
type runner struct {
	*options
	base    string // working directory
	self    string // this program
	samples []sample
	failed  []error
}

// run measures everything and prints the result. What failed, or was not reached before ctx
// ended, is missing in it, and makes the error.
func (o *options) run(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	base, err := os.MkdirTemp(o.dir, "peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o755); err != nil {
			return err
		}
	}
	r := &runner{options: o, base: base, self: self}
	for _, value := range o.values {
		if err := r.valueSize(ctx, value); err != nil { // interrupted: what there is, is printed
			r.failed = append(r.failed, err)
			break
		}
	}
	if o.json {
		err = json.NewEncoder(os.Stdout).Encode(map[string]any{"machine": machine(), "versions": versions(), "samples": r.samples})
	} else {
		err = r.print(os.Stdout)
	}
	return errors.Join(append(r.failed, err)...)
}

// valueSize runs all rounds for one size of values. The engines take turns row by row, each time another one first.
func (r *runner) valueSize(ctx context.Context, value int) error {
	for round := range r.runs {
		for i, w := range r.workloads {
			var in []peer
			for _, p := range r.peers {
				if w.applies(&p) {
					in = append(in, p)
				}
			}
			for j := range in {
				p := in[(i+round+j)%len(in)]
				if err := ctx.Err(); err != nil {
					return err
				}
				res, err := r.one(ctx, &w, &p, value, round)
				if err := ctx.Err(); err != nil {
					return err
				}
				if err != nil {
					err = fmt.Errorf("%s, %s, %d bytes, run %d: %w", w.name, p.name, value, round+1, err)
					fmt.Fprintln(os.Stderr, "peers:", err)
					r.failed = append(r.failed, err)
				}
				r.collect(&w, &p, value, round, res)
			}
		}
	}
	// Loaded stores of this size are not needed any more.
	return r.removeShared()
}

func (r *runner) collect(w *workload, p *peer, value, round int, res results) {
	for _, m := range w.rows(r.cpu) {
		figure, ok := res[m.name]
		if !ok {
			continue
		}
		fmt.Fprintf(os.Stderr, "run %d  %4d B  %-50s %-12s %s %s\n", round+1, value, m.name, p.name, number(figure), m.unit)
		r.samples = append(r.samples, sample{Value: value, Metric: m.name, Unit: m.unit, Engine: p.name, Run: round, Figure: figure})
	}
}

// one runs a workload once, with its preparation, in fresh processes and in a directory of its own.
func (r *runner) one(ctx context.Context, w *workload, p *peer, value, round int) (res results, err error) {
	s := spec{Engine: p.name, Row: w.name, N: r.keys(value), Value: value, Limit: r.limit, Cache: r.cache, Settle: r.settle}
	if w.prepare != nil && w.prepare.shared {
		s.Dir, err = r.shared(ctx, s, w.prepare)
	} else {
		s.Dir = filepath.Join(r.base, "run")
		err = os.Mkdir(s.Dir, 0o755)
		defer func() { err = errors.Join(err, os.RemoveAll(s.Dir)) }()
		if err == nil && w.prepare != nil {
			s.Prepared, err = r.prepare(ctx, s, w.prepare)
		}
	}
	if err != nil {
		return nil, err
	}
	if r.profiles != "" {
		s.Profile = filepath.Join(r.profiles, fmt.Sprintf("%s-%s-%d-%d.pprof", p.name, w.name, value, round+1))
	}
	return r.child(ctx, s, false)
}

func (r *runner) prepare(ctx context.Context, s spec, p *preparation) (results, error) {
	s.Prepare = true
	res, err := r.child(ctx, s, p.killed)
	if err != nil {
		err = fmt.Errorf("%s: %w", p.name, err)
	}
	return res, err
}

// sharedDirs is where shared preparations are: each has the directory that it was made in and is used in, and a copy of
// what was in it then.
func (r *runner) sharedDirs() string { return filepath.Join(r.base, "shared") }

// shared returns a directory as a shared preparation has left it, which is done first if need be. It is always the
// same directory: one that is bound to its inode, as shiplog's is, may not be used elsewhere.
func (r *runner) shared(ctx context.Context, s spec, p *preparation) (string, error) {
	of := filepath.Join(r.sharedDirs(), p.name+"-"+s.Engine)
	used, kept := filepath.Join(of, "used"), filepath.Join(of, "kept")
	if _, err := os.Stat(kept); errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(os.RemoveAll(of), os.MkdirAll(used, 0o755)); err != nil {
			return "", err
		}
		s.Dir = used
		if _, err := r.prepare(ctx, s, p); err != nil {
			return "", err
		}
		if err := os.Mkdir(kept, 0o755); err != nil {
			return "", err
		}
		if err := copyAll(ctx, used, kept); err != nil {
			return "", err
		}
	}
	return used, copyAll(ctx, kept, used)
}

func (r *runner) removeShared() error { return os.RemoveAll(r.sharedDirs()) }

// copyAll replaces what is in one directory by what is in another, holes included, and has it written, so that this does
// not go on while something is measured.
func copyAll(ctx context.Context, from, to string) error {
	old, err := os.ReadDir(to)
	if err != nil {
		return err
	}
	for _, e := range old {
		if err := os.RemoveAll(filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--", from+"/.", to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// child runs this program as a child. A killed one must end by SIGKILL, any other with status 0.
func (r *runner) child(ctx context.Context, s spec, killed bool) (results, error) {
	ctx, cancel := context.WithTimeout(ctx, childTimeout)
	defer cancel()
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd := exec.CommandContext(ctx, r.self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := errors.Join(cmd.Start(), write.Close()); err != nil {
		return nil, err
	}
	var answer reply
	bad := json.NewDecoder(read).Decode(&answer)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case bad != nil:
		return nil, fmt.Errorf("no answer: %w", errors.Join(err, bad))
	case answer.Err != "":
		return nil, errors.New(answer.Err)
	case killed && err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		err = nil
	case killed:
		err = fmt.Errorf("was not killed: %w", err)
	}
	return answer.Results, err
}

// figures are the samples of a metric by engine and round, NaN where there is none.
func (r *runner) figures(value int, metric string) map[string][]float64 {
	by := map[string][]float64{}
	for _, s := range r.samples {
		if s.Value != value || s.Metric != metric {
			continue
		}
		if by[s.Engine] == nil {
			for range r.runs {
				by[s.Engine] = append(by[s.Engine], math.NaN())
			}
		}
		by[s.Engine][s.Run] = s.Figure
	}
	return by
}
