{{/* What objects are called: as in the kustomize base where the release has the chart's name. */}}
{{- define "hook.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "hook.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "hook.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 12 | trimSuffix "-") (include "hook.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* The controller's Lease, which has a name of its own in the code. */}}
{{- define "hook.lease" -}}
{{- if .Values.variant }}{{ .Values.variant }}-{{ end }}at-least-semaphore-pod-hook
{{- end }}

{{- define "hook.prefix" -}}
{{- if .Values.variant }}{{ .Values.variant }}.{{ end }}at-least-semaphore-pod-hook.kaidotio.github.io
{{- end }}

{{- define "hook.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "hook.certificateSecret" -}}
{{- default (printf "%s-tls" (include "hook.fullname" .)) .Values.certificates.secretName -}}
{{- end }}

{{- define "hook.valkey" -}}
{{ include "hook.fullname" . }}-valkey
{{- end }}

{{- define "hook.valkeySecret" -}}
{{- default (include "hook.valkey" .) .Values.store.bundled.existingSecret -}}
{{- end }}

{{/* Named in full: sidecars use it too, from namespaces of their own. */}}
{{- define "hook.valkeyAddress" -}}
{{ printf "%s-0.%s.%s.svc:6379" (include "hook.valkey" .) (include "hook.valkey" .) .Release.Namespace }}
{{- end }}

{{/* By which pods are selected. Takes a list: the root, and the component. */}}
{{- define "hook.selector" -}}
app.kubernetes.io/name: {{ include "hook.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "hook.labels" -}}
app.kubernetes.io/part-of: at-least-semaphore-pod-hook
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Who runs nothing as root, and what a restricted namespace lets in. */}}
{{- define "hook.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "hook.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* A variable out of a Secret. Takes a list: the variable, and name and key. */}}
{{- define "hook.secretVariable" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ required (printf "%s: the Secret's name is missing" (index . 0)) (index . 1).name }}
      key: {{ required (printf "%s: the Secret's key is missing" (index . 0)) (index . 1).key }}
{{- end }}

{{/* The webhook's variables. */}}
{{- define "hook.environment" -}}
{{- $external := .Values.store.external -}}
{{- $bundled := eq .Values.store.mode "bundled" -}}
{{- $api := eq .Values.sidecar.mode "api" -}}
{{- with .Values.variant }}
- name: VARIANT
  value: {{ . }}
{{- end }}
{{- if $bundled }}
{{- $secret := include "hook.valkeySecret" . }}
{{- $address := include "hook.valkeyAddress" . }}
{{- include "hook.secretVariable" (list "STORE_PASSWORD" (dict "name" $secret "key" "webhook-password")) | nindent 0 }}
- name: AT_LEAST_SEMAPHORE_QUEUE_URL
  value: redis://webhook:$(STORE_PASSWORD)@{{ $address }}
- name: AT_LEAST_SEMAPHORE_REDIS_ADDRESSES
  value: redis://webhook:$(STORE_PASSWORD)@{{ $address }}
{{- if not $api }}
{{- include "hook.secretVariable" (list "STORE_SIDECAR_PASSWORD" (dict "name" $secret "key" "sidecar-password")) | nindent 0 }}
# A user with fewer rights: whoever may read an opted-in pod can read this one's password.
- name: AT_LEAST_SEMAPHORE_SIDECAR_QUEUE_URL
  value: redis://sidecar:$(STORE_SIDECAR_PASSWORD)@{{ $address }}
{{- end }}
{{- else }}
{{- with $external.queueUrlSecret }}
{{- include "hook.secretVariable" (list "AT_LEAST_SEMAPHORE_QUEUE_URL" .) | nindent 0 }}
{{- end }}
{{- with $external.redisAddressesSecret }}
{{- include "hook.secretVariable" (list "AT_LEAST_SEMAPHORE_REDIS_ADDRESSES" .) | nindent 0 }}
{{- end }}
{{- with $external.etcdAddressesSecret }}
{{- include "hook.secretVariable" (list "AT_LEAST_SEMAPHORE_ETCD_ADDRESSES" .) | nindent 0 }}
{{- end }}
{{- if not $api }}
{{- with $external.sidecarQueueUrlSecret }}
{{- include "hook.secretVariable" (list "AT_LEAST_SEMAPHORE_SIDECAR_QUEUE_URL" .) | nindent 0 }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $api (eq .Values.certificates.mode "secret") .Values.certificates.caBundle }}
- name: AT_LEAST_SEMAPHORE_PERMIT_AUTHORITIES
  value: {{ .Values.certificates.caBundle | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* What no schema can say in words. */}}
{{- define "hook.validate" -}}
{{- $external := .Values.store.external -}}
{{- if eq .Values.store.mode "external" -}}
{{- if not (or $external.queueUrl $external.queueUrlSecret) -}}
{{- fail "store.mode is external: name the store by store.external.queueUrl or store.external.queueUrlSecret" -}}
{{- end -}}
{{- if and $external.queueUrl $external.queueUrlSecret -}}
{{- fail "store.external.queueUrl and store.external.queueUrlSecret exclude each other" -}}
{{- end -}}
{{- if and (eq .Values.store.lockMode "redlock") (not (or $external.redisAddresses $external.redisAddressesSecret)) -}}
{{- fail "store.mode is external and store.lockMode redlock: name the servers by store.external.redisAddresses or store.external.redisAddressesSecret" -}}
{{- end -}}
{{- if and (eq .Values.store.lockMode "etcd") (not (or $external.etcdAddresses $external.etcdAddressesSecret)) -}}
{{- fail "store.mode is external and store.lockMode etcd: name the members by store.external.etcdAddresses or store.external.etcdAddressesSecret" -}}
{{- end -}}
{{- else if eq .Values.store.lockMode "etcd" -}}
{{- fail "store.lockMode etcd takes store.mode external: the bundled store is no etcd" -}}
{{- end -}}
{{- if and (or .Values.confirm .Values.fence) (not .Values.nativeSidecars) -}}
{{- fail "confirm and fence need nativeSidecars: only native sidecars hold main containers back" -}}
{{- end -}}
{{- if and (eq .Values.certificates.mode "secret") (not .Values.certificates.secretName) -}}
{{- fail "certificates.mode is secret: name the Secret with tls.crt and tls.key by certificates.secretName" -}}
{{- end -}}
{{- end }}
