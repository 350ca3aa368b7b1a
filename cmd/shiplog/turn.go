package main

import "sync"

// turn is a lock for what may take its time: a promise waits until a read lease has run out. Who waits for it waits on a channel, so that tests in virtual time see
// that nothing else can happen meanwhile. The zero value is free.
type turn struct {
	mu    sync.Mutex
	taken chan struct{} // closed when it is given back; nil: nobody has it
}

// Lock waits until nobody else has the turn.
func (t *turn) Lock() {
	for {
		t.mu.Lock()
		taken := t.taken
		if taken == nil {
			t.taken = make(chan struct{})
		}
		t.mu.Unlock()
		if taken == nil {
			return
		}
		<-taken
	}
}

// Unlock gives the turn back.
func (t *turn) Unlock() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.taken)
	t.taken = nil
}
