//go:build cgo

package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"path/filepath"
	"sync"

	sqlite3 "github.com/mattn/go-sqlite3"
)

func init() { peers = append(peers, peer{name: "sqlite", store: openSQLite}) }

// sqliteStore has one connection that writes, which SQLite allows one at a time anyway, and one for each session
// that reads.
type sqliteStore struct {
	dsn string

	mu     sync.Mutex // guards what follows
	conn   *sqlite3.SQLiteConn
	put    sqliteStmt
	begin  sqliteStmt
	commit sqliteStmt
}

// openSQLite uses the driver without database/sql, whose pool only costs here; a table without rowid, so that a read is
// one descent; WAL, checkpointed each 64 MiB, synced at each commit (FULL) or at checkpoints (NORMAL);
// a page cache of the common size, and pages that hold a whole row.
func openSQLite(c *Config) (Store, error) {
	page, synchronous := 4096, "NORMAL"
	if c.ValueSize > 200 {
		page = 8192
	}
	if c.Durable {
		synchronous = "FULL"
	}
	s := &sqliteStore{dsn: "file:" + url.PathEscape(filepath.Join(c.Dir, "sqlite.db")) + "?_busy_timeout=10000&_mutex=no&_synchronous=" + synchronous +
		fmt.Sprintf("&_cache_size=-%d", c.Cache>>10)}
	conn, err := s.connect(
		fmt.Sprintf("PRAGMA page_size=%d", page),
		"PRAGMA journal_mode=WAL",
		fmt.Sprintf("PRAGMA wal_autocheckpoint=%d", 64<<20/page),
		"CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
	if err != nil {
		return nil, err
	}
	s.conn = conn
	for stmt, text := range map[*sqliteStmt]string{
		&s.put:    "INSERT INTO kv (k, v) VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
		&s.begin:  "BEGIN IMMEDIATE",
		&s.commit: "COMMIT",
	} {
		if *stmt, err = prepare(conn, text); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return s, nil
}

// connect opens a connection and runs pragmas on it. Page size comes before the journal mode, which fixes it.
func (s *sqliteStore) connect(pragmas ...string) (*sqlite3.SQLiteConn, error) {
	c, err := (&sqlite3.SQLiteDriver{}).Open(s.dsn)
	if err != nil {
		return nil, err
	}
	conn := c.(*sqlite3.SQLiteConn)
	for _, p := range append([]string{"PRAGMA mmap_size=8589934592"}, pragmas...) {
		if _, err := conn.Exec(p, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", p, err), conn.Close())
		}
	}
	return conn, nil
}

// sqliteStmt is a prepared statement with room for its arguments.
type sqliteStmt struct {
	stmt *sqlite3.SQLiteStmt
	args []driver.NamedValue
}

func prepare(conn *sqlite3.SQLiteConn, text string) (sqliteStmt, error) {
	stmt, err := conn.Prepare(text)
	if err != nil {
		return sqliteStmt{}, err
	}
	s := sqliteStmt{stmt: stmt.(*sqlite3.SQLiteStmt)}
	for i := range stmt.NumInput() {
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1})
	}
	return s, nil
}

func (s *sqliteStmt) set(args ...any) []driver.NamedValue {
	for i, a := range args {
		s.args[i].Value = a
	}
	return s.args
}

func (s *sqliteStmt) exec(args ...any) error {
	_, err := s.stmt.ExecContext(context.Background(), s.set(args...))
	return err
}

func (s *sqliteStmt) query(args ...any) (driver.Rows, error) {
	return s.stmt.QueryContext(context.Background(), s.set(args...))
}

func (s *sqliteStore) Session() (Session, error) { return &sqliteSession{store: s}, nil }

func (s *sqliteStore) Close() error {
	return errors.Join(s.put.stmt.Close(), s.begin.stmt.Close(), s.commit.stmt.Close(), s.conn.Close())
}

// sqliteSession opens its connection at the first read.
type sqliteSession struct {
	store *sqliteStore
	conn  *sqlite3.SQLiteConn
	get   sqliteStmt
	scan  sqliteStmt
	dest  [2]driver.Value
}

func (s *sqliteSession) connect() (err error) {
	if s.conn != nil {
		return nil
	}
	if s.conn, err = s.store.connect(); err != nil {
		return err
	}
	if s.get, err = prepare(s.conn, "SELECT v FROM kv WHERE k = ?"); err != nil {
		return err
	}
	s.scan, err = prepare(s.conn, "SELECT k, v FROM kv WHERE k >= ? ORDER BY k LIMIT ?")
	return err
}

func (s *sqliteSession) Put(key, value []byte) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	return s.store.put.exec(key, value)
}

func (s *sqliteSession) PutBatch(pairs []Pair) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if err := s.store.begin.exec(); err != nil {
		return err
	}
	for _, p := range pairs {
		if err := s.store.put.exec(p.Key, p.Value); err != nil {
			return err
		}
	}
	return s.store.commit.exec()
}

func (s *sqliteSession) Get(key []byte, fn func(value []byte)) (bool, error) {
	if err := s.connect(); err != nil {
		return false, err
	}
	rows, err := s.get.query(key)
	if err != nil {
		return false, err
	}
	err = rows.Next(s.dest[:1])
	found := err == nil
	if found {
		fn(s.dest[0].([]byte))
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	return found, errors.Join(err, rows.Close())
}

func (s *sqliteSession) Scan(start []byte, limit int, fn func(key, value []byte)) error {
	if err := s.connect(); err != nil {
		return err
	}
	rows, err := s.scan.query(start, int64(min(limit, math.MaxInt32)))
	if err != nil {
		return err
	}
	for err == nil {
		if err = rows.Next(s.dest[:]); err == nil {
			fn(s.dest[0].([]byte), s.dest[1].([]byte))
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, rows.Close())
}

func (s *sqliteSession) Close() error {
	if s.conn == nil {
		return nil
	}
	return errors.Join(s.get.stmt.Close(), s.scan.stmt.Close(), s.conn.Close())
}
