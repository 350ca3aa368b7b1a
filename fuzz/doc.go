// Package fuzz holds the fuzz targets, one a file: what comes from a disk or from a peer. Each asserts properties
// beside the absence of panics; seeds are named by the defect that they hold. Run one with
//
//	go test -run '^$' -fuzz '^FuzzRecovery$' ./fuzz
package fuzz
