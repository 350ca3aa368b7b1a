// Package run reads and writes sorted runs: immutable files that map keys to the positions of their versions in a range
// of the log. A run is derived data. It is never repaired; what is damaged is detected, dropped, and rebuilt from the log.
//
// A run holds pairs of a key and a version, ordered by key and, among the versions of a key, from the newest to the
// oldest, and beside them a list of range deletes, which it does not apply. [Writer] makes one from pairs in that order,
// [Run] answers point look-ups and hands out iterators.
//
// # Format
//
// A file is a sequence of pages of 4 KiB. All numbers are little-endian. A block is one page or several; its last 8
// bytes are its checksum.
//
//	page 0                                                                   last
//	+------+------+-   -+-------+------+-   -+--------+------+--------+--------+
//	| data | data | ... | index | data | ... | filter | root | bounds | footer |
//	+------+------+-   -+-------+------+-   -+--------+------+--------+--------+
//
// Data blocks follow each other in the order of their entries. Index blocks stand between them where they were full: a
// search goes from the root, the last of them, down to a data block. The bounds are the first and the last key and the
// range deletes. What Open reads stands together at the end. The layouts are drawn beside the code: the footer in
// format.go, data blocks in block.go, their entries in entry.go, index blocks in index.go, bounds in bounds.go, the
// filter in filter.go.
//
// A checksum is the xxHash64 of the block's other bytes, combined by exclusive or with a number made of the run's random
// ID and of the block's first page, so that a block of another run or from another place does not validate either.
//
// # Damage
//
// Open verifies footer, root and bounds; every other block is verified when it is first touched. The lengths and offsets
// that lead on from there are compared with the block before they are used, also in blocks that were verified: the
// system may have dropped the page since, and read another thing from a bad disk. Such a page is found by
// [Run.Verify], which reads everything again, and by the next Open; until then it may lead to a wrong answer or to
// a [*CorruptError], but not to a panic. A fault of the map is an error of the medium ([wal.ErrIO]).
//
// # What bounds it
//
// Of a run that is larger than the processor's caches, a look-up waits for some five lines of memory, one after the other:
// one of the filter, which ends it for a key that the run does not have; two or three of an index block, of which there is
// one for a MiB of run; the first lines of a data block; a group of 8 entries in it. Hashing, comparing and decoding take
// 150 ns together. Walking is bound by decoding, some 10 to 15 ns an entry; writing by the lines of the filter that are not in
// the cache, which is why 64 keys wait for theirs together.
//
// Measured and rejected: groups of 16 (2 % smaller, look-ups a tenth slower); decoding a whole group before it is
// searched (simpler, 15 to 40 % slower); copying whole blocks into iterators; a binary fuse filter (0.40 % of missing keys
// pass with 9.0 bits a key, against 0.96 % with 10.2 here, but each look-up waits for three lines, a quarter longer, and
// the writer has to keep a hash of 8 bytes for each key); 7 probes a key (passes as many as 6).
package run
