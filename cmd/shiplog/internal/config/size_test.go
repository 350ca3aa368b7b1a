package config

import (
	"testing"

	"github.com/spf13/pflag"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "-1": -1, "1000": 1000, "1KiB": 1 << 10, "64MiB": 64 << 20, "3gib": 3 << 30, "2TIB": 2 << 40, "8388607TiB": 8388607 << 40,
	} {
		var got int64
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		sizeVar(fs, &got, "size", 7, "")
		if got != 7 {
			t.Fatal("the default is not there")
		}
		if err := fs.Parse([]string{"--size=" + text}); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
		again := size(-5)
		if err := again.Set(fs.Lookup("size").Value.String()); err != nil || int64(again) != want {
			t.Errorf("%s, printed and taken again: %d, %v", text, again, err)
		}
	}
	for _, text := range []string{"", "MiB", "1.5MiB", "1MB", "1 MiB", "-1MiB", "8388608TiB", "9223372036854775808", "x"} {
		var s size
		if err := s.Set(text); err == nil {
			t.Errorf("%q is taken as %d", text, s)
		}
	}
}
