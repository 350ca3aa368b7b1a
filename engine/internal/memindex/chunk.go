package memindex

// Chunk is the result of one [Table.Scan]: entries in the order of the scan,
// with copies of their keys. The zero value is ready; using one again saves
// the allocations. It belongs to one goroutine at a time.
type Chunk struct {
	// Deletes asks for keys whose visible version is a Delete too, which scans
	// leave out otherwise.
	Deletes bool

	keys     []byte
	ends     []int // end of each key in keys
	versions []Version
	more     bool

	block       [scanBlock]uint32 // scratch
	refs, metas [scanBlock]uint64 // scratch
	at          []byte            // scratch: the last key looked at
}

// Len returns the number of entries.
func (c *Chunk) Len() int { return len(c.versions) }

// Key returns the key of entry i. It is never nil, and valid until the chunk
// is scanned into again; appending to it copies.
func (c *Chunk) Key(i int) []byte {
	from := 0
	if i > 0 {
		from = c.ends[i-1]
	}
	return c.keys[from:c.ends[i]:c.ends[i]]
}

// Version returns the version of entry i.
func (c *Chunk) Version(i int) Version { return c.versions[i] }

// More reports whether the scan stopped because the chunk was full. If not,
// there is nothing behind its last entry.
func (c *Chunk) More() bool { return c.more }

// Reset empties the chunk and keeps its memory.
func (c *Chunk) Reset() {
	if c.keys == nil {
		// Never nil: as an upper bound, the empty key is one, and nil is none.
		c.keys, c.at = make([]byte, 0, 1024), make([]byte, 0, 64)
	}
	c.keys, c.ends, c.versions, c.more = c.keys[:0], c.ends[:0], c.versions[:0], false
}

// Append adds an entry with a copy of key: for scans that merge what tables hold.
func (c *Chunk) Append(key []byte, v Version) {
	c.keys = append(c.keys, key...)
	c.ends = append(c.ends, len(c.keys))
	c.versions = append(c.versions, v)
}

// KeyBytes returns the length of all keys together.
func (c *Chunk) KeyBytes() int { return len(c.keys) }

// SetMore makes More report that there is more.
func (c *Chunk) SetMore() { c.more = true }
