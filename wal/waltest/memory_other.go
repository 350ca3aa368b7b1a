//go:build unix && !linux

package waltest

import "os"

func nameless() (*os.File, error) {
	f, err := os.CreateTemp("", "waltest")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
