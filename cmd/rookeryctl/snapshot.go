package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/server"
)

func (a *app) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "save, look at and restore backups of the directory",
		Long: `Saves, looks at and restores backups of the directory. A snapshot is the whole state of
the cluster at one revision, in one file with checksums.`,
		Example: `  rookeryctl snapshot save /var/backups/rookery-$(date +%a).snap --force
  rookeryctl snapshot status /var/backups/rookery-Mon.snap
  rookeryctl snapshot restore /var/backups/rookery-Mon.snap --data /var/lib/rookery --name n1`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: none,
		RunE:              mustName,
	}
	cmd.AddCommand(a.snapshotSaveCmd(), a.snapshotStatusCmd(), a.snapshotRestoreCmd())
	return cmd
}

type savedJSON struct {
	File        string                `json:"file"`
	Node        string                `json:"node"`
	ClusterID   string                `json:"cluster_id"`
	Incarnation directory.Incarnation `json:"incarnation"`
	Shard       uint32                `json:"shard"`
	Index       uint64                `json:"index"`
	Term        uint64                `json:"term"`
	Revision    directory.Revision    `json:"revision"`
	Bytes       uint64                `json:"bytes"`
}

func (a *app) snapshotSaveCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "save a snapshot of the running cluster",
		Long: `Saves a snapshot of the running cluster to FILE: all that was applied when it was asked
for, at one revision, while readers and writers go on. A node that does not lead is asked,
if there is one. FILE appears when all of it came, is on disk and was read back.`,
		Example: `  rookeryctl snapshot save rookery.snap
  rookeryctl snapshot save /var/backups/rookery.snap --force`,
		Args: exactly("FILE"),
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it is there")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		path := args[0]
		if err := mayWrite(path, force); err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		info, err := a.saveSnapshot(ctx, c, path, force)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			return a.document(savedJSON{path, info.Node, info.ClusterID, info.Incarnation, info.Shard, info.Index, info.Term, info.Revision, info.Size})
		}
		a.printf("%s: %s, cluster %s, incarnation %d, index %d, revision %d or later, saved by %s\n",
			path, size(info.Size), info.ClusterID, info.Incarnation, info.Index, info.Revision, info.Node)
		return nil
	})
	return cmd
}

// mayWrite refuses a file that is there.
func mayWrite(path string, force bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return refusedf("%v", err)
	case !info.Mode().IsRegular():
		return refusedf("%s is no file", path)
	case !force:
		return refusedf("%s is there already; --force replaces it, when the new one is whole", path)
	}
	return nil
}

// saveSnapshot asks one node after the other until one has sent a whole snapshot.
func (a *app) saveSnapshot(ctx context.Context, c *client.Client, path string, force bool) (client.Snapshot, error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return client.Snapshot{}, refusedf("%v", err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return client.Snapshot{}, refusedf("%s is being written by another `snapshot save`", tmp)
	}
	info, err := a.receive(ctx, c, f)
	if err == nil {
		err = a.keep(f, path, info, force)
	}
	if err != nil {
		return info, errors.Join(err, os.Remove(tmp))
	}
	return info, nil
}

// receive fills f.
func (a *app) receive(ctx context.Context, c *client.Client, f *os.File) (info client.Snapshot, err error) {
	for _, endpoint := range a.snapshotNodes(ctx, c) {
		if err := f.Truncate(0); err != nil {
			return info, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return info, err
		}
		info, err = a.receiveFrom(ctx, c, endpoint, f)
		if err == nil || ctx.Err() != nil || !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, directory.ErrBusy) && !errors.Is(err, client.ErrBroken) {
			return info, err
		}
	}
	return info, err
}

// receiveFrom asks one node; the empty endpoint is one of those named by --endpoints.
func (a *app) receiveFrom(ctx context.Context, c *client.Client, endpoint string, f *os.File) (client.Snapshot, error) {
	if endpoint != "" {
		one, err := a.dial([]string{endpoint}, func(client.Attempt) {})
		if err != nil {
			return client.Snapshot{}, err
		}
		defer one.Close()
		c = one
	}
	show := a.progress()
	defer show.clear()
	wait, first, cancel := a.until(ctx)
	defer cancel()
	return c.SaveSnapshot(wait, f, func(n uint64) {
		first()
		show.draw("saving: " + size(n))
	})
}

