// Package daemon is what all our daemons do alike before they do anything: they
// read a command line and the file that --config names, write a log, end on SIGTERM,
// and tell by their exit code how that went.
//
// The file holds "name: value" lines, a name being a flag's without the dashes; "#"
// begins a comment. A flag beats the file, and an unknown name stops the start.
package daemon
