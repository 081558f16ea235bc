package directory

// AlarmKind says what is wrong with a node of the directory.
type AlarmKind uint8

const (
	// AlarmNoSpace: the node's disk is nearly full. While a majority of the
	// voters has it, the directory takes no growth.
	AlarmNoSpace AlarmKind = 1
	// AlarmDiverged: the node's state is not what the others' is.
	AlarmDiverged AlarmKind = 2
	// AlarmCorrupt: the node's state file was not what was written to it.
	AlarmCorrupt AlarmKind = 3
)

func (k AlarmKind) String() string {
	switch k {
	case AlarmNoSpace:
		return "nospace"
	case AlarmDiverged:
		return "diverged"
	case AlarmCorrupt:
		return "corrupt"
	}
	return "unknown"
}

// Alarm is what is wrong with one node, for all nodes to know. It stands until
// it is lowered: by the node itself when all is well again, or by an operator.
type Alarm struct {
	Kind AlarmKind
	Node string
	Why  string
	By   string // who raised it
	// Voter: the node took part in decisions when it was raised; Voters is how
	// many did.
	Voter  bool
	Voters uint32
	Since  Time
	Wall   int64 // of that, in milliseconds since 1970 UTC, for people
	// Revision is when it was last raised.
	Revision Revision
}
