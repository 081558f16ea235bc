// Package mupdateclient speaks MUPDATE (RFC 3656) to a server: ours, or a Cyrus
// master.
//
//	c, err := mupdateclient.Dial(ctx, "master.example.org:3905", mupdateclient.Options{})
//	err = c.Login(ctx, "mupdate", "secret")
//	for record, err := range c.List(ctx, "") { ... }
//	err = c.Logout(ctx)
//
// One command is under way at a time; a Client is for one goroutine. An error that is a
// [*Refused] is the server's answer, and the connection goes on; any other ends it.
//
// [Client.Update] is told first what there is and then, for as long as the connection
// lasts, what changes.
package mupdateclient
