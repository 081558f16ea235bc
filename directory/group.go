package directory

// BackendState is an operator's word about a backend.
type BackendState uint8

const (
	// BackendActive serves and takes new users.
	BackendActive BackendState = 1
	// BackendDraining serves, takes no new users.
	BackendDraining BackendState = 2
	// BackendDown: its mailboxes route as BackendIsDown; LIST is unchanged.
	BackendDown BackendState = 3
	// BackendLost: its facts are kept as history, never routed, and block no Reserve.
	BackendLost BackendState = 4
	// BackendRetired: it held nothing when it was retired; its name is not reused.
	BackendRetired BackendState = 5
	// BackendFull serves, takes no new users, and is not being emptied: what it
	// withdraws is under the guard as ever. Cluster version 2.
	BackendFull BackendState = 6
)

func (s BackendState) String() string {
	switch s {
	case BackendActive:
		return "active"
	case BackendDraining:
		return "draining"
	case BackendDown:
		return "down"
	case BackendLost:
		return "lost"
	case BackendRetired:
		return "retired"
	case BackendFull:
		return "full"
	}
	return "unknown"
}

// Gone reports whether nothing of the backend counts any more.
func (s BackendState) Gone() bool { return s == BackendLost || s == BackendRetired }

// Service is what a backend answers on an address.
type Service string

// The services a backend may have an address for.
const (
	ServiceIMAP  Service = "imap"
	ServiceLMTP  Service = "lmtp"
	ServicePOP3  Service = "pop3"
	ServiceSieve Service = "sieve"
	ServiceSMTP  Service = "smtp"
)

// TLSMode is how TLS is begun on a service address.
type TLSMode uint8

const (
	// TLSNone: plain text.
	TLSNone TLSMode = 0
	// TLSStart: STARTTLS after the greeting.
	TLSStart TLSMode = 1
	// TLSImplicit: TLS from the first octet.
	TLSImplicit TLSMode = 2
)

// Address is where a backend answers a service: a numeric IP, a port, a TLS mode.
type Address struct {
	Service Service
	IP      string // numeric, as netip.ParseAddr takes it
	Port    uint16
	TLS     TLSMode
}

// ConfirmedBy says how a backend's list came to be known whole.
type ConfirmedBy uint8

const (
	// ByNobody: it is not.
	ByNobody ConfirmedBy = 0
	// ByResync: the backend compared its own list with its facts to the end.
	ByResync ConfirmedBy = 1
	// ByImport: a dump of its list was imported to the end.
	ByImport ConfirmedBy = 2
	// ByOperator: an operator said so.
	ByOperator ConfirmedBy = 3
)

func (c ConfirmedBy) String() string {
	switch c {
	case ByResync:
		return "resync"
	case ByImport:
		return "import"
	case ByOperator:
		return "operator"
	}
	return ""
}

// Backend is an IMAP server that stores mail, known by its name.
type Backend struct {
	ID        ServerID
	Name      BackendName
	Group     GroupID
	Addresses []Address // ordered by Service
	Weight    uint32    // share of new users; 0 takes none (full). New backends have DefaultWeight
	Admitted  bool
	State     BackendState
	Since     Time // of State
	// DrainApproved: what it withdraws while draining is not held back.
	DrainApproved bool

	Confirmed         ConfirmedBy
	ConfirmedIn       Incarnation // in which life its list was last known whole; 0: never
	ConfirmedRevision Revision
	ConfirmedTime     Time
}

// DefaultWeight is the weight of a backend for which none was set.
const DefaultWeight = 100

// Counts reports whether the backend's facts can make a home, a fork or a
// route: it was admitted and is not gone.
func (b Backend) Counts() bool { return b.Admitted && !b.State.Gone() }

// ConfirmedFor reports whether the backend's list was known whole in that life of
// the cluster.
func (b Backend) ConfirmedFor(life Incarnation) bool {
	return b.Confirmed != ByNobody && b.ConfirmedIn == life
}

