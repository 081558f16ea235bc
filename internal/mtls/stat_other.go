//go:build !unix

package mtls

import (
	"io/fs"
	"os"
)

// inodeOf tells nothing where files have no numbers.
func inodeOf(fs.FileInfo) uint64 { return 0 }

// keepOwner does nothing where files have no owners.
func keepOwner(*os.File, fs.FileInfo) error { return nil }
