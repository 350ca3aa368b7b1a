package wal

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"shiplog/wal/vfs"
)

// Compression is the codec that Append tries.
type Compression uint8

// Compressions. A frame that shrinks by less than an eighth is stored plain whatever is chosen.
const (
	S2 Compression = iota
	Zstd
	NoCompression
)

// String returns the name.
func (c Compression) String() string {
	switch c {
	case S2:
		return "s2"
	case Zstd:
		return "zstd"
	case NoCompression:
		return "none"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// Options are the settings of a [Log]. The zero value works. They must not change after Open.
type Options struct {
	// FS is the file system. Nil: the host's ([vfs.OS]).
	FS vfs.FS
	// SegmentSize of a database made by Create, in bytes: a power of two from 64 KiB to 1 GiB. Zero: 64 MiB. The log of
	// an existing database keeps its own.
	SegmentSize int64
	// Compression of appended frames.
	Compression Compression
	// Logger hears of recovery, cuts and failures. Nil: nobody does.
	Logger *slog.Logger
	// MaxMaps bounds the segment files that are open and mapped at once; beyond it the least recently used ones are
	// closed, and files in use beyond it are read with pread. Zero: 4,096, or 16 on 32-bit hosts, and
	// not more than a quarter of the descriptors that the process may have: the others are for its sockets, and for new segments.
	MaxMaps int
	// CacheSize is how many bytes of unpacked frames [Log.ReadRecord] keeps. Zero: none. Memory is taken as it is needed.
	CacheSize int64
	// ReadOnly opens the log for reading: the directory is not locked, nothing is cut, rewritten or repaired, and the log
	// is what was valid at Open.
	ReadOnly bool
	// ExpectDatabase, when set, is the only database that Open and AppendRaw accept ([ErrDatabase]).
	ExpectDatabase DatabaseID
	// Inline does the housekeeping (allocating ahead, writing the mark) inside the calls that make it due instead of in a
	// goroutine: slower, but the same calls then reach the disk in the same order each time.
	Inline bool
	// DurableWindow is how long after a durable commit unsynced groups are written with pwrite rather than stored
	// through the map, so that the next sync finds no mapped page dirty. Zero: 5 ms.
	DurableWindow time.Duration
	// StallTimeout is how long one write or sync of a segment may take. After that the disk counts as failed, and the log is poisoned with
	// [ErrStalled], also if the disk answers later. Zero: 20 s. Negative: no bound.
	StallTimeout time.Duration
	// Poisoned, when set, is called once, in a goroutine of its own, when the log is poisoned: who waits for the disk may wait for ever.
	Poisoned func(err error)
	// Now is the clock of log time. Nil: time.Now.
	Now func() time.Time
}

func (o *Options) validate() error {
	var errs []error
	if o.SegmentSize != 0 {
		if err := checkSegmentSize(o.SegmentSize); err != nil {
			errs = append(errs, err)
		}
	}
	if o.Compression > NoCompression {
		errs = append(errs, fmt.Errorf("unknown compression %d", o.Compression))
	}
	if o.MaxMaps < 0 {
		errs = append(errs, fmt.Errorf("MaxMaps %d is negative", o.MaxMaps))
	}
	if o.CacheSize < 0 {
		errs = append(errs, fmt.Errorf("CacheSize %d is negative", o.CacheSize))
	}
	if o.DurableWindow < 0 {
		errs = append(errs, fmt.Errorf("DurableWindow %v is negative", o.DurableWindow))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("wal: options: %w", err)
	}
	return nil
}

// withDefaults returns a copy with every zero field filled in.
func (o *Options) withDefaults() Options {
	var c Options
	if o != nil {
		c = *o
	}
	if c.FS == nil {
		c.FS = vfs.OS
	}
	maps := 4096
	if strconv.IntSize == 32 {
		maps = 16
	}
	maps = min(maps, max(vfs.Descriptors()/4, 4))
	c.SegmentSize = cmp.Or(c.SegmentSize, DefaultSegmentSize)
	c.MaxMaps = cmp.Or(c.MaxMaps, maps)
	c.DurableWindow = cmp.Or(c.DurableWindow, 5*time.Millisecond)
	c.StallTimeout = cmp.Or(c.StallTimeout, 20*time.Second)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}
