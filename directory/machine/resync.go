package machine

import (
	"bytes"
	"slices"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// Totals is what a resync begins with: all that a server states, in one sum.
type Totals struct {
	Revision directory.Revision
	// Key is the digests' key: with it a backend computes the same sums.
	Key []byte
	// Known: there is a backend of that name. If not, the rest is zero.
	Known    bool
	Admitted bool
	// Confirmed: its list is known whole in this incarnation.
	Confirmed bool
	// Held: the guard holds something of it.
	Held bool
	// Count is how many facts it states, held withdrawals apart; Names and Facts are
	// the sums of their hashes.
	Count        uint64
	Names, Facts directory.Sum
}

// Totals reads the sums of a server. It costs three rows, however many facts there
// are.
func (m *Machine) Totals(r kv.Reader, server directory.BackendName) (Totals, error) {
	s, err := m.state(r)
	if err != nil {
		return Totals{}, err
	}
	return s.totals(server)
}

func (s *state) totals(server directory.BackendName) (Totals, error) {
	t := Totals{Revision: s.clk.Revision, Key: s.cluster.DigestKey}
	b := s.backendBy[server]
	if b == nil {
		return t, nil
	}
	d, err := s.digest(serverKey(b.ID))
	if err != nil {
		return t, err
	}
	t.Known, t.Admitted, t.Confirmed = true, b.Admitted, b.ConfirmedFor(s.cluster.Incarnation)
	k, _ := s.r.Iterate(bucketHeldFact).Seek(serverKey(b.ID))
	t.Held = k != nil && hasPrefix(k, serverKey(b.ID))
	t.Count, t.Names, t.Facts = d.Count, d.Names, d.Facts
	return t, nil
}

// CompareQuery is a backend's list as sums, to be compared with what the directory
// has of it.
type CompareQuery struct {
	Server directory.BackendName
	// Fields are those that the list states: the others are not compared. The sums
	// over all fields are kept; over fewer they are taken by reading facts, of as many
	// buckets as the directory knows one of the others in.
	Fields directory.Fields
	// Sums are the low halves of the sums of each bucket's fact hashes.
	Sums *[directory.DigestBuckets]uint64
	// Parts are the same for the parts of those buckets that the list has many names
	// in; it may be nil.
	Parts map[uint16]*[directory.DigestParts]uint64
	// Since is the revision that was read before the list was taken; 0: not known.
	Since directory.Revision
	// Interrupt, if not nil, is asked now and then whether to go on.
	Interrupt func() error
}

// CompareRow is a mailbox in a bucket, or a part of one, whose sums differ.
type CompareRow struct {
	Mailbox directory.MailboxName
	// Gone: the server does not state it now, and did, or took it back, after Since.
	// The rest is zero.
	Gone bool
	// Hash is the low half of the fact's hash, over the fields compared.
	Hash uint64
	// Newer: the fact changed after Since.
	Newer bool
	State directory.FactState
}

// interruptEvery is how many rows are read between two questions whether to go on.
const interruptEvery = 1024

// Differing is where the sums of a comparison differ: in Buckets, ascending, but of
// those in Parts only in the parts listed there, ascending too.
type Differing struct {
	Buckets []uint16
	Parts   map[uint16][]uint8
}

// Compare calls found with where the sums differ, then each for every fact that the server states in buckets whose sums
// differ from the query's, in name order, and then for what is Gone in them. The row
// is valid during the call. It returns the totals of the same state, over all fields.
func (m *Machine) Compare(r kv.Reader, q CompareQuery, found func(Differing), each func(*CompareRow) error) (Totals, error) {
	s, err := m.state(r)
	if err != nil {
		return Totals{}, err
	}
	t, err := s.totals(q.Server)
	if err != nil {
		return t, err
	}
	c := &comparison{state: s, q: &q, hash: directory.NewHasher(t.Key)}
	if b := s.backendBy[q.Server]; b != nil {
		c.server = b.ID
	}
	if err := c.findBuckets(); err != nil {
		return t, err
	}
	if err := c.findParts(); err != nil {
		return t, err
	}
	found(c.differing())
	var row CompareRow
	err = c.walk(func(name directory.MailboxName, _ uint16, f *directory.Fact, hash uint64) error {
		row = CompareRow{Mailbox: name, Hash: hash, Newer: q.Since != 0 && f.Last > q.Since, State: f.State}
		return each(&row)
	})
	if err != nil {
		return t, err
	}
	gone, err := c.gone()
	if err != nil {
		return t, err
	}
	for _, name := range gone {
		row = CompareRow{Mailbox: name, Gone: true}
		if err := each(&row); err != nil {
			return t, err
		}
	}
	return t, nil
}

// comparison is one Compare.
type comparison struct {
	*state
	q      *CompareQuery
	server directory.ServerID
	hash   *directory.Hasher
	differ [directory.DigestBuckets]bool
	parts  map[uint16]*[directory.DigestParts]bool // of those that differ: which parts do
	reads  int
}

// pause asks now and then whether to go on.
func (c *comparison) pause() error {
	if c.reads++; c.reads%interruptEvery == 0 && c.q.Interrupt != nil {
		return c.q.Interrupt()
	}
	return nil
}

// findBuckets finds the buckets whose sums differ. Where the sums over all fields, which
// are kept, are the query's, the directory knows nothing of the fields left out either:
// only the other buckets have to be summed over fewer.
func (c *comparison) findBuckets() error {
	var sums [directory.DigestBuckets]uint64
	key := serverKey(c.server)
	err := eachRow(c.r, bucketDigest, key, func(k, message []byte) error {
		if len(k) == len(key) {
			return nil
		}
		d, err := decodeDigest(message)
		sums[uint16(k[len(key)])<<8|uint16(k[len(key)+1])] = d.Facts.Lo
		return err
	})
	for i := range sums {
		c.differ[i] = sums[i] != c.q.Sums[i]
	}
	if err != nil || c.q.Fields == directory.AllFields {
		return err
	}
	clear(sums[:])
	err = c.walk(func(_ directory.MailboxName, bucket uint16, _ *directory.Fact, hash uint64) error {
		sums[bucket] += hash
		return nil
	})
	for i := range sums {
		c.differ[i] = c.differ[i] && sums[i] != c.q.Sums[i]
	}
	return err
}

// findParts finds, of the buckets that differ and whose parts the query states, the
// parts that do.
func (c *comparison) findParts() error {
	sums := make(map[uint16]*[directory.DigestParts]uint64)
	for bucket := range c.q.Parts {
		if c.differ[bucket] {
			sums[bucket] = new([directory.DigestParts]uint64)
		}
	}
	if len(sums) == 0 {
		return nil
	}
	was := c.differ // all of it is walked, but only there
	for i := range c.differ {
		c.differ[i] = c.differ[i] && sums[uint16(i)] != nil
	}
	err := c.walk(func(name directory.MailboxName, bucket uint16, _ *directory.Fact, hash uint64) error {
		sums[bucket][c.hash.Part(name)] += hash
		return nil
	})
	c.differ = was
	c.parts = make(map[uint16]*[directory.DigestParts]bool, len(sums))
	for bucket, have := range sums {
		differ := new([directory.DigestParts]bool)
		for i := range have {
			differ[i] = have[i] != c.q.Parts[bucket][i]
		}
		c.parts[bucket] = differ
	}
	return err
}

func (c *comparison) differing() (d Differing) {
	for i, differs := range c.differ {
		if !differs {
			continue
		}
		d.Buckets = append(d.Buckets, uint16(i))
		if parts := c.parts[uint16(i)]; parts != nil {
			if d.Parts == nil {
				d.Parts = make(map[uint16][]uint8)
			}
			list := []uint8{}
			for part, differs := range parts {
				if differs {
					list = append(list, uint8(part))
				}
			}
			d.Parts[uint16(i)] = list
		}
	}
	return d
}

// differs reports whether name is where the sums differ.
func (c *comparison) differs(name directory.MailboxName) bool {
	bucket := c.hash.Bucket(name)
	if !c.differ[bucket] {
		return false
	}
	parts := c.parts[bucket]
	return parts == nil || parts[c.hash.Part(name)]
}

// walk calls f for what the server states where the sums differ, in name order. What
// lies elsewhere costs it a look at the key.
func (c *comparison) walk(f func(name directory.MailboxName, bucket uint16, fact *directory.Fact, hash uint64) error) error {
	prefix := serverKey(c.server)
	it := c.r.Iterate(bucketByServer)
	var root, row []byte
	var bucket uint16
	for k, _ := it.Seek(prefix); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		if err := c.pause(); err != nil {
			return err
		}
		key := k[len(prefix):]
		if r := directory.RootKey(key); root == nil || !bytes.Equal(r, root) {
			root = append(root[:0], r...)
			bucket = c.hash.BucketOfRoot(root)
		}
		if !c.differ[bucket] {
			continue
		}
		name, err := storedName(key)
		if err != nil {
			return err
		}
		if parts := c.parts[bucket]; parts != nil && !parts[c.hash.Part(name)] {
			continue
		}
		// The fact's key is that of its mailbox, a zero and the server.
		row = append(append(append(row[:0], key...), 0), prefix...)
		v := c.r.Get(bucketMailbox, row)
		if v == nil {
			return errNoRow(name)
		}
		message, err := unseal(bucketMailbox, row, v)
		if err != nil {
			return err
		}
		fact := directory.Fact{Server: c.server}
		if err := decodeFact(message, &fact); err != nil {
			return err
		}
		if !stated(&fact) {
			continue
		}
		only := fact.Only(c.q.Fields)
		if err := f(name, bucket, &fact, c.hash.Fact(name, &only).Lo); err != nil {
			return err
		}
	}
	return nil
}

