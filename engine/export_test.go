package engine

// Queued is how many commits wait to be taken into a group.
func (db *DB) Queued() int {
	db.pipe.mu.Lock()
	defer db.pipe.mu.Unlock()
	return len(db.pipe.queue)
}

// FreezeEvery makes databases opened from then on freeze their index's table after n versions, so that small tests have runs on
// disk; 0 is by size, as ever. It returns a function that puts the old value back.
func FreezeEvery(n int) (restore func()) {
	old := freezeEvery.Swap(int64(n))
	return func() { freezeEvery.Store(old) }
}
