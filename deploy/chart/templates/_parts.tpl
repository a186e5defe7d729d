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
{{ toYaml $settings }}
{{- end }}
