package memindex

import (
	"unsafe"

	"shiplog/wal/prefetch"
)

// Prefetch asks the processor to fetch what Insert of key will look at first, without waiting for it: in a large table
// that look costs a good part of an Insert. It changes nothing. Any goroutine may call it.
func (t *Table) Prefetch(key []byte) {
	if !prefetch.Works {
		return
	}
	id, tag := split(t.hash(key))
	s := &t.shards[id]
	s.mu.RLock()
	if len(s.slots) > 0 {
		prefetch.Line(unsafe.Pointer(&s.slots[tag>>s.shift&uint32(len(s.slots)-1)]))
	}
	s.mu.RUnlock()
}
