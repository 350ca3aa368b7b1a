package engine

// Queued is how many commits wait to be taken into a group.
func (db *DB) Queued() int {
	db.pipe.mu.Lock()
	defer db.pipe.mu.Unlock()
	return len(db.pipe.queue)
}
