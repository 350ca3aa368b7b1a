package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFaultsPage: the tests that FAULTS.md names are there, in the packages that it names.
func TestFaultsPage(t *testing.T) {
	page, err := os.ReadFile("FAULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	has := func(pkg, name string) bool {
		files, err := filepath.Glob(filepath.Join("..", "..", pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "\nfunc "+name+"(") {
				return true
			}
		}
		return false
	}
	word := regexp.MustCompile("`(Test[A-Za-z0-9]+)`|((?:wal|engine|ship|cmd)[a-z/]*):")
	n := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		pkg := ""
		for _, m := range word.FindAllStringSubmatch(cells[3], -1) {
			if m[2] != "" {
				pkg = m[2]
			} else if n++; !has(pkg, m[1]) {
				t.Errorf("there is no %s in %q", m[1], pkg)
			}
		}
	}
	if n < 100 {
		t.Errorf("%d tests are named", n)
	}
}
