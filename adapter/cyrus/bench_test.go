package cyrus

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/rookery-mail/rookery/directory"
)

// population is a backend's list: 20 folders a user, each fiftieth shared.
func population(b *testing.B, format Format, n int) []byte {
	var out bytes.Buffer
	w, err := NewWriter(&out, format)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		user := fmt.Sprintf("u%07d", i/20)
		rec := Record{
			Name: directory.MailboxName(fmt.Sprintf("user.%s.Folder %d", user, i%20)), Partition: "default", ACL: user + "\tlrswipkxtecdan\t", UniqueID: fmt.Sprintf("%024x", i),
			UIDValidity: 1795386103, MTime: 1795386102, CreatedModSeq: 1, FolderModSeq: 2,
		}
		if i%50 == 7 {
			rec.ACL += "anyone\tlr\tbob\tlrswi\tcarol\tlrs\t"
		}
		if err := w.Write(&rec); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkRead(b *testing.B) {
	for _, format := range []Format{JSON, Text} {
		b.Run(format.String(), func(b *testing.B) {
			const n = 100_000
			dump := population(b, format, n)
			b.SetBytes(int64(len(dump)))
			b.ReportAllocs()
			for b.Loop() {
				r := NewReader(bytes.NewReader(dump))
				for {
					_, err := r.Read()
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
