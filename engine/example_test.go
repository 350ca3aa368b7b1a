package engine_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"shiplog/engine"
)

// tempDB opens a database in a directory that done removes.
func tempDB() (db *engine.DB, done func()) {
	dir, err := os.MkdirTemp("", "shiplog-example")
	if err != nil {
		log.Fatal(err)
	}
	if db, err = engine.Open(dir, nil); err != nil {
		log.Fatal(err)
	}
	return db, func() {
		_ = db.Close()
		_ = os.RemoveAll(dir)
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "shiplog-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	db, err := engine.Open(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	// On return the write is on this machine's disk, and visible.
	if err := db.Put([]byte("fruit/apple"), []byte("red")); err != nil {
		log.Fatal(err)
	}
	value, err := db.Get([]byte("fruit/apple"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", value)
	// Output: red
}

func ExampleDB_Commit() {
	db, done := tempDB()
	defer done()

	b := db.NewBatch()
	b.Put([]byte("fruit/apple"), []byte("red"))
	b.Put([]byte("fruit/plum"), []byte("blue"))
	b.Delete([]byte("fruit/pear"))
	position, err := db.Commit(context.Background(), b, engine.Durable) // all three or none
	if err != nil {
		log.Fatal(err)
	}
	// The position is a receipt: any node of the database can be asked about it later.
	outcome, err := db.Outcome(position)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(outcome)
	// Output: committed
}

func ExampleDB_NewIter() {
	db, done := tempDB()
	defer done()
	for _, name := range []string{"plum", "apple", "pear"} {
		if err := db.Put([]byte("fruit/"+name), nil); err != nil {
			log.Fatal(err)
		}
	}

	it := db.NewIter(&engine.IterOptions{Lower: []byte("fruit/"), Upper: []byte("fruit0")})
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Printf("%s\n", it.Key())
	}
	if err := it.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// fruit/apple
	// fruit/pear
	// fruit/plum
}

func ExampleDB_Update() {
	db, done := tempDB()
	defer done()
	if err := db.Put([]byte("stock"), []byte("1")); err != nil {
		log.Fatal(err)
	}

	_, err := db.Update(context.Background(), engine.Default, func(tx *engine.Tx) error {
		stock, err := tx.Get([]byte("stock"))
		if err != nil {
			return err
		}
		if string(stock) == "0" {
			return fmt.Errorf("sold out")
		}
		if err := tx.Put([]byte("stock"), []byte("0")); err != nil {
			return err
		}
		return tx.Put([]byte("order/1"), []byte("one piece"))
	})
	if err != nil {
		log.Fatal(err)
	}
	order, err := db.Get([]byte("order/1"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", order)
	// Output: one piece
}

// A snapshot keeps showing what it was taken of, and a feed goes on from where it stands: nothing is missed in between.
func ExampleDB_Changes() {
	db, done := tempDB()
	defer done()
	put := func(key, value string) {
		if err := db.Put([]byte(key), []byte(value)); err != nil {
			log.Fatal(err)
		}
	}
	put("fruit/apple", "red")
	snapshot := db.Snapshot()
	put("fruit/apple", "green")
	put("fruit/plum", "blue")

	value, err := snapshot.Get([]byte("fruit/apple"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("apple was %s\n", value)
	from := snapshot.Position()
	snapshot.Close()

	// The feed waits for more when it has given out all that is committed; it ends with the context.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for change, err := range db.Changes(ctx, from) {
		if err != nil {
			log.Fatal(err)
		}
		// Whoever keeps change.Position with what it has made of the change resumes there after a restart.
		fmt.Printf("%v %s %s\n", change.Op, change.Key, change.Value)
		if string(change.Key) == "fruit/plum" {
			break
		}
	}
	// Output:
	// apple was red
	// put fruit/apple green
	// put fruit/plum blue
}
