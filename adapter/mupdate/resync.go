package mupdate

import (
	"context"
	"errors"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// resync watches whether a connection is a `ctl_mboxlist -m` that runs to its end: it
// asked what its server had said, answered every FIND with an ACTIVATE of that name,
// met no refusal, and ended in LOGOUT. Then the directory knows the server's whole
// list. With -w it only looks, and activates nothing after a FIND; but one that has
// nothing to ask is like a -m that found all equal.
type resync struct {
	server directory.BackendName // empty: no resync
	life   directory.Incarnation // in which the list was told
	asked  string                // by FIND, and not activated yet
	failed bool

	told, activations, deletions int // records of the list, and what followed
}

// listed: the list was told, in told records.
func (r *resync) listed(server directory.BackendName, life directory.Incarnation, told int) {
	again := r.server != ""
	*r = resync{server: server, life: life, told: told, failed: r.failed || again}
}

func (r *resync) found(name directory.MailboxName) {
	r.failed = r.failed || r.asked != ""
	r.asked = string(name)
}

func (r *resync) activated(name directory.MailboxName) {
	r.activations++
	switch r.asked {
	case "":
	case string(name):
		r.asked = ""
	default:
		r.failed = true
	}
}

func (r *resync) fail() { r.failed = true }

// endResync notes a finished resync.
func (c *conn) endResync(ctx context.Context) {
	r := &c.resync
	if r.server == "" {
		return
	}
	// Of another backend's list nobody has to say that it is whole.
	other := c.login != "" && c.login != r.server || c.login == "" && c.source != "" && c.source != r.server
	if r.failed || r.asked != "" || other || r.life == 0 {
		c.s.m.resyncs.WithLabelValues("unfinished").Inc()
		c.log.Info("a comparison of lists that does not count as a resync", "backend", string(r.server))
		return
	}
	_, err := c.session.ConfirmBackendIn(ctx, r.life, r.server, directory.ByResync)
	if errors.Is(err, directory.ErrNotFound) {
		// It holds nothing and never did. In a new murder that is so of all backends, and
		// until they are known to have been heard nobody could create anything.
		err = c.introduce(ctx)
	}
	if err != nil {
		c.s.m.resyncs.WithLabelValues("failed").Inc()
		c.log.Warn("a resync ended and could not be noted", "backend", string(r.server), "err", err)
		return
	}
	c.s.m.resyncs.WithLabelValues("confirmed").Inc()
	log := c.log.Info
	if r.deletions > r.told/2 {
		log = c.log.Warn
	}
	log("resync finished", "backend", string(r.server), "listed", r.told, "activated", r.activations, "deleted", r.deletions)
}

// introduce makes a backend known that has nothing to say, if its login or its address
// vouches for its name and the cluster takes new backends.
func (c *conn) introduce(ctx context.Context) error {
	r := &c.resync
	if c.speaker() == "" {
		c.log.Warn("an empty backend is not known and stays so: bind its login to it, or make it by `rookeryctl backends set --create`", "backend", string(r.server))
		return nil
	}
	settings, err := c.session.GetSettings(ctx, client.Linearizable())
	if err != nil {
		return err
	}
	if !settings.AdmissionOpen {
		c.log.Warn("an empty backend is not known, and admission is closed", "backend", string(r.server))
		return nil
	}
	_, err = c.session.SetBackend(ctx, r.server, client.BackendChange{Create: true})
	if errors.Is(err, directory.ErrRole) { // a gateway's that has a backend's certificate
		c.log.Warn("an empty backend is not known, and who asks for it may make none: make it by `rookeryctl backends set --create`", "backend", string(r.server), "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	_, err = c.session.ConfirmBackendIn(ctx, r.life, r.server, directory.ByResync)
	return err
}
