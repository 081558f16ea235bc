package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/rookery-mail/rookery/directory"
)

// bare is the ceiling of a read without RPC: a bbolt file with the keys and the
// sizes of values that a node keeps for the population, and nothing else. A
// lookup is one Get, a LIST one scan of the own mailboxes and one of the
// postings, with a Get for each of those.
type bare struct {
	work *work
	db   *bbolt.DB

	mu  sync.Mutex
	txs []*bbolt.Tx
}

var (
	bareMailbox = []byte("mailbox")
	barePosting = []byte("posting")
)

// bareRest is what a fact's value holds besides its strings, in octets.
const bareRest = 36

// newBare opens the file in dir, which it makes unless it is there, whole.
func newBare(ctx context.Context, dir string, w *work) (*bare, error) {
	file := filepath.Join(dir, "bbolt-ceiling")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		part := file + ".part"
		if err := fillBare(ctx, part, w.pop); err != nil {
			return nil, errors.Join(err, os.Remove(part))
		}
		if err := os.Rename(part, file); err != nil {
			return nil, err
		}
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	return &bare{work: w, db: db}, nil
}

// barePut is how many mailboxes are put in one transaction.
const barePut = 200_000

func fillBare(ctx context.Context, file string, p *population) error {
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true})
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	var postings [][]byte
	for begin := 0; begin < p.mailboxes && err == nil && ctx.Err() == nil; begin += barePut {
		err = db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bareMailbox)
			if err != nil {
				return err
			}
			b.FillPercent = 1
			for m := begin; m < min(begin+barePut, p.mailboxes); m++ {
				f := p.fact(m)
				if err := b.Put(bareKey(f), value[:bareRest+len(f.partition)+len(f.acl)+len(f.mailboxID)+len(f.specialUse)]); err != nil {
					return err
				}
				for _, u := range p.sharers(m) {
					postings = append(postings, barePostingKey(p.userID(u), f))
				}
				if u, ok := p.wideSharer(m); ok {
					postings = append(postings, barePostingKey(p.userID(u), f))
				}
			}
			return nil
		})
	}
	slices.SortFunc(postings, bytes.Compare)
	if err == nil {
		err = db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(barePosting)
			if err != nil {
				return err
			}
			b.FillPercent = 1
			for _, key := range postings {
				if err := b.Put(key, value[:4]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(err, ctx.Err(), db.Sync(), db.Close())
}

// bareKey is a fact's key: its name's, and the server.
func bareKey(f fact) []byte {
	k := append(f.name.AppendKey(make([]byte, 0, len(f.name)+5)), 0)
	return binary.BigEndian.AppendUint32(k, uint32(f.server+1))
}

// barePostingKey leads from a user to a fact's key.
func barePostingKey(user directory.UserID, f fact) []byte {
	return append(append([]byte(user), 0), bareKey(f)...)
}

func (b *bare) caller(w workload, worker int) (call, error) {
	tx, err := b.db.Begin(false)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.txs = append(b.txs, tx)
	b.mu.Unlock()
	mailboxes, postings := tx.Bucket(bareMailbox), tx.Bucket(barePosting)
	chance := b.work.chance(worker)
	pop := b.work.pop
	switch w.op {
	case opLookup:
		return func(context.Context) error {
			m := b.work.anyMailbox(chance)
			key := bareKey(fact{name: pop.name(m), server: pop.server(m)})
			if mailboxes.Get(key) == nil {
				return fmt.Errorf("%w: %q is not in the file", errWrong, key)
			}
			return nil
		}, nil
	case opList:
		return func(context.Context) error {
			u := b.work.anyWide(chance)
			rows := 0
			lo, hi := pop.name(u * foldersPerUser).SubtreeKeys()
			c := mailboxes.Cursor()
			for k, _ := c.Seek(lo); k != nil && bytes.Compare(k, hi) < 0; k, _ = c.Next() {
				rows++
			}
			prefix := append([]byte(pop.userID(u)), 0)
			c = postings.Cursor()
			for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
				if mailboxes.Get(k[len(prefix):]) == nil {
					return fmt.Errorf("%w: %q is posted and not in the file", errWrong, k)
				}
				rows++
			}
			return fifty(rows, true)
		}, nil
	}
	return nil, fmt.Errorf("bbolt: no operation %d", w.op)
}

func (b *bare) close() error {
	var errs []error
	for _, tx := range b.txs {
		if err := tx.Rollback(); err != nil && !errors.Is(err, berrors.ErrTxClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, b.db.Close())...)
}
