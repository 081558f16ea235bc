// Package archtest is the picture of the house as a test: which package may
// import which, and what no package may do.
//
// It reads the source tree itself rather than asking the go command. So it sees
// the files of every build tag and platform, and the go command, which notes
// the files a test opens, runs it again whenever one of them changes.
//
// The table of arrows is in arrows.go. A package that stands in no row is a
// broken arrow too: whoever adds one says there what it is for and what it may
// know. The rules on the text of a file (a package comment, nothing that ends
// the process below cmd, nothing that makes two nodes differ in the machine)
// are in source.go.
package archtest
