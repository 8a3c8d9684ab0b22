{{- define "tsbouncer.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tsbouncer.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tsbouncer.labels" -}}
{{ include "tsbouncer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tsbouncer.secretName" -}}
{{- .Values.auth.existingSecret | default (printf "%s-userlist" (include "tsbouncer.name" .)) }}
{{- end }}

{{- /* A value in an ini. Numbers of values are floating: without int64, 1000000 becomes 1e+06. */ -}}
{{- define "tsbouncer.value" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else if kindIs "bool" . }}{{ ternary 1 0 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "tsbouncer.ini" -}}
[databases]
{{- range $name, $value := .Values.databases }}
{{ $name }} = {{ $value }}
{{- end }}

[users]
{{- range $name, $value := .Values.users }}
{{ $name }} = {{ $value }}
{{- end }}

[pgbouncer]
listen_addr = *
listen_port = 6432
unix_socket_dir =
auth_type = {{ .Values.auth.type }}
auth_file = /etc/pgbouncer/userlist.txt
{{- if .Values.auth.hba }}
auth_hba_file = /etc/pgbouncer/pg_hba.conf
{{- end }}
{{- if .Values.tls.existingSecret }}
client_tls_sslmode = {{ .Values.tls.sslmode }}
client_tls_key_file = /etc/pgbouncer-tls/tls.key
client_tls_cert_file = /etc/pgbouncer-tls/tls.crt
{{- if has .Values.tls.sslmode (list "verify-ca" "verify-full") }}
client_tls_ca_file = /etc/pgbouncer-tls/ca.crt
{{- end }}
{{- end }}
peers_dns = {{ include "tsbouncer.name" . }}-replicas.{{ .Release.Namespace }}.svc
metrics_addr = *
metrics_port = 9127
sigterm_shutdown = wait_for_transactions
shutdown_timeout = {{ int64 .Values.drain.timeout }}
drain_rate = {{ int64 .Values.drain.rate }}
{{- range $name, $value := .Values.settings }}
{{ $name }} = {{ include "tsbouncer.value" $value }}
{{- end }}
{{- end }}

{{- define "tsbouncer.userlist" -}}
{{- range $name, $secret := .Values.auth.users }}
"{{ $name | replace "\"" "\"\"" }}" "{{ $secret | replace "\"" "\"\"" }}"
{{- end }}
{{- end }}
