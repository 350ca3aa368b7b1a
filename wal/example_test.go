package wal_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"shiplog/wal"
)

func tempLog() (*wal.Log, func()) {
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		log.Fatal(err)
	}
	l, err := wal.Open(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := l.Create(wal.Rule{}); err != nil {
		log.Fatal(err)
	}
	return l, func() {
		_ = l.Close()
		_ = os.RemoveAll(dir)
	}
}

// A batch of records is appended, made durable, and read again. A record's first byte leaves its upper two bits to the
// log.
func Example() {
	l, done := tempLog()
	defer done()

	var b wal.Batch
	b.Add([]byte("\x01hello"))
	b.Add([]byte("\x01world"))
	r, err := l.Append([]*wal.Batch{&b}, true)
	if err != nil {
		log.Fatal(err)
	}
	durable, err := l.Sync()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(durable >= r.End)

	var buf wal.Buffer
	err = l.ReadRecord(b.Ref(0), &buf, func(rec []byte) error {
		fmt.Printf("%s\n", rec[1:6])
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// true
	// hello
}

// A reader follows the live end: Wait returns when there is more, woken by the append.
func ExampleReader() {
	l, done := tempLog()
	defer done()

	read := make(chan struct{})
	go func() {
		defer close(read)
		r := l.NewReader(l.Tail())
		defer r.Close()
		for seen := 0; seen < 2; {
			for r.Next() {
				if !r.Frame().Control() {
					fmt.Printf("%s\n", r.Raw()[1:])
					seen++
				}
			}
			if err := r.Err(); err != nil {
				log.Fatal(err)
			}
			if seen < 2 {
				if err := r.Wait(context.Background()); err != nil {
					log.Fatal(err)
				}
			}
		}
	}()
	for _, text := range []string{"one", "two"} {
		b := new(wal.Batch)
		b.Add([]byte("\x01" + text))
		if _, err := l.Append([]*wal.Batch{b}, false); err != nil {
			log.Fatal(err)
		}
	}
	<-read
	// Output:
	// one
	// two
}

// Bytes of one log are copied into another, which checks them before it stores them. Both then have the same digest.
func ExampleLog_AppendRaw() {
	from, done := tempLog()
	defer done()
	b := new(wal.Batch)
	b.Add([]byte("\x01hello"))
	if _, err := from.Append([]*wal.Batch{b}, false); err != nil {
		log.Fatal(err)
	}

	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	to, err := wal.Open(dir, &wal.Options{ExpectDatabase: from.DatabaseID()})
	if err != nil {
		log.Fatal(err)
	}
	defer to.Close()
	p := make([]byte, from.Head()-from.Tail())
	if _, err := from.ReadAt(p, from.Tail()); err != nil {
		log.Fatal(err)
	}
	if _, err := to.AppendRaw(from.Tail(), p); err != nil {
		log.Fatal(err)
	}
	a, _ := from.DigestAt(from.Head())
	c, _ := to.DigestAt(to.Head())
	fmt.Println(a == c, to.Head() == from.Head())
	// Output: true true
}

// Verify reads every byte of a directory, without opening it for writing.
func ExampleVerify() {
	l, done := tempLog()
	defer done()
	report, err := wal.Verify(context.Background(), l.Dir(), nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.OK(), report.End == l.Head())
	// Output: true true
}