// gone lists, in name order, what the change log after Since names of the server and
// it does not state now. A retraction leaves a tombstone only if nobody else holds
// the mailbox; the log knows of all, as far as it reaches.
func (c *comparison) gone() ([]directory.MailboxName, error) {
	if c.q.Since == 0 || c.server == 0 {
		return nil, nil
	}
	changed := make(map[directory.MailboxName]bool)
	it := c.r.Iterate(bucketLog)
	for k, v := it.Seek(logKey(c.q.Since+1, 0)); k != nil; k, v = it.Next() {
		if err := c.pause(); err != nil {
			return nil, err
		}
		message, err := unseal(bucketLog, k, v)
		if err != nil {
			return nil, err
		}
		ch, err := decodeChange(message)
		if err != nil {
			return nil, err
		}
		if ch.Kind != directory.ChangeMailbox && ch.Kind != directory.ChangeMoved || ch.Server != c.server && !slices.Contains(ch.Dropped, c.server) {
			continue
		}
		if c.differs(ch.Name) {
			changed[ch.Name] = true
		}
	}
	var names []directory.MailboxName
	for name := range changed {
		mb, err := c.mailbox(name)
		if err != nil {
			return nil, err
		}
		if mb == nil || !stated(mb.Fact(c.server)) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, directory.CompareNames)
	return names, nil
}
