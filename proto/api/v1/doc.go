// Package apiv1 is the API that clients speak, version 1: generated from the
// .proto files beside this one, whose comments are its manual.
//
// Within the first version nothing that a built client relies on changes:
// fields and calls are added, none is renumbered, renamed or taken away.
package apiv1
