//go:build !linux

package wal_test

import (
	"os"
	"testing"
)

func bareSync(b *testing.B, _ *os.File, _ int) { b.Skip("compared on Linux only") }
