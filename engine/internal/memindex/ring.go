package memindex

import "sync/atomic"

const (
	ringMin = 1 << 10
	ringMax = 1 << 16
)

// ring holds the new keys that the tree does not have yet, in the order of
// insertion. The writer pushes; whoever holds the order mutex takes out. Only
// the writer replaces the arrays, with the order mutex held.
type ring struct {
	addr []uint32
	ref  []uint64      // each key's first version
	head atomic.Uint64 // entries ever pushed; stored by the writer
	tail atomic.Uint64 // entries ever taken; stored under the order mutex
}

func (r *ring) len() int { return int(r.head.Load() - r.tail.Load()) }

// push appends an entry; the ring is not full.
func (r *ring) push(addr uint32, ref uint64) {
	h := r.head.Load()
	i := h & uint64(len(r.addr)-1)
	r.addr[i], r.ref[i] = addr, ref
	r.head.Store(h + 1)
}

// grow doubles the ring. The writer calls it with the order mutex held.
func (r *ring) grow() {
	n := max(2*len(r.addr), ringMin)
	addr, ref := make([]uint32, n), make([]uint64, n)
	for i := r.tail.Load(); i != r.head.Load(); i++ {
		from, to := i&uint64(len(r.addr)-1), i&uint64(n-1)
		addr[to], ref[to] = r.addr[from], r.ref[from]
	}
	r.addr, r.ref = addr, ref
}
