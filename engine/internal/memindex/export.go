package memindex

// Export calls fn for each key in ascending order with all its versions,
// newest first, Deletes included, until fn returns an error, which it returns.
// The slices are valid during the call. Only the writer calls it, and nobody
// writes meanwhile: it serves a table that takes no more versions.
func (t *Table) Export(fn func(key []byte, versions []Version) error) error {
	t.Wait()
	// No job runs and none will start, and the ring is empty, so the tree
	// stands still; its lock is for scans that meet a leaf being tidied.
	t.order.Lock()
	defer t.order.Unlock()
	t.mergeTo(t.ring.head.Load())
	sp := *t.arena.published.Load()
	var key []byte
	var versions []Version
	for i, b := range t.tree.branches {
		for j := range b.leaves {
			leaf := t.tree.leaf(place{i, j})
			if leaf.loose > 0 {
				t.treeLock.Lock()
				leaf.tidy(sp)
				t.treeLock.Unlock()
			}
			for _, addr := range leaf.addr {
				key = sp.appendKey(key[:0], addr)
				versions = versions[:0]
				for a := addr; a != 0; {
					v := sp.node(a)
					versions = append(versions, Version{Ref: v[0], Kind: metaKind(v[1])})
					a = metaPrev(v[1])
				}
				if err := fn(key, versions); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
