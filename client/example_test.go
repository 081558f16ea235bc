package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/server/servertest"
)

// exampleClient is client.Dial([]string{"10.0.0.1:7905", "10.0.0.2:7905"}), but
// to a node of the example's own.
func exampleClient() (c *client.Client, stop func()) {
	dir, err := os.MkdirTemp("", "rookery-example-")
	if err != nil {
		log.Fatal(err)
	}
	node, stopNode, err := servertest.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	if c, err = client.Dial([]string{"node"}, client.WithDialer(node.DialMemory)); err != nil {
		log.Fatal(err)
	}
	return c, func() {
		c.Close()
		stopNode()
		os.RemoveAll(dir)
	}
}

// A backend says what it holds; a frontend asks where it is.
func Example() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()

	acl := "alice\tlrswipkxtecdan\t"
	result, err := c.Assert(ctx, client.Assert{
		Mailbox:   "user.alice",
		Server:    "be1.example.com",
		Statement: directory.Statement{Partition: "default", ACL: &acl},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Effect)

	route, err := c.LookupUser(ctx, "alice")
	if err != nil {
		log.Fatal(err) // nothing is known: say "later", never "no such user"
	}
	fmt.Println(route.Mailbox, route.Outcome, route.Server.Name)
	// Output:
	// added
	// user.alice SERVING be1.example.com
}

// Absence is told only when it is certain.
func ExampleSession_Lookup() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.alice", Server: "be1.example.com"}); err != nil {
		log.Fatal(err)
	}

	show := func() {
		route, err := c.Lookup(ctx, "user.bob")
		if err != nil {
			log.Fatal(err)
		}
		switch route.Outcome {
		case directory.Serving:
			fmt.Println("connect to", route.Server.Name)
		case directory.NotFound:
			fmt.Println("no such mailbox")
		default:
			fmt.Println("try again later:", route.Outcome, route.Missing)
		}
	}
	show()
	if _, err := c.ConfirmBackend(ctx, "be1.example.com", directory.ByOperator); err != nil {
		log.Fatal(err)
	}
	show()
	// Output:
	// try again later: INCOMPLETE [be1.example.com]
	// no such mailbox
}

// What a user may LIST, as IMAP prints it.
func ExampleSession_List() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	alice, anyone := "alice\tlrswipkxtecdan\t", "anyone\tlrs\t"
	_, err := c.Batch(ctx, []client.Op{
		client.Assert{Mailbox: "user.alice", Server: "be1", Statement: directory.Statement{ACL: &alice}},
		client.Assert{Mailbox: "user.alice.Work", Server: "be1", Statement: directory.Statement{ACL: &alice}},
		client.Assert{Mailbox: "news", Server: "be2", Statement: directory.Statement{ACL: &anyone}},
	})
	if err != nil {
		log.Fatal(err)
	}

	listing, err := c.List(ctx, client.ListQuery{
		Principal: directory.Principal{User: "alice"},
		Namespace: directory.Namespace{Alt: true, Sep: '/'},
		Patterns:  []string{"*"},
		Return:    client.ListReturn{Location: true},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, row := range listing.Rows {
		fmt.Println(row.Attributes, row.Name, row.Server)
	}
	// Output:
	// [\HasNoChildren] INBOX be1
	// [\HasNoChildren] Work be1
	// [\HasNoChildren] Shared Folders/news be2
}

// A refusal is an error that says who is in the way.
func ExampleSession_Reserve() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for _, server := range []directory.BackendName{"be1", "be2"} {
		if _, err := c.SetBackend(ctx, server, client.BackendChange{Create: true}); err != nil {
			log.Fatal(err)
		}
		if _, err := c.ConfirmBackend(ctx, server, directory.ByOperator); err != nil {
			log.Fatal(err)
		}
	}

	for _, server := range []directory.BackendName{"be1", "be2"} {
		result, err := c.Reserve(ctx, client.Reserve{Mailbox: "user.carol", Server: server})
		if refused, ok := errors.AsType[*client.Error](err); ok && errors.Is(err, directory.ErrReserved) {
			fmt.Println(server, "may not create it:", refused.Holder, "is about to")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(server, "may create it:", result.Effect)
	}
	// Output:
	// be1 may create it: added
	// be2 may not create it: be1 is about to
}

// A watch tells what there is and then what changes; a Mirror keeps it.
func ExampleSession_Watch() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.alice", Server: "be1"}); err != nil {
		log.Fatal(err)
	}

	mirror := client.NewMirror()
	for update, err := range c.Watch(ctx, client.WatchQuery{User: "alice"}) {
		if err != nil {
			log.Fatal(err) // watches go on by themselves: this is for good
		}
		mirror.Apply(update)
		if !update.Mark {
			continue
		}
		route, _ := mirror.Route("user.alice")
		fmt.Println(route.Outcome, route.Server.Name)
		if route.Outcome == directory.BackendIsDown {
			break
		}
		// One change of the backend changes the routes of all its mailboxes.
		if _, err := c.SetBackend(ctx, "be1", client.BackendChange{State: new(directory.BackendDown)}); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// SERVING be1
	// BACKEND_DOWN be1
}

// A session can be carried to another process by its token.
func ExampleClient_NewSession() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	if _, err := c.Assert(ctx, client.Assert{Mailbox: "user.alice", Server: "be1"}); err != nil {
		log.Fatal(err)
	}
	token := c.Token()

	elsewhere := c.NewSession(token)
	route, err := elsewhere.Lookup(ctx, "user.alice", client.MaxAge(time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(route.Outcome)
	// Output: SERVING
}