// snapshotNodes are the nodes to ask, in order: those that do not lead, for a leader
// has enough to do; then whom the client would ask.
func (a *app) snapshotNodes(ctx context.Context, c *client.Client) []string {
	var out []string
	if st, err := c.Status(ctx, client.Stale(0)); err == nil {
		for _, n := range st.Nodes {
			if !n.Leader && n.ClientAddress != "" && st.Leader != "" {
				out = append(out, n.ClientAddress)
			}
		}
	}
	return append(out, "")
}

// keep makes the file durable, proves it, and gives it its name.
func (a *app) keep(f *os.File, path string, info client.Snapshot, force bool) error {
	if err := f.Sync(); err != nil {
		return err
	}
	h, err := snap.Verify(f.Name())
	if err != nil {
		return refusedf("what was written is not what came: %v; is the disk sound?", err)
	}
	if h.Index != info.Index || uint64(h.Incarnation) != uint64(info.Incarnation) || raftstore.ClusterID(h.Cluster).String() != info.ClusterID {
		return refusedf("the snapshot is of index %d of cluster %s, the node says %d of %s", h.Index, raftstore.ClusterID(h.Cluster), info.Index, info.ClusterID)
	}
	if err := mayWrite(path, force); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return snap.SyncDir(filepath.Dir(path))
}

type snapshotJSON struct {
	File        string                `json:"file"`
	Bytes       int64                 `json:"bytes"`
	ClusterID   string                `json:"cluster_id"`
	Incarnation directory.Incarnation `json:"incarnation"`
	Shard       uint32                `json:"shard"`
	Index       uint64                `json:"index"`
	Term        uint64                `json:"term"`
	Revision    directory.Revision    `json:"revision"`
	LastCommand string                `json:"last_command"`
	Node        string                `json:"node"`
	Nodes       []string              `json:"nodes"`
	Backends    int                   `json:"backends"`
	Groups      int                   `json:"groups"`
	Mailboxes   int64                 `json:"mailboxes"`
	Facts       uint64                `json:"facts"`
	Users       int64                 `json:"users"`
	Forks       int64                 `json:"forks"`
}

func (a *app) snapshotStatusCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "status FILE",
		Short: "verify a snapshot and say what is in it",
		Long: `Verifies a snapshot, every octet and every record of it, and says what is in it: the
cluster, the revision, when its last command was, how much there is. It asks no node. It needs
as much room as the snapshot has, in --scratch, for as long as it runs.`,
		Example: `  rookeryctl snapshot status rookery.snap
  rookeryctl snapshot status rookery.snap -o json | jq .revision`,
		Args: exactly("FILE"),
	}
	cmd.Flags().StringVar(&dir, "scratch", "", "the `directory` for a copy; by default TMPDIR, or /tmp")
	cmd.RunE = a.do(func(_ context.Context, args []string) error {
		out, err := inspect(args[0], dir)
		if err != nil {
			return badSnapshot(args[0], err)
		}
		if a.format == formatJSON {
			return a.document(out)
		}
		a.printf("%s is whole: %s\n", out.File, size(uint64(out.Bytes)))
		a.printf("cluster %s, incarnation %d, shard %d, saved by %s of %s\n", out.ClusterID, out.Incarnation, out.Shard, orDash(out.Node), join(out.Nodes))
		a.printf("index %d, term %d, revision %d, last command %s\n", out.Index, out.Term, out.Revision, orDash(out.LastCommand))
		a.printf("%s in %s; %s (%s), %s, %s\n", plural(out.Backends, "backend"), plural(out.Groups, "group"),
			mailboxCount(uint64(out.Mailboxes)), plural(out.Users, "user"), plural(out.Facts, "fact"), plural(out.Forks, "fork"))
		return nil
	})
	return cmd
}

