// Package raftstore keeps one deterministic machine equal and durable on every node.
package raftstore
