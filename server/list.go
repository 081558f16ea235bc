package server

import (
	"fmt"
	"sync"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"

	"google.golang.org/grpc"
)

// A listing is sent in messages of this many rows, or as many octets of text,
// whichever comes first: a message costs more than a row.
const (
	rowsPerMessage   = 128
	octetsPerMessage = 32 << 10
)

func (d *directoryService) List(req *apiv1.ListRequest, stream grpc.ServerStreamingServer[apiv1.ListResponse]) error {
	s := d.s
	q, err := listQuery(req)
	if err == nil {
		q.Principal.User, err = s.fold(q.Principal.User)
	}
	if err != nil {
		return err
	}
	r, err := s.read(stream.Context(), req.GetConsistency())
	if err != nil {
		return err
	}
	defer r.Release()
	if q.Namespace, err = s.namespace(r, req.GetNamespace()); err != nil {
		return err
	}
	header, err := s.headerOf(&r)
	if err != nil {
		return err
	}
	out := rowBuffers.Get().(*rowBuffer)
	defer rowBuffers.Put(out)
	out.reset(stream, header)
	q.Interrupt = stream.Context().Err
	summary, err := s.machine.List(r, q, out.add)
	if err != nil {
		return err
	}
	out.message.Summary = &apiv1.ListSummary{
		Rows:      out.sent + uint64(out.n),
		Complete:  summary.Complete,
		Missing:   names(summary.Missing, maxMissing),
		Separator: string(rune(q.Namespace.Sep)),
	}
	return out.send()
}

// rowBuffer gathers the rows of one message. The messages of a listing are one
// after the other the same memory: what is sent has been encoded.
type rowBuffer struct {
	stream  grpc.ServerStreamingServer[apiv1.ListResponse]
	message apiv1.ListResponse
	rows    [rowsPerMessage]apiv1.ListRow
	refs    [rowsPerMessage]*apiv1.ListRow
	n       int
	octets  int
	sent    uint64

	rights     directory.Rights // rendered last
	rightsText string
}

var rowBuffers = sync.Pool{New: func() any {
	b := new(rowBuffer)
	for i := range b.rows {
		b.refs[i] = &b.rows[i]
	}
	return b
}}

func (b *rowBuffer) reset(stream grpc.ServerStreamingServer[apiv1.ListResponse], header *apiv1.ResponseHeader) {
	b.stream, b.n, b.octets, b.sent = stream, 0, 0, 0
	b.message.Header, b.message.Rows, b.message.Summary = header, nil, nil
}

// add takes one row, and sends the message if it is full.
func (b *rowBuffer) add(row *machine.ListRow) error {
	out := &b.rows[b.n]
	out.ClientName = row.Name
	out.Mailbox = string(row.Mailbox)
	out.Attributes = attributesTo(row.Attributes)
	out.SpecialUse = row.SpecialUse
	out.Rights = b.rightsOf(row.Rights)
	out.ChildSubscribed = row.ChildInfo == "SUBSCRIBED"
	out.ChildSpecialUse = row.ChildInfo == "SPECIAL-USE"
	out.Server = string(row.Server)
	out.Outcome = apiv1.Outcome(row.Outcome)
	b.n++
	b.octets += len(row.Name) + len(row.Mailbox) + len(row.Server) + len(row.SpecialUse)
	if b.n < rowsPerMessage && b.octets < octetsPerMessage {
		return nil
	}
	return b.send()
}

// rightsOf renders rights; most rows have those of the row before.
func (b *rowBuffer) rightsOf(r directory.Rights) string {
	if r == 0 {
		return ""
	}
	if r != b.rights {
		b.rights, b.rightsText = r, r.String()
	}
	return b.rightsText
}

func (b *rowBuffer) send() error {
	b.message.Rows = b.refs[:b.n]
	if err := b.stream.Send(&b.message); err != nil {
		return err
	}
	b.sent += uint64(b.n)
	b.n, b.octets = 0, 0
	b.message.Header = nil
	return nil
}

