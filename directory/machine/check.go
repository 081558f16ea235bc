package machine

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// Finding is something Check found.
type Finding struct {
	Kind    string // a closed list: see the constants below
	Mailbox directory.MailboxName
	Detail  string
	// Advisory: the state is right; somebody should look all the same.
	Advisory bool
}

// Kinds of a finding. The first ones are faults: what is derived does not
// follow from the facts, or a record cannot be read.
const (
	FindCorrupt = "corrupt"    // a record or key that cannot be read
	FindRow     = "row"        // a mailbox row or a fact's derived field is wrong
	FindIndex   = "index"      // an index lacks a row, or has one too many
	FindPosting = "posting"    // a posting is missing, wrong or left over
	FindDigest  = "digest"     // a sum is wrong
	FindCounts  = "counts"     // a kept count is wrong
	FindStale   = "stale-copy" // advisory: the primary retracted it, a member has a copy
	FindLeft    = "left-behind"
	FindStray   = "stray"
	FindAbsent  = "not-at-primary"
	FindOrphan  = "orphaned-fork"
)

// Check recomputes every index, posting, digest and count from the facts and
// tells what differs, then what an operator should know. It reads everything
// once, in key order, and holds the postings' and the digests' expected rows in
// memory in portions. progress, if not nil, is told how many mailboxes are done
// of how many. An error is a failure to look, not a finding.
//
// While a sweep is open, what it has not gone over yet is not a fault.
func (m *Machine) Check(r kv.Reader, progress func(done, total uint64), found func(Finding) error) error {
	s, err := m.state(r)
	if err != nil {
		return err
	}
	c := &checker{state: s, found: found, hash: directory.NewHasher(s.cluster.DigestKey), digests: map[string]digest{}, progress: progress}
	if c.kept, err = s.readCounts(); err != nil {
		return err
	}
	k, _ := r.Iterate(bucketSweep).Seek(nil)
	c.sweeping = k != nil
	if err := c.schedule(); err != nil {
		return err
	}
	for _, step := range []func() error{c.mailboxes, c.postings, c.indexes, c.sums, c.reservations, c.subscriptions, c.countsRow} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type checker struct {
	*state
	found    func(Finding) error
	hash     *directory.Hasher
	digests  map[string]digest // what the sums should be
	counted  counts            // what the counts should be
	kept     counts
	sweeping bool
	progress func(done, total uint64)

	byServer, forks, moves, heldFacts, postingRows uint64 // index rows there should be
}

func (c *checker) fault(kind string, name directory.MailboxName, format string, args ...any) error {
	return c.found(Finding{Kind: kind, Mailbox: name, Detail: fmt.Sprintf(format, args...)})
}

func (c *checker) advise(kind string, name directory.MailboxName, format string, args ...any) error {
	return c.found(Finding{Kind: kind, Mailbox: name, Detail: fmt.Sprintf(format, args...), Advisory: true})
}

// schedule checks what the leader is told to wait for, and the names of groups
// and backends.
func (c *checker) schedule() error {
	if c.sweeping && !c.clk.Sweeping {
		if err := c.fault(FindIndex, "", "a sweep is open that nobody carries on"); err != nil {
			return err
		}
	}
	if k, _ := c.r.Iterate(bucketDeadline).Seek(nil); k != nil {
		at, _, _, err := splitDeadline(k)
		if err != nil || c.clk.Due == 0 || c.clk.Due > max(at, 1) {
			if err := c.fault(FindIndex, "", "the nearest deadline is %d, the clock says %d", at, c.clk.Due); err != nil {
				return err
			}
		}
	}
	named := map[directory.GroupName]directory.GroupID{}
	for _, g := range c.groups {
		if g.MergedInto != 0 {
			continue
		}
		if other := named[g.Name]; other != 0 {
			if err := c.fault(FindRow, "", "groups #%d and #%d are both called %s", other, g.ID, g.Name); err != nil {
				return err
			}
		}
		named[g.Name] = g.ID
		if !g.Has(g.Primary) {
			if err := c.fault(FindRow, "", "the primary of group %s is no member", g.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// mailboxes walks all rows and facts, and checks that every index has what
// they call for.
func (c *checker) mailboxes() error {
	it := c.r.Iterate(bucketMailbox)
	rows := c.r.Iterate(bucketMailbox)
	var done uint64
	total := uint64(max(c.kept.Mailboxes, 0))
	for k, _ := it.Seek(nil); k != nil; {
		key, server, ok := splitMailboxKey(k)
		if !ok || server != 0 {
			if err := c.fault(FindCorrupt, "", "key %q is no mailbox row's", k); err != nil {
				return err
			}
			k, _ = it.Next()
			continue
		}
		name, err := storedName(key)
		if err == nil {
			_, err = directory.ParseName(string(name))
		}
		var mb *directory.Mailbox
		if err == nil {
			mb, err = readMailbox(rows, bytes.Clone(k), name)
		}
		if err == nil && mb == nil {
			err = fmt.Errorf("%w: the row is there and is not found by its key", ErrCorrupt)
		}
		if err != nil {
			if err := c.fault(FindCorrupt, name, "%v", err); err != nil {
				return err
			}
			k, _ = it.Next()
			continue
		}
		if err := c.mailbox(mb); err != nil {
			return err
		}
		done++
		if c.progress != nil && done%4096 == 0 {
			c.progress(done, max(total, done))
		}
		// Past the facts of this mailbox.
		next := append(mailboxKey(name), 0xff, 0xff, 0xff, 0xff, 0)
		k, _ = it.Seek(next)
	}
	if c.progress != nil {
		c.progress(done, done)
	}
	return nil
}

func (c *checker) mailbox(mb *directory.Mailbox) error {
	if len(mb.Facts) == 0 {
		return c.fault(FindRow, mb.Name, "a mailbox row without facts")
	}
	want := *mb
	want.Facts = append([]directory.Fact(nil), mb.Facts...)
	a := &apply{state: c.state}
	want.Home = a.settledHome(&want)
	for i := range want.Facts {
		f := &want.Facts[i]
		f.Counted = directory.InHome(&want, f, c)
		if !c.sweeping && f.Counted != mb.Facts[i].Counted {
			if err := c.fault(FindRow, mb.Name, "the fact of %s: counted is %v, should be %v", c.name(f.Server), mb.Facts[i].Counted, f.Counted); err != nil {
				return err
			}
		}
	}
	route := directory.Resolve(&want, c)
	want.Forked, want.Listed = route.Forked, listedRow(&route)
	if !c.sweeping && (want.Home != a.settledHome(mb) || want.Forked != mb.Forked || want.Listed != mb.Listed) {
		if err := c.fault(FindRow, mb.Name, "forked %v listed %v, should be %v %v", mb.Forked, mb.Listed, want.Forked, want.Listed); err != nil {
			return err
		}
	}
	if c.sweeping {
		// The indexes follow the rows as they are until the sweep has been here.
		want = *mb
	}
	for i := range want.Facts {
		if err := c.fact(&want, &want.Facts[i]); err != nil {
			return err
		}
	}
	w := c.facets(&want)
	key := mb.Name.AppendKey(nil)
	if err := c.marked(bucketFork, key, mb.Name, w.forked, &c.forks); err != nil {
		return err
	}
	if c.sweeping {
		w.moving = c.r.Get(bucketMove, key) != nil
	}
	if err := c.marked(bucketMove, key, mb.Name, w.moving, &c.moves); err != nil {
		return err
	}
	c.counted.Mailboxes++
	c.counted.Listed += count(w.listed)
	c.counted.Forked += count(w.forked)
	c.counted.Deactivated += count(w.moving)
	if mb.Name.IsInbox() {
		c.counted.Inboxes += count(w.listed)
	}
	if err := c.posted(&want); err != nil {
		return err
	}
	switch route.Outcome {
	case directory.NotAtPrimary:
		return c.advise(FindAbsent, mb.Name, "held by %s, not by %s, the primary of %s", c.name(route.Server), c.name(route.Home.Primary), route.Home.Name)
	case directory.OrphanedFork:
		return c.advise(FindOrphan, mb.Name, "its home holds nothing while others do; `rookeryctl fork settle` decides")
	}
	return nil
}

func (c *checker) fact(mb *directory.Mailbox, f *directory.Fact) error {
	if c.Backend(f.Server) == nil {
		if err := c.fault(FindRow, mb.Name, "a fact of server #%d, which has no row", f.Server); err != nil {
			return err
		}
	}
	if err := c.marked(bucketByServer, serverNameKey(f.Server, mb.Name), mb.Name, true, &c.byServer); err != nil {
		return err
	}
	if err := c.marked(bucketHeldFact, serverNameKey(f.Server, mb.Name), mb.Name, f.State.IsHeld(), &c.heldFacts); err != nil {
		return err
	}
	c.counted.Held += count(f.State.IsHeld())
	nameSum := c.hash.Name(mb.Name)
	total := c.digests[string(serverKey(f.Server))]
	if stated(f) {
		factSum := c.hash.Fact(mb.Name, f)
		key := string(digestKey(f.Server, c.hash.Bucket(mb.Name)))
		d := c.digests[key]
		d.Count++
		d.Names, d.Facts = d.Names.Add(nameSum), d.Facts.Add(factSum)
		c.digests[key] = d
		total.Count++
		total.Names, total.Facts = total.Names.Add(nameSum), total.Facts.Add(factSum)
	}
	if present(f) {
		total.Counted++
		total.CountedNames = total.CountedNames.Add(nameSum)
	}
	c.digests[string(serverKey(f.Server))] = total
	switch f.Standing {
	case directory.StaleCopy:
		return c.advise(FindStale, mb.Name, "%s still has a copy of what its group's primary retracted", c.name(f.Server))
	case directory.LeftBehind:
		return c.advise(FindLeft, mb.Name, "%s still has a copy of what was moved", c.name(f.Server))
	case directory.Stray:
		return c.advise(FindStray, mb.Name, "%s still has the copy that a fork was settled against", c.name(f.Server))
	}
	return nil
}

// marked checks that an index has key, or has not.
func (c *checker) marked(b kv.Bucket, key []byte, name directory.MailboxName, want bool, n *uint64) error {
	if want {
		*n++
	}
	if has := c.r.Get(b, key) != nil; has != want {
		return c.fault(FindIndex, name, "%s index: has it %v, should %v", b, has, want)
	}
	return nil
}

// posted checks that mb's postings are there and right.
func (c *checker) posted(mb *directory.Mailbox) error {
	want, err := postingsOf(mb)
	if err != nil {
		return c.fault(FindCorrupt, mb.Name, "%v", err)
	}
	for id, p := range want {
		c.postingRows++
		key := postingKey(id, mb.Name)
		if got := c.r.Get(bucketPosting, key); !bytes.Equal(got, seal(bucketPosting, key, encodePosting(p))) {
			if err := c.fault(FindPosting, mb.Name, "posting of %q: missing or wrong", id); err != nil {
				return err
			}
		}
	}
	return nil
}

// postings counts what is posted: as every wanted row was found, one more is
// one too many.
func (c *checker) postings() error {
	n, err := c.rows(bucketPosting)
	c.counted.Postings = int64(c.postingRows)
	if err != nil || n == c.postingRows {
		return err
	}
	it := c.r.Iterate(bucketPosting)
	for k, _ := it.Seek(nil); k != nil; k, _ = it.Next() {
		i := bytes.IndexByte(k, 0)
		if i < 0 || i+2 > len(k) {
			if err := c.fault(FindCorrupt, "", "posting key %q", k); err != nil {
				return err
			}
			continue
		}
		name, err := storedName(k[i+2:])
		if err != nil {
			if err := c.fault(FindCorrupt, "", "posting key %q", k); err != nil {
				return err
			}
			continue
		}
		mb, err := c.state.mailbox(name)
		if err != nil {
			continue // told already
		}
		if mb != nil {
			if want, err := postingsOf(mb); err == nil {
				if _, ok := want[string(k[:i])]; ok {
					continue
				}
			}
		}
		if err := c.fault(FindPosting, name, "posting of %q, which no counted ACL grants", k[:i]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) rows(b kv.Bucket) (n uint64, err error) {
	it := c.r.Iterate(b)
	for k, _ := it.Seek(nil); k != nil; k, _ = it.Next() {
		n++
	}
	return n, nil
}

// indexes counts the index rows: as every wanted one was found, one more is one
// too many.
func (c *checker) indexes() error {
	for _, x := range []struct {
		b    kv.Bucket
		want uint64
	}{{bucketByServer, c.byServer}, {bucketFork, c.forks}, {bucketMove, c.moves}, {bucketHeldFact, c.heldFacts}} {
		n, err := c.rows(x.b)
		if err != nil {
			return err
		}
		if n > x.want {
			if err := c.fault(FindIndex, "", "%s index: %d rows, %d follow from the facts", x.b, n, x.want); err != nil {
				return err
			}
		}
	}
	return nil
}

// sums compares the digests.
func (c *checker) sums() error {
	it := c.r.Iterate(bucketDigest)
	for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
		var got digest
		b, err := unseal(bucketDigest, k, v)
		if err == nil {
			got, err = decodeDigest(b)
		}
		if err != nil {
			if err := c.fault(FindCorrupt, "", "%v", err); err != nil {
				return err
			}
			continue
		}
		if want := c.digests[string(k)]; got != want {
			if err := c.fault(FindDigest, "", "%s: %d facts summed, %d follow from the facts, or the sums differ", c.digestName(k), got.Count, want.Count); err != nil {
				return err
			}
		}
		delete(c.digests, string(k))
	}
	for k, want := range c.digests {
		if want != (digest{}) {
			if err := c.fault(FindDigest, "", "%s: no sum, %d facts", c.digestName([]byte(k)), want.Count); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) digestName(k []byte) string {
	if len(k) < 4 {
		return fmt.Sprintf("%q", k)
	}
	server := c.name(directory.ServerID(binary.BigEndian.Uint32(k)))
	if len(k) < 6 {
		return fmt.Sprintf("total of %s", server)
	}
	return fmt.Sprintf("bucket %d of %s", binary.BigEndian.Uint16(k[4:]), server)
}

// reservations checks I4: no reservation beside another group's home fact.
func (c *checker) reservations() error {
	return eachRow(c.r, bucketReservation, nil, func(k, b []byte) error {
		c.counted.Reservations++
		name, err := storedName(k)
		if err != nil {
			return c.fault(FindCorrupt, "", "reservation key %q", k)
		}
		res, err := decodeReservation(b, name)
		if err != nil {
			return c.fault(FindCorrupt, name, "%v", err)
		}
		if c.r.Get(bucketDeadline, deadlineKey(res.Deadline, dueReservation, k)) == nil {
			if err := c.fault(FindIndex, name, "a reservation that would never lapse"); err != nil {
				return err
			}
		}
		mb, err := c.state.mailbox(name)
		if mb == nil || err != nil {
			return err
		}
		holder := c.Backend(res.Server)
		if home := c.Group(directory.HomeOf(mb, c)); !c.sweeping && directory.HasLive(mb, c) && (holder == nil || c.Group(holder.Group) != home) {
			return c.fault(FindIndex, name, "reserved by %s beside a live fact of group %s", c.name(res.Server), home.Name)
		}
		return nil
	})
}

func (c *checker) subscriptions() error {
	n, err := c.rows(bucketSubscription)
	c.counted.Subscriptions = int64(n)
	return err
}

func (c *checker) countsRow() error {
	if c.counted != c.kept {
		return c.fault(FindCounts, "", "kept %+v, counted %+v", c.kept, c.counted)
	}
	return nil
}

// Verify reads every record of the state once, in order and by its key, and
// counts what there should be. The first thing that is broken is an error
// wrapping ErrCorrupt or ErrFormat: what a bit that flipped on disk looks like,
// be it in a value, in a key, or in a page that tells where rows are. It is
// cheaper than Check and does not weigh rules.
func (m *Machine) Verify(r kv.Reader) error {
	s, err := m.state(r)
	if err != nil || s.clk.Revision == 0 {
		return err
	}
	v := r.Get(bucketMeta, keyFormat)
	if v == nil {
		return fmt.Errorf("%w: no format name", ErrCorrupt)
	}
	b, err := unseal(bucketMeta, keyFormat, v)
	if err != nil {
		return err
	}
	if string(b) != formatName {
		return fmt.Errorf("%w: state format %q, this release knows %q", ErrFormat, b, formatName)
	}
	counted := map[kv.Bucket]int64{}
	facts := map[directory.ServerID]uint64{}
	mailboxes := int64(0)
	for _, bucket := range allBuckets {
		err := s.verifyBucket(bucket, func(k, message []byte) error {
			counted[bucket]++
			switch bucket {
			case bucketMailbox:
				_, server, ok := splitMailboxKey(k)
				switch {
				case !ok:
					return fmt.Errorf("%w: bucket mailbox: key %q", ErrCorrupt, k)
				case server == 0:
					mailboxes++
				default:
					facts[server]++
				}
			case bucketFork, bucketMove:
				name, err := storedName(k)
				if err != nil {
					return err
				}
				if s.r.Get(bucketMailbox, mailboxKey(name)) == nil {
					return fmt.Errorf("%w: bucket %s: there is no mailbox %s", ErrCorrupt, bucket, name)
				}
			case bucketByServer, bucketHeldFact:
				if len(k) < 5 {
					return fmt.Errorf("%w: bucket %s: key %q", ErrCorrupt, bucket, k)
				}
				// These keys have no checksum: the fact that they tell of must be there.
				name, err := storedName(k[4:])
				if err != nil {
					return err
				}
				if s.r.Get(bucketMailbox, factKey(name, directory.ServerID(binary.BigEndian.Uint32(k)))) == nil {
					return fmt.Errorf("%w: bucket %s: %s has no such fact", ErrCorrupt, bucket, name)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return s.verifyCounts(counted, mailboxes, facts)
}

// verifyBucket reads a bucket in order, and every row again by its key: a page
// that leads a search astray does not show in a walk.
func (s *state) verifyBucket(bucket kv.Bucket, each func(k, message []byte) error) error {
	bare := isBare(bucket)
	var last []byte
	it := s.r.Iterate(bucket)
	for k, v := it.Seek(nil); k != nil; k, v = it.Next() {
		if last != nil && bytes.Compare(last, k) >= 0 {
			return fmt.Errorf("%w: bucket %s: keys out of order at %q", ErrCorrupt, bucket, k)
		}
		last = append(last[:0], k...)
		if s.r.Get(bucket, k) == nil {
			return fmt.Errorf("%w: bucket %s: the row of %q is there and is not found by its key", ErrCorrupt, bucket, k)
		}
		message := v
		if !bare && !((bucket == bucketBackend || bucket == bucketGroup) && k[0] == 'n') {
			var err error
			if message, err = unseal(bucket, k, v); err != nil {
				return err
			}
		}
		if err := each(k, message); err != nil {
			return err
		}
	}
	return nil
}

// verifyCounts compares the rows that were read with the counts that are kept
// of them: rows can go missing whole, without a trace in those that are left.
func (s *state) verifyCounts(rows map[kv.Bucket]int64, mailboxes int64, facts map[directory.ServerID]uint64) error {
	kept, err := s.readCounts()
	if err != nil {
		return err
	}
	var all int64
	for _, n := range facts {
		all += int64(n)
	}
	for _, c := range []struct {
		what      string
		got, want int64
	}{
		{"mailboxes", mailboxes, kept.Mailboxes},
		{"by-server rows", rows[bucketByServer], all},
		{"postings", rows[bucketPosting], kept.Postings},
		{"forks", rows[bucketFork], kept.Forked},
		{"moves", rows[bucketMove], kept.Deactivated},
		{"held facts", rows[bucketHeldFact], kept.Held},
		{"reservations", rows[bucketReservation], kept.Reservations},
		{"subscriptions", rows[bucketSubscription], kept.Subscriptions},
		{"backends", int64(len(s.backends)), int64(s.cluster.NextServer) - 1},
		{"groups", int64(len(s.groups)), int64(s.cluster.NextGroup) - 1},
	} {
		if c.got != c.want {
			return fmt.Errorf("%w: %d %s are in the file, %d should be", ErrCorrupt, c.got, c.what, c.want)
		}
	}
	for _, b := range s.backends {
		total, err := s.digest(serverKey(b.ID))
		if err != nil {
			return err
		}
		if n := facts[b.ID]; total.Count > n {
			return fmt.Errorf("%w: %d facts of %s are in the file, %d should be", ErrCorrupt, n, b.Name, total.Count)
		}
		if err := s.verifySums(b, total); err != nil {
			return err
		}
	}
	return nil
}

// verifySums compares a backend's total with its buckets.
func (s *state) verifySums(b *directory.Backend, total digest) error {
	var sum digest
	key := serverKey(b.ID)
	err := eachRow(s.r, bucketDigest, key, func(k, message []byte) error {
		if len(k) == len(key) {
			return nil
		}
		d, err := decodeDigest(message)
		sum.Count += d.Count
		sum.Names, sum.Facts = sum.Names.Add(d.Names), sum.Facts.Add(d.Facts)
		return err
	})
	if err == nil && (sum.Count != total.Count || sum.Names != total.Names || sum.Facts != total.Facts) {
		err = fmt.Errorf("%w: the sums of %s do not add up to its total", ErrCorrupt, b.Name)
	}
	return err
}

// isBare reports whether a bucket's rows are keys alone.
func isBare(b kv.Bucket) bool {
	switch b {
	case bucketByServer, bucketUnheard, bucketFork, bucketHeldFact, bucketMove, bucketDeadline:
		return true
	}
	return false
}
