package memindex

import (
	"cmp"
	"encoding/binary"
)

// keyWord returns the 8 bytes of key from offset i as a big-endian word,
// padded with zeros behind the key's end.
func keyWord(key []byte, i int) uint64 {
	if i+8 <= len(key) {
		return binary.BigEndian.Uint64(key[i:])
	}
	return keyTail(key, i)
}

func keyTail(key []byte, i int) uint64 {
	n := len(key) - i
	if n <= 0 {
		return 0
	}
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key[len(key)-8:]) << (8 * (8 - n))
	}
	var w uint64
	for j, b := range key[i:] {
		w |= uint64(b) << (56 - 8*j)
	}
	return w
}

// nodeWord is keyWord for the key of n bytes in the node w.
func nodeWord(w []uint64, n, i int) uint64 {
	if i >= n {
		return 0
	}
	q, s := keyWords0+i>>3, uint(i&7)*8
	x := w[q] << s
	if s != 0 && i|7 < n-1 {
		x |= w[q+1] >> (64 - s)
	}
	return x
}

// packKey writes key into the node w.
func packKey(w []uint64, key []byte) {
	for i := 0; i < len(key); i += 8 {
		w[keyWords0+i>>3] = keyWord(key, i)
	}
}

// appendKey appends the key of n bytes in the node w to dst.
func appendKey(dst []byte, w []uint64, n int) []byte {
	i := 0
	for ; i+8 <= n; i += 8 {
		dst = binary.BigEndian.AppendUint64(dst, w[keyWords0+i>>3])
	}
	if i < n {
		x := w[keyWords0+i>>3]
		for ; i < n; i++ {
			dst = append(dst, byte(x>>56))
			x <<= 8
		}
	}
	return dst
}

// equalKey reports whether the node w holds key.
func equalKey(w []uint64, key []byte) bool {
	n := len(key)
	if metaLen(w[1]) != n {
		return false
	}
	i := 0
	for ; i+8 <= n; i += 8 {
		if w[keyWords0+i>>3] != binary.BigEndian.Uint64(key[i:]) {
			return false
		}
	}
	return i == n || w[keyWords0+i>>3] == keyTail(key, i)
}

// compareKey compares the key in the node w, of n bytes, with key. Both agree
// in their first from bytes.
func compareKey(w []uint64, n int, key []byte, from int) int {
	for i := from; i < n && i < len(key); i += 8 {
		if a, b := nodeWord(w, n, i), keyWord(key, i); a != b {
			return cmp.Compare(a, b)
		}
	}
	return cmp.Compare(n, len(key))
}

// compareNodes compares the keys of two nodes that agree in their first from
// bytes.
func compareNodes(s space, a, b uint32, from int) int {
	wa, wb := s.node(a), s.node(b)
	na, nb := s.keyLen(a), s.keyLen(b)
	for i := from; i < na && i < nb; i += 8 {
		if x, y := nodeWord(wa, na, i), nodeWord(wb, nb, i); x != y {
			return cmp.Compare(x, y)
		}
	}
	return cmp.Compare(na, nb)
}
