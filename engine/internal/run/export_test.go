package run

import (
	"unsafe"

	"shiplog/engine/internal/memindex"
)

// Reseal puts right checksums on the blocks of a run whose bytes were changed. The blocks are those of the run as it
// was before, by the first page and the number of pages of each.
func Reseal(b []byte, id uint64, blocks map[uint32]uint32) {
	last := uint32(len(b)/pageSize) - 1
	for page, pages := range blocks {
		block := b[int(page)*pageSize : int(page+pages)*pageSize]
		if page == last {
			seal(block, 0, page)
		} else {
			seal(block, id, page)
		}
	}
}

func decodeFooter(b []byte) (f footer) {
	f.decode(b[len(b)-pageSize:], uint32(len(b)/pageSize))
	return f
}

// Footer returns where the sections of a sound run begin, in bytes; data begins at 0.
func Footer(b []byte) (filter, root, bounds, foot int) {
	f := decodeFooter(b)
	return int(f.data) * pageSize, int(f.rootPage()) * pageSize, int(f.rootPage()+f.root) * pageSize, len(b) - pageSize
}

// Blocks returns the blocks of a sound run, by the first page and the number of pages of each.
func Blocks(b []byte) map[uint32]uint32 {
	f := decodeFooter(b)
	blocks := map[uint32]uint32{}
	for page := uint32(0); page < uint32(f.pages); {
		n := uint32(1) // in the filter, and the footer
		if page < f.data || page >= f.rootPage() && uint64(page) < f.pages-1 {
			n = le.Uint32(b[int(page)*pageSize+4:])
		}
		blocks[page] = n
		page += n
	}
	return blocks
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

// Fault does what is done with a panic under the guard of the map: an error for a fault inside it, else the panic.
func (r *Run) Fault(x any) (err error) {
	r.fault(x, &err)
	return err
}

// Start returns the address of the map.
func (r *Run) Start() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(r.data))) }
