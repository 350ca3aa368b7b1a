package main

const (
	overwriteRate  = "overwrite x3, batches of 100"
	overwriteSpace = "disk / live raw bytes, after it"
	overwriteDisk  = "written to disk / user bytes, load and overwrite"
	overwriteAnon  = "memory after overwrite, anonymous"
	overwriteFile  = "memory after overwrite, mapped files"
)

// overwriteWorkloads replace everything, and look at what that costs beside time.
var overwriteWorkloads = []workload{{name: "overwrite", metrics: []metric{
	{name: overwriteRate, unit: "ops/s"},
	{name: overwriteSpace, unit: "x", lower: true},
	{name: overwriteDisk, unit: "x", lower: true},
	{name: overwriteAnon, unit: "MB", lower: true},
	{name: overwriteFile, unit: "MB", lower: true},
}, run: overwrite}}

// overwrite loads all keys in random order, and overwrites all of them three times; it has no time limit, because space
// and write amplification are those of the whole. Disk and memory are taken from the open store once its background is
// at rest, bytes written after the close.
func overwrite(e *env) (results, error) {
	const times = 3
	before, err := readMemory()
	if err != nil {
		return nil, err
	}
	ioBefore, err := bytesToDisk()
	if err != nil {
		return nil, err
	}
	store, s, err := e.open(false, 1)
	if err != nil {
		return nil, err
	}
	b := newBatcher(e.data, s[0])
	put := func(i, pass int) error { return b.put(i%b.batches(), uint16(pass)) }
	if _, err := work(1, b.batches(), 0, func(_, i int) error { return put(i, 0) }); err != nil {
		return nil, err
	}
	m, err := e.measure(1, times*b.batches(), 0, func(_, i int) error { return put(i, 1+i/b.batches()) })
	if err != nil {
		return nil, err
	}
	e.settle(fully)
	disk, err := diskBytes(e.Dir)
	if err != nil {
		return nil, err
	}
	after, err := readMemory()
	if err != nil {
		return nil, err
	}
	added := after.since(before)
	if err := e.verifyVersion(s[0], times); err != nil {
		return nil, err
	}
	if err := closeAll(store, s); err != nil {
		return nil, err
	}
	written, err := bytesToDisk()
	return results{
		overwriteRate:  float64(times*e.N) / m.elapsed.Seconds(),
		overwriteSpace: disk / e.data.rawBytes(),
		overwriteDisk:  (written - ioBefore) / (e.data.rawBytes() * (times + 1)),
		overwriteAnon:  added.anon,
		overwriteFile:  added.file,
	}, err
}
