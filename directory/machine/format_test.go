package machine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/rookery-mail/rookery/internal/kv"
)

// sealByHand builds a value as format.go says it, by another way.
func sealByHand(b kv.Bucket, key string, version byte, message string) []byte {
	body := string(version) + message
	sum := crc32.Checksum([]byte(string(b)+key+body), crc32.MakeTable(crc32.Castagnoli))
	return binary.BigEndian.AppendUint32([]byte(body), sum)
}

func TestSeal(t *testing.T) {
	for _, test := range []struct {
		bucket       kv.Bucket
		key, message string
	}{
		{bucketMailbox, "user\x1fanna\x00", "\x08\x01"},
		{bucketMeta, "clock", ""},
		{bucketPosting, "anyone\x00\x02shared", strings.Repeat("m", 70_000)},
		{"no bucket of ours", "", "message"},
	} {
		got := seal(test.bucket, []byte(test.key), []byte(test.message))
		if want := sealByHand(test.bucket, test.key, 1, test.message); !bytes.Equal(got, want) {
			t.Errorf("seal(%q, %q): got %.40x, want %.40x", test.bucket, test.key, got, want)
		}
		message, err := unseal(test.bucket, []byte(test.key), got)
		if err != nil || string(message) != test.message {
			t.Errorf("unseal(%q, %q): got %.40q, %v, want what was sealed", test.bucket, test.key, message, err)
		}
	}
}

func TestUnsealRefuses(t *testing.T) {
	key := []byte("user\x1fanna\x00")
	value := seal(bucketMailbox, key, []byte("message"))
	for i := range len(value) * 8 {
		broken := bytes.Clone(value)
		broken[i/8] ^= 1 << (i % 8)
		if _, err := unseal(bucketMailbox, key, broken); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bit %d flipped: got %v, want ErrCorrupt", i, err)
		}
	}
	for n := range value {
		if _, err := unseal(bucketMailbox, key, value[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d octets: got %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := unseal(bucketMailbox, []byte("user\x1fbert\x00"), value); !errors.Is(err, ErrCorrupt) {
		t.Errorf("under another key: got %v, want ErrCorrupt", err)
	}
	if _, err := unseal(bucketTombstone, key, value); !errors.Is(err, ErrCorrupt) {
		t.Errorf("in another bucket: got %v, want ErrCorrupt", err)
	}
	if _, err := unseal(bucketMailbox, key, sealByHand(bucketMailbox, string(key), 0, "message")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("version 0: got %v, want ErrCorrupt", err)
	}
	_, err := unseal(bucketMailbox, key, sealByHand(bucketMailbox, string(key), formatVersion+1, "message"))
	if !errors.Is(err, ErrFormat) || errors.Is(err, ErrCorrupt) {
		t.Errorf("next version: got %v, want ErrFormat", err)
	}
	for _, want := range []string{"newer release", "version 2", `"mailbox"`, `"user\x1fanna\x00"`} {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("next version: got %q, want %s in it", err, want)
		}
	}
}

// The checksum runs over bucket and key without a mark between them.
func TestNoBucketBeginsWithAnother(t *testing.T) {
	for i, a := range allBuckets {
		for j, b := range allBuckets {
			if i != j && strings.HasPrefix(string(a), string(b)) {
				t.Errorf("bucket %q begins with bucket %q", a, b)
			}
		}
	}
}

func TestUnsealAllocates(t *testing.T) {
	key := []byte("user\x1fanna\x00")
	message := []byte("message")
	value := seal(bucketMailbox, key, message)
	if got := testing.AllocsPerRun(100, func() { seal(bucketMailbox, key, message) }); got > 1 {
		t.Errorf("seal: got %v allocations, want the result alone", got)
	}
	if got := testing.AllocsPerRun(100, func() { unseal(bucketMailbox, key, value) }); got != 0 {
		t.Errorf("unseal: got %v allocations, want none", got)
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add("user\x1fanna\x00", seal(bucketMailbox, []byte("user\x1fanna\x00"), []byte("message")))
	f.Add("clock", sealByHand(bucketMailbox, "clock", 2, ""))
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		message, err := unseal(bucketMailbox, []byte(key), value)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Errorf("got %v, want ErrCorrupt or ErrFormat", err)
			}
			return
		}
		if got := seal(bucketMailbox, []byte(key), message); !bytes.Equal(got, value) {
			t.Errorf("sealed again: got %x, want %x", got, value)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	key := []byte("user\x1fanna.smith\x1fArchive\x1f2024\x00\x00\x00\x00\x01")
	message := make([]byte, 120)
	b.ReportAllocs()
	for b.Loop() {
		seal(bucketMailbox, key, message)
	}
}

func BenchmarkUnseal(b *testing.B) {
	key := []byte("user\x1fanna.smith\x1fArchive\x1f2024\x00\x00\x00\x00\x01")
	value := seal(bucketMailbox, key, make([]byte, 120))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := unseal(bucketMailbox, key, value); err != nil {
			b.Fatal(err)
		}
	}
}
