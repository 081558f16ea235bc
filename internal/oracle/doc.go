// Package oracle is the directory's rules written a second time, without any
// thought for speed: plain maps, and everything that the machine keeps as an
// index worked out anew whenever somebody asks. It was written from what
// directory/machine's doc.go and command.go say, not from the code that it is
// compared with, and it takes from there the words only: commands, results and
// their codecs. What both get wrong alike it cannot see; what either gets wrong
// alone, it does.
//
// Who has a log, or a sequence of commands, plays it to an Oracle with [Oracle.Do]
// and asks [Compare] about every result, [Oracle.DifferenceOfRoutes] whenever it
// likes and [Oracle.Difference] about the whole state when no sweep is open: the
// machine works through the consequences of an admission, say, in bounded Ticks,
// the oracle in one. [Oracle.Follow] is Do for a log in which operators do not wait
// for that.
//
// It is no part of the product: tests, the simulation and the chaos harness are
// what imports it.
package oracle
