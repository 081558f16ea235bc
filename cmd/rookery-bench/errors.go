package main

import "errors"

var (
	// errUsage: the command line is wrong; the text says how.
	errUsage = errors.New("usage")
	// errLate: a call of an open loop had not begun when the load was given up.
	errLate = errors.New("not begun in time")
	// errWrong: an answer is not what a correct server gives, so figures of it
	// would mean nothing.
	errWrong = errors.New("wrong answer")
)
