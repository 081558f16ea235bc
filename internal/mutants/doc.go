// Package mutants plants bugs, to find out whether the harnesses find them.
//
// A simulation, a chaos test or a power-loss test that has found nothing proves
// nothing by itself: it may be blind. So there are builds of this product that
// have one bug each, of the kinds that other systems have shipped, and one for
// each rule of the directory. A harness has to catch each of those it answers for
// within its budget, and must find nothing in the build without the bug, over the
// same seeds.
//
// # A mutant
//
// It is a file in testdata: what is wrong with it, in the words of an operator;
// which rule it breaks; who must catch it; and the edits, each the exact text that
// stands in one file of the tree, once, and the text to put there:
//
//	# A mailbox that was given up and not taken within a minute is gone.
//	breaks: DESIGN 3, Deactivate: never times out
//	caught by: sim
//	-- old directory/machine/retract.go --
//	...
//	-- new --
//	...
//
// The tree itself is never touched: go build -overlay is told of another file in
// the place of each. Text that is not there exactly once fails the test of this
// package, so whoever changes the code mends the mutant with it; and all of them
// are compiled there, most together.
//
// # Running them
//
// TestMutants builds and runs what it is asked for, and prints for each how long
// the harness needed and what it said first:
//
//	go test -tags peers ./internal/mutants -run TestMutants -timeout 0 -v -args -mutants.only '^guard'
//	go test -tags peers ./internal/mutants -run TestMutants -timeout 0 -v -args -mutants.all
//	go test -tags peers ./internal/mutants -run TestMutants -timeout 0 -v -args -mutants.rotate 20261126
//
// make mutants runs all. CI rotates through those that are "caught by: sim at once", in a
// seed or two; two for each number it is given.
package mutants