// inspect reads a snapshot whole.
func inspect(path, dir string) (snapshotJSON, error) {
	info, err := os.Stat(path)
	if err != nil {
		return snapshotJSON{}, err
	}
	rules := machine.New()
	out := snapshotJSON{File: path, Bytes: info.Size()}
	err = raftstore.Inspect(path, dir, server.Applied(rules), func(h snap.Header, m raftstore.Meta, r kv.Reader) error {
		st, err := rules.Status(r)
		if err != nil {
			return err
		}
		backends, err := rules.Backends(r, "")
		if err != nil {
			return err
		}
		groups, err := rules.Groups(r, "")
		if err != nil {
			return err
		}
		for _, b := range backends {
			out.Facts += b.Facts
		}
		for _, n := range m.Members {
			out.Nodes = append(out.Nodes, n.Name)
		}
		out.ClusterID, out.Incarnation, out.Shard = raftstore.ClusterID(h.Cluster).String(), directory.Incarnation(h.Incarnation), h.Shard
		out.Index, out.Term, out.Revision, out.LastCommand = h.Index, h.Term, st.Revision, lastCommand(st.Wall)
		out.Node, out.Nodes, out.Backends, out.Groups = m.Name, list(out.Nodes), len(backends), len(groups)
		out.Mailboxes, out.Users, out.Forks = st.Mailboxes, st.Inboxes, st.Forked
		return nil
	})
	return out, err
}

// badSnapshot says what to do about a snapshot that cannot be used.
func badSnapshot(path string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return refusedf("%s: no such file", path)
	case errors.Is(err, snap.ErrCorrupt), errors.Is(err, raftstore.ErrCorrupt), errors.Is(err, machine.ErrCorrupt), errors.Is(err, machine.ErrFormat):
		return refusedf("%s cannot be used: %s; take another snapshot, or another copy of this one", path, plain(aboutFile(path, firstReason(err))))
	}
	return refusedf("%s: %s", path, plain(aboutFile(path, err.Error())))
}

