package wal

// recordLast is set by Append in the first byte of the last record of each batch: several small batches share a
// frame, and their ends must be found in it.
const recordLast = 0x80

// Batch is a list of records that Append stores whole or not at all. The zero value is an empty batch. It is not
// safe for concurrent use, and must not be changed while Append runs.
//
// A record is at least one byte long. The upper two bits of its first byte belong to the log: callers leave them
// zero, and Append sets 0x80 in the last record of the batch. A record must tell its own length: the log keeps
// the order of records, and where each begins ([Batch.Ref]), but not where it ends.
type Batch struct {
	// Buf holds the records, one after the other. Append a record's bytes to it, then call End.
	Buf []byte
	// Urgent batches may use the space that is held in reserve on a full disk: those that give space back, like deletes.
	Urgent bool

	ends []int // where each record ends in Buf
	refs []Ref // set by Append
}

// End marks the end of the record whose bytes were appended to Buf since the last End. It panics when there are
// none.
func (b *Batch) End() {
	if len(b.Buf) == b.ended() {
		panic("wal: empty record")
	}
	b.ends = append(b.ends, len(b.Buf))
}

// Add appends a copy of a record. It panics when rec is empty.
func (b *Batch) Add(rec []byte) {
	b.Buf = append(b.Buf, rec...)
	b.End()
}

// Len returns the number of records.
func (b *Batch) Len() int { return len(b.ends) }

// Size returns the bytes of all ended records.
func (b *Batch) Size() int { return b.ended() }

// Record returns the bytes of record i. They belong to the batch.
func (b *Batch) Record(i int) []byte {
	return b.Buf[b.start(i):b.ends[i]]
}

// start returns where record i begins in Buf.
func (b *Batch) start(i int) int {
	if i == 0 {
		return 0
	}
	return b.ends[i-1]
}

// Ref returns where record i was stored. It is valid after a successful Append and until Reset.
func (b *Batch) Ref(i int) Ref { return b.refs[i] }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	b.Buf, b.ends, b.refs, b.Urgent = b.Buf[:0], b.ends[:0], b.refs[:0], false
}

// Truncate drops all records from the n-th on, ended or not.
func (b *Batch) Truncate(n int) {
	b.ends = b.ends[:n]
	b.Buf = b.Buf[:b.ended()]
}

func (b *Batch) ended() int {
	if len(b.ends) == 0 {
		return 0
	}
	return b.ends[len(b.ends)-1]
}

// setRefs gives the records [from, to) their refs: they stand in one frame, the first at raw offset off.
func (b *Batch) setRefs(frame LSN, off, from, to int) {
	start := b.start(from)
	for i := from; i < to; i++ {
		b.refs = append(b.refs, MakeRef(frame, off))
		off += b.ends[i] - start
		start = b.ends[i]
	}
}
