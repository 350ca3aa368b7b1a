package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// size is a flag of bytes: a number, which may have a unit.
type size int64

var units = []struct {
	name  string
	shift uint
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}}

func sizeVar(fs *pflag.FlagSet, p *int64, name string, value int64, usage string) {
	*p = value
	fs.Var((*size)(p), name, usage)
}

// Set takes bytes, or a number with KiB, MiB, GiB or TiB behind it, in letters of any case.
func (s *size) Set(text string) error {
	shift := uint(0)
	number := text
	for _, u := range units {
		if at := len(text) - len(u.name); at > 0 && strings.EqualFold(text[at:], u.name) {
			number, shift = text[:at], u.shift
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64>>shift || n < 0 && shift != 0 {
		return errors.New("want bytes, as 1048576 or with a unit, as 1MiB (KiB, MiB, GiB, TiB)")
	}
	*s = size(n << shift)
	return nil
}

// String is the shortest form that Set takes.
func (s *size) String() string {
	for _, u := range units {
		if n := int64(*s); n > 0 && n&(1<<u.shift-1) == 0 {
			return fmt.Sprintf("%d%s", n>>u.shift, u.name)
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Type names the flag's value in help.
func (*size) Type() string { return "size" }
