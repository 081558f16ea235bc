// Package interop
package interop
