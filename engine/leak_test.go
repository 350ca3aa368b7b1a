package engine_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain expects that no goroutine outlives the tests.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
