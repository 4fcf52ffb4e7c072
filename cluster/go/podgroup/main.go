// Reads PodGroups as JSON, one per line, with Volcano's or scheduler-plugins' own types, and fails on a field that these
// do not have. Writes what was read, and the key by which a pod names its group.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	volcano "volcano.sh/apis/pkg/apis/scheduling/v1beta1"

	coscheduling "sigs.k8s.io/scheduler-plugins/apis/scheduling/v1alpha1"
)

type scheduler struct {
	empty func() any
	key   string
}

var schedulers = map[string]scheduler{
	volcano.SchemeGroupVersion.String():      {func() any { return new(volcano.PodGroup) }, volcano.KubeGroupNameAnnotationKey},
	coscheduling.SchemeGroupVersion.String(): {func() any { return new(coscheduling.PodGroup) }, coscheduling.PodGroupLabel},
}

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var head struct{ APIVersion string }
		fail(json.Unmarshal(lines.Bytes(), &head))
		scheduler, known := schedulers[head.APIVersion]
		if !known {
			fail(fmt.Errorf("no type for apiVersion %q", head.APIVersion))
		}
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.DisallowUnknownFields()
		read := scheduler.empty()
		fail(decoder.Decode(read))
		text, err := json.Marshal(map[string]any{"group": read, "key": scheduler.key})
		fail(err)
		fmt.Println(string(text))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
