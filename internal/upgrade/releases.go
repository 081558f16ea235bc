package upgrade

// Release is a release of this repository.
type Release struct {
	// Name is its tag. A clone may lack tags, so the commit stands beside it; it is
	// the commit that counts.
	Name, Commit string
	// Nodes tells that it runs clusters of several nodes: it can be upgraded from
	// while it serves.
	Nodes bool
}

// Releases are all that a cluster may come from, the oldest first.
func Releases() []Release {
	return []Release{
		{"v0.2.0", "742fb72", false}, // the last of the single node
		{"v0.3.0", "cbe85a7", true},
	}
}

// Present is what the tests call the release that they are a part of.
const Present = "present"
