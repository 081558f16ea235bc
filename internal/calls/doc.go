// Package calls asks for commands by the public client library. Tests that draw
// commands at random and hold what became of them against internal/oracle speak of
// machine.Op on both sides, and go to the nodes by the library that everybody uses.
package calls
