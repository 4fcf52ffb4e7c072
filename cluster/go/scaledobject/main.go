// Reads a ScaledObject as JSON with KEDA's own types, and fails on a field that these do not have and on what KEDA's
// webhook refuses. Writes what was read.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
)

func main() {
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	var read keda.ScaledObject
	fail(decoder.Decode(&read))
	fail(keda.CheckReplicaCountBoundsAreValid(&read))
	fail(keda.ValidateTriggers(read.Spec.Triggers))
	text, err := json.Marshal(&read)
	fail(err)
	fmt.Println(string(text))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
