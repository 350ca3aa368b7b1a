//go:build !amd64 && !arm64

package memindex

const canPrefetch = false

func prefetch(*uint64) {}
