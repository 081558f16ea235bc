package main

// A system is what a load can be put on: Rookery by one of two callers, a
// ceiling, or somebody else's directory. A system knows the population that it
// was filled with.
type system interface {
	// caller returns what one worker of w does again and again. worker counts from
	// 0; it chooses the connection, and begins the worker's chance.
	caller(w workload, worker int) (call, error)
	// close ends the connections or gives the files back.
	close() error
}

// callers makes n workers.
func callers(s system, w workload, n int) ([]call, error) {
	calls := make([]call, n)
	for i := range calls {
		var err error
		if calls[i], err = s.caller(w, i); err != nil {
			return nil, err
		}
	}
	return calls, nil
}
