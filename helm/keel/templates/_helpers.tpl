{{- define "keel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select a component's pods: (list $ "gateway") */}}
{{- define "keel.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "keel.labels" -}}
{{- $root := index . 0 -}}
{{ include "keel.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* A container without privileges and with a root filesystem that can't be written. */}}
{{- define "keel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- define "keel.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $tagged := printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) -}}
image: {{ ternary (printf "%s@%s" $tagged $image.digest) $tagged (not (empty $image.digest)) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* An environment variable from a Secret: (list "NAME" "secret" "key") */}}
{{- define "keel.secretEnv" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef: { name: {{ index . 1 | quote }}, key: {{ index . 2 | quote }} }
{{- end -}}

{{/* A tree of settings as KEEL_ variables: (dict "prefix" "KEEL_" "tree" …) */}}
{{- define "keel.settingsEnv" -}}
{{- $prefix := .prefix -}}
{{- range $name, $value := .tree }}
{{- $key := printf "%s%s" $prefix (upper $name) }}
{{- if kindIs "map" $value }}
{{- include "keel.settingsEnv" (dict "prefix" (printf "%s__" $key) "tree" $value) }}
{{- else }}
- name: {{ $key }}
  {{- /* As JSON, since a large number would otherwise become 1e+07. */}}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "keel.vllmModel" -}}
{{- default .Values.vllm.model .Values.vllm.servedName -}}
{{- end -}}

{{- define "keel.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The egress rule for looking names up. */}}
{{- define "keel.dns" -}}
- to: {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports: [{ port: 53, protocol: UDP }, { port: 53, protocol: TCP }]
{{- end -}}

{{/* The port of a URL, its scheme's where it names none. */}}
{{- define "keel.urlPort" -}}
{{- $url := urlParse . -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) (regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host)) -}}
{{- end -}}

{{/* What can't work, said before anything is installed. */}}
{{- define "keel.check" -}}
{{- $v := .Values -}}
{{- if and $v.vllm.enabled $v.upstream.baseUrl -}}
{{- fail "vllm.enabled and upstream.baseUrl exclude one another: one of them is the engine" -}}
{{- end -}}
{{- if and (not $v.vllm.enabled) (not $v.upstream.baseUrl) -}}
{{- fail "there is no engine: set vllm.enabled with vllm.model, or upstream.baseUrl with upstream.model" -}}
{{- end -}}
{{- if and $v.vllm.enabled (not $v.vllm.model) -}}
{{- fail "vllm.model is empty: name a model on Hugging Face, or a path in the model cache" -}}
{{- end -}}
{{- if and $v.upstream.baseUrl (not $v.upstream.model) -}}
{{- fail "upstream.model is empty: what does the server call its model?" -}}
{{- end -}}
{{- if and $v.reward.enabled (not $v.reward.model) -}}
{{- fail "reward.model is empty" -}}
{{- end -}}
{{- $several := or $v.gateway.autoscaling.enabled (gt (int $v.gateway.replicas) 1) -}}
{{- if and $several (not $v.postgres.bundled) (not $v.postgres.urlSecret.name) -}}
{{- fail "several gateways need one store: set postgres.urlSecret, or postgres.bundled" -}}
{{- end -}}
{{- if and $several (not $v.redis.bundled) (not $v.redis.urlSecret.name) -}}
{{- fail "several gateways need shared limits: set redis.urlSecret, or redis.bundled" -}}
{{- end -}}
{{- if and $v.gateway.ingress.enabled (not $v.gateway.ingress.host) -}}
{{- fail "gateway.ingress.host is empty" -}}
{{- end -}}
{{- if and $v.vllm.multiNode.enabled (or (gt (int $v.vllm.replicas) 1) (lt (int $v.vllm.gpus) 1)) -}}
{{- fail "vllm.multiNode is one model over several nodes: it takes vllm.replicas 1 and GPUs" -}}
{{- end -}}
{{- end -}}

{{/* Peers of an egress rule; nothing means anywhere. */}}
{{- define "keel.cidrs" -}}
{{- if . -}}
to:
  {{- range . }}
  - ipBlock: { cidr: {{ . | quote }} }
  {{- end }}
{{- end -}}
{{- end -}}
