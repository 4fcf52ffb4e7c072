{{- define "tunesmith.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "tunesmith.fullname" -}}
{{- $name := include "tunesmith.name" . }}
{{- $default := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $default | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "tunesmith.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "tunesmith.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "tunesmith.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tunesmith.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "tunesmith.labels" -}}
{{ include "tunesmith.selectorLabels" . }}
app.kubernetes.io/part-of: tunesmith
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Those labels and more, which win. Takes a list: the root context and the others. */}}
{{- define "tunesmith.labelsWith" -}}
{{ merge (dict) (index . 1) (include "tunesmith.labels" (index . 0) | fromYaml) | toYaml }}
{{- end }}

{{- /* Whom the release's own pods run as: users that some clusters choose themselves are left to them. */}}
{{- define "tunesmith.user" -}}
{{- if .Values.fixedUser }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
{{- end }}

{{- /* Where the release's own pods run. */}}
{{- define "tunesmith.scheduling" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The address of an image. Takes a list: the root context and the image's values. */}}
{{- define "tunesmith.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- with $root.Values.imageRegistry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}
{{- printf ":%s" ($image.tag | default $root.Chart.AppVersion) }}
{{- with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* All that the operator may do where it watches, and it needs all of it. Secrets are only got by name. */}}
{{- define "tunesmith.operatorRules" -}}
- apiGroups: [tunesmith.io]
  resources: [modeldeployments]
  verbs: [get, list, watch]
# ttlSecondsAfterFinished deletes jobs.
- apiGroups: [tunesmith.io]
  resources: [finetunejobs, mergejobs, inferencejobs]
  verbs: [get, list, watch, delete]
- apiGroups: [tunesmith.io]
  resources: [finetunejobs/status, mergejobs/status, inferencejobs/status, modeldeployments/status]
  verbs: [patch]
# Children name their owner with blockOwnerDeletion: some clusters, such as OpenShift, check who may.
- apiGroups: [tunesmith.io]
  resources: [finetunejobs/finalizers, mergejobs/finalizers, inferencejobs/finalizers, modeldeployments/finalizers]
  verbs: [update]
# Children are written by server-side apply, which needs patch and, for a new object, create.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# spec.engine.nodes: groups of pods, and what may reach them.
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
# Adapters that are not on all pods have a Service with endpoints of its own.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, create, patch, delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, create, patch, delete]
# Endpoints of a Service without a selector are the right of who may write these.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices/restricted]
  verbs: [create]
# spec.autoscaling
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, create, patch, delete]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, create, patch, delete]
# spec.gateway.httpRoute
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, create, patch, delete]
# The admin token of a deployment's pods is made, and made anew.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
# Called failed and deleted are only pods that are on their way out, on a node that cannot say that they are gone.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
# The Job controller says why it cannot make pods in Events only.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
# Why Kueue lets a job wait.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- if ne .Values.gangScheduler "None" }}
- apiGroups: [{{ ternary "scheduling.volcano.sh" "scheduling.x-k8s.io" (eq .Values.gangScheduler "Volcano") }}]
  resources: [podgroups]
  verbs: [create]
{{- end }}
{{- end }}

{{- /* Nodes: whether one that holds a pod up still answers, and how large its GPUs are. */}}
{{- define "tunesmith.nodeRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list]
{{- end }}

{{- /* For the Lease that decides which replica works, in the release's own namespace. */}}
{{- define "tunesmith.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [tunesmith-operator]
  verbs: [get, update]
# What is not there yet has no name that a role could tell.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
{{- end }}

{{- /* The operator, as a peer of NetworkPolicies in other namespaces. */}}
{{- define "tunesmith.operatorPeer" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .Release.Namespace }}
  podSelector:
    matchLabels:
      {{- include "tunesmith.selectorLabels" . | nindent 6 }}
{{- end }}

{{- /* Settings that decide what a resource becomes: of the operator, and of who shows it beforehand. */}}
{{- define "tunesmith.resourceSettings" -}}
- name: TUNESMITH_OPERATOR_IMAGE
  value: {{ include "tunesmith.image" (list . .Values.operatorImage) | quote }}
- name: TUNESMITH_TRAINER_IMAGE
  value: {{ include "tunesmith.image" (list . .Values.trainerImage) | quote }}
- name: TUNESMITH_ENGINE_IMAGE
  value: {{ include "tunesmith.image" (list . .Values.engineImage) | quote }}
- name: TUNESMITH_IMAGE_PULL_POLICY
  value: {{ .Values.imagePullPolicy | quote }}
- name: TUNESMITH_IMAGE_PULL_SECRETS
  value: {{ .Values.pods.imagePullSecrets | uniq | join "," | quote }}
- name: TUNESMITH_DEFAULT_STORE
  value: {{ .Values.defaultStore | quote }}
- name: TUNESMITH_FIXED_USER
  value: {{ .Values.fixedUser | quote }}
- name: TUNESMITH_GANG_SCHEDULER
  value: {{ .Values.gangScheduler | quote }}
{{- with .Values.prices }}
- name: TUNESMITH_PRICES
  value: {{ toJson . | quote }}
{{- end }}
{{- end }}
