//go:build amd64 || arm64

package memindex

const canPrefetch = true

// prefetch begins to load the cache line at p.
//
//go:noescape
func prefetch(p *uint64)
