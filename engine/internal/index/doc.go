// Package index is the engine's index: key to the positions of its versions. It keeps recent versions in memory tables
// (package memindex) and older ones in immutable sorted runs on disk (package run), so that its memory is bounded
// however many keys there are, and opening it replays only what is newer than the newest run.
//
// # Layers
//
// The layers are ordered by the log: each holds the versions of one range of LSNs, and no two ranges overlap. A version
// that a newer layer holds is therefore newer than all that older layers hold, and a look-up ends at the first
// layer that knows the key.
//
//	+--------+   +--------+ +--------+   +-----+ +-----+ +---------+ +------------------+
//	| active |   | frozen | | frozen |   | run | | run | |   run   | |       run        |
//	+--------+   +--------+ +--------+   +-----+ +-----+ +---------+ +------------------+
//	newest                                                                         oldest
//
// The writer fills the active table. When it is large enough it is frozen, at the end of a batch, and another goroutine
// writes it out as a run once all that it holds is committed and durable. A run never holds what may still be cut. A third
// goroutine merges runs of similar size.
//
// # Deletes
//
// A delete is a version like any other, kept as long as an older layer may hold the key. A delete of a range becomes a delete of
// each key that the active table holds, of each key in older layers if those are few, and else a range delete of the
// layer, which hides what older layers hold in the range. So within a layer only versions count, and the range deletes of a
// layer speak of older layers only.
//
// # Dead entries
//
// Entries below the tail of the log are dead: what lived there has been written again behind. They are never
// shown, and merges leave them out.
//
// # Files
//
// The directory holds runs and MANIFEST, a text file that is replaced as a whole: a line with the format's version and
// the checksum of the rest, then JSON: the runs, oldest first, with what each is known by, and for each a mark of the owner's
// that says what the log had established at its end. Everything is derived from the log: what is missing, damaged or half
// written is left out at open, and replayed.
package index
