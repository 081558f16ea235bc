// Package server is where the rules of the directory and the replicated store
// meet the network: the gRPC services of proto/api/v1.
//
// It adds to them what neither knows: who may call what (roles.go), what a caller
// has seen and how fresh an answer must be (session.go), what a rejection is called
// on the wire (status.go), and that a mailbox is said not to exist only after the
// whole cluster was asked (directory.go).
//
// A program that holds a node calls it by Conn (conn.go): the same calls, roles and
// errors, without a network between.
//
// Watches are fed by one hub (watchhub.go), which reads the change log once for all of
// them (docs/design/0008).
//
// Reads take a view of the store and ask the machine; they never go through the
// log, and every node serves them. Writes are checked, encoded and proposed;
// whether they are refused, the machine decides, alike on every node.
package server
