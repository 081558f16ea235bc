// Package servertest starts a whole node in the process of a test: the rules, the log and
// the state file, and the API in front of them. Nothing of it is a mock; what there is
// none of is other nodes and the network.
package servertest
