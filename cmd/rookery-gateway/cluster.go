package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/client"
)

// Once an answer was had, the client library takes none of another cluster, but of a later
// incarnation, to which it goes over. Which one is meant nobody can tell it before, so
// endpoints of two are refused at the start.

// lookFor is how long endpoints have at the start to say of which cluster they are.
const lookFor = 2 * time.Second

// lookEvery is how often they are asked again: a node that was not there at the start may
// be of another cluster.
const lookEvery = time.Minute

// tellClusters tells of endpoints that are of two clusters, once each time, until ctx ends.
func tellClusters(ctx context.Context, look func(context.Context) error, log *slog.Logger) {
	var told string
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
		text := ""
		if err := look(ctx); err != nil {
			text = err.Error()
		}
		if text != "" && text != told {
			log.Error("endpoints are of different clusters; those that answered first are asked", "err", text)
		}
		told = text
	}
}

// oneCluster refuses endpoints that are of two clusters. Those that do not answer in time
// are not looked at, nor those of an earlier incarnation, whose answers no client takes.
func oneCluster(ctx context.Context, endpoints []string, ask func(ctx context.Context, endpoint string) (client.Status, error)) error {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	said := make([]client.Status, len(endpoints))
	var work sync.WaitGroup
	for i, endpoint := range endpoints {
		work.Go(func() {
			if st, err := ask(ctx, endpoint); err == nil {
				said[i] = st
			}
		})
	}
	work.Wait()
	latest := said[0].Incarnation
	for i := range said {
		latest = max(latest, said[i].Incarnation)
	}
	clusters := map[string]bool{}
	var lines []string
	for i, st := range said {
		if st.ClusterID != "" && st.Incarnation == latest {
			clusters[st.ClusterID] = true
			lines = append(lines, fmt.Sprintf("%s is of cluster %s", endpoints[i], st.ClusterID))
		}
	}
	if len(clusters) < 2 {
		return nil
	}
	return fmt.Errorf("--endpoints are of %d clusters, and what one of them does not know would be taken for absent: leave out those that are not meant: %s",
		len(clusters), strings.Join(lines, ", "))
}

// strangers tells of nodes that are of another cluster than the one that answered first,
// each at most once in tellAgain.
type strangers struct {
	log *slog.Logger

	mu   sync.Mutex
	told map[string]time.Time // by endpoint
}

// tellAgain is how long it is silent about one node.
const tellAgain = 10 * time.Minute

// observe is a client's observer.
func (s *strangers) observe(at client.Attempt) {
	if !at.GivenUp {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, told := s.told[at.Endpoint]; told && time.Since(last) < tellAgain {
		return
	}
	if s.told == nil {
		s.told = make(map[string]time.Time)
	}
	s.told[at.Endpoint] = time.Now()
	s.log.Error("a node is of another cluster, or of another life of it, than those that answered before: it is not asked; was it founded anew, or is --endpoints wrong? If the new one is meant, start this gateway again",
		"endpoint", at.Endpoint, "err", at.Err)
}
