package main

import (
	"context"
	"errors"
	"os"
)

// logSize is what the file is made as large as beforehand, as logs are.
const logSize = 64 << 20

// fsync is the ceiling of one writer: an entry as large as a request is written
// behind the one before and synced, one at a time. A node does more than that
// many writes a second only by putting several into one entry.
type fsync struct {
	file  *os.File
	entry []byte
	at    int64
}

// newFsync makes the file in dir, which is to be on the disk of the node's log.
func newFsync(dir string, octets int) (*fsync, error) {
	f, err := os.CreateTemp(dir, "fsync-ceiling-")
	if err != nil {
		return nil, err
	}
	s := &fsync{file: f, entry: make([]byte, octets)}
	zeros := make([]byte, 1<<20)
	for n := 0; n < logSize && err == nil; n += len(zeros) {
		_, err = f.Write(zeros)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *fsync) caller(workload, int) (call, error) {
	return func(context.Context) error {
		if s.at+int64(len(s.entry)) > logSize {
			s.at = 0
		}
		n, err := s.file.WriteAt(s.entry, s.at)
		s.at += int64(n)
		if err != nil {
			return err
		}
		return syncData(s.file)
	}, nil
}

func (s *fsync) close() error {
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}
