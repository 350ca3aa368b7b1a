package run

import (
	"bytes"
	"context"
	"fmt"

	"shiplog/engine/internal/memindex"
)

// Verify reads every byte again: checksums, the order of keys and versions, the index, the filter, and what the footer
// says about them. It returns the first thing that does not hold, or the error of ctx.
func (r *Run) Verify(ctx context.Context) error {
	again := Run{path: r.path, m: r.m, data: r.data}
	if err := again.open(); err != nil {
		return err
	}
	for page := range filterPages(again.foot.filterLines) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := again.verifyFilter(int(page)); err != nil {
			return err
		}
	}
	v := verifier{r: &again}
	if r.foot.entries > 0 {
		if err := v.index(ctx, 0, again.root, again.Smallest(), false); err != nil {
			return err
		}
	} else {
		v.pages = again.foot.root
	}
	return v.finish()
}

// verifyFilter verifies a page of the filter.
func (r *Run) verifyFilter(page int) (err error) {
	defer r.leave(enter(), &err)
	at := r.filter/pageSize + page
	if !sealed(r.data[at*pageSize:][:pageSize], r.foot.id, uint32(at)) {
		return r.corrupt(uint32(at), "checksum of the filter")
	}
	return nil
}

// verifier walks the tree in order.
type verifier struct {
	r     *Run
	pages uint32 // met
	last  uint32 // page behind the data block met last
	key   []byte // of the entry met last
	ref   uint64

	scratch []byte

	entries, keys, deletes uint64
	minRef, maxRef         uint64
}

// index verifies an index block and all below it.
func (v *verifier) index(ctx context.Context, level int, page uint32, separator []byte, cont bool) error {
	n, err := v.indexSize(page)
	if err != nil {
		return err
	}
	var sep, before []byte
	for i := range n {
		child, c, err := v.child(page, i, &sep)
		switch {
		case err != nil:
			return err
		case i == 0 && (c != cont || !bytes.Equal(sep, separator)):
			return v.r.corrupt(page, "first separator")
		case i > 0 && (bytes.Compare(before, sep) > 0 || !c && bytes.Equal(before, sep)):
			return v.r.corrupt(page, "order of separators")
		}
		before = append(before[:0], sep...)
		if level+1 < int(v.r.foot.levels) {
			err = v.index(ctx, level+1, child, sep, c)
		} else if err = ctx.Err(); err == nil {
			err = v.data(child, sep, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) indexSize(page uint32) (n int, err error) {
	defer v.r.leave(enter(), &err)
	var x indexBlock
	if err := v.r.index(page, &x); err != nil {
		return 0, err
	}
	v.pages += le.Uint32(v.r.data[int(page)*pageSize+4:])
	return x.n, nil
}

func (v *verifier) child(page uint32, i int, sep *[]byte) (child uint32, cont bool, err error) {
	defer v.r.leave(enter(), &err)
	var x indexBlock
	if err := v.r.index(page, &x); err != nil {
		return 0, false, err
	}
	child, cont = x.child(i)
	*sep = x.separator(*sep, i)
	return child, cont, nil
}

// data verifies a data block.
func (v *verifier) data(page uint32, separator []byte, cont bool) (err error) {
	defer v.r.leave(enter(), &err)
	r := v.r
	b, err := r.block(page)
	if err != nil {
		return err
	}
	if page < v.last {
		return r.corrupt(page, "order of data blocks")
	}
	v.last = page + uint32(len(b)/pageSize)
	v.pages += uint32(len(b) / pageSize)
	var d dataBlock
	if !d.parse(b) || !d.readFirst() {
		return r.corrupt(page, "data block")
	}
	first := d.first
	if v.entries > 0 && bytes.Equal(v.key, first) != cont || cont && !bytes.Equal(separator, first) {
		return r.corrupt(page, "continuation")
	}
	if bytes.Compare(separator, first) > 0 || v.entries > 0 && !cont && bytes.Compare(v.key, separator) >= 0 {
		return r.corrupt(page, "separator")
	}
	for g := range d.groups {
		if err := v.group(&d, page, g); err != nil {
			return err
		}
	}
	if commonPrefix(first, v.key) != d.common {
		return r.corrupt(page, "common bytes")
	}
	return nil
}

// group verifies a group of a data block.
func (v *verifier) group(d *dataBlock, page uint32, g int) error {
	e := entry{ref: v.r.base, size: uint32(len(d.first))}
	next := d.offset(g)
	key := append(v.scratch[:0], d.first...)
	defer func() { v.scratch = key }()
	for i := range d.count(g) {
		if next = e.decode(d.b, next, v.r.base); next == 0 {
			return v.r.corrupt(page, "entry")
		}
		key = append(key[:e.shared], d.b[e.at:e.at+e.rest()]...)
		if i == 0 && (len(key) < d.common || d.head(g) != head2(key[d.common:])) {
			return v.r.corrupt(page, "head")
		}
		if err := v.entry(page, key, memindex.Version{Ref: e.ref, Kind: e.kind}); err != nil {
			return err
		}
	}
	if next != uint32(d.end(g)) && len(d.b) == pageSize {
		return v.r.corrupt(page, "end of the group")
	}
	return nil
}

func (v *verifier) entry(page uint32, key []byte, version memindex.Version) error {
	c := bytes.Compare(v.key, key)
	switch {
	case v.entries == 0:
		v.minRef = version.Ref
		if !bytes.Equal(key, v.r.Smallest()) {
			return v.r.corrupt(page, "smallest key")
		}
	case c > 0 || c == 0 && v.ref <= version.Ref:
		return v.r.corrupt(page, "order of entries")
	}
	if v.entries == 0 || c != 0 {
		v.keys++
		if may, err := v.r.mayHold(Hash(key)); err != nil {
			return err
		} else if !may {
			return v.r.corrupt(page, "key is not in the filter")
		}
	}
	v.entries++
	if version.Kind == memindex.Delete {
		v.deletes++
	}
	v.minRef, v.maxRef = min(v.minRef, version.Ref), max(v.maxRef, version.Ref)
	v.key, v.ref = append(v.key[:0], key...), version.Ref
	return nil
}

// finish compares what was met with what the footer says.
func (v *verifier) finish() error {
	f := &v.r.foot
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"pages", uint64(v.pages), uint64(f.data + f.root)},
		{"entries", v.entries, f.entries},
		{"keys", v.keys, f.keys},
		{"deletes", v.deletes, f.deletes},
		{"lowest ref", v.minRef, f.minRef},
		{"highest ref", v.maxRef, f.maxRef},
	} {
		if c.got != c.want {
			return v.r.corrupt(uint32(f.pages)-1, fmt.Sprintf("%s: %d in the run, %d in the footer", c.what, c.got, c.want))
		}
	}
	if !bytes.Equal(v.key, v.r.Largest()) {
		return v.r.corrupt(v.r.end, "largest key")
	}
	return nil
}
