package run

import (
	"unsafe"

	"shiplog/engine/internal/memindex"
)

// Reseal puts right checksums on the blocks of a run whose bytes were changed. The blocks are those of the run as it
// was before, by the first page and the number of pages of each.
func Reseal(b []byte, blocks map[uint32]uint32) {
	id := le.Uint64(b[16:])
	for page, pages := range blocks {
		block := b[int(page)*pageSize : int(page+pages)*pageSize]
		if page == 0 {
			seal(block, 0, 0)
		} else {
			seal(block, id, page)
		}
	}
}

// Footer returns where the sections of a sound run begin, in bytes.
func Footer(b []byte) (data, root, bounds, filter, foot int) {
	var h header
	h.decode(b[:pageSize])
	var f footer
	f.decode(b[len(b)-pageSize:], h.id, uint32(len(b)/pageSize))
	return int(f.data.page) * pageSize, int(f.root.page) * pageSize, int(f.bounds.page) * pageSize,
		int(f.filter().page) * pageSize, len(b) - pageSize
}

// EncodeEntries returns the bytes of the entries of a group.
func EncodeEntries(base uint64, keys []string, versions []memindex.Version) []byte {
	var b []byte
	e := entry{ref: base}
	for i, key := range keys {
		shared := 0
		if i > 0 {
			shared = commonPrefix([]byte(keys[i-1]), []byte(key))
		}
		b = appendEntry(b, &e, shared, []byte(key), versions[i], base)
	}
	return b
}

// Blocks returns the blocks of a sound run, by the first page and the number of pages of each.
func Blocks(b []byte) map[uint32]uint32 {
	var h header
	h.decode(b[:pageSize])
	var f footer
	pages := uint32(len(b) / pageSize)
	f.decode(b[len(b)-pageSize:], h.id, pages)
	blocks := map[uint32]uint32{0: 1, pages - 1: 1}
	for page := uint32(1); page < f.bounds.end(); {
		n := le.Uint32(b[int(page)*pageSize+4:])
		blocks[page] = n
		page += n
	}
	for page := f.bounds.end(); page < pages-1; page++ {
		blocks[page] = 1
	}
	return blocks
}

// Fault does what is done with a panic under the guard of the map: an error for a fault inside it, else the panic.
func (r *Run) Fault(x any) (err error) {
	r.fault(x, &err)
	return err
}

// Start returns the address of the map.
func (r *Run) Start() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(r.data))) }
