//go:build !linux

package waltest

import "errors"

func shutdown(string) error { return errors.ErrUnsupported }
