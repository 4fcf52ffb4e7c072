// Reads a Kustomization and an object as JSON with Flux's own types, and fails on a field of the Kustomization that these
// do not have and on an expression that Flux cannot parse. Writes the object's status by the Kustomization's
// healthCheckExprs, as kustomize-controller reads it, and why it is Unknown.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	kustomize "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	var asked struct {
		Kustomization kustomize.Kustomization
		Object        unstructured.Unstructured
	}
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	fail(decoder.Decode(&asked))
	reader, err := cel.NewStatusReader(asked.Kustomization.Spec.HealthCheckExprs)
	fail(err)
	read, err := reader(nil).ReadStatusForObject(context.Background(), nil, &asked.Object)
	fail(err)
	said := map[string]string{"status": read.Status.String(), "message": read.Message}
	if read.Error != nil {
		said["error"] = read.Error.Error()
	}
	text, err := json.Marshal(said)
	fail(err)
	fmt.Println(string(text))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
