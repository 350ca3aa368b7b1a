package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if text := os.Getenv(childEnv); text != "" {
		childMain(text)
	}
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "peers:", err)
		}
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		cancel()
		os.Exit(1)
	}
}

// options are what the command line asks for.
type options struct {
	workloads []workload
	peers     []peer
	values    []int // bytes
	n         int   // keys; 0: by value size
	runs      int
	limit     time.Duration
	cache     int64
	settle    bool
	dir       string
	profiles  string
	cpu       bool
	json      bool
}

// keys is the number of keys for a value size: by default 1 Mi, or what 256 MiB of values hold.
func (o *options) keys(value int) int {
	if o.n > 0 {
		return o.n
	}
	return min(1<<20, 256<<20/value)
}

func parseFlags(args []string) (*options, error) {
	o := &options{settle: true}
	fs := flag.NewFlagSet("peers", flag.ContinueOnError)
	rows := fs.String("rows", "all", "rows, comma separated: "+strings.Join(workloadNames(), ", "))
	engines := fs.String("engines", "all", "engines, comma separated: "+strings.Join(peerNames(), ", "))
	values := fs.String("values", "100,1024", "value sizes in bytes, comma separated")
	fs.IntVar(&o.n, "n", 0, "keys (0: 1,048,576, or as many as 256 MiB of values hold)")
	fs.IntVar(&o.runs, "runs", 5, "runs of each row, engines taking turns")
	fs.DurationVar(&o.limit, "limit", 5*time.Second, "a phase ends after so many operations as there are keys, or after this time")
	fs.StringVar(&o.dir, "dir", os.TempDir(), "directory on the disk to use; everything is below a new directory there, and removed")
	fs.StringVar(&o.profiles, "cpuprofile", "", "directory for a CPU profile of each measured phase")
	fs.BoolVar(&o.cpu, "cpu", false, "add rows of CPU time")
	fs.BoolVar(&o.json, "json", false, "print every sample as JSON instead of the table")
	cache := fs.Int64("cache", 256, "MiB that a store may use to cache blocks")
	smoke := fs.Bool("smoke", false, "only check that everything works: few keys, one run")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	o.cache = *cache << 20
	if *smoke {
		o.n, o.runs, o.limit, o.settle = 1000, 1, 100*time.Millisecond, false
	}
	var errs []error
	o.workloads = pick(*rows, workloads, findWorkload, &errs)
	o.peers = pick(*engines, peers, findPeer, &errs)
	for text := range strings.SplitSeq(*values, ",") {
		v, err := strconv.Atoi(text)
		if err != nil || v <= headSize || v > 64<<10 {
			errs = append(errs, fmt.Errorf("value size %q: want bytes, from %d to %d", text, headSize+1, 64<<10))
		}
		o.values = append(o.values, v)
	}
	if o.runs < 1 || o.cache < 1<<20 || o.n < 0 || o.n > 0 && o.n < 100 || o.n > math.MaxInt32 {
		errs = append(errs, errors.New("want at least one run, 1 MiB of cache and 100 keys"))
	}
	return o, errors.Join(errs...)
}

// pick finds the named ones of all.
func pick[T any](names string, all []T, find func(string) (T, error), errs *[]error) []T {
	if names == "all" {
		return all
	}
	var list []T
	for name := range strings.SplitSeq(names, ",") {
		t, err := find(name)
		if err != nil {
			*errs = append(*errs, err)
			continue
		}
		list = append(list, t)
	}
	return list
}
