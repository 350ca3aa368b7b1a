//go:build !unix

package resp

import "strings"

func infoCPU(*strings.Builder, *Server, *NodeInfo) {}
