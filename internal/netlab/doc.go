// Package netlab gives tests hosts on one machine: network namespaces that are wired to a
// bridge, at which the test itself has addresses too. It is for the tests of
// internal/chaos and internal/interop, needs root and the ip command, and has the build
// tag peers as they have.
//
//	n, err := netlab.New("rk-chaos-", 254)  // this process is host 254
//	err = n.Add(1)                          // host 1 is in the namespace n.Space(1), at n.Address(1)
//	defer n.Close()
package netlab
