// Package mtls says who is at the other end of a connection, and lets nobody else
// in: mutual TLS 1.3 for every listener and every client of Rookery, the reading
// and reloading of certificates, and a small private CA.
//
// # Identity
//
// A certificate that a trusted CA has signed says who its holder is by one URI:
//
//	rookery://<role>/<name>
//
// with the roles backend, frontend, failover, operator and node, and a name that
// is percent-encoded where a URI asks for it. A site with a CA of its own, whose
// certificates have no such URI, states the same in a file (see [ParseMap]). A
// certificate that says neither is refused: being signed is not enough. What a
// role may do is no matter of this package: that table is in server/roles.go.
//
// # Who checks what
//
// A server asks for a certificate, checks signature, dates and usage, and reads
// the identity, all inside the handshake: before it ends neither side has read an
// octet of the other's. A client checks that the server's certificate is a node's
// and names the host that was dialed, so a backend's key cannot pass for a node.
// Nodes among themselves check the node's name instead of the host's: an address
// may move, n2 is n2.
//
// Sessions are not resumed, so that each connection is checked against the files
// as they are now.
//
// # Files
//
// [Files] holds certificate, key, CA bundle and map, and looks at most once a
// second, when somebody connects, whether they changed; [Files.Watch] looks when
// nobody does. What cannot be loaded changes nothing, is logged once and tried
// again: the old ones stay. Connections that stand go on with what they began with,
// but for the map: see [Info.Recheck].
//
// # Refusals
//
// gRPC hides why a handshake failed. The credentials here log each refusal with
// its reason, the certificate's subject and serial, and the address; the same
// refusals in a row from one host are counted, not repeated. A client gets the
// same sentences as errors.
package mtls
