// Command cyclonus runs the test cases of Cyclonus (github.com/mattfenwick/cyclonus).
//
// Upstream's own program executes `agnhost connect` once per connection through the API server: 324
// times per step, which takes most of its time. This program executes one shell script per client
// Pod and step; bash itself opens the connections. It also asks the API server at a higher rate than
// client-go's default of 5 requests per second. Cases, expected results and tables are upstream's.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"strconv"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	"github.com/mattfenwick/cyclonus/pkg/worker"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// ignoreLoopback: a Pod can always reach itself, which Cyclonus' own evaluation does not know.
const ignoreLoopback = true

var (
	namespaces = []string{"x", "y", "z"}
	pods       = []string{"a", "b", "c"}
	ports      = []int{80, 81}
	protocols  = []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP}

	list    = flag.Bool("list", false, "print the names of the cases, and run none")
	include = flag.String("include", "", "only cases with one of these tags, separated by commas")
	exclude = flag.String("exclude", "", "no cases with one of these tags")
	first   = flag.Int("first", 1, "the number of the first case; those before it do not run")
	wait    = flag.Int("wait", 5, "seconds from a change until it must be in force")
	timeout = flag.Int("timeout", 2, "seconds after which a connection counts as denied")
	junit   = flag.String("junit", "", "write a JUnit report to this file")
)

func main() {
	flag.Parse()
	tags := append(split(*include), split(*exclude)...)
	check(generator.ValidateTags(tags))
	if *list {
		for _, testCase := range casesFor("192.0.2.1") {
			fmt.Println(testCase.Description)
		}
		return
	}

	cluster := shellClient{connect()}
	resources, err := probe.NewDefaultResources(
		cluster, namespaces, pods, ports, protocols, nil, 180, false, "registry.k8s.io")
	check(err)
	target, err := resources.GetPod("z", "c")
	check(err)
	interpreter := connectivity.NewInterpreter(cluster, resources, &connectivity.InterpreterConfig{
		ResetClusterBeforeTestCase:       true,
		KubeProbeRetries:                 1,
		PerturbationWaitSeconds:          *wait,
		VerifyClusterStateBeforeTestCase: true,
		BatchJobs:                        true,
		IgnoreLoopback:                   ignoreLoopback,
	})
	printer := &connectivity.Printer{JunitResultsFile: *junit, IgnoreLoopback: ignoreLoopback}
	for _, testCase := range casesFor(target.IP) {
		fmt.Println("CASE", testCase.Description)
		result := interpreter.ExecuteTestCase(testCase)
		check(result.Err)
		printer.PrintTestCaseResult(result)
		state := "passed"
		for _, step := range result.Steps {
			if len(step.KubeProbes) > 1 && state == "passed" {
				state = "repeated" // a try was wrong, the next one was right
			}
			if !step.Passed(ignoreLoopback) {
				state = "failed"
			}
		}
		fmt.Println("RESULT", state)
	}
	printer.PrintSummary()
	for _, namespace := range namespaces {
		check(cluster.DeleteNamespace(namespace))
	}
}

func casesFor(address string) []*generator.TestCase {
	cases := generator.NewTestCaseGenerator(
		true, address, namespaces, split(*include), split(*exclude)).GenerateTestCases()
	return cases[min(max(*first, 1)-1, len(cases)):]
}

func split(tags string) []string {
	if tags == "" {
		return nil
	}
	return strings.Split(tags, ",")
}

func check(err error) {
	if err != nil {
		log.Fatalf("%+v", err)
	}
}

func connect() *kube.Kubernetes {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	check(err)
	config.QPS, config.Burst = 100, 100
	clients, err := kubernetes.NewForConfig(config)
	check(err)
	return &kube.Kubernetes{ClientSet: clients, RestConfig: config}
}

// shellClient does the work of Cyclonus' worker program, `/worker --jobs JSON`, with the shell of the
// agnhost image, which does not contain that program.
type shellClient struct {
	*kube.Kubernetes
}

func (c shellClient) ExecuteRemoteCommand(
	namespace, pod, container string, command []string,
) (string, string, error, error) {
	var batch worker.Batch
	check(json.Unmarshal([]byte(command[2]), &batch))
	shell := []string{"/bin/bash", "-c", script(batch.Requests)}
	stdout, stderr, commandErr, err := c.Kubernetes.ExecuteRemoteCommand(
		namespace, pod, container, shell)
	if commandErr != nil || err != nil {
		return stdout, stderr, commandErr, err
	}
	connected := map[int]bool{}
	for _, word := range strings.Fields(stdout) {
		number, err := strconv.Atoi(word)
		if err != nil {
			return stdout, stderr, fmt.Errorf("%s/%s printed %q", namespace, pod, stdout), nil
		}
		connected[number] = true
	}
	results := []*worker.Result{}
	for i, request := range batch.Requests {
		result := &worker.Result{Request: request}
		if !connected[i] {
			result.Error = "no connection"
		}
		results = append(results, result)
	}
	printed, err := json.Marshal(results)
	return string(printed), stderr, nil, err
}

// script returns a shell script that prints the numbers of the requests that succeed. It resolves all
// addresses, by their absolute names, and opens all connections at once.
func script(requests []*worker.Request) string {
	lines := []string{
		"TCP() { exec 3<>/dev/tcp/$1/$2; }",
		"UDP() { exec 3<>/dev/udp/$1/$2 && echo >&3 && read -n 1 -u 3; }",
		"address_of() { set -- $(getent ahostsv4 $1.); echo $1; }",
	}
	hosts := []string{}
	connections := map[string][]string{}
	for i, request := range requests {
		if connections[request.Host] == nil {
			hosts = append(hosts, request.Host)
		}
		connections[request.Host] = append(connections[request.Host], fmt.Sprintf(
			"  ( %s $address %d && echo %d ) &", request.Protocol, request.Port, i))
	}
	for _, host := range hosts {
		lines = append(lines, "( address=$(address_of "+host+") && [ $address ] || exit")
		lines = append(lines, connections[host]...)
		lines = append(lines, "  wait ) 2>/dev/null &")
	}
	lines = append(lines,
		fmt.Sprintf("for ((tenths = 0; tenths < %d; tenths++)); do", 10**timeout),
		"  [ -z \"$(jobs -rp)\" ] && exit; sleep 0.1",
		"done",
		"trap '' TERM; kill -- -$$") // all processes of this script but this one
	return strings.Join(lines, "\n")
}
