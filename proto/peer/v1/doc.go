// Package peerv1 is what the nodes of a cluster say to each other. Nodes of
// neighbouring releases talk by it: fields and methods are only ever added.
package peerv1