// GroupMode says who moves a group's primary.
type GroupMode uint8

const (
	// ModeManual: operators and failover tooling alone.
	ModeManual GroupMode = 1
	// ModeAutomatic: the directory's own automation may.
	ModeAutomatic GroupMode = 2
)

// Switchover is one move of a group's primary.
type Switchover struct {
	Epoch         uint64 // the epoch it began
	From, To      ServerID
	By            string // role and name of who did it
	Reason        string
	Revision      Revision
	Time          Time
	Wall          int64 // milliseconds since 1970 UTC, for people
	AcceptMissing bool
}

// MaxHistory is how many switchovers a group remembers.
const MaxHistory = 32

// Group is a set of backends with copies of the same mailboxes.
type Group struct {
	ID      GroupID
	Name    GroupName
	Members []ServerID // in order of preference
	Primary ServerID
	Epoch   uint64 // up by one when the primary moves; the first is 1
	Mode    GroupMode
	Own     bool // a backend's group of one, made with it
	// MergedInto: this group is no more; what was its is that group's.
	MergedInto GroupID
	History    []Switchover // newest last
}

// Has reports whether server is a member.
func (g Group) Has(server ServerID) bool {
	for _, m := range g.Members {
		if m == server {
			return true
		}
	}
	return false
}

// HoldKind is what a hold covers.
type HoldKind uint8

const (
	// HoldUser covers all mailboxes of a user.
	HoldUser HoldKind = 1
	// HoldMailbox covers a mailbox and all below it.
	HoldMailbox HoldKind = 2
	// HoldBackend covers the mailboxes whose home's primary it is.
	HoldBackend HoldKind = 3
	// HoldGroup covers the mailboxes whose home it is.
	HoldGroup HoldKind = 4
)

func (k HoldKind) String() string {
	switch k {
	case HoldUser:
		return "user"
	case HoldMailbox:
		return "mailbox"
	case HoldBackend:
		return "backend"
	case HoldGroup:
		return "group"
	}
	return "unknown"
}

// Hold is an operator's or a switchover's "not now": what it covers answers as
// Held until then.
type Hold struct {
	Kind   HoldKind
	Key    string // user id, mailbox name, backend name or group name, canonical
	Until  Time
	Why    string
	By     string
	Placed Time
}

// Settings are what the whole cluster agrees on.
type Settings struct {
	DefaultDomain string // the domain whose users have ids without one; "" for none
	VirtDomains   bool   // names of other domains are served
	AdmissionOpen bool   // an unknown backend that asserts is admitted at once
	ReadOnly      bool   // no growth
	// AutomationPaused: the directory moves no primary by itself, whatever a group's
	// mode. A restored cluster begins so.
	AutomationPaused bool

	GuardCount   uint32 // the withdrawal guard: beyond max(GuardCount, GuardPercent of the facts) in GuardWindow
	GuardPercent uint32
	GuardWindow  Time

	ReserveGrace  Time // for reservations that name none
	ReserveMax    Time // silence does not keep a reservation beyond this
	DeliveryGrace Time // an inbox retracted this recently is not NotFound for delivery
	TombstoneKeep Time
	LogKeep       uint64 // revisions of the change log that are kept
	RequestKeep   Time   // how long a client id's last result is kept
}

// DefaultSettings are those of a new cluster.
func DefaultSettings() Settings {
	const second = Time(1000)
	return Settings{
		AdmissionOpen: true,
		GuardCount:    500,
		GuardPercent:  2,
		GuardWindow:   600 * second,
		ReserveGrace:  60 * second,
		ReserveMax:    3600 * second,
		DeliveryGrace: 600 * second,
		TombstoneKeep: 7 * 24 * 3600 * second,
		LogKeep:       1_000_000,
		RequestKeep:   3600 * second,
	}
}
