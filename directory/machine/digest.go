package machine

import (
	"bytes"

	"github.com/rookery-mail/rookery/directory"
)

// stated reports whether the fact is part of what its server states, and so of
// its digests: a withdrawal that is held is not.
func stated(f *directory.Fact) bool { return f != nil && f.State != directory.HeldWithdrawal }

// sameStatement reports whether two facts state the same.
func sameStatement(f, g *directory.Fact) bool { return f.SameStatement(g) }

// present reports whether a counted fact counts when members are compared: one
// whose withdrawal is held does not, for its server says it is gone.
func present(f *directory.Fact) bool { return f != nil && f.Counted && stated(f) }

// mendDigest moves the sums of a server from what fact was to what it is; nil
// is no fact.
func (a *apply) mendDigest(server directory.ServerID, name directory.MailboxName, was, is *directory.Fact) error {
	wasStated, isStated := stated(was), stated(is)
	wasPresent, isPresent := present(was), present(is)
	restated := wasStated != isStated || wasStated && !sameStatement(was, is)
	if !restated && wasPresent == isPresent {
		return nil
	}
	hash := a.room().hasher(a.cluster.DigestKey)
	// Where the name stays, its hash would be taken away and added again.
	var nameSum sum128
	if wasStated != isStated || wasPresent != isPresent {
		nameSum = hash.Name(name)
	}
	var change digest
	if wasStated {
		change.Count--
		change.Names, change.Facts = change.Names.Sub(nameSum), change.Facts.Sub(hash.Fact(name, was))
	}
	if isStated {
		change.Count++
		change.Names, change.Facts = change.Names.Add(nameSum), change.Facts.Add(hash.Fact(name, is))
	}
	if restated {
		if err := a.addDigest(&a.sums[1], digestKey(server, hash.Bucket(name)), change); err != nil {
			return err
		}
	}
	if wasPresent && !isPresent {
		change.Counted--
		change.CountedNames = change.CountedNames.Sub(nameSum)
	}
	if isPresent && !wasPresent {
		change.Counted++
		change.CountedNames = change.CountedNames.Add(nameSum)
	}
	return a.addDigest(&a.sums[0], serverKey(server), change)
}

// digestRow is the row of sums that was changed last: a list in name order
// changes the same two again and again, so they are written when another's
// turn comes, or the command ends.
type digestRow struct {
	key []byte
	sum digest
}

func (a *apply) addDigest(row *digestRow, key []byte, change digest) error {
	if !bytes.Equal(row.key, key) {
		a.putDigest(row)
		sum, err := a.state.digest(key)
		if err != nil {
			return err
		}
		row.key, row.sum = key, sum
	}
	d := &row.sum
	d.Count += change.Count
	d.Names, d.Facts = d.Names.Add(change.Names), d.Facts.Add(change.Facts)
	d.Counted += change.Counted
	d.CountedNames = d.CountedNames.Add(change.CountedNames)
	return nil
}

// flushDigests writes the rows that were kept back.
func (a *apply) flushDigests() {
	for i := range a.sums {
		a.putDigest(&a.sums[i])
	}
}

func (a *apply) putDigest(row *digestRow) {
	if row.key == nil {
		return
	}
	if row.sum == (digest{}) {
		a.tx.Delete(bucketDigest, row.key)
	} else {
		s := a.room()
		s.message = appendDigest(s.message[:0], &row.sum)
		a.put1(bucketDigest, row.key, s.message)
	}
	row.key = nil
}

// total reads a server's sums, with what this command changed so far.
func (a *apply) total(server directory.ServerID) (digest, error) {
	if bytes.Equal(a.sums[0].key, serverKey(server)) {
		return a.sums[0].sum, nil
	}
	return a.state.digest(serverKey(server))
}
