// Pause holds a pod's namespaces open. It is in Go, and not Kubernetes' own in C, so that building the cluster needs
// no C compiler; static, because a sandbox, unlike a container, sees none of the machine's libraries.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		// Where containers share their process namespace, the orphans among them become ours.
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