// attributeLists are the API's attributes for every set of the machine's. They
// are shared by all rows and never changed.
var attributeLists = func() (lists [1 << 6][]apiv1.Attribute) {
	for set := range lists {
		for one := range machine.Attributes(set).Each() {
			lists[set] = append(lists[set], attributeTo(one))
		}
	}
	return lists
}()

func attributesTo(set machine.Attributes) []apiv1.Attribute {
	return attributeLists[int(set)&(len(attributeLists)-1)]
}

func attributeTo(one machine.Attributes) apiv1.Attribute {
	switch one {
	case machine.AttrNoinferiors:
		return apiv1.Attribute_ATTRIBUTE_NOINFERIORS
	case machine.AttrNoselect:
		return apiv1.Attribute_ATTRIBUTE_NOSELECT
	case machine.AttrNonExistent:
		return apiv1.Attribute_ATTRIBUTE_NON_EXISTENT
	case machine.AttrSubscribed:
		return apiv1.Attribute_ATTRIBUTE_SUBSCRIBED
	case machine.AttrHasChildren:
		return apiv1.Attribute_ATTRIBUTE_HAS_CHILDREN
	case machine.AttrHasNoChildren:
		return apiv1.Attribute_ATTRIBUTE_HAS_NO_CHILDREN
	}
	return apiv1.Attribute_ATTRIBUTE_UNSPECIFIED
}

// listQuery is the machine's form of a LIST, but for the namespace.
func listQuery(req *apiv1.ListRequest) (machine.ListQuery, error) {
	who, err := directory.ParsePrincipal(req.GetUser(), req.GetAclGroups(), req.GetAsAdmin())
	if err != nil {
		return machine.ListQuery{}, err
	}
	sel, ret := req.GetSelection(), req.GetReturn()
	return machine.ListQuery{
		Principal: who,
		Reference: req.GetReference(),
		Patterns:  req.GetPatterns(),
		Extended:  req.GetExtended(),
		LSUB:      req.GetLsub(),
		InboxOnly: req.GetInboxOnly(),
		DAV:       req.GetDav(),
		Select: machine.ListSelect{
			Subscribed: sel.GetSubscribed(), RecursiveMatch: sel.GetRecursiveMatch(), SpecialUse: sel.GetSpecialUse(), Remote: sel.GetRemote(),
		},
		Return: machine.ListReturn{
			Subscribed: ret.GetSubscribed(), Children: ret.GetChildren(), SpecialUse: ret.GetSpecialUse(), MyRights: ret.GetMyRights(), Status: ret.GetStatus(), Location: ret.GetLocation(),
		},
	}, nil
}

// namespace is how a caller sees names. What it says of domains must agree with
// the cluster: else each name would mean something else to it.
func (s *Server) namespace(r kv.Reader, m *apiv1.Namespace) (directory.Namespace, error) {
	settings, err := s.machine.Settings(r)
	if err != nil {
		return directory.Namespace{}, err
	}
	ns := directory.Namespace{
		Alt:           m.GetAlt(),
		Sep:           '.',
		VirtDomains:   settings.VirtDomains,
		CrossDomains:  m.GetCrossDomains(),
		DefaultDomain: settings.DefaultDomain,
	}
	switch sep := m.GetSeparator(); sep {
	case "", ".":
	case "/":
		ns.Sep = '/'
	default:
		return directory.Namespace{}, fmt.Errorf("%w: separator %q: it is \".\" or \"/\"", directory.ErrInvalid, sep)
	}
	if d := m.GetDefaultDomain(); d != "" && d != settings.DefaultDomain {
		return directory.Namespace{}, fmt.Errorf("%w: default domain %q; the cluster's is %q", directory.ErrInvalid, d, settings.DefaultDomain)
	}
	if m.GetVirtDomains() && !settings.VirtDomains {
		return directory.Namespace{}, fmt.Errorf("%w: virtual domains, which the cluster's settings do not have", directory.ErrInvalid)
	}
	return ns, ns.Validate()
}
