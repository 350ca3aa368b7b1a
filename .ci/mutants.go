//go:build ignore

// Command mutants breaks the project on purpose, in one place at a time, and runs the tests that must notice. The tree is
// not edited: the broken file goes to the build by an overlay.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

const usage = `Usage: .ci/mutants [flags] [NAME...]

Runs deliberately broken builds, all that .ci/mutants.txt lists or the named ones, each with the narrowest tests that must
notice. Prints a table. Before that it runs the same tests on the tree as it is.

Exit codes: 0 every mutant was killed; 1 one survived, does not apply to the code any more, or does not build, or the tests
fail without it; 2 bad usage.

`

// mutant is one broken build.
type mutant struct {
	name, why string
	edits     []edit
	test      []string // package, pattern of -run, more flags of go test
	line      int      // in the list
	res       *result  // nil: not known yet
}

// edit replaces lines of a file.
type edit struct {
	file, in string // in: the beginning of a line; only the lines from there to the next that is "}" are looked at
	old, new []string
}

func main() {
	list := flag.Bool("list", false, "print the mutants and what each breaks, and run nothing")
	apply := flag.Bool("apply", false, "only see whether each mutant applies to the code")
	sample := flag.Int("sample", 0, "run so many mutants, drawn at random; 0: all")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of --sample")
	jobs := flag.Int("j", 1, "mutants that are built and tested at once")
	limit := flag.Duration("timeout", 3*time.Minute, "of one test command; a mutant that runs into it is killed too")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	all, err := load(".ci/mutants.txt")
	if err == nil {
		all, err = choose(all, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	if *list {
		for _, m := range all {
			fmt.Printf("%-28s %s\n", m.name, m.why)
		}
		return
	}
	if *sample > 0 && *sample < len(all) {
		fmt.Printf("seed %d\n", *seed)
		rand.New(rand.NewPCG(*seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:*sample]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	tmp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
	r := &runner{tmp: tmp, limit: *limit, jobs: max(1, *jobs)}
	ok := r.run(ctx, all, *apply)
	if err := os.RemoveAll(tmp); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
	}
	if !ok || ctx.Err() != nil {
		os.Exit(1)
	}
}

// load reads the list; its head says how it is written.
func load(name string) ([]*mutant, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var all []*mutant
	var m *mutant
	var e *edit
	seen := map[string]bool{}
	for i, line := range strings.Split(string(text), "\n") {
		word, rest, _ := strings.Cut(line, " ")
		bad := fmt.Errorf("%s:%d: %q is out of place", name, i+1, line)
		switch {
		case line == "" || word == "#":
			continue
		case word == "mutant":
			if seen[rest] {
				return nil, fmt.Errorf("%s:%d: %s is there twice", name, i+1, rest)
			}
			seen[rest] = true
			m, e = &mutant{name: rest, line: i + 1}, nil
			all = append(all, m)
			continue
		case m == nil:
			return nil, bad
		}
		switch word {
		case "why":
			m.why = rest
		case "test":
			m.test = strings.Fields(rest)
		case "file":
			m.edits = append(m.edits, edit{file: rest})
			e = &m.edits[len(m.edits)-1]
		case "in", "-", "+":
			if e == nil {
				return nil, bad
			}
			switch word {
			case "in":
				e.in = rest
			case "-":
				if len(e.new) > 0 {
					return nil, bad
				}
				e.old = append(e.old, strings.TrimSpace(rest))
			case "+":
				e.new = append(e.new, strings.TrimSpace(rest))
			}
		default:
			return nil, bad
		}
	}
	for _, m := range all {
		if m.why == "" || len(m.test) < 2 || len(m.edits) == 0 {
			return nil, fmt.Errorf("%s:%d: %s lacks a why, a test or a file", name, m.line, m.name)
		}
	}
	return all, nil
}

func choose(all []*mutant, names []string) ([]*mutant, error) {
	if len(names) == 0 {
		return all, nil
	}
	var out []*mutant
	for _, name := range names {
		found := false
		for _, m := range all {
			if m.name == name {
				out, found = append(out, m), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no mutant %q; --list names them", name)
		}
	}
	return out, nil
}

// runner applies, builds and tests.
type runner struct {
	tmp   string
	limit time.Duration
	jobs  int
}

// result is what has become of a mutant.
type result struct {
	verdict string // "killed" is the good one
	detail  string
	took    time.Duration
}

func (r *runner) run(ctx context.Context, all []*mutant, applyOnly bool) bool {
	began := time.Now()
	overlays := map[*mutant]string{}
	for _, m := range all {
		overlay, err := r.apply(m)
		if err != nil {
			m.res = &result{verdict: "NOT APPLIED", detail: err.Error()}
		}
		overlays[m] = overlay
	}
	if !applyOnly {
		r.baseline(ctx, all)
		r.each(len(all), func(i int) {
			m := all[i]
			if m.res == nil {
				m.res = r.test(ctx, m, overlays[m])
			}
			fmt.Printf("%-28s %-12s %5.1f s  %s\n", m.name, m.res.verdict, m.res.took.Seconds(), m.res.detail)
		})
	}
	count := map[string]int{}
	for _, m := range all {
		if m.res == nil {
			m.res = &result{verdict: "applies"}
		}
		count[m.res.verdict]++
		if applyOnly && m.res.verdict != "applies" {
			fmt.Printf("%-28s %-12s %s\n", m.name, m.res.verdict, m.res.detail)
		}
	}
	fmt.Printf("%d mutants", len(all))
	for _, v := range []string{"killed", "applies", "SURVIVED", "NOT APPLIED", "NOT BUILT", "BASELINE"} {
		if count[v] > 0 {
			fmt.Printf(", %d %s", count[v], v)
		}
	}
	fmt.Printf(" in %.0f s\n", time.Since(began).Seconds())
	return count["killed"]+count["applies"] == len(all)
}

// each calls fn for 0 to n-1, jobs of them at once; their lines come out whole, in no order.
func (r *runner) each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	free := make(chan struct{}, r.jobs)
	for i := range n {
		free <- struct{}{}
		wg.Go(func() {
			fn(i)
			<-free
		})
	}
	wg.Wait()
}

// apply writes the broken files and an overlay that puts them in place, and returns its name.
func (r *runner) apply(m *mutant) (string, error) {
	texts := map[string]string{}
	for _, e := range m.edits {
		text, ok := texts[e.file]
		if !ok {
			b, err := os.ReadFile(e.file)
			if err != nil {
				return "", err
			}
			text = string(b)
		}
		changed, err := e.change(text)
		if err != nil {
			return "", err
		}
		texts[e.file] = changed
	}
	replace := map[string]string{}
	for file, text := range texts {
		abs, err := filepath.Abs(file)
		if err != nil {
			return "", err
		}
		replace[abs] = filepath.Join(r.tmp, m.name+"-"+strings.ReplaceAll(file, "/", "-"))
		if err := os.WriteFile(replace[abs], []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(r.tmp, m.name+".json")
	return overlay, os.WriteFile(overlay, b, 0o644)
}

// change replaces the one place where the old lines stand, whatever their indentation. The first may begin, and the last
// end, inside a line.
func (e *edit) change(text string) (string, error) {
	from, to := 0, len(text)
	if e.in != "" {
		if from = strings.Index("\n"+text, "\n"+e.in); from < 0 {
			return "", fmt.Errorf("%s: no line begins with %q", e.file, e.in)
		}
		end := strings.Index(text[from:], "\n}")
		if end < 0 {
			return "", fmt.Errorf("%s: %q has no end", e.file, e.in)
		}
		to = from + end
	}
	if len(e.old) == 0 {
		return "", fmt.Errorf("%s: nothing to replace", e.file)
	}
	var quoted []string
	for _, line := range e.old {
		quoted = append(quoted, regexp.QuoteMeta(line))
	}
	found := regexp.MustCompile(strings.Join(quoted, `\s*\n\s*`)).FindAllStringIndex(text[from:to], -1)
	if len(found) != 1 {
		return "", fmt.Errorf("%s: %q is there %d times", e.file, strings.Join(e.old, "\n"), len(found))
	}
	return text[:from+found[0][0]] + strings.Join(e.new, "\n") + text[from+found[0][1]:], nil
}

// baseline runs all tests that are asked for on the tree as it is: those of a package with the same flags together.
func (r *runner) baseline(ctx context.Context, all []*mutant) {
	var keys []string
	users := map[string][]*mutant{}
	for _, m := range all {
		key := strings.Join(append([]string{m.test[0]}, m.test[2:]...), " ")
		if users[key] == nil {
			keys = append(keys, key)
		}
		users[key] = append(users[key], m)
	}
	r.each(len(keys), func(i int) {
		group := users[keys[i]]
		var patterns []string
		for _, m := range group {
			if !slices.Contains(patterns, m.test[1]) {
				patterns = append(patterns, m.test[1])
			}
		}
		test := append([]string{group[0].test[0], strings.Join(patterns, "|")}, group[0].test[2:]...)
		out, err := r.goTest(ctx, test)
		if err == nil {
			return
		}
		for _, m := range group {
			if m.res == nil {
				m.res = &result{verdict: "BASELINE", detail: keys[i] + ": the tests fail without the mutant: " + firstFailure(out)}
			}
		}
	})
}

func (r *runner) test(ctx context.Context, m *mutant, overlay string) *result {
	began := time.Now()
	out, err := r.goTest(ctx, m.test, "-overlay", overlay)
	res := &result{took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		res.verdict = "NOT RUN"
	case err == nil:
		res.verdict, res.detail = "SURVIVED", strings.Join(m.test, " ")
	case !errors.As(err, &exit):
		res.verdict, res.detail = "NOT BUILT", err.Error()
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		res.verdict, res.detail = "NOT BUILT", "\n"+string(out)
	default:
		res.verdict, res.detail = "killed", firstFailure(out)
	}
	return res
}

// goTest runs a test command. It dies with everything that it has started.
func (r *runner) goTest(ctx context.Context, test []string, flags ...string) ([]byte, error) {
	args := append([]string{"test", "-count=1", "-vet=off", "-timeout", r.limit.String()}, flags...)
	args = append(append(args, "-run", test[1]), test[2:]...)
	cmd := exec.CommandContext(ctx, "go", append(args, test[0])...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd.CombinedOutput()
}

var failure = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)|^(panic: test timed out.*|panic: .*|fatal error: .*)`)

// firstFailure is the name of the test that has failed, or what ended the process.
func firstFailure(out []byte) string {
	name := "exit code"
	for _, m := range failure.FindAllSubmatch(out, -1) {
		if len(m[2]) > 0 {
			return string(m[2])
		}
		name = string(m[1]) // the last one is the innermost
	}
	return name
}
