{{/* Names, labels and addresses. Everything of one release begins with its name. */}}

{{- define "weir.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "weir.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version -}}
{{- end }}

{{/* Of everything. */}}
{{- define "weir.labels" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "weir.chart" . }}
{{- end }}

{{- define "weir.gateway.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "weir.engine.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: engine
{{- end }}

{{- define "weir.isSidecar" -}}
{{- if eq .Values.topology "sidecar" }}true{{ end -}}
{{- end }}

{{/* Where the engine listens, as `python -m inference serve --listen` wants it. */}}
{{- define "weir.engine.listen" -}}
{{- if include "weir.isSidecar" . -}}
unix:/run/weir-backend/backend.sock
{{- else -}}
0.0.0.0:{{ .Values.engine.port }}
{{- end -}}
{{- end }}

{{/* The same place as the policy's `upstream`. */}}
{{- define "weir.engine.upstream" -}}
{{- if include "weir.isSidecar" . -}}
unix:/run/weir-backend/backend.sock
{{- else -}}
http://{{ include "weir.name" . }}-engine.{{ .Release.Namespace }}.svc:{{ .Values.engine.port }}
{{- end -}}
{{- end }}

{{- define "weir.image" -}}
{{ required "image.repository: which registry has Weir's image?" .Values.image.repository }}@{{ required "image.digest: pin the image, sha256:…" .Values.image.digest }}
{{- end }}

{{- define "weir.engine.image" -}}
{{ required "engine.image.repository: which engine?" .Values.engine.image.repository }}@{{ required "engine.image.digest: pin the image, sha256:…" .Values.engine.image.digest }}
{{- end }}