// firstReason is the first line of an error, without what names a package.
func firstReason(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	for _, prefix := range []string{"raftstore: restore: ", "raftstore: recover: ", "raftstore: ", "wrong identity: ", "snap: open: ", "snap: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return text
}

// aboutFile is what a text says of a file, without its name and the packages that put
// it there: whoever prints it has named the file.
func aboutFile(path, text string) string {
	for {
		rest := text
		for _, prefix := range []string{"raftstore: ", "restore " + path + ": ", "open " + path + ": ", path + ": ", "snap: "} {
			rest = strings.TrimPrefix(rest, prefix)
		}
		if rest == text {
			return text
		}
		text = rest
	}
}

// lastCommand is a wall clock's time in milliseconds since 1970; empty for none.
func lastCommand(ms int64) string {
	if ms == 0 {
		return ""
	}
	return stamp(time.UnixMilli(ms))
}

type restoredJSON struct {
	Data        string `json:"data"`
	Name        string `json:"name"`
	ClusterID   string `json:"cluster_id"`
	Incarnation uint64 `json:"incarnation"`
	WasCluster  string `json:"was_cluster_id"`
	WasLife     uint64 `json:"was_incarnation"`
	Index       uint64 `json:"index"`
}

func (a *app) snapshotRestoreCmd() *cobra.Command {
	var data, name string
	var least uint32
	cmd := &cobra.Command{
		Use:   "restore FILE --data DIRECTORY --name NODE",
		Short: "begin a new cluster with the state of a snapshot",
		Long: `Makes the data directory of a new cluster's first node from a snapshot. It asks no node;
the old cluster must be gone for good: what it still has, clients do not believe any more
once they have seen the new one.

The new cluster has an id of its own and the next incarnation. Nothing in it is confirmed:
mailboxes are served from where the snapshot has them, and no mail is bounced, until every
backend has stated its list again. --min-incarnation must be higher than that of any cluster
that was restored from this snapshot, or an older one, before.`,
		Example: `  rookeryctl snapshot restore rookery.snap --data /var/lib/rookery --name n1
  rookeryctl snapshot restore rookery.snap --data /var/lib/rookery --name n1 --min-incarnation 3`,
		Args: exactly("FILE"),
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "the node's data `directory`, which must be new or empty")
	f.StringVar(&name, "name", "", "the `node`'s name")
	f.Uint32Var(&least, "min-incarnation", 0, "begin at least this `incarnation`")
	complete(cmd, "name", none)
	required(cmd, "data", "name")
	if err := cmd.MarkFlagDirname("data"); err != nil {
		panic(err)
	}
	cmd.RunE = a.do(func(_ context.Context, args []string) error {
		path := args[0]
		h, err := snap.Verify(path)
		if err != nil {
			return badSnapshot(path, err)
		}
		cfg := raftstore.Config{Dir: data, Name: name, Machine: server.Applied(machine.New())}
		id, err := raftstore.Restore(cfg, path, uint64(least))
		switch {
		case errors.Is(err, raftstore.ErrLocked):
			return refusedf("%s is the directory of a node that runs; a snapshot is restored into a new one, with the old cluster stopped", data)
		case errors.Is(err, snap.ErrCorrupt):
			return badSnapshot(path, err)
		case err != nil:
			return refusedf("%s", plain(firstReason(err)))
		}
		was := raftstore.ClusterID(h.Cluster).String()
		if a.format == formatJSON {
			return a.document(restoredJSON{data, name, id.Cluster.String(), id.Incarnation, was, h.Incarnation, h.Index})
		}
		a.printf("%s holds cluster %s, incarnation %d, with the state of index %d of cluster %s, incarnation %d.\n", data, id.Cluster, id.Incarnation, h.Index, was, h.Incarnation)
		a.nextSteps(name, data)
		return nil
	})
	return cmd
}

// nextSteps says how a new life goes on.
func (a *app) nextSteps(name, data string) {
	a.printf(`
Now:
  1. Start this node with its usual flags: rookeryd --name %s --data %s ...
  2. Every other node: move its data directory away and start it with --join; then
     rookeryctl member add NODE, and once it has the log
     rookeryctl member promote NODE gives it its vote; rookeryctl status says when.
     A node of the old cluster is not to be started again.
  3. Every backend states its list again, by a resync or an import. Until then
     rookeryctl status begins with RECOVERING, delivery to mailboxes that were not
     confirmed answers "later", and no mailbox is said not to exist.
  4. What the withdrawal guard holds wants a look: rookeryctl withdrawal list.
  5. The directory's automation is paused until
     rookeryctl settings set automation-paused=no.
`, name, data)
}

func (a *app) recoverCmd() *cobra.Command {
	var data, survivor string
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover --survivor NODE --data DIRECTORY",
		Short: "go on with one node when the majority is lost for good",
		Long: `Makes a new cluster of one node that is left, when the majority of a cluster is lost for
good. It is done on that node, which must be stopped. All that the node has is kept; what the
lost nodes had acknowledged and it had not received yet is lost. Of several that are left, take
the one whose applied index is the highest.

While a majority can come back, do not: start those nodes instead. Afterwards the others are
not to be started with their old data: clients that have seen the new cluster refuse them.`,
		Example:           `  rookeryctl recover --survivor n3 --data /var/lib/rookery`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	f := cmd.Flags()
	f.StringVar(&survivor, "survivor", "", "the name of the `node` that is left")
	f.StringVar(&data, "data", "", "its data `directory`")
	f.BoolVar(&yes, "yes", false, "do not ask")
	complete(cmd, "survivor", none)
	required(cmd, "survivor", "data")
	if err := cmd.MarkFlagDirname("data"); err != nil {
		panic(err)
	}
	cmd.RunE = a.do(func(context.Context, []string) error {
		question := fmt.Sprintf("What %s has not received is lost, and the other nodes can never join again with their data. Begin a new cluster with %s?", survivor, data)
		if !yes && !a.confirm(question) {
			return refusedf("nothing was changed: what %s has not received would be lost, and the other nodes could not come back; --yes does it all the same", survivor)
		}
		if _, err := os.Stat(data); err != nil {
			return refusedf("%v", err) // Recover would make it
		}
		old, id, err := raftstore.Recover(raftstore.Config{Dir: data, Name: survivor, Machine: server.Applied(machine.New())})
		switch {
		case errors.Is(err, raftstore.ErrLocked):
			return refusedf("%s is the directory of a node that runs: stop it first. While it runs and has a leader, there is nothing to recover", data)
		case errors.Is(err, raftstore.ErrAlone):
			return refusedf("%s is its cluster's only voter already: start it, there is nothing to recover", survivor)
		case err != nil:
			return refusedf("%s", plain(firstReason(err)))
		}
		if a.format == formatJSON {
			return a.document(restoredJSON{data, survivor, id.Cluster.String(), id.Incarnation, old.Cluster.String(), old.Incarnation, 0})
		}
		a.printf("was: %s\nis:  %s\n", old, id)
		a.nextSteps(survivor, data)
		return nil
	})
	return cmd
}
