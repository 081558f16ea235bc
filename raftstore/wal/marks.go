package wal

import (
	"fmt"
	"path/filepath"

	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
)

// Marks returns where the log in dir can be opened, in order, by its own
// records. It is for who has lost what names the mark in use, and reads the
// whole log. A mark above the commit index that is on disk is left out.
func Marks(dir string) (marks []Position, err error) {
	defer catch(&err)
	dir = filepath.Join(dir, segmentDir)
	records, err := etcdwal.ValidSnapshotEntries(nil, dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, dir, err)
	}
	for _, r := range records {
		marks = append(marks, Position{r.GetTerm(), r.GetIndex()})
	}
	return marks, nil
}
