package machine

import "github.com/rookery-mail/rookery/directory"

// tombstoneGrain rounds the ends of tombstones, so that they lapse together.
const tombstoneGrain = directory.Time(3600 * 1000)

// bury writes a tombstone, in place of the one there may be.
func (a *apply) bury(t directory.Tombstone) {
	t.Revision, t.Time, t.Wall = a.clk.Revision, a.clk.Time, a.clk.Wall
	key := t.Name.AppendKey(nil)
	a.put1(bucketTombstone, key, encodeTombstone(&t))
	a.schedule(tombstoneEnd(t.Time, a.settings), dueTombstone, key)
}

func tombstoneEnd(at directory.Time, s directory.Settings) directory.Time {
	return (at + s.TombstoneKeep + tombstoneGrain - 1) / tombstoneGrain * tombstoneGrain
}

// exhume removes the tombstone of a name that is alive again; a move's stays,
// for that name never died. The deadline stays too, and finds nothing or a
// younger tombstone.
func (a *apply) exhume(name directory.MailboxName) error {
	t, err := a.tombstone(name)
	if t == nil || err != nil || t.How == directory.GoneMoved {
		return err
	}
	a.tx.Delete(bucketTombstone, name.AppendKey(nil))
	return nil
}

// lapseTombstone removes the tombstone at key if its time has come.
func (a *apply) lapseTombstone(key []byte) error {
	name, err := storedName(key)
	if err != nil {
		return err
	}
	t, err := a.tombstone(name)
	if t == nil || err != nil {
		return err
	}
	if end := tombstoneEnd(t.Time, a.settings); end > a.clk.Time {
		a.schedule(end, dueTombstone, key) // a younger one, or the setting has grown
		return nil
	}
	a.tx.Delete(bucketTombstone, key)
	return nil
}
