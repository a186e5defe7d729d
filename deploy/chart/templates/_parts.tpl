{{- /* The image of a container: repository with tag or digest. Takes [the values of a program, .]. */}}
{{- define "sluice.image" -}}
{{- $image := (index . 0).image -}}
{{- $root := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* The port of an address of settings.controller. Takes [address, the address if empty]. */}}
{{- define "sluice.port" -}}
{{ index . 0 | default (index . 1) | toString | regexFind "[0-9]+$" }}
{{- end }}

{{- /* How many controllers there are to be. Fails where no agent would know of one. */}}
{{- define "sluice.replicas" -}}
{{- $addresses := len ((.Values.settings.agent | default dict).controllers | default list) -}}
{{- if kindIs "invalid" .Values.controller.replicas -}}
{{ min 2 $addresses }}
{{- else if gt (int .Values.controller.replicas) $addresses -}}
{{- fail (printf "controller.replicas is %v, but settings.agent.controllers has %d: no agent would know a controller at another address; add the addresses of all nodes that may run one" .Values.controller.replicas $addresses) -}}
{{- else -}}
{{ .Values.controller.replicas }}
{{- end -}}
{{- end }}

{{- /* The namespace of the Lease by which controllers elect their leader. */}}
{{- define "sluice.leaseNamespace" -}}
{{ ((.Values.settings.controller | default dict).election | default dict).namespace | default .Release.Namespace }}
{{- end }}

{{- /* The configuration file. A namespace that is not given is the release's. */}}
{{- define "sluice.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $controller := $settings.controller | default dict -}}
{{- range $section := list "enrolment" "reports" -}}
{{- if hasKey $controller $section -}}
{{- $given := get $controller $section | default dict -}}
{{- $_ := set $controller $section (merge $given (dict "namespace" $.Release.Namespace)) -}}
{{- end -}}
{{- end -}}
{{- range $section := list "election" "bgp" -}}
{{- $given := get $controller $section | default dict -}}
{{- $_ := set $controller $section (merge $given (dict "namespace" $.Release.Namespace)) -}}
{{- end -}}
{{- $_ := set $settings "controller" $controller -}}
{{ toYaml $settings }}
{{- end }}
