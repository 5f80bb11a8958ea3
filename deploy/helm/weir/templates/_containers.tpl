{{/* Containers that both topologies have. */}}

{{- define "weir.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
runAsNonRoot: true
{{- end }}

{{- define "weir.gateway.container" -}}
name: gateway
image: {{ include "weir.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve, --policy=/etc/weir/weir.yaml, --workers={{ .Values.gateway.workers }}]
workingDir: /var/lib/weir
{{- if .Values.gateway.ledgerSecretName }}
env:
  - {name: PGPASSFILE, value: /etc/weir-ledger/pgpass}
{{- end }}
ports:
  - {name: http, containerPort: 8080}
  - {name: admin, containerPort: 9090}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
resources: {{- toYaml .Values.gateway.resources | nindent 2 }}
securityContext:
  runAsUser: 64100
  runAsGroup: 64100
  {{- include "weir.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: state, mountPath: /var/lib/weir}
  - {name: policy, mountPath: /etc/weir, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.gateway.licenceSecretName }}
  - {name: licence, mountPath: /etc/weir-licence, readOnly: true}
  {{- end }}
  {{- if .Values.gateway.ledgerSecretName }}
  - {name: ledger-password, mountPath: /etc/weir-ledger, readOnly: true}
  {{- end }}
  {{- if .Values.gateway.filesConfigMapName }}
  - {name: files, mountPath: /etc/weir-files, readOnly: true}
  {{- end }}
  {{- if include "weir.isSidecar" . }}
  - {name: backend, mountPath: /run/weir-backend}
  {{- end }}
{{- end }}

{{- define "weir.gateway.volumes" -}}
- name: policy
  {{- if .Values.policy.secretName }}
  secret: {secretName: {{ .Values.policy.secretName }}, defaultMode: 0440}
  {{- else }}
  configMap: {name: {{ .Values.policy.configMapName | default (printf "%s-policy" (include "weir.name" .)) }}, defaultMode: 0440}
  {{- end }}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- if .Values.gateway.licenceSecretName }}
- name: licence
  secret: {secretName: {{ .Values.gateway.licenceSecretName }}, defaultMode: 0440}
{{- end }}
{{- if .Values.gateway.ledgerSecretName }}
- name: ledger-password
  secret: {secretName: {{ .Values.gateway.ledgerSecretName }}, defaultMode: 0440}
{{- end }}
{{- if .Values.gateway.filesConfigMapName }}
- name: files
  configMap: {name: {{ .Values.gateway.filesConfigMapName }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* The engine is hostile: what it may do is here, and what it may write is memory and a scratch directory. */}}
{{- define "weir.engine.container" -}}
name: engine
image: {{ include "weir.engine.image" . }}
imagePullPolicy: {{ .Values.engine.image.pullPolicy }}
command: {{- tpl (toYaml .Values.engine.command) . | nindent 2 }}
args: {{- tpl (toYaml .Values.engine.args) . | nindent 2 }}
{{- with .Values.engine.env }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not (include "weir.isSidecar" .) }}
ports:
  - {name: engine, containerPort: {{ .Values.engine.port }}}
{{- with .Values.engine.readinessPath }}
startupProbe:
  httpGet: {path: {{ . }}, port: engine}
  periodSeconds: 5
  failureThreshold: {{ div $.Values.engine.startupSeconds 5 }}
livenessProbe:
  tcpSocket: {port: engine}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: {{ . }}, port: engine}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
{{- end }}
resources: {{- toYaml .Values.engine.resources | nindent 2 }}
securityContext:
  runAsUser: 64101
  runAsGroup: 64101
  {{- include "weir.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: scratch, mountPath: /tmp}
  - {name: shared-memory, mountPath: /dev/shm}
  {{- if .Values.engine.modelClaimName }}
  - {name: model, mountPath: /models, readOnly: true}
  {{- end }}
  {{- if include "weir.isSidecar" . }}
  - {name: backend, mountPath: /run/weir-backend}
  {{- end }}
{{- end }}

{{- define "weir.engine.volumes" -}}
- name: scratch
  emptyDir: {sizeLimit: {{ .Values.engine.scratch }}}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.engine.sharedMemory }}}
{{- if .Values.engine.modelClaimName }}
- name: model
  persistentVolumeClaim: {claimName: {{ .Values.engine.modelClaimName }}, readOnly: true}
{{- end }}
{{- end }}

{{/* Runs where the engine will run, as the engine's user, and ends with 1 as long as there is a way out. */}}
{{- define "weir.doctor.container" -}}
name: doctor
image: {{ include "weir.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - doctor
  - --from=engine
  {{- if include "weir.isSidecar" . }}
  - --target=tcp:127.0.0.1:9090
  {{- end }}
  {{- with .Values.engine.doctor.arguments }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {memory: 256Mi}
securityContext:
  runAsUser: 64101
  runAsGroup: 64101
  {{- include "weir.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: scratch, mountPath: /tmp}
{{- end }}
