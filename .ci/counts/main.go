// Counts reads `go test -json` on standard input and prints a line for each package, the whole output of each test that
// failed, why each skipped test was skipped, and the counts. It exits with 1 if anything failed, or nothing was run.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// event is what test2json prints a line of.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64 // seconds
}

func main() {
	var passed, failed, skipped, packages int
	output := map[string][]string{} // by package and test; dropped when a test passes
	broken := false
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil { // of the go command, not of a test
			fmt.Println(in.Text())
			continue
		}
		id := e.Package + " " + e.Test
		switch e.Action {
		case "output":
			output[id] = append(output[id], e.Output)
			continue
		case "build-output":
			fmt.Print(e.Output)
			continue
		case "build-fail":
			broken = true
			fmt.Println("does not build:", e.ImportPath)
			continue
		case "pass", "fail", "skip":
		default:
			continue
		}
		text := strings.Join(output[id], "")
		delete(output, id)
		switch {
		case e.Test == "" && e.Action != "skip": // a package; one without tests is skipped
			packages++
			fmt.Printf("%-5s %s %.1f s\n", e.Action, e.Package, e.Elapsed)
			if e.Action == "fail" {
				broken = true
				fmt.Print(text)
			}
		case e.Test == "":
		case e.Action == "pass":
			passed++
		case e.Action == "skip":
			skipped++
			fmt.Printf("skip  %s: %s\n", id, reason(text))
		default:
			failed++
			fmt.Printf("FAIL  %s\n%s", id, text)
		}
	}
	for id, lines := range output { // the test binary ended before them
		if broken && !strings.HasSuffix(id, " ") {
			fmt.Printf("did not end: %s\n%s", id, strings.Join(lines, ""))
		}
	}
	fmt.Printf("%d packages: %d tests passed, %d failed, %d skipped\n", packages, passed, failed, skipped)
	if err := in.Err(); err != nil {
		fmt.Println("read the results:", err)
		broken = true
	}
	if broken || failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// reason is what a skipped test said, without the lines that every test has.
func reason(text string) string {
	var said []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			said = append(said, line)
		}
	}
	return strings.Join(said, " ")
}
