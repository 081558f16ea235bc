// Package upgrade proves that a cluster gets from one release to the next and back:
// with real programs of real releases, each built from its own commit of this
// repository, and with data directories that they have left behind.
//
// releases.go names the releases. Whoever tags one adds a line, and its data
// directory by `make testdata-release RELEASE=...`.
//
// # Data directories
//
// testdata/NAME.tar.gz is the data directory of a single node of that release, a
// snapshot that it saved, and what its own rookeryctl said of it (export.json,
// check.txt). It was killed, not stopped: the end of its log is not in its state
// file. fixture_test.go opens each with the present code, at every `make test`, and
// holds what it finds against testdata/NAME.golden.
//
// The archives are binary, and small: a state file is mostly holes and a log mostly
// zeros that were allocated ahead. A text form of the same would be larger and no
// more readable, and code that writes the old format would prove that code, not the
// release. archive.go keeps the octets up to the last that is not zero, with the
// true length beside, so that an archive has some ten KiB.
//
// # Processes
//
// rolling_test.go runs nodes of different releases beside each other under load:
// `make upgrade`. It is no part of `make test` (build tag upgrade), for a checkout
// need not have the commits of earlier releases.
package upgrade
