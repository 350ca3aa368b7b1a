package main

// fillWorkloads write new keys, not synced.
var fillWorkloads = []workload{
	{name: "fillseq", metrics: []metric{{name: "fillseq, one a commit", unit: "ops/s"}}, run: fillSeq},
	{name: "fillrandom", metrics: []metric{{name: "fillrandom, one a commit", unit: "ops/s"}}, run: fillRandom},
	{name: "batch100", metrics: []metric{{name: "random, batches of 100", unit: "ops/s"}}, run: fillBatches},
}

const batchSize = 100

// load is the preparation of everything that reads: all keys in random order, in batches.
var load = &preparation{name: "load", shared: true, run: func(e *env) (results, error) {
	store, s, err := e.open(false, 1)
	if err != nil {
		return nil, err
	}
	b := newBatcher(e.data, s[0])
	if _, err := work(1, b.batches(), 0, func(_, i int) error { return b.put(i, 0) }); err != nil {
		return nil, err
	}
	e.settle(briefly)
	return nil, closeAll(store, s)
}}

func fillSeq(e *env) (results, error) {
	rate, err := e.fill(func(i int) uint64 { return uint64(i) })
	return results{"fillseq, one a commit": rate}, err
}

func fillRandom(e *env) (results, error) {
	rate, err := e.fill(func(i int) uint64 { return e.data.permute(uint64(i)) })
	return results{"fillrandom, one a commit": rate}, err
}

// fill puts one key a commit, in the order that index gives.
func (e *env) fill(index func(i int) uint64) (float64, error) {
	store, s, err := e.open(false, 1)
	if err != nil {
		return 0, err
	}
	put := e.putter(s[0])
	m, err := e.measure(1, e.N, e.Limit, func(_, i int) error { return put(index(i), 0) })
	if err != nil {
		return 0, err
	}
	if err := e.verify(s[0], m.done); err != nil {
		return 0, err
	}
	return m.rate(), closeAll(store, s)
}

// putter returns a function that puts the existing key with an index.
func (e *env) putter(s Session) func(index uint64, version uint16) error {
	var k, v []byte
	return func(index uint64, version uint16) error {
		k = existing(k, index)
		v = e.data.value(v, 2*index, version)
		return s.Put(k, v)
	}
}

func fillBatches(e *env) (results, error) {
	store, s, err := e.open(false, 1)
	if err != nil {
		return nil, err
	}
	b := newBatcher(e.data, s[0])
	m, err := e.measure(1, b.batches(), e.Limit, func(_, i int) error { return b.put(i, 0) })
	if err != nil {
		return nil, err
	}
	keys := min(m.done*batchSize, e.N)
	if err := e.verify(s[0], keys); err != nil {
		return nil, err
	}
	return results{"random, batches of 100": float64(keys) / m.elapsed.Seconds()}, closeAll(store, s)
}

// batcher writes all existing keys in random order, in batches of which the last may be smaller.
type batcher struct {
	data  *dataset
	s     Session
	pairs [batchSize]Pair
}

func newBatcher(d *dataset, s Session) *batcher { return &batcher{data: d, s: s} }

func (b *batcher) batches() int { return int(b.data.n+batchSize-1) / batchSize }

func (b *batcher) put(batch int, version uint16) error {
	from := uint64(batch) * batchSize
	n := min(batchSize, b.data.n-from)
	for i := range n {
		index := b.data.permute(from + i)
		p := &b.pairs[i]
		p.Key = existing(p.Key, index)
		p.Value = b.data.value(p.Value, 2*index, version)
	}
	return b.s.PutBatch(b.pairs[:n])
}
