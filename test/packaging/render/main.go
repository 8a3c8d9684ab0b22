// Renders a Helm chart as `helm template` does, for chart.test.ts: with Go's text/template, the sprig functions, and the
// library that validates values for Helm. Debian has all of these as packages, but not Helm.
//
//	render CHART [VALUES]    VALUES is a JSON file; prints the manifests
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/xeipuuv/gojsonschema"
	"sigs.k8s.io/yaml"
)

type object = map[string]interface{}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func readYaml(path string) object {
	text, err := os.ReadFile(path)
	check(err)
	data := object{}
	check(yaml.Unmarshal(text, &data))
	return data
}

// Lays values over defaults, as Helm does: maps are merged, and null removes a key.
func merge(defaults, values object) object {
	for key, value := range values {
		below, isMap := value.(object)
		base, hasMap := defaults[key].(object)
		if value == nil {
			delete(defaults, key)
		} else if isMap && hasMap {
			defaults[key] = merge(base, below)
		} else {
			defaults[key] = value
		}
	}
	return defaults
}

func validate(schema string, values object) {
	text, err := os.ReadFile(schema)
	check(err)
	result, err := gojsonschema.Validate(gojsonschema.NewBytesLoader(text), gojsonschema.NewGoLoader(values))
	check(err)
	for _, fault := range result.Errors() {
		fmt.Fprintf(os.Stderr, "values: %s\n", fault)
	}
	if !result.Valid() {
		os.Exit(1)
	}
}

func functions(t *template.Template) template.FuncMap {
	all := sprig.TxtFuncMap()
	// Helm removes them too
	delete(all, "env")
	delete(all, "expandenv")
	all["toYaml"] = func(value interface{}) string {
		text, err := yaml.Marshal(value)
		check(err)
		return strings.TrimSuffix(string(text), "\n")
	}
	all["include"] = func(name string, data interface{}) (string, error) {
		var text bytes.Buffer
		err := t.ExecuteTemplate(&text, name, data)
		return text.String(), err
	}
	all["required"] = func(message string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return value, fmt.Errorf(message)
		}
		return value, nil
	}
	return all
}

func main() {
	chart := os.Args[1]
	about := readYaml(filepath.Join(chart, "Chart.yaml"))
	values := readYaml(filepath.Join(chart, "values.yaml"))
	if len(os.Args) > 2 {
		values = merge(values, readYaml(os.Args[2]))
	}
	validate(filepath.Join(chart, "values.schema.json"), values)

	data := object{
		"Values":  values,
		"Chart":   object{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
		"Release": object{"Name": "pool", "Namespace": "data", "Service": "Helm", "IsInstall": true, "Revision": 1},
	}
	t := template.New("chart").Option("missingkey=zero")
	t.Funcs(functions(t))
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	check(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(err)
		_, err = t.New(filepath.Base(file)).Parse(string(text))
		check(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "_") {
			continue
		}
		var text bytes.Buffer
		check(t.ExecuteTemplate(&text, name, data))
		rendered := strings.ReplaceAll(text.String(), "<no value>", "")
		if name == "NOTES.txt" {
			rendered = "# " + strings.ReplaceAll(strings.TrimSpace(rendered), "\n", "\n# ")
		}
		if strings.TrimSpace(rendered) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, rendered)
		}
	}
}
