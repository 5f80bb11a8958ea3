{{/* What no schema can say. Helm refuses a release that has any of these. */}}
{{- define "weir.mistakes" -}}
{{- $policy := .Values.policy -}}
{{- if ne 1 (len (compact (list $policy.text $policy.configMapName $policy.secretName))) -}}
{{- fail "policy: exactly one of text, configMapName and secretName (set text to \"\" for the others)" -}}
{{- end -}}
{{- if and (gt (int .Values.gateway.replicas) 1) $policy.text (not (regexMatch "(?m)^ledger: *[\"']?postgresql://" $policy.text)) -}}
{{- fail "gateway.replicas: more than one takes `ledger: postgresql://…` in the policy; with SQLite each gateway would have all the budgets to itself" -}}
{{- end -}}
{{- end }}
