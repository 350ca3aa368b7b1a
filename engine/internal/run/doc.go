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
//	page 0   1                             root     ...      ...      last
//	+--------+------+------+-   -+---------+--------+--------+--------+--------+
//	| header | data | data | ... | index ..| root   | bounds | filter | footer |
//	+--------+------+------+-   -+---------+--------+--------+--------+--------+
//
// Data blocks follow each other in the order of their entries. Index blocks stand between them where they were full: a
// search goes from the root, the last of them, down to a data block. The bounds are the first and the last key and the
// range deletes. The layouts are drawn beside the code: header and footer in format.go, data blocks in block.go, their
// entries in entry.go, index blocks in index.go, the filter in filter.go.
//
// A checksum is the xxHash64 of the block's other bytes, combined by exclusive or with a number made of the run's random
// ID and of the block's first page, so that a block of another run or from another place does not validate either. The
// header is sealed as page 0 of run 0, because the ID is in it.
//
// # Damage
//
// Open verifies header, footer, root and bounds; every other block is verified when it is first touched. The lengths
// that lead from one block to the next are compared with the file before they are used, also in blocks that were
// verified: the system may have dropped the page since, and read another thing from a bad disk. Such a page is found
// by [Run.Verify], which reads everything again, and by the next Open; until then it may lead to a wrong answer or to a
// [*CorruptError], but not to a panic.
package run
