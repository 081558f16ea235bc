// Package logbuf holds what a program or a logger writes, for tests that read it while it
// is written.
package logbuf
