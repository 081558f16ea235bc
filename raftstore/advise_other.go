//go:build !linux || !(amd64 || arm64)

package raftstore

import "os"

// adviseDontNeed does nothing here: a scrub sees what the system gives it.
func adviseDontNeed(*os.File) {}
