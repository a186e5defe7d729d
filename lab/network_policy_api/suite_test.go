// Package suite is the conformance suite of sigs.k8s.io/network-policy-api.
//
// Upstream's own program applies its base manifests as they are. Containers in them serve SCTP, and
// end where the kernel has no SCTP, so the Pods never become ready and no test runs. This program
// leaves these containers out on such a kernel; everything else is upstream's.
package suite

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	api "sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/network-policy-api/conformance"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	timeouts "sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/flags"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
)

const baseManifests = "base/manifests.yaml"

var listTests = flag.Bool("list-tests", false, "Print the names of all tests, and run none")

func TestMain(m *testing.M) {
	flag.Parse()
	if *listTests {
		for _, test := range tests.ConformanceTests {
			fmt.Println(test.ShortName)
		}
		return
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	cluster, err := config.GetConfig()
	if err != nil {
		t.Fatalf("no kubeconfig: %v", err)
	}
	objects, err := client.New(cluster, client.Options{})
	if err != nil {
		t.Fatalf("no client: %v", err)
	}
	if err := api.Install(objects.Scheme()); err != nil {
		t.Fatalf("no scheme: %v", err)
	}
	options := suite.Options{
		Client:                     objects,
		ClientSet:                  kubernetes.NewForConfigOrDie(cluster),
		KubeConfig:                 *cluster,
		Debug:                      *flags.ShowDebug,
		CleanupBaseResources:       *flags.CleanupBaseResources,
		SupportedFeatures:          suite.ParseSupportedFeatures(*flags.SupportedFeatures),
		ExemptFeatures:             suite.ParseSupportedFeatures(*flags.ExemptFeatures),
		EnableAllSupportedFeatures: *flags.EnableAllSupportedFeatures,
		// Upstream's 10 s are too short where executing a command alone takes some seconds.
		TimeoutConfig: timeouts.TimeoutConfig{PokeTimeout: 30 * time.Second},
	}
	if !kernelHasSCTP() {
		t.Log("this kernel has no SCTP: the containers that serve it are left out")
		options.BaseManifests = served(t, withoutSCTP(t))
	}
	run := suite.New(options)
	run.Setup(t)
	run.Run(t, tests.ConformanceTests)
}

func kernelHasSCTP() bool {
	descriptor, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, syscall.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	syscall.Close(descriptor)
	return true
}

// withoutSCTP returns the base manifests, which are templates and so cannot be parsed as YAML, less
// each container whose environment tells agnhost to serve SCTP.
func withoutSCTP(t *testing.T) string {
	content, err := conformance.Manifests.ReadFile(baseManifests)
	if err != nil {
		t.Fatal(err)
	}
	nextPart := regexp.MustCompile(`(?m)^(        - name: |---$)`)
	text := string(content)
	starts := nextPart.FindAllStringIndex(text, -1)
	parts := []string{text[:starts[0][0]]}
	for i, start := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		if part := text[start[0]:end]; !strings.Contains(part, "SERVE_SCTP_PORT_") {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "")
}

// served returns a URL where the suite finds a manifest: it takes others than its own over HTTPS only.
func served(t *testing.T, manifest string) string {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, manifest)
	}))
	t.Cleanup(server.Close)
	http.DefaultClient = server.Client()
	return server.URL
}
