// Package sim runs whole clusters in one process, from a seed: the server, the
// directory's machine and raftstore's step functions as they are shipped, on
// disks in memory that lose what was not synced, a network that loses, delays,
// doubles and reorders, clocks that disagree, and faults that come in every
// mixture. The same seed gives the same run, to the last digest.
package sim
