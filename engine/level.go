package engine

import (
	"fmt"
	"strconv"
	"strings"
)

// Level says how far a write must have travelled: as a commit rule before it becomes visible, as
// the level of one call before that call returns. The zero value means "the rule of the database".
//
//	Buffered      this process                      survives nothing
//	Written       this machine's page cache         survives a kill of the process
//	Durable       this machine's disk               survives loss of power
//	Received(n)   and the memory of n followers     and loss of this machine
//	Replicated(n) and the disk of n followers       and loss of power everywhere
//	Applied(n)    and readable on n followers       as Replicated; a read there sees it
//
// The low byte holds the kind, the bits above it n; the number is stored in the log's voters
// records, so neither may change.
type Level uint32

// The levels without a count. Received, Replicated and Applied make the others.
const (
	Default Level = iota
	Buffered
	Written
	Durable
	levelReceived
	levelReplicated
	levelApplied
)

// MaxVoters bounds n of a level and the voters of a database, leader excluded.
const MaxVoters = 64

// Received is reached once this machine's disk and the memory of n followers hold the write.
func Received(n int) Level { return counted(levelReceived, n) }

// Replicated is reached once the disks of this machine and of n followers hold the write.
func Replicated(n int) Level { return counted(levelReplicated, n) }

// Applied is reached once the disks of this machine and of n followers hold the write and these
// followers' readers can see it.
func Applied(n int) Level { return counted(levelApplied, n) }

func counted(kind Level, n int) Level {
	if n < 0 || n > 1<<20 {
		n = 1 << 20 // refused by validate, never wrapped into another kind
	}
	return kind | Level(n)<<8
}

func (l Level) kind() Level { return l & 0xff }

// N is the number of followers that the level waits for.
func (l Level) N() int { return int(l >> 8) }

// synchronous reports whether the level waits for followers.
func (l Level) synchronous() bool { return l.kind() >= levelReceived }

// durable reports whether the level waits for this machine's disk.
func (l Level) durable() bool { return l.kind() >= Durable }

// Validate reports an unknown kind or a count out of range.
func (l Level) Validate() error {
	switch {
	case l.kind() > levelApplied:
		return fmt.Errorf("%w: unknown level %#x", ErrInvalidOption, uint32(l))
	case l.synchronous() && (l.N() < 1 || l.N() > MaxVoters):
		return fmt.Errorf("%w: level %s waits for %d followers, 1 to %d are possible", ErrInvalidOption, l.name(), l.N(), MaxVoters)
	case !l.synchronous() && l.N() != 0:
		return fmt.Errorf("%w: level %s takes no count", ErrInvalidOption, l.name())
	}
	return nil
}

func (l Level) name() string {
	switch l.kind() {
	case Default:
		return "default"
	case Buffered:
		return "buffered"
	case Written:
		return "written"
	case Durable:
		return "durable"
	case levelReceived:
		return "received"
	case levelReplicated:
		return "replicated"
	case levelApplied:
		return "applied"
	}
	return "unknown"
}

// String gives the form that ParseLevel reads, for example "durable" or "replicated:2".
func (l Level) String() string {
	if l.synchronous() {
		return l.name() + ":" + strconv.Itoa(l.N())
	}
	return l.name()
}

// ParseLevel reads buffered, written, durable, received:N, replicated:N or applied:N.
func ParseLevel(s string) (Level, error) {
	name, count, hasCount := strings.Cut(s, ":")
	n := 0
	if hasCount {
		v, err := strconv.ParseUint(count, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%w: level %q: the count is not a number", ErrInvalidOption, s)
		}
		n = int(v)
	}
	for kind := Default; kind <= levelApplied; kind++ {
		if kind.name() != name {
			continue
		}
		l := counted(kind, n)
		if err := l.Validate(); err != nil {
			return 0, err
		}
		return l, nil
	}
	return 0, fmt.Errorf("%w: unknown level %q (buffered, written, durable, received:N, replicated:N, applied:N)", ErrInvalidOption, s)
}
